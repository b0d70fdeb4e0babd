"""exchange.lua, the finishing half: how an attempt ends is recorded once, and published."""

from __future__ import annotations

import pytest

from taskq.broker.claims import Finish
from taskq.broker.queries import TaskSurvey
from taskq.model.states import State
from tests.broker.queues import ADD, MAIL, TTL_MS, Queue, Worker

HISTORY = b"\x00a signed history\xff"


@pytest.fixture
def worker(queue: Queue) -> Worker:
    return queue.worker()


@pytest.fixture
def id(queue: Queue, worker: Worker) -> str:
    """A message that the worker holds."""
    [id] = queue.queued()
    assert worker.claim() == [id]
    return id


class TestOutcome:
    def test_a_success_is_recorded_with_its_time_to_live(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        assert worker.finish(worker.succeeded(id, b"\x00report\xff", ttl_ms=70_000)) == "k"
        record = queue.record(id)
        assert (record.state, record.tail) == (State.SUCCEEDED, b"\x00report\xff")
        assert (record.attempts, record.claims, record.worker) == (1, 1, worker.id)
        assert 69_000 < queue.ttl(id) <= 70_000
        assert queue.call("EXISTS", f"running:{worker.id.decode()}") == 0

    def test_a_failure_too(self, queue: Queue, worker: Worker, id: str) -> None:
        assert worker.finish(worker.failed(id)) == "k"
        assert queue.state(id) is State.FAILED
        assert 0 < queue.ttl(id) <= TTL_MS

    def test_it_is_published(self, queue: Queue, worker: Worker, id: str) -> None:
        news = queue.listen(id)
        worker.finish(worker.succeeded(id))
        assert news() == queue.raw_record(id)

    @pytest.mark.parametrize(("size", "whole"), [(1024, True), (1025, False)])
    def test_a_large_one_is_published_by_its_letter(
        self, queue: Queue, worker: Worker, id: str, size: int, *, whole: bool
    ) -> None:
        news = queue.listen(id)
        worker.finish(worker.succeeded(id, b"x" * (size - 98)))
        record = queue.raw_record(id)
        assert record is not None
        assert len(record) == size
        assert news() == (record if whole else b"s")

    def test_many_end_and_begin_in_one_call(self, queue: Queue, worker: Worker) -> None:
        first = queue.queued(500)
        worker.claim(500)
        second = queue.queued(500)
        reply = worker.exchange(*map(worker.succeeded, first), threads=500)
        assert reply.verdicts == "k" * 500
        assert [raw[12:44].decode() for _, raw in reply.claimed] == second

    def test_an_end_that_was_never_begun_is_lost(self, queue: Queue, worker: Worker) -> None:
        [waiting] = queue.queued()
        worker.fields[waiting] = waiting.encode() + b"0000000001"
        ends = [
            worker.succeeded(waiting), worker.retry(waiting),
            worker.released(waiting), worker.refused(waiting),
        ]  # fmt: skip
        assert worker.finish(*ends) == "llll"
        assert queue.state(waiting) is State.QUEUED

    def test_an_end_of_what_redis_forgot_is_lost(self, queue: Queue, worker: Worker) -> None:
        nobody = "f" * 32
        worker.fields[nobody] = nobody.encode() + b"0000000001"
        assert worker.finish(worker.succeeded(nobody), worker.retry(nobody)) == "ll"
        assert queue.state(nobody) is State.UNKNOWN

    def test_a_missing_time_to_live_does_not_lose_the_message(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        """Redis refuses a TTL of 0: it must do so before the message is let go."""
        record = worker.succeeded(id).payload
        with pytest.raises(Exception, match="expire"):
            worker.finish(Finish("s", worker.fields[id], record))
        queue.reclaim(worker)
        assert queue.ready() == [id]


class TestRetry:
    def test_the_message_waits_with_its_history(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        before = queue.now_ms
        assert worker.finish(worker.retry(id, 60_000, HISTORY)) == "k"
        record = queue.record(id)
        assert (record.state, record.attempts, record.claims) == (State.RETRYING, 1, 1)
        assert HISTORY in record.tail
        assert queue.ttl(id) == -1
        due = int(queue.call("ZSCORE", "scheduled", id))
        assert before + 60_000 <= due <= queue.now_ms + 60_000
        assert queue.survey().tasks == {ADD: TaskSurvey(scheduled=1)}

    def test_it_comes_back_with_its_history(self, queue: Queue, worker: Worker, id: str) -> None:
        worker.finish(worker.retry(id, 60_000, HISTORY))
        queue.fall_due()
        assert worker.claim() == [id]
        record = queue.record(id)
        assert (record.attempts, record.claims, record.tail) == (1, 2, HISTORY)

    def test_it_comes_back_to_its_lane(self, queue: Queue, worker: Worker) -> None:
        [id] = queue.queued(1, MAIL, priority=9)
        worker.claim()
        worker.finish(worker.retry(id, 0))
        assert queue.ready(f"{MAIL}:9") == [id]

    def test_each_attempt_counts(self, queue: Queue, worker: Worker, id: str) -> None:
        for attempt in range(1, 5):
            worker.finish(worker.retry(id, 0, b"history %d" % attempt))
            assert queue.record(id).attempts == attempt
            worker.claim()
        assert worker.finish(worker.succeeded(id)) == "k"
        record = queue.record(id)
        assert (record.attempts, record.claims) == (5, 5)

    def test_a_history_may_be_long_or_missing(self, queue: Queue, worker: Worker, id: str) -> None:
        for history in (b"x" * 100_000, b"", b"\x00"):
            worker.finish(worker.retry(id, 0, history))
            worker.claim()
            assert queue.record(id).tail == history

    def test_nothing_is_published(self, queue: Queue, worker: Worker, id: str) -> None:
        news = queue.listen(id)
        worker.finish(worker.retry(id, 0))
        worker.claim()
        worker.finish(worker.succeeded(id))
        assert news()[:1] == b"s"  # the first that was heard


class TestRelease:
    def test_the_message_goes_back_uncounted(self, queue: Queue, worker: Worker, id: str) -> None:
        assert worker.finish(worker.released(id)) == "k"
        record = queue.record(id)
        assert (record.state, record.attempts, record.claims) == (State.QUEUED, 0, 1)
        assert queue.ready() == [id]

    def test_newest_first_keeps_the_order(self, queue: Queue, worker: Worker) -> None:
        ids = queue.queued(6)
        worker.claim(4)
        worker.finish(*(worker.released(id) for id in reversed(ids[:4])))
        assert queue.ready() == ids

    def test_each_goes_to_its_lane(self, queue: Queue, worker: Worker) -> None:
        urgent, normal = queue.queued(2, priority=9), queue.queued(2)
        worker.claim()
        worker.finish(*(worker.released(id) for id in (*reversed(normal), *reversed(urgent))))
        assert (queue.ready(f"{ADD}:9"), queue.ready()) == (urgent, normal)

    def test_a_released_message_may_be_claimed_in_the_same_call(
        self, queue: Queue, worker: Worker, id: str
    ) -> None:
        reply = worker.exchange(worker.released(id), threads=1)
        assert reply.verdicts == "k"
        assert [raw[12:44].decode() for _, raw in reply.claimed] == [id]
        assert worker.finish(worker.succeeded(id)) == "k"

    def test_others_are_woken(self, queue: Queue, worker: Worker, id: str) -> None:
        other = queue.worker()
        worker.finish(worker.released(id))
        assert queue.bells(other) == "t"

    def test_history_and_label_stay(self, queue: Queue, worker: Worker) -> None:
        one = queue.message(name="order-42", expires_ms=4_102_444_800_000)
        queue.enqueue(one)
        worker.claim()
        worker.finish(worker.retry(one.message.id, 0, HISTORY))
        worker.claim()
        worker.finish(worker.released(one.message.id))
        record = queue.record(one.message.id)
        assert (record.label, record.tail) == (one.label, HISTORY)


class TestRefusal:
    def test_the_message_is_set_aside(self, queue: Queue, worker: Worker) -> None:
        one = queue.message(MAIL, priority=3, body=b"\x00bytes")
        id = one.message.id
        queue.enqueue(one)
        worker.claim()
        news = queue.listen(id)
        assert worker.finish(worker.refused(id, b"bad signature")) == "k"
        record = queue.record(id)
        letter = queue.letters()[id]
        assert (letter.lane, letter.message, letter.record) == (one.lane, one.raw, record)
        assert (record.letter, record.state, record.tail) == (b"r", State.FAILED, b"bad signature")
        assert news() == queue.raw_record(id)
        assert queue.survey().counts == {"refused": 1}
