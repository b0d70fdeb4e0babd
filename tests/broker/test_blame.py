"""What a death has to do with the messages that ran: budgets, suspects, and innocents."""

from __future__ import annotations

import pytest

from taskq.broker import claims, commands, queries
from taskq.broker.claims import Blame
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, MAIL, FullQueue, Queue, Worker
from tests.broker.test_reclaim import run_out

REASON = "killed its process by SIGSEGV"
ALONE = f"!{ADD}"


def loner(queue: Queue) -> Worker:
    """Return a child for suspects: it knows tasks by the name where those wait."""
    return queue.worker({f"!{ADD}": "t", f"!{MAIL}": "t", f"!{CRAWL}": "c"})


def blame(worker: Worker, id: str, letter: str, budget: int = 3) -> Blame:
    return Blame(letter, worker.fields[id], budget, REASON)


def died_of(queue: Queue, *ids: str, letter: str = "k", budget: int = 3) -> Worker:
    """Let a worker claim all there is, and die of these."""
    worker = queue.worker()
    worker.claim()
    queue.reclaim(worker, *(blame(worker, id, letter, budget) for id in ids))
    return worker


class TestCulprit:
    def test_is_charged_and_handed_out_alone(self, queue: Queue) -> None:
        culprit, *rest = queue.queued(3)
        died_of(queue, culprit)
        record = queue.record(culprit)
        assert (record.state, record.crashes, record.attempts) == (State.QUEUED, 1, 0)
        assert queue.ready() == rest
        assert queue.ready(ALONE) == [culprit]
        assert queue.suspects == 1
        assert queue.worker().claim() == rest
        assert loner(queue).claim() == [culprit]

    def test_is_over_when_its_budget_is_used_up(self, queue: Queue) -> None:
        (id,) = queue.queued()
        news = queue.listen(id)
        died_of(queue, id)
        for crash in (2, 3):
            worker = loner(queue)
            assert worker.claim() == [id]
            queue.reclaim(worker, blame(worker, id, "k"))
            assert queue.record(id).crashes == crash
        record = queue.record(id)
        assert (record.letter, record.tail, record.attempts) == (b"k", REASON.encode(), 1)
        assert record.state is State.FAILED
        assert news() == queue.raw_record(id)
        assert 0 < queue.ttl(id) <= 86_400_000
        assert queue.call("ZSCORE", "dead", id) is not None
        assert REASON.encode() in queue.call("HGET", "dead:m", id)
        assert queue.ready(ALONE) == []

    def test_has_the_budget_that_is_named(self, queue: Queue) -> None:
        (id,) = queue.queued()
        died_of(queue, id, budget=1)
        assert queue.state(id) is State.FAILED

    def test_of_a_hard_limit_fails_at_once(self, queue: Queue) -> None:
        culprit, neighbour = queue.queued(2)
        worker = queue.worker()
        worker.claim()
        blames = (blame(worker, culprit, "t"), blame(worker, neighbour, "i"))
        queue.reclaim(worker, *blames)
        record = queue.record(culprit)
        assert (record.letter, record.crashes, record.attempts) == (b"t", 0, 1)
        assert queue.ready() == [neighbour]
        assert queue.record(neighbour).attempts == 0

    def test_keeps_its_history_and_its_priority(self, queue: Queue) -> None:
        (id,) = queue.queued(priority=9)
        worker = queue.worker()
        worker.claim()
        worker.finish(worker.retry(id))
        queue.fall_due()
        died_of(queue, id)
        assert queue.record(id).tail == b"history"
        assert queue.ready(f"{ALONE}:9") == [id]
        assert queue.record(id).attempts == 1

    def test_that_was_given_its_outcome_meanwhile_keeps_it(self, queue: Queue) -> None:
        (id,) = queue.queued()
        worker = queue.worker()
        worker.claim()
        assert worker.finish(worker.succeeded(id)) == "k"
        assert queue.reclaim(worker, blame(worker, id, "k", 1)) == 0
        assert queue.state(id) is State.SUCCEEDED

    def test_of_another_claim_is_not_charged(self, queue: Queue) -> None:
        """Its worker was taken for dead before, and somebody else runs it now."""
        (id,) = queue.queued()
        worker, heir = queue.worker(), queue.worker()
        worker.claim()
        queue.reclaim(worker)
        assert heir.claim() == [id]
        queue.reclaim(worker, blame(worker, id, "k", 1))
        assert queue.record(id).crashes == 0
        assert queue.state(id) is State.RUNNING


class TestSuspects:
    def test_are_handed_out_alone_and_not_charged(self, queue: Queue) -> None:
        ids = queue.queued(3)
        died_of(queue, *ids[:2], letter="s")
        assert queue.ready() == ids[2:]
        assert queue.ready(ALONE) == ids[:2]
        assert [queue.record(id).crashes for id in ids] == [0, 0, 0]
        assert queue.suspects == 2

    def test_that_fail_as_tasks_do_are_above_suspicion(self, queue: Queue) -> None:
        (id,) = queue.queued()
        died_of(queue, id, letter="s")
        worker = loner(queue)
        worker.claim()
        worker.finish(worker.retry(id))
        assert queue.record(id).suspect == 0
        queue.fall_due()
        assert queue.worker().claim() == [id]

    def test_that_are_given_back_stay_suspects(self, queue: Queue) -> None:
        (id,) = queue.queued()
        died_of(queue, id, letter="s")
        worker = loner(queue)
        worker.claim()
        worker.finish(worker.released(id))
        assert queue.ready(ALONE) == [id]

    def test_ring_for_children_with_one_slot_alone(self, queue: Queue) -> None:
        (id,) = queue.queued()
        other, alone = queue.worker(), loner(queue)
        worker = queue.worker()
        worker.claim()
        queue.bells(other)
        queue.reclaim(worker, blame(worker, id, "s"))
        assert (queue.bells(other), queue.bells(alone)) == ("", "t")

    def test_are_counted_and_purged_as_their_task(self, queue: Queue) -> None:
        (id,) = queue.queued()
        keep = queue.queued(1, MAIL)
        died_of(queue, id, letter="s")
        assert queue.survey().tasks[ADD].queued == 1
        while queue.run(commands.purge(queue.base, "purged", ADD))[1]:
            pass
        assert queue.state(id) is State.CANCELLED
        assert queue.ready(MAIL) == keep

    def test_are_known_when_only_their_children_live(self, queue: Queue) -> None:
        queue.queued()
        loner(queue)
        assert queue.survey().tasks[ADD].known

    def test_expire_as_others(self, queue: Queue) -> None:
        (id,) = queue.queued(expires_ms=1)
        queue.call("LPUSH", f"ready:{ALONE}", queue.call("RPOP", f"ready:{ADD}"))
        queue.call("ZADD", "lanes", 5, ALONE)
        queue.call("ZREM", "lanes", ADD)
        assert loner(queue).claim() == []
        assert queue.state(id) is State.EXPIRED

    def test_of_tasks_that_a_worker_does_not_know_are_not_its_concern(self, queue: Queue) -> None:
        (id,) = queue.queued()
        died_of(queue, id, letter="s")
        other = queue.worker({MAIL: "t"})
        queue.reclaim(other)
        assert queue.suspects == 0


class TestInnocents:
    def test_run_again_at_once_in_order(self, queue: Queue) -> None:
        culprit, *rest = queue.queued(5)
        worker = queue.worker()
        worker.claim(3)
        queue.reclaim(worker, blame(worker, culprit, "k"), blame(worker, rest[0], "i"))
        assert queue.ready() == rest
        assert [queue.record(id).crashes for id in rest] == [0] * 4

    def test_that_were_interrupted_twice_run_alone(self, queue: Queue) -> None:
        (id,) = queue.queued()
        died_of(queue, id, letter="i")
        assert queue.ready() == [id]
        died_of(queue, id, letter="i")
        assert queue.ready(ALONE) == [id]
        assert queue.record(id).crashes == 0

    def test_that_did_not_run_keep_no_trace(self, queue: Queue) -> None:
        (id,) = queue.queued()
        for _ in range(5):
            died_of(queue)
        assert (queue.record(id).suspect, queue.record(id).claims) == (0, 5)
        assert queue.ready() == [id]


class TestLostHosts:
    """Nobody tells what ran there."""

    def lose(self, queue: Queue, worker: Worker) -> None:
        worker.claim()
        run_out(worker)
        assert queue.reclaim() == 1

    def test_the_first_is_taken_for_chance(self, queue: Queue) -> None:
        (id,) = queue.queued()
        self.lose(queue, queue.worker())
        assert queue.ready() == [id]
        assert queue.record(id).suspect == 1

    def test_after_the_second_a_message_waits_and_runs_alone(self, queue: Queue) -> None:
        (id,) = queue.queued()
        self.lose(queue, queue.worker())
        self.lose(queue, queue.worker())
        assert queue.state(id) is State.RETRYING
        due = float(queue.call("ZSCORE", "scheduled", id)) - queue.now_ms
        assert 0 < due <= 5000
        queue.fall_due()
        assert queue.worker().claim() == []
        assert loner(queue).claim() == [id]
        record = queue.record(id)
        assert (record.crashes, record.attempts) == (0, 0)

    def test_a_message_does_not_lose_hosts_for_ever(self, queue: Queue) -> None:
        (id,) = queue.queued()
        lost = 0
        while queue.state(id) is not State.FAILED:
            queue.fall_due()
            worker = queue.worker() if lost < 2 else loner(queue)
            queue.worker().exchange()
            self.lose(queue, worker)
            lost += 1
        assert lost == 20
        assert queue.record(id).letter == b"k"

    def test_many_are_taken_back_in_order(self, queue: Queue) -> None:
        ids = queue.queued(1100)
        worker = queue.worker()
        worker.claim(1000)
        worker.claim(1000)
        run_out(worker)
        assert queue.reclaim() == 1100
        assert queue.ready() == ids


class TestRelease:
    def test_gives_back_in_order_what_is_held(self, queue: Queue) -> None:
        ids = queue.queued(4)
        worker = queue.worker()
        worker.claim(3)
        fields = [worker.fields[id] for id in ids[:2]]
        assert queue.run(claims.release(queue.base, worker.id, fields)) == 2
        assert queue.ready() == [*ids[:2], ids[3]]
        assert queue.record(ids[0]).claims == 1

    def test_twice_is_once(self, queue: Queue) -> None:
        (id,) = queue.queued()
        worker = queue.worker()
        worker.claim()
        command = claims.release(queue.base, worker.id, [worker.fields[id]])
        assert (queue.run(command), queue.run(command)) == (1, 0)
        assert queue.ready() == [id]

    def test_does_not_touch_what_ended_or_is_held_by_others(self, queue: Queue) -> None:
        over, moved = queue.queued(2)
        worker, heir = queue.worker(), queue.worker()
        worker.claim()
        worker.finish(worker.succeeded(over), worker.released(moved))
        assert heir.claim() == [moved]
        fields = [worker.fields[over], worker.fields[moved], b"x" * 42]
        assert queue.run(claims.release(queue.base, worker.id, fields)) == 0
        assert queue.state(over) is State.SUCCEEDED
        assert queue.state(moved) is State.RUNNING

    def test_the_child_s_own_end_of_it_comes_too_late_without_harm(self, queue: Queue) -> None:
        (id,) = queue.queued()
        worker, heir = queue.worker(), queue.worker()
        worker.claim()
        queue.run(claims.release(queue.base, worker.id, [worker.fields[id]]))
        assert heir.claim() == [id]
        assert worker.finish(worker.released(id)) == "l"
        assert heir.finish(heir.succeeded(id)) == "k"


@pytest.mark.parametrize("letter", ["k", "t", "s", "i"])
def test_a_full_server_drains(full: FullQueue, letter: str) -> None:
    (id,) = full.queued()
    dead = full.worker()
    dead.claim()
    full.fill()
    assert full.reclaim(dead, blame(dead, id, letter, 1)) == 1
    full.make_room()
    full.audit()


def test_a_release_works_on_a_full_server(full: FullQueue) -> None:
    (id,) = full.queued()
    busy = full.worker()
    busy.claim()
    full.fill()
    assert full.run(claims.release(full.base, busy.id, [busy.fields[id]])) == 1


def test_a_look_at_a_suspect_finds_its_task(queue: Queue) -> None:
    (id,) = queue.queued()
    died_of(queue, id, letter="s")
    queue.worker()
    assert queue.run(queries.look(queue.base, id, ADD)).known is True
