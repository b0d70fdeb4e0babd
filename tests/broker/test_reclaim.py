"""reclaim.lua: what a dead child held goes back, in order; an outage is not a death."""

from __future__ import annotations

import pytest

from taskq.broker import claims
from taskq.broker.claims import Reclaimed
from taskq.model.states import State
from tests.broker.queues import ADD, LEASE_MS, MAIL, TICK_MS, FullQueue, Queue, Worker


def test_the_messages_of_a_dead_child_go_back_in_order(queue: Queue) -> None:
    ids = queue.queued(5)
    worker = queue.worker()
    assert worker.claim(3) == ids[:3]
    assert queue.reclaim(worker) == 3
    assert queue.ready() == ids
    assert {queue.state(id) for id in ids} == {State.QUEUED}
    assert queue.call("ZCARD", "workers") == 0


def test_several_claims_go_back_in_order(queue: Queue) -> None:
    ids = queue.queued(6)
    worker = queue.worker()
    for _ in range(3):
        worker.claim(2)
    queue.reclaim(worker)
    assert queue.ready() == ids


def test_each_message_goes_back_to_its_lane(queue: Queue) -> None:
    worker = queue.worker()
    lanes = {
        f"{ADD}:9": queue.queued(2, priority=9),
        ADD: queue.queued(2),
        MAIL: queue.queued(2, MAIL),
    }
    assert len(worker.claim()) == 6
    queue.reclaim(worker)
    assert {lane: queue.ready(lane) for lane in lanes} == lanes


def test_a_message_taken_back_is_not_charged_for_it(queue: Queue) -> None:
    [id] = queue.queued()
    worker = queue.worker()
    worker.claim()
    queue.reclaim(worker)
    record = queue.record(id)
    assert (record.attempts, record.crashes, record.claims) == (0, 0, 1)


def test_label_and_history_survive(queue: Queue) -> None:
    one = queue.message(name="order-42", expires_ms=4_102_444_800_000)
    id = one.message.id
    queue.enqueue(one)
    first, second = queue.worker(), queue.worker()
    first.claim()
    first.finish(first.retry(id, history=b"its past"))
    second.claim()
    queue.reclaim(second)
    record = queue.record(id)
    assert (record.state, record.label, record.tail) == (State.QUEUED, one.label, b"its past")
    assert (record.attempts, record.claims) == (1, 2)


def test_the_bells_ring_for_what_went_back(queue: Queue) -> None:
    queue.queued()
    dead, alive = queue.worker(), queue.worker()
    dead.claim()
    queue.bells(alive)
    queue.reclaim(dead)
    assert queue.bells(alive) == "t"


def test_only_leases_that_ran_out_are_taken(queue: Queue) -> None:
    ids = queue.queued(2)
    dead, alive = queue.worker(), queue.worker()
    dead.claim(1)
    alive.claim(1)
    run_out(dead)
    assert queue.reclaim() == 1
    assert queue.ready() == ids[:1]
    assert alive.finish(alive.succeeded(ids[1])) == "k"


def test_reclaiming_again_takes_nothing(queue: Queue) -> None:
    queue.queued(2)
    worker = queue.worker()
    worker.claim()
    assert [queue.reclaim(worker), queue.reclaim(worker), queue.reclaim()] == [2, 0, 0]


def test_an_idle_child_leaves_nothing_behind(queue: Queue) -> None:
    worker = queue.worker()
    worker.claim()
    assert queue.reclaim(worker) == 0
    assert queue.call("EXISTS", "names") == 0
    assert queue.call("EXISTS", "seqs") == 0


def test_five_hundred_are_taken_back_in_one_call(queue: Queue) -> None:
    ids = queue.queued(1200)
    worker = queue.worker()
    worker.claim(1000)
    worker.claim(1000)
    command = claims.reclaim(queue.base, LEASE_MS, TICK_MS, worker.id)
    assert queue.run(command) == Reclaimed(500, left=True, suspects=0)
    queue.audit()
    # Another reaper may do the rest: it need not know which child it was.
    later = claims.reclaim(queue.base, LEASE_MS, TICK_MS)
    replies = [queue.run(later), queue.run(later)]
    assert [(reply.taken, reply.left) for reply in replies] == [(500, True), (200, False)]
    assert queue.ready() == ids


def test_a_child_that_came_back_under_its_name_loses_nothing(queue: Queue) -> None:
    """It is taken for dead once more before all that it held the first time is back."""
    ids = queue.queued(600)
    worker = queue.worker()
    assert len(worker.claim(600)) == 600
    once = claims.reclaim(queue.base, LEASE_MS, TICK_MS, worker.id)
    assert queue.run(once) == Reclaimed(500, left=True, suspects=0)
    worker.enrol()
    assert len(worker.claim(3)) == 3
    assert queue.reclaim(worker) == 103
    assert sorted(queue.ready()) == ids


def test_an_outcome_that_comes_meanwhile_counts(queue: Queue) -> None:
    """Its message waits to be taken back, and nobody else has it."""
    ids = queue.queued(501)
    worker = queue.worker()
    worker.claim(600)
    report = worker.succeeded(ids[0])
    queue.run(claims.reclaim(queue.base, LEASE_MS, TICK_MS, worker.id))
    assert queue.state(ids[0]) is State.RUNNING  # the oldest is taken back last
    assert worker.finish(report) == "k"
    queue.audit()
    queue.reclaim()
    assert queue.raw_record(ids[0]) == report.payload
    assert queue.ready() == ids[1:]


def test_a_timer_of_the_dead_is_free(queue: Queue) -> None:
    queue.schedule(queue.message(due="+60000"))
    dead, alive = queue.worker(), queue.worker()
    assert dead.exchange(threads=1).next_due is not None
    assert alive.exchange(threads=1).next_due is None
    queue.reclaim(dead)
    assert alive.exchange(threads=1).next_due is not None


class TestOutage:
    """Redis was away, or its clock jumped: workers get a lease's time to come back."""

    @pytest.fixture
    def dead(self, queue: Queue) -> Worker:
        """A worker that holds one message, its lease run out."""
        queue.queued()
        worker = queue.worker()
        worker.claim()
        run_out(worker)
        return worker

    def test_a_gap_in_the_ticks_holds_everything_for_a_lease(
        self, queue: Queue, dead: Worker
    ) -> None:
        last_tick(queue, queue.now_ms - 3 * TICK_MS - 1000)
        assert queue.reclaim() == 0
        assert LEASE_MS - 5000 < queue.call("PTTL", "hold") <= LEASE_MS
        # It holds on, though the ticks come in time again.
        assert queue.reclaim() == 0
        assert dead.renew() == "ok"

    def test_when_the_hold_is_over_the_dead_are_taken(self, queue: Queue, dead: Worker) -> None:
        last_tick(queue, 1)
        assert queue.reclaim() == 0
        queue.call("DEL", "hold")  # as it goes after a lease
        assert queue.reclaim() == 1

    def test_ticks_in_time_hold_nothing(self, queue: Queue, dead: Worker) -> None:
        last_tick(queue, queue.now_ms - 2 * TICK_MS)
        assert queue.reclaim() == 1

    def test_the_first_tick_ever_holds_nothing(self, queue: Queue, dead: Worker) -> None:
        assert queue.reclaim() == 1

    def test_a_clock_that_went_backwards_holds_too(self, queue: Queue, dead: Worker) -> None:
        last_tick(queue, queue.now_ms + 60_000)
        assert queue.reclaim() == 0
        assert queue.call("EXISTS", "hold") == 1

    def test_a_hold_of_a_clock_that_was_ahead_does_not_count(
        self, queue: Queue, dead: Worker
    ) -> None:
        queue.reclaim(queue.worker())
        queue.call("SET", "hold", queue.now_ms + 100 * LEASE_MS)
        assert queue.reclaim() == 1

    def test_a_child_known_to_be_dead_is_taken_at_once(self, queue: Queue, dead: Worker) -> None:
        last_tick(queue, 1)
        assert queue.reclaim(dead) == 1

    def test_no_lease_lasts_for_ever(self, queue: Queue, dead: Worker) -> None:
        """After a clock that was far ahead, a lease must still run out."""
        queue.call("ZADD", "workers", queue.now_ms + 1000 * LEASE_MS, dead.id)
        assert queue.reclaim() == 0
        left = int(queue.call("ZSCORE", "workers", dead.id)) - queue.now_ms
        assert 0 < left <= LEASE_MS


def test_a_day_without_any_worker_strands_nothing(queue: Queue) -> None:
    """The whole fleet died on Friday; on Monday a new worker takes all of it up."""
    held, *rest = queue.queued(3)
    dead = queue.worker()
    dead.claim(1)
    queue.pass_a_day()
    queue.call("ZADD", "workers", 1, dead.id)
    heir = queue.worker()
    queue.reclaim()
    assert heir.claim() == [held, *rest]


def test_a_queue_that_was_left_forgets_itself(queue: Queue) -> None:
    """All that stays when the work is done has an end."""
    ids = [*queue.queued(3), *queue.queued(3, MAIL, priority=9)]
    queue.enqueue(queue.message(expires_ms=1))
    queue.schedule(queue.message(due="1"))
    queue.call("LPUSH", f"ready:{ADD}", b"garbage")
    first, second = queue.worker(), queue.worker()
    assert len(first.claim()) == 7
    first.finish(first.refused(ids[0]), first.retry(ids[1]))
    first.renew()
    assert queue.reclaim(first) == 5
    while claimed := second.claim():
        second.finish(*map(second.succeeded, claimed))
    queue.reclaim()
    queue.reclaim(second)
    endless = [name for name, (_, ttl, _) in queue.dump().items() if ttl < 0]
    assert endless == []
    assert queue.call("EXISTS", "orphans") == 0


def test_old_groups_are_forgotten(queue: Queue) -> None:
    worker, gone = queue.worker(), queue.worker()
    queue.call("ZADD", "groups", 1, gone.digest)
    queue.reclaim()
    assert queue.call("ZRANGE", "groups", 0, -1) == [worker.digest.encode()]


def test_a_full_server_drains(full: FullQueue) -> None:
    ids = full.queued(3)
    dead, alive = full.worker(), full.worker()
    dead.claim()
    full.fill()
    assert full.reclaim(dead) == 3
    assert alive.claim() == ids
    full.make_room()
    run_out(alive)
    full.fill()
    assert full.reclaim() == 3
    full.audit()


def run_out(worker: Worker) -> None:
    """Let the lease of a worker have run out."""
    worker.queue.call("ZADD", "workers", 1, worker.id)


def last_tick(queue: Queue, at_ms: int) -> None:
    """Let the last tick of a reaper have been then."""
    queue.call("SET", "tick", at_ms)
