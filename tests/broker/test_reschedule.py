"""reschedule.lua: a message that waits gets another time, sooner or later."""

from __future__ import annotations

import msgspec
import pytest

from taskq.errors import BrokerError
from taskq.model.states import State
from tests.broker.queues import ADD, MAIL, FullQueue, Queue

HOUR_MS = 3_600_000


def scheduled(queue: Queue, *hours: int) -> list[str]:
    """Schedule messages in so many hours; return their ids."""
    outgoing = [queue.message(due=f"+{hour * HOUR_MS}") for hour in hours]
    assert set(queue.schedule(*outgoing)) == {"o"}
    return [one.message.id for one in outgoing]


def contents(queue: Queue) -> dict[str, object]:
    """Return what stands under each key, however long it will."""
    return {name: content for name, (_, _, content) in queue.dump().items()}


def due_of(queue: Queue, id: str) -> int:
    return int(queue.call("ZSCORE", "scheduled", id))


@pytest.mark.parametrize("hours", [1, 5])
def test_it_is_moved_either_way(queue: Queue, hours: int) -> None:
    [id] = scheduled(queue, 3)
    before = queue.now_ms
    assert queue.reschedule(id, f"+{hours * HOUR_MS}") == "moved"
    assert before <= due_of(queue, id) - hours * HOUR_MS <= queue.now_ms
    assert queue.reschedule(id, "4102444800000") == "moved"
    assert due_of(queue, id) == 4102444800000
    assert queue.state(id) is State.SCHEDULED
    queue.audit()


def test_a_time_that_has_come_is_now(queue: Queue) -> None:
    first, second = scheduled(queue, 1, 2)
    assert queue.reschedule(second, "1") == "moved"
    assert queue.worker().claim() == [second]
    assert queue.scheduled() == [first]


def test_another_attempt_can_wait_for_another_time(queue: Queue) -> None:
    worker = queue.worker()
    [id] = queue.queued()
    worker.claim()
    worker.finish(worker.retry(id, HOUR_MS))
    assert queue.reschedule(id, "1") == "moved"
    assert worker.claim() == [id]
    assert queue.record(id).history == b"history"


def test_what_does_not_wait_stays_as_it_is(queue: Queue) -> None:
    worker = queue.worker()
    runs, over, waits = queue.queued(3)
    worker.claim(2)
    worker.finish(worker.succeeded(over))
    before = contents(queue)
    told = [queue.reschedule(id, "1") for id in (waits, runs, over, "f" * 32)]
    assert told == ["queued", "running", "over", "unknown"]
    assert contents(queue) == before


def test_a_cancelled_one_is_over_and_does_not_come_back(queue: Queue) -> None:
    [id] = scheduled(queue, 1)
    queue.cancel(id)
    assert queue.reschedule(id, "1") == "over"
    assert queue.scheduled() == []


def test_the_earliest_makes_a_worker_that_knows_its_task_look_again(queue: Queue) -> None:
    worker, stranger = queue.worker({ADD: "t"}), queue.worker({MAIL: "t"})
    first, second = scheduled(queue, 2, 3)
    worker.claim()
    queue.bells(worker)
    assert queue.reschedule(second, f"+{HOUR_MS}") == "moved"
    assert (queue.bells(worker), queue.bells(stranger)) == ("t", "")
    assert queue.worker().exchange(threads=1).next_due == due_of(queue, second)
    # The very one that is watched for, too.
    assert queue.reschedule(second, f"+{HOUR_MS // 2}") == "moved"
    assert queue.bells(worker) == "t"
    assert queue.worker().exchange(threads=1).next_due == due_of(queue, second)
    assert first in queue.scheduled()


@pytest.mark.parametrize("hours", [2, 9])
def test_one_that_is_not_the_earliest_wakes_nobody(queue: Queue, hours: int) -> None:
    """Nor does the earliest itself, put off: whoever watches for it finds the next one then."""
    worker = queue.worker({ADD: "t"})
    first, second = scheduled(queue, 1, 3)
    worker.claim()
    queue.bells(worker)
    queue.reschedule(second if hours == 2 else first, f"+{hours * HOUR_MS}")
    assert queue.bells(worker) == ""
    assert queue.call("EXISTS", "timer")
    [earliest, _] = queue.scheduled()
    assert worker.exchange(threads=1).next_due == due_of(queue, earliest)


def test_a_suspect_wakes_whoever_knows_its_task(queue: Queue) -> None:
    """It waits in a lane that only children with one slot know, and there may be none."""
    worker = queue.worker({ADD: "t"})
    one = queue.message(due=f"+{HOUR_MS}")
    queue.schedule(msgspec.structs.replace(one, lane=f"!{ADD}"))
    queue.bells(worker)
    queue.reschedule(one.message.id, "1")
    assert queue.bells(worker) == "t"


@pytest.mark.parametrize("due", ["", "+", "soon", "+soon", "nan", "+inf", "1e5", "+ 1 h"])
def test_what_is_no_time_is_refused_and_nothing_is_changed(queue: Queue, due: str) -> None:
    [id] = scheduled(queue, 1)
    before = contents(queue)
    with pytest.raises(BrokerError, match="not a due time"):
        queue.reschedule(id, due)
    with pytest.raises(BrokerError, match="not a due time"):
        queue.schedule(queue.message(due=due or "x"))
    assert contents(queue) == before


def test_a_full_server_lets_work_be_brought_forward(full: FullQueue) -> None:
    worker = full.worker()
    [id] = scheduled(full, 1)
    full.fill()
    assert full.reschedule(id, "1") == "moved"
    assert worker.claim() == [id]
    full.audit()
