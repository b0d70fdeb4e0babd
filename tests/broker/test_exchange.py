"""exchange.lua, the claiming half: who gets which messages, in which order, and what is dropped.

The ends of attempts are in `test_finish.py`, repeats and lost leases in `test_repeat.py`.
"""

from __future__ import annotations

from collections import Counter

import pytest

from taskq.broker import commands, records
from taskq.broker.queries import TaskSurvey
from taskq.errors import BrokerFull
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, MAIL, FullQueue, Queue, Worker, ids

MEBIBYTE = 1 << 20
GARBAGE = [
    b"",
    b"x",
    b"not a message, but long enough to be one, if length were all that there is to it",
    b"TQ1b00000000" + b"no hex digits, although 32 bytes" + b"0" * 13 + b"t" * 16 + b"body",
    b"TQ1b00000000" + b"0" * 32 + b"0" * 13 + b"t" * 16,  # no envelope
]


class TestClaim:
    def test_oldest_first(self, queue: Queue) -> None:
        expected = queue.queued(5)
        worker = queue.worker()
        assert worker.claim(2) == expected[:2]
        assert worker.claim(2) == expected[2:4]
        assert queue.ready() == expected[4:]

    def test_a_first_claim_brings_no_record(self, queue: Queue) -> None:
        one = queue.message()
        queue.enqueue(one)
        worker = queue.worker()
        assert worker.exchange(threads=1).claimed == [(b"t", one.raw)]

    def test_what_is_claimed_is_running(self, queue: Queue) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        reply = worker.exchange(threads=1)
        record = queue.record(id)
        assert (record.state, record.worker, record.seq) == (
            State.RUNNING, worker.id, b"0000000001",
        )  # fmt: skip
        assert (record.attempts, record.crashes, record.claims) == (0, 0, 1)
        assert record.fence == reply.now_us
        fresh = records.fresh(reply.now_us, worker.id + b"0000000001")
        assert queue.raw_record(id) == b"R" + fresh
        assert queue.call("HLEN", f"running:{worker.id.decode()}") == 1

    def test_a_later_claim_brings_the_record(self, queue: Queue) -> None:
        [id] = queue.queued()
        first, second = queue.worker(), queue.worker()
        fence = first.exchange(threads=1).now_us
        first.finish(first.retry(id, history=b"\x00its past\xff"))
        [(head, _)] = second.exchange(threads=1).claimed
        record = records.parse(head[1:])
        assert head[:1] == b"t"
        assert (record.attempts, record.claims, record.tail) == (1, 2, b"\x00its past\xff")
        assert record.fence > fence
        assert head[1:] == queue.raw_record(id)

    def test_the_fence_grows_though_the_clock_went_back(self, queue: Queue) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        raw = queue.raw_record(id)
        assert raw is not None
        ahead = b"9000000000000000"
        queue.call("SET", f"m:{id}", raw[:40] + ahead + raw[56:])
        worker.finish(worker.released(id))
        worker.claim()
        assert queue.record(id).fence == int(ahead) + 1

    def test_nothing_is_claimed_without_room(self, queue: Queue) -> None:
        waiting = queue.queued(2)
        reply = queue.worker().exchange()
        assert reply.claimed == []
        assert reply.more == "t"
        assert queue.ready() == waiting

    def test_an_empty_queue_has_no_more(self, queue: Queue) -> None:
        reply = queue.worker().exchange(threads=5, coroutines=5)
        assert (reply.word, reply.more, reply.next_due, reply.claimed) == ("ok", "", None, [])

    def test_an_emptied_lane_is_closed_and_opened_again(self, queue: Queue) -> None:
        worker = queue.worker()
        for _ in range(3):
            [id] = queue.queued()
            assert worker.claim() == [id]
            assert queue.call("ZCARD", "lanes") == 0

    def test_two_workers_never_get_the_same(self, queue: Queue) -> None:
        expected = queue.queued(40)
        workers = [queue.worker() for _ in range(4)]
        got = [id for _ in range(5) for worker in workers for id in worker.claim(3)]
        assert got == expected


class TestRoom:
    """Threads and coroutines are claimed for apart."""

    def test_each_kind_has_its_own(self, queue: Queue) -> None:
        queue.queued(10, ADD)
        queue.queued(10, CRAWL)
        reply = queue.worker().exchange(threads=2, coroutines=3)
        assert Counter(head for head, _ in reply.claimed) == {b"t": 2, b"c": 3}
        assert set(reply.more) == {"t", "c"}

    def test_a_full_kind_does_not_stop_the_other(self, queue: Queue) -> None:
        queue.queued(10, ADD)
        crawls = queue.queued(3, CRAWL)
        reply = queue.worker().exchange(coroutines=5)
        assert ids(reply) == crawls
        assert reply.more == "t"

    def test_a_quick_task_may_come_beyond_the_slots(self, queue: Queue) -> None:
        queue.queued(10, ADD)
        queue.queued(10, MAIL)
        worker = queue.worker()
        claimed = worker.exchange(threads=2, caps={ADD: 5}).claimed
        lanes = Counter(raw.count(b"t.add") for _, raw in claimed)
        assert lanes == {1: 6, 0: 1}  # 1 + 5 of the quick one, 1 of the other

    def test_a_cap_needs_no_slot(self, queue: Queue) -> None:
        expected = queue.queued(10)
        assert queue.worker().claim(0, caps={ADD: 4}) == expected[:4]

    def test_a_cap_is_for_one_task(self, queue: Queue) -> None:
        queue.queued(10, MAIL)
        assert queue.worker().claim(0, caps={ADD: 4}) == []

    def test_a_cap_is_shared_by_the_lanes_of_its_task(self, queue: Queue) -> None:
        queue.queued(10, ADD, priority=9)
        queue.queued(10, ADD)
        assert len(queue.worker().claim(0, caps={ADD: 4})) == 4

    def test_at_most_a_thousand_at_a_time(self, queue: Queue) -> None:
        expected = queue.queued(1000) + queue.queued(200)
        worker = queue.worker()
        reply = worker.exchange(threads=5000)
        assert (ids(reply), reply.more) == (expected[:1000], "t")
        assert worker.claim(5000) == expected[1000:]

    def test_at_most_four_mebibytes_at_a_time(self, queue: Queue) -> None:
        outgoing = queue.messages(6, body=b"x" * MEBIBYTE)
        for _, command in commands.send(queue.base, outgoing):
            queue.run(command)
        expected = [one.message.id for one in outgoing]
        worker = queue.worker()
        reply = worker.exchange(threads=100)
        assert (ids(reply), reply.more) == (expected[:4], "t")
        assert queue.ready() == expected[4:]
        assert worker.claim() == expected[4:]

    def test_one_that_is_larger_than_that_passes(self, queue: Queue) -> None:
        one = queue.message(body=b"x" * 5 * MEBIBYTE)
        queue.enqueue(one)
        small = queue.queued()
        worker = queue.worker()
        assert worker.claim() == [one.message.id]
        assert worker.claim() == small


class TestOrder:
    """Priority first; lanes of one priority share."""

    def test_nine_is_served_first(self, queue: Queue) -> None:
        by_priority = {p: queue.queued(1, priority=p) for p in (0, 5, 9, 3, 7)}
        claimed = queue.worker().claim()
        assert claimed == [id for p in (9, 7, 5, 3, 0) for id in by_priority[p]]

    def test_what_is_urgent_overtakes(self, queue: Queue) -> None:
        queue.queued(20)
        worker = queue.worker()
        worker.claim(5)
        urgent = queue.queued(2, MAIL, priority=9)
        assert worker.claim(5)[:2] == urgent

    def test_lanes_share_one_claim(self, queue: Queue) -> None:
        adds, mails = queue.queued(100, ADD), queue.queued(100, MAIL)
        claimed = set(queue.worker().claim(10))
        assert claimed == {*adds[:5], *mails[:5]}

    def test_lanes_take_turns(self, queue: Queue) -> None:
        queue.queued(20, ADD)
        queue.queued(20, MAIL)
        worker = queue.worker()
        assert served(worker, 10) == {ADD: 5, MAIL: 5}

    def test_a_lane_alone_takes_all(self, queue: Queue) -> None:
        expected = queue.queued(20)
        assert queue.worker().claim(20) == expected

    def test_a_new_lane_does_not_starve_an_old_one(self, queue: Queue) -> None:
        queue.queued(400, ADD)
        worker = queue.worker()
        served(worker, 60, 5)
        queue.queued(100, MAIL)
        assert even(served(worker, 40))

    def test_an_old_lane_does_not_starve_a_new_one(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(400, ADD)
        served(worker, 60, 5)
        queue.queued(100, MAIL)
        assert even(served(worker, 40, 5))

    def test_a_lane_saves_up_nothing_while_it_is_empty(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(1, MAIL)
        queue.queued(400, ADD)
        served(worker, 60, 5)
        queue.queued(100, MAIL)
        assert even(served(worker, 40))

    def test_a_priority_that_was_served_little_does_not_set_back_another(
        self, queue: Queue
    ) -> None:
        worker = queue.worker()
        queue.queued(20, CRAWL)
        queue.queued(400, ADD, priority=9)
        served(worker, 60, 5)
        worker.claim(0, coroutines=4)
        queue.queued(100, MAIL, priority=9)
        assert even(served(worker, 40))

    def test_a_priority_that_was_served_much_does_not_hold_another_back(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(100, MAIL)
        served(worker, 5)
        queue.queued(300, ADD, priority=9)
        served(worker, 60, 5)
        queue.queued(100, ADD)  # new at the priority of MAIL, where little was served
        assert even(served(worker, 40))


class TestUnknownTasks:
    """A worker takes only what it knows: the rest waits for one that does."""

    def test_stay_where_they_are(self, queue: Queue) -> None:
        waiting, known = queue.queued(3, MAIL), queue.queued(2, ADD)
        worker = queue.worker({ADD: "t"})
        reply = worker.exchange(threads=10)
        assert (ids(reply), reply.more) == (known, "")
        assert queue.ready(MAIL) == waiting
        assert queue.worker({MAIL: "t"}).claim() == waiting

    def test_are_no_reason_to_ring(self, queue: Queue) -> None:
        worker = queue.worker({ADD: "t"})
        queue.queued(3, MAIL)
        worker.claim()
        assert queue.bells(worker) == ""

    def test_do_not_take_room(self, queue: Queue) -> None:
        queue.queued(50, MAIL, priority=9)
        known = queue.queued(5, ADD)
        assert queue.worker({ADD: "t"}).claim(5) == known

    def test_do_not_hide_known_ones_however_many_they_are(self, queue: Queue) -> None:
        for first in (0, 600):
            queue.enqueue(*(queue.message(f"t.z{n}") for n in range(first, first + 600)))
        known = queue.queued(1, ADD)
        assert queue.worker({ADD: "t"}).claim() == known


class TestDropped:
    """What must not run is taken out on the way, and whoever waits for it is told."""

    def test_an_expired_message(self, queue: Queue) -> None:
        late, fresh = queue.message(expires_ms=1), queue.message(expires_ms=4_102_444_800_000)
        queue.enqueue(late, fresh)
        news = queue.listen(late.message.id)
        assert queue.worker().claim() == [fresh.message.id]
        assert queue.state(late.message.id) is State.EXPIRED
        assert 0 < queue.ttl(late.message.id) <= 86_400_000
        assert news() == queue.raw_record(late.message.id)
        assert queue.survey().counts == {"expired": 1}

    def test_an_expired_retry_keeps_its_counters(self, queue: Queue) -> None:
        one = queue.message(expires_ms=queue.now_ms + 60_000)
        id = one.message.id
        queue.enqueue(one)
        worker = queue.worker()
        worker.claim()
        worker.finish(worker.retry(id, delay_ms=60_000))
        # Its time comes when its expiry has passed.
        late = queue.message(id=id, expires_ms=1)
        raw = queue.raw_record(id)
        assert raw is not None
        queue.call("SET", f"m:{id}", raw.replace(one.raw, late.raw))
        queue.fall_due()
        assert worker.claim() == []
        record = queue.record(id)
        assert (record.state, record.attempts, record.claims) == (State.EXPIRED, 1, 1)

    def test_expired_ones_take_no_room(self, queue: Queue) -> None:
        queue.enqueue(*queue.messages(30, expires_ms=1))
        alive = queue.queued(3)
        assert queue.worker().claim(3) == alive

    def test_one_that_was_resolved_while_it_was_queued(self, queue: Queue) -> None:
        one = queue.message(expires_ms=1)
        queue.enqueue(one)
        assert queue.run(commands.expire(queue.base, one.message.id)) == "ok"
        assert queue.ttl(one.message.id) == -1  # its bytes are still in the list
        assert queue.worker().claim() == []
        assert 0 < queue.ttl(one.message.id) <= 86_400_000
        assert queue.survey().counts == {"expired": 1}

    def test_many_of_them_do_not_hold_redis_up(self, queue: Queue) -> None:
        for _ in range(2):
            queue.enqueue(*queue.messages(600, expires_ms=1))
        alive = queue.queued()
        worker = queue.worker()
        reply = worker.exchange(threads=1)
        assert (reply.claimed, reply.more) == ([], "t")
        assert len(queue.ready()) == 201
        assert worker.claim(1) == alive

    @pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
    def test_garbage_is_set_aside(self, queue: Queue, garbage: bytes) -> None:
        first, last = queue.queued(2)
        queue.call("LREM", f"ready:{ADD}", 0, queue.call("LINDEX", f"ready:{ADD}", 0))
        queue.call("LPUSH", f"ready:{ADD}", garbage)
        queue.enqueue(queue.message())
        assert first in queue.worker().claim()
        [letter] = queue.letters().values()
        assert (letter.lane, letter.message) == (ADD, garbage)
        assert (letter.record.letter, letter.record.tail) == (b"r", b"not a taskq message")
        assert queue.survey().counts == {"refused": 1}
        queue.call("DEL", f"m:{last}")  # the test threw its message away

    def test_nothing_but_garbage(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued()
        worker.claim()
        queue.queued()
        queue.call("LPUSH", f"ready:{ADD}", *GARBAGE)
        assert len(worker.claim()) == 1
        assert queue.call("ZCARD", "dead") == queue.call("HLEN", "dead:m") == len(GARBAGE)
        assert queue.ready() == []

    def test_a_message_without_a_record_runs_and_is_counted(self, queue: Queue) -> None:
        lost, other = queue.queued(2)
        queue.call("DEL", f"m:{lost}")
        worker = queue.worker()
        assert worker.claim() == [lost, other]
        assert queue.state(lost) is State.RUNNING
        assert queue.survey().counts == {"unrecorded": 1}
        assert worker.finish(worker.succeeded(lost)) == "k"

    def test_a_copy_of_a_running_message(self, queue: Queue) -> None:
        one = queue.message()
        queue.enqueue(one)
        worker = queue.worker()
        worker.claim()
        queue.queued()
        queue.call("RPUSH", f"ready:{ADD}", one.raw)
        assert one.message.id not in worker.claim()
        assert worker.finish(worker.succeeded(one.message.id)) == "k"

    def test_a_copy_in_the_same_list(self, queue: Queue) -> None:
        one = queue.message()
        queue.enqueue(one)
        queue.call("RPUSH", f"ready:{ADD}", one.raw)
        assert queue.worker().claim() == [one.message.id]


class TestBells:
    def test_work_that_is_left_wakes_another_worker(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(3)
        queue.bells(worker)
        worker.claim(1)
        assert queue.bells(worker) == "t"

    def test_also_when_nothing_was_taken(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(3)
        queue.bells(worker)
        worker.claim(0)
        assert queue.bells(worker) == "t"

    def test_only_the_kind_that_is_left(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(3, ADD)
        queue.queued(3, CRAWL)
        queue.bells(worker)
        worker.claim(3, coroutines=1)
        assert queue.bells(worker) == "c"

    def test_a_queue_that_was_emptied_is_silent(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(3)
        queue.bells(worker)
        worker.claim(3)
        assert queue.bells(worker) == ""


class TestTimer:
    """One worker watches for the next due time; the others need not wake for it."""

    def test_the_first_that_asks_watches(self, queue: Queue) -> None:
        due = queue.now_ms + 60_000
        queue.schedule(queue.message(due=str(due)))
        first, second = queue.worker(), queue.worker()
        assert first.exchange(threads=1).next_due == due
        assert second.exchange(threads=1).next_due is None
        assert first.exchange(threads=1).next_due == due
        assert 59_000 < queue.call("PTTL", "timer") <= 60_100

    def test_when_the_watch_is_over_another_may_have_it(self, queue: Queue) -> None:
        queue.schedule(queue.message(due="+60000"))
        first, second = queue.worker(), queue.worker()
        first.claim()
        queue.call("DEL", "timer")  # as it goes when its time is over
        assert second.exchange(threads=1).next_due is not None
        assert first.exchange(threads=1).next_due is None

    def test_a_retry_that_is_due_earlier_is_watched_for(self, queue: Queue) -> None:
        [id] = queue.queued()
        queue.schedule(queue.message(due="+3600000"))
        watching, retrying = queue.worker(), queue.worker()
        assert watching.exchange(coroutines=1).next_due is not None
        retrying.claim()
        queue.bells(watching)
        reply = retrying.exchange(retrying.retry(id, delay_ms=2000), threads=1)
        # Either it watches itself, or the one that does is woken.
        assert reply.next_due is not None or queue.bells(watching)

    def test_who_has_no_room_does_not_watch(self, queue: Queue) -> None:
        """It would not claim when the time has come."""
        queue.schedule(queue.message(due="+60000"))
        busy, free = queue.worker(), queue.worker()
        busy.exchange()
        assert free.exchange(threads=1).next_due is not None

    def test_nor_does_who_filled_its_last_slot(self, queue: Queue) -> None:
        queue.schedule(queue.message(due="+60000"))
        queue.queued()
        busy, free = queue.worker(), queue.worker()
        assert len(busy.claim(1)) == 1
        assert free.exchange(threads=1).next_due is not None


def test_a_full_server_drains(full: FullQueue) -> None:
    names = ("success", "failure", "retry", "release", "refusal")
    worker = full.worker()
    waiting = full.queued(len(names)) + full.queued(5)
    full.fill()
    claimed = worker.claim(len(names))
    ends = [
        end(id)
        for end, id in zip(
            (worker.succeeded, worker.failed, worker.retry, worker.released, worker.refused),
            claimed,
            strict=True,
        )
    ]
    reply = worker.exchange(*ends, threads=3)
    assert (reply.word, reply.verdicts, len(reply.claimed)) == ("ok", "kkkkk", 3)
    assert worker.renew() == "ok"
    with pytest.raises(BrokerFull):
        full.enqueue(full.message())
    full.audit()
    claimed = ids(reply)
    while claimed:
        worker.finish(*map(worker.succeeded, claimed))
        claimed = worker.claim()
    assert full.ready() == []
    assert len(full.records()) == len(waiting)


@pytest.mark.parametrize("count", [b"999999", b"999998"])
def test_counters_stop_where_their_field_is_full(queue: Queue, count: bytes) -> None:
    """A task that is retried every ten seconds, for ever, gets there in four months."""
    [id] = queue.queued()
    worker = queue.worker()
    worker.claim()
    raw = queue.raw_record(id)
    assert raw is not None
    # attempts and claims
    queue.call("SET", f"m:{id}", raw[:22] + count + raw[28:34] + count + raw[40:])
    worker.finish(worker.retry(id))
    worker.claim()
    worker.finish(worker.retry(id))
    worker.claim()
    record = queue.record(id)
    assert (record.worker, record.attempts, record.claims) == (worker.id, 999999, 999999)
    worker.finish(worker.succeeded(id))
    assert queue.record(id).tail == b"report"


def test_what_is_claimed_is_surveyed_as_running(queue: Queue) -> None:
    queue.queued(3)
    queue.worker().claim(2)
    assert queue.survey().tasks == {ADD: TaskSurvey(queued=1, running=2)}


def even(counts: Counter[str]) -> bool:
    """Tell whether each of two tasks got its half, give or take a batch of five."""
    half = counts.total() / 2
    return len(counts) == 2 and all(abs(count - half) <= 5 for count in counts.values())


def served(worker: Worker, times: int, each: int = 1) -> Counter[str]:
    """Claim so many times; return how many messages of each task that brought."""
    tasks = {b"t.add": ADD, b"t.mail": MAIL, b"t.crawl": CRAWL}
    counts: Counter[str] = Counter()
    for _ in range(times):
        for _, raw in worker.exchange(threads=each).claimed:
            counts[next(task for name, task in tasks.items() if name in raw)] += 1
    return counts
