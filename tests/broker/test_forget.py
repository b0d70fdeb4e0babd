"""forget.lua: an outcome may be dropped, a message that goes on may not."""

from __future__ import annotations

import pytest

from taskq.broker import commands
from taskq.model.states import State
from tests.broker.queues import FullQueue, Queue


def forget(queue: Queue, id: str) -> str:
    return queue.run(commands.forget(queue.base, id))


def test_an_outcome_is_dropped_once(queue: Queue) -> None:
    [id] = queue.queued()
    worker = queue.worker()
    worker.claim()
    worker.finish(worker.succeeded(id))
    assert [forget(queue, id), forget(queue, id)] == ["ok", "no"]
    assert queue.state(id) is State.UNKNOWN


def test_then_the_id_is_free(queue: Queue) -> None:
    one = queue.message(name="order-42")
    queue.enqueue(one)
    worker = queue.worker()
    worker.claim()
    worker.finish(worker.succeeded(one.message.id))
    assert queue.enqueue(one) == "d"
    forget(queue, one.message.id)
    assert queue.enqueue(one) == "o"


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "SCHEDULED", "RETRYING"])
def test_a_message_that_goes_on_is_kept(queue: Queue, state: str) -> None:
    one = queue.message(due="+60000" if state == "SCHEDULED" else None)
    id = one.message.id
    if state == "SCHEDULED":
        queue.schedule(one)
    else:
        queue.enqueue(one)
    if state in ("RUNNING", "RETRYING"):
        worker = queue.worker()
        worker.claim()
        if state == "RETRYING":
            worker.finish(worker.retry(id, 60_000))
    assert queue.state(id) == state
    before = queue.raw_record(id)
    assert forget(queue, id) == "no"
    assert queue.raw_record(id) == before


def test_an_outcome_whose_bytes_are_still_in_a_list_is_kept(queue: Queue) -> None:
    """Else the message would run again, unrecorded."""
    late = queue.message(expires_ms=1)
    queue.enqueue(late)
    queue.run(commands.expire(queue.base, late.message.id))
    assert forget(queue, late.message.id) == "no"
    queue.worker().claim()
    assert forget(queue, late.message.id) == "ok"


def test_nothing_is_there_to_forget(queue: Queue) -> None:
    assert forget(queue, "f" * 32) == "no"


def test_it_works_on_a_full_server(full: FullQueue) -> None:
    [id] = full.queued()
    worker = full.worker()
    worker.claim()
    worker.finish(worker.succeeded(id))
    full.fill()
    assert forget(full, id) == "ok"
