"""exchange.lua when replies are lost, requests come twice, and leases are gone.

A worker's exchanges are numbered. The last one may be repeated and gets the same reply;
an older one does nothing. A lost lease claims nothing; what was done under it counts as
long as nobody else took the message over.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskq.broker import commands
from taskq.broker.claims import Finish, Room
from taskq.model.states import State
from tests.broker.queues import ADD, FullQueue, Queue, Worker, ids

End = Callable[[Worker, str], Finish]
ENDS: dict[str, End] = {
    "success": Worker.succeeded,
    "failure": Worker.failed,
    "retry": lambda worker, id: worker.retry(id, 60_000),
    "release": Worker.released,
    "refusal": Worker.refused,
}
OUTCOMES = {name: ENDS[name] for name in ("success", "failure")}
ABSORBED = {name: ENDS[name] for name in ("retry", "release", "refusal")}
each_end = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
each_outcome = pytest.mark.parametrize("end", OUTCOMES.values(), ids=OUTCOMES)


class TestRepeat:
    def test_gets_the_same_messages(self, queue: Queue) -> None:
        expected = queue.queued(7)
        worker = queue.worker()
        first = worker.exchange(threads=5)
        again = worker.again()
        assert (again.word, sorted(ids(again))) == ("ok", expected[:5])
        assert {raw for _, raw in again.claimed} == {raw for _, raw in first.claimed}
        assert queue.ready() == expected[5:]

    def test_tells_the_same_counters(self, queue: Queue) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        worker.finish(worker.retry(id, 0))
        first = worker.exchange(threads=1)
        assert worker.again().claimed == first.claimed

    def test_brings_only_what_that_exchange_claimed(self, queue: Queue) -> None:
        queue.queued(2)
        worker = queue.worker()
        worker.claim(1)
        second = worker.claim(1)
        assert ids(worker.again()) == second

    def test_keeps_the_order(self, queue: Queue) -> None:
        expected = queue.queued(200)
        worker = queue.worker()
        assert worker.claim(200) == expected
        assert ids(worker.again()) == expected

    def test_names_the_kind_of_slot(self, queue: Queue) -> None:
        queue.queued(1, "t.crawl")
        worker = queue.worker()
        worker.exchange(coroutines=1)
        assert [head[:1] for head, _ in worker.again().claimed] == [b"c"]

    def test_tells_quick_tasks_apart_again(self, queue: Queue) -> None:
        queue.queued(3)
        worker = queue.worker()
        first = worker.exchange(threads=1, caps={ADD: 5})
        assert [head[:1] for head, _ in first.claimed] == [b"q"] * 3
        assert [head[:1] for head, _ in worker.again().claimed] == [b"q"] * 3

    def test_claims_nothing_more(self, queue: Queue) -> None:
        worker = queue.worker()
        worker.claim()
        waiting = queue.queued()
        assert worker.again().claimed == []
        assert queue.ready() == waiting

    def test_tells_the_next_due_time_again(self, queue: Queue) -> None:
        """Its worker holds the timer: nobody else watches."""
        queue.schedule(queue.message(due="+60000"))
        worker = queue.worker()
        first = worker.exchange(threads=1)
        assert worker.again().next_due == first.next_due

    def test_tells_again_that_more_is_left(self, queue: Queue) -> None:
        queue.queued(3)
        worker = queue.worker()
        first = worker.exchange(threads=1)
        assert worker.again().more == first.more == "t"

    @each_end
    def test_an_end_counts_once(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        news = queue.listen(id)
        first = worker.exchange(end(worker, id))
        before = (queue.raw_record(id), queue.ready(), queue.scheduled())
        assert worker.again().verdicts == first.verdicts == "k"
        assert (queue.raw_record(id), queue.ready(), queue.scheduled()) == before
        assert len(queue.letters()) == (end in (ENDS["failure"], ENDS["refusal"]))
        # Nor is it published again.
        queue.publish(id, b"the end")
        heard = [news()]
        while heard[-1] != b"the end":
            heard.append(news())
        assert len(heard) == (1 if end in (ENDS["retry"], ENDS["release"]) else 2)

    @pytest.mark.parametrize("end", ["release", "retry"])
    def test_the_verdict_is_the_same_though_the_message_went_on(
        self, queue: Queue, end: str
    ) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        finish = worker.released(id) if end == "release" else worker.retry(id, 0)
        first = worker.exchange(finish, threads=1)
        assert ids(first) == [id]
        again = worker.again()
        assert (again.verdicts, ids(again)) == (first.verdicts, [id])


def test_a_repeat_works_on_a_full_server(full: FullQueue) -> None:
    """Else what the first one claimed would be held by nobody."""
    ended, waiting = full.queued(2)
    worker = full.worker()
    worker.claim(1)
    worker.exchange(worker.succeeded(ended), threads=1)
    full.call("ZADD", "workers", full.now_ms + 1000, worker.id)  # time to renew the lease
    full.fill()
    again = worker.again()
    assert (again.word, again.verdicts, ids(again)) == ("ok", "k", [waiting])


@pytest.mark.parametrize("end", ["retry", "release", "refusal"])
def test_an_end_that_is_lost_works_on_a_full_server(full: FullQueue, end: str) -> None:
    [id] = full.queued()
    worker = full.worker()
    worker.claim()
    gone = ENDS[end](worker, id)
    worker.finish(worker.succeeded(id))
    full.fill()
    reply = worker.exchange(gone, threads=1)
    assert (reply.word, reply.verdicts) == ("ok", "k")


class TestOlder:
    def test_is_stale_and_does_nothing(self, queue: Queue) -> None:
        expected = queue.queued(4)
        worker = queue.worker()
        worker.claim(1)
        older = worker.last
        worker.claim(1)
        reply = queue.run(older)
        assert (reply.word, reply.verdicts, reply.claimed) == ("stale", "", [])
        assert queue.ready() == expected[2:]

    @each_end
    def test_ends_nothing(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        older = worker.command(1, [end(worker, id)], Room())
        worker.exchange()
        assert queue.run(older).word == "stale"
        assert queue.state(id) is State.RUNNING

    def test_a_delayed_duplicate_strands_nothing(self, queue: Queue) -> None:
        """It arrives when its worker has gone on, and when it is dead."""
        expected = queue.queued(6)
        worker = queue.worker()
        first = worker.claim(2)
        duplicate = worker.last
        worker.exchange(*map(worker.succeeded, first), threads=2)
        assert queue.run(duplicate).word == "stale"
        queue.reclaim(worker)
        assert queue.run(duplicate).word == "lost"
        assert queue.ready() == expected[2:]
        assert queue.call("EXISTS", f"running:{worker.id.decode()}") == 0


class TestLost:
    """The lease is gone, and the messages were taken back."""

    def test_claims_nothing(self, queue: Queue) -> None:
        waiting = queue.queued(3)
        worker = queue.worker()
        worker.claim(1)
        queue.reclaim(worker)
        reply = worker.exchange(threads=5)
        assert (reply.word, reply.claimed) == ("lost", [])
        assert queue.ready() == waiting
        assert queue.call("ZCARD", "workers") == 0

    def test_may_come_back_under_its_name(self, queue: Queue) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        queue.reclaim(worker)
        worker.enrol()
        assert worker.claim() == [id]
        assert worker.finish(worker.succeeded(id)) == "k"

    @each_outcome
    def test_an_outcome_counts_while_nobody_took_over(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        late = end(worker, id)
        queue.reclaim(worker)
        news = queue.listen(id)
        reply = worker.exchange(late)
        assert (reply.word, reply.verdicts) == ("lost", "k")
        assert queue.raw_record(id) == late.payload == news()
        # I9: its bytes are in the list until a claim meets them.
        assert (queue.ready(), queue.ttl(id)) == ([id], -1)
        assert queue.worker().claim() == []
        assert queue.raw_record(id) == late.payload
        assert queue.ttl(id) > 0

    @each_outcome
    def test_an_outcome_counts_while_its_retry_waits(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        late = end(worker, id)
        worker.finish(worker.retry(id, 60_000))
        assert worker.finish(late) == "k"
        assert queue.raw_record(id) == late.payload
        assert queue.scheduled() == []
        assert 0 < queue.ttl(id) <= 60_000

    @each_end
    def test_nothing_counts_once_another_claimed(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker, heir = queue.worker(), queue.worker()
        worker.claim()
        late = end(worker, id)
        queue.reclaim(worker)
        assert heir.claim() == [id]
        before = queue.raw_record(id)
        assert worker.finish(late) == "l"
        assert queue.raw_record(id) == before
        assert heir.finish(heir.succeeded(id)) == "k"

    @each_end
    def test_nothing_counts_though_the_other_gave_it_back(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker, heir = queue.worker(), queue.worker()
        worker.claim()
        late = end(worker, id)
        queue.reclaim(worker)
        heir.claim()
        heir.finish(heir.released(id))
        assert worker.finish(late) == "l"
        assert queue.state(id) is State.QUEUED

    @each_end
    def test_a_recorded_outcome_absorbs(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker, heir = queue.worker(), queue.worker()
        worker.claim()
        late = end(worker, id)
        queue.reclaim(worker)
        heir.claim()
        heir.finish(heir.succeeded(id, b"the one outcome"))
        before = queue.raw_record(id)
        assert worker.finish(late) == "l"
        assert queue.raw_record(id) == before

    @pytest.mark.parametrize("end", ABSORBED.values(), ids=ABSORBED)
    def test_any_other_end_changes_nothing(self, queue: Queue, end: End) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        late = end(worker, id)
        queue.reclaim(worker)
        before = queue.raw_record(id)
        assert worker.finish(late) == "k"
        assert (queue.raw_record(id), queue.ready()) == (before, [id])
        assert queue.call("EXISTS", "dead") == 0

    def test_an_outcome_does_not_undo_an_expiry(self, queue: Queue) -> None:
        one = queue.message(expires_ms=queue.now_ms + 60_000)
        id = one.message.id
        queue.enqueue(one)
        worker = queue.worker()
        worker.claim()
        late = worker.succeeded(id)
        queue.reclaim(worker)
        raw = queue.raw_record(id)
        assert raw is not None
        queue.call("SET", f"m:{id}", raw[:9] + b"%013d" % 1 + raw[22:])
        assert queue.run(commands.expire(queue.base, id)) == "ok"
        worker.finish(late)
        assert queue.state(id) is State.EXPIRED
