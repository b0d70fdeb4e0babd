"""cancel.lua and what comes of it: a message taken back, wherever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskq.broker import claims, commands, keys
from taskq.broker.claims import Order
from taskq.errors import BrokerError
from taskq.model.states import State
from tests.broker.queues import ADD, PROOF, FullQueue, Queue, Worker, order

WHY = "nobody wants it"


@pytest.fixture
def worker(queue: Queue) -> Worker:
    return queue.worker()


@pytest.fixture
def id(queue: Queue, worker: Worker) -> str:
    """A message that the worker holds."""
    [id] = queue.queued()
    assert worker.claim() == [id]
    return id


def is_cancelled(queue: Queue, id: str, words: str = WHY) -> bool:
    record = queue.record(id)
    return (record.letter, record.tail) == (b"c", words.encode())


class TestWaiting:
    def test_a_scheduled_message_is_gone_at_once(self, queue: Queue) -> None:
        one = queue.message(due="+60000", body=b"x" * 10_000)
        id = one.message.id
        queue.schedule(one)
        news = queue.listen(id)
        assert queue.cancel(id, WHY) == "cancelled"
        assert is_cancelled(queue, id)
        assert news() == queue.raw_record(id)
        assert 0 < queue.ttl(id) <= 86_400_000
        assert (queue.scheduled(), queue.survey().tasks) == ([], {})

    def test_so_is_one_that_waits_for_another_attempt(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        worker.finish(worker.retry(id, 60_000))
        assert queue.cancel(id, WHY) == "cancelled"
        assert is_cancelled(queue, id)
        assert queue.record(id).attempts == 1
        assert queue.scheduled() == []

    def test_a_queued_one_is_resolved_at_once_and_dropped_by_the_claim_that_meets_it(
        self, queue: Queue, worker: Worker
    ) -> None:
        first, id, last = queue.queued(3)
        news = queue.listen(id)
        assert queue.cancel(id, WHY) == "cancelled"
        assert is_cancelled(queue, id)
        assert news() == queue.raw_record(id)
        # I9: its bytes are in the list until a claim meets them.
        assert queue.ttl(id) == -1
        queue.audit()
        assert worker.claim() == [first, last]
        assert 0 < queue.ttl(id) <= 86_400_000

    def test_so_is_one_that_was_given_back(self, queue: Queue, worker: Worker, id: str) -> None:
        worker.finish(worker.released(id))
        assert queue.cancel(id, WHY) == "cancelled"
        assert (worker.claim(), worker.orders()) == ([], [])

    def test_a_purge_counts_it_no_more(self, queue: Queue) -> None:
        first, second = queue.queued(2)
        queue.cancel(first)
        assert queue.run(commands.purge(queue.base, "purged")) == (1, True)
        assert is_cancelled(queue, first, "")
        assert queue.ttl(first) > 0
        assert is_cancelled(queue, second, "purged")

    def test_a_label_stays(self, queue: Queue) -> None:
        """Else another task could be enqueued under its id."""
        one = queue.message(name="order-42")
        queue.enqueue(one)
        queue.cancel(one.message.id)
        assert queue.record(one.message.id).label == one.label
        assert queue.enqueue(queue.message("t.mail", name="order-42")) == "x"


class TestRunning:
    def test_its_worker_is_woken_and_told(self, queue: Queue, worker: Worker, id: str) -> None:
        assert queue.cancel(id, WHY) == "told"
        assert queue.state(id) is State.RUNNING
        wake = keys.wake("", "", worker.id.decode()).partition("}:")[2]
        assert queue.call("LRANGE", wake, 0, -1) == [b"1"]
        assert 0 < queue.call("PTTL", wake) <= 60_000
        assert worker.orders() == [Order(worker.fields[id], order(WHY))]

    def test_each_exchange_says_so_until_it_ends(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        assert not worker.exchange().summoned
        queue.cancel(id)
        assert worker.exchange().summoned
        assert worker.again().summoned
        other = queue.queued()
        reply = worker.exchange(threads=1)
        assert (reply.summoned, len(reply.claimed)) == (True, len(other))
        worker.finish(worker.cancelled(id))
        assert not worker.exchange().summoned

    def test_a_kind_that_is_left_is_still_told_apart(self, queue: Queue, worker: Worker) -> None:
        [id, *_] = queue.queued(5)
        worker.claim(1)
        queue.cancel(id)
        reply = worker.exchange(threads=1)
        assert (reply.more, reply.summoned) == ("t", True)
        assert (worker.again().more, worker.again().summoned) == ("t", True)

    def test_so_does_each_renewal(self, queue: Queue, worker: Worker, id: str) -> None:
        queue.cancel(id, WHY, terminate=True)
        assert worker.renewed().orders == [Order(worker.fields[id], order(WHY, terminate=True))]

    def test_its_end_is_recorded_and_published(self, queue: Queue, worker: Worker, id: str) -> None:
        queue.cancel(id, WHY)
        news = queue.listen(id)
        assert worker.finish(worker.cancelled(id, WHY.encode())) == "k"
        assert is_cancelled(queue, id)
        assert news() == queue.raw_record(id)
        assert queue.ttl(id) > 0
        assert worker.orders() == []

    @pytest.mark.parametrize("end", [Worker.succeeded, Worker.failed])
    def test_an_outcome_of_its_own_stands(
        self, queue: Queue, worker: Worker, id: str, end: Callable[..., claims.Finish]
    ) -> None:
        queue.cancel(id, WHY)
        finish = end(worker, id)
        assert worker.finish(finish) == "k"
        assert queue.raw_record(id) == finish.payload
        assert worker.orders() == []
        assert f"cancels:{worker.id.decode()}" not in queue.dump()

    @pytest.mark.parametrize("end", ["release", "retry"])
    def test_it_does_not_go_back(self, queue: Queue, worker: Worker, id: str, end: str) -> None:
        queue.cancel(id, WHY)
        news = queue.listen(id)
        finish = worker.released(id) if end == "release" else worker.retry(id, 0)
        reply = worker.exchange(finish, threads=5)
        assert (reply.verdicts, reply.claimed) == ("k", [])
        assert is_cancelled(queue, id)
        assert queue.record(id).attempts == (end == "retry")
        assert news() == queue.raw_record(id)
        assert (queue.ready(), queue.scheduled()) == ([], [])
        assert worker.again().verdicts == "k"

    def test_nor_when_its_worker_dies(self, queue: Queue, worker: Worker) -> None:
        neighbour, id = queue.queued(2)
        worker.claim()
        queue.cancel(id, WHY)
        news = queue.listen(id)
        assert queue.reclaim(worker) == 2
        assert is_cancelled(queue, id)
        assert news() == queue.raw_record(id)
        assert queue.ready() == [neighbour]
        assert f"cancels:{worker.id.decode()}" not in queue.dump()

    def test_nor_when_it_was_cancelled_while_it_was_being_taken_back(
        self, queue: Queue, worker: Worker
    ) -> None:
        """More than one call of reclaim is needed; the cancel comes between two."""
        ids = queue.queued(700)
        worker.claim(700)
        reclaim = claims.reclaim(queue.base, 15_000, 5_000, worker.id)
        assert queue.run(reclaim).taken == 500
        [left] = [id for id in ids if queue.state(id) is State.RUNNING][:1]
        assert queue.cancel(left, WHY) == "told"
        queue.reclaim(worker)
        assert is_cancelled(queue, left)
        assert len(queue.ready()) == 699

    def test_an_order_is_for_one_claim_alone(self, queue: Queue, worker: Worker, id: str) -> None:
        """The same message may come back to the same worker: by somebody else's will."""
        queue.cancel(id)
        worker.finish(worker.succeeded(id))
        queue.call("DEL", f"m:{id}")
        queue.enqueue(queue.message(id=id))
        assert worker.claim() == [id]
        assert worker.finish(worker.released(id)) == "k"
        assert queue.state(id) is State.QUEUED

    def test_a_silence_of_a_day_does_not_forget_it(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        queue.cancel(id, WHY)
        queue.pass_a_day()
        assert [one.id for one in worker.orders()] == [id.encode()]
        queue.reclaim(worker)
        assert is_cancelled(queue, id)

    def test_a_message_whose_bytes_redis_lost_is_resolved(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        queue.call("DEL", f"running:{worker.id.decode()}")
        assert queue.cancel(id, WHY) == "cancelled"
        assert is_cancelled(queue, id)

    def test_a_late_cancelled_end_counts_while_nobody_took_over(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        late = worker.cancelled(id, WHY.encode())
        queue.reclaim(worker)
        assert worker.exchange(late).verdicts == "k"
        assert is_cancelled(queue, id)
        assert queue.worker().claim() == []


class TestTwice:
    def test_a_repeat_says_the_same(self, queue: Queue, worker: Worker) -> None:
        [waits] = queue.queued()
        assert [queue.cancel(waits, WHY) for _ in range(3)] == ["cancelled"] * 3
        [runs] = queue.queued()
        assert worker.claim() == [runs]
        assert [queue.cancel(runs, WHY) for _ in range(3)] == ["told"] * 3
        assert len(worker.orders()) == 1

    def test_the_first_reason_stays(self, queue: Queue, worker: Worker, id: str) -> None:
        queue.cancel(id, "first")
        assert queue.cancel(id, "second") == "told"
        assert [one.reason for one in worker.orders()] == [b"first"]

    def test_a_second_call_may_ask_for_more_not_for_less(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        for terminate, reason in ((False, "first"), (True, "second"), (False, "third")):
            queue.cancel(id, reason, terminate=terminate)
        assert worker.orders() == [Order(worker.fields[id], order("second", terminate=True))]

    def test_what_asks_for_more_takes_the_place_of_the_whole_with_its_proof(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        first, second = order("first", proof=b"1" * 25), order(terminate=True, proof=b"2" * 25)
        for one in (first, second):
            queue.run(commands.cancel(queue.base, id, one))
        assert worker.orders() == [Order(worker.fields[id], second)]

    def test_what_is_over_stays_as_it_is(self, queue: Queue, worker: Worker, id: str) -> None:
        worker.finish(worker.succeeded(id))
        before = queue.dump()[f"m:{id}"]
        assert queue.cancel(id) == "over"
        assert queue.raw_record(id) == before[2]
        [other] = queue.queued()
        queue.cancel(other, "one reason")
        assert queue.cancel(other, "another reason") == "over"

    def test_an_id_that_redis_does_not_know(self, queue: Queue) -> None:
        assert queue.cancel("f" * 32) == "unknown"
        assert queue.keys() == []


class TestDisobeyed:
    def test_it_comes_no_more_and_is_counted_once(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        queue.cancel(id, WHY, terminate=True)
        [told] = worker.orders()
        assert [worker.disobey(told), worker.disobey(told)] == [1, 0]
        assert (worker.orders(), worker.exchange().summoned) == ([], False)
        assert queue.survey().counts == {"disobeyed": 1}
        assert worker.finish(worker.released(id)) == "k"
        assert queue.state(id) is State.QUEUED

    def test_one_that_has_taken_its_place_stays(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        queue.cancel(id, WHY)
        [told] = worker.orders()
        queue.cancel(id, WHY, terminate=True)
        assert worker.disobey(told) == 0
        assert [one.terminate for one in worker.orders()] == [True]
        assert queue.survey().counts == {}

    def test_others_stay(self, queue: Queue, worker: Worker) -> None:
        ids = queue.queued(3)
        worker.claim()
        for id in ids:
            queue.cancel(id)
        first, *others = worker.orders()
        assert worker.disobey(*others) == 2
        assert worker.orders() == [first]

    @pytest.mark.parametrize("bytes_", [b"", b"t", b"x" + PROOF, b"-" + PROOF[1:], b"T" + PROOF])
    def test_what_is_no_order_is_refused_and_nothing_is_changed(
        self, queue: Queue, id: str, bytes_: bytes
    ) -> None:
        before = queue.keys()
        with pytest.raises(BrokerError, match="not an order"):
            queue.run(commands.cancel(queue.base, id, bytes_))
        assert (queue.keys(), queue.state(id)) == (before, State.RUNNING)


def test_all_of_it_works_on_a_full_server(full: FullQueue) -> None:
    worker = full.worker()
    running, released, waiting = full.queued(3)
    later = full.message(due="+60000")
    full.schedule(later)
    worker.claim(2)
    full.fill()
    assert full.cancel(running, WHY) == full.cancel(released, WHY) == "told"
    assert full.cancel(waiting, WHY) == full.cancel(later.message.id, WHY) == "cancelled"
    assert len(worker.orders()) == 2
    full.cancel(running, terminate=True)
    [told] = [one for one in worker.orders() if one.terminate]
    assert worker.disobey(told) == 1
    assert worker.finish(worker.cancelled(running), worker.released(released)) == "kk"
    assert is_cancelled(full, released)
    full.audit()


def test_many_cancelled_ones_do_not_hide_one_that_is_not(queue: Queue, worker: Worker) -> None:
    ids = queue.queued(50)
    for id in ids[:-1]:
        queue.cancel(id)
    assert queue.survey().tasks[ADD].queued == 50
    assert worker.claim(1) == [ids[-1]] or worker.claim(1) == [ids[-1]]
    assert queue.survey().tasks[ADD].queued == 0
