"""expire.lua: what did not start in time is resolved, though nobody pops it."""

from __future__ import annotations

import pytest

from taskq.broker import commands
from taskq.broker.commands import Outgoing
from taskq.model.states import State
from tests.broker.queues import FullQueue, Queue

FUTURE_MS = 4_102_444_800_000
DAY_MS = 86_400_000


def expire(queue: Queue, id: str) -> str:
    return queue.run(commands.expire(queue.base, id))


@pytest.fixture
def late(queue: Queue) -> Outgoing:
    return queue.message(expires_ms=1, due="+60000")


def test_a_scheduled_message_goes_at_once(queue: Queue, late: Outgoing) -> None:
    id = late.message.id
    other = queue.message(due="+60000")
    queue.schedule(late, other)
    news = queue.listen(id)
    assert expire(queue, id) == "ok"
    assert queue.state(id) is State.EXPIRED
    assert 0 < queue.ttl(id) <= DAY_MS
    assert queue.scheduled() == [other.message.id]
    assert news() == queue.raw_record(id)
    assert queue.survey().counts == {"expired": 1}


def test_so_does_one_that_waits_for_another_attempt(queue: Queue, late: Outgoing) -> None:
    id = late.message.id
    fresh = queue.message(id=id, expires_ms=FUTURE_MS)
    queue.enqueue(fresh)
    worker = queue.worker()
    worker.claim()
    worker.finish(worker.retry(id, 60_000))
    assert expire(queue, id) == "no"
    raw = queue.raw_record(id)
    assert raw is not None
    queue.call("SET", f"m:{id}", raw.replace(b"%013d" % FUTURE_MS, b"%013d" % 1))
    assert expire(queue, id) == "ok"
    record = queue.record(id)
    assert (record.state, record.attempts, record.claims) == (State.EXPIRED, 1, 1)


def test_a_queued_message_is_resolved_and_stays_in_its_list(queue: Queue, late: Outgoing) -> None:
    id = late.message.id
    queue.enqueue(late)
    news = queue.listen(id)
    assert expire(queue, id) == "ok"
    assert (queue.state(id), queue.ttl(id), queue.ready()) == (State.EXPIRED, -1, [id])
    assert news() == queue.raw_record(id)
    # The claim that meets it throws it away.
    assert queue.worker().claim() == []
    assert (queue.ready(), queue.ttl(id) > 0) == ([], True)


def test_again_it_changes_nothing(queue: Queue, late: Outgoing) -> None:
    queue.enqueue(late)
    assert [expire(queue, late.message.id) for _ in range(3)] == ["ok", "no", "no"]
    assert queue.survey().counts == {"expired": 1}


def test_what_has_time_left_stays(queue: Queue) -> None:
    queued = queue.message(expires_ms=FUTURE_MS)
    scheduled = queue.message(expires_ms=FUTURE_MS, due="+60000")
    queue.enqueue(queued)
    queue.schedule(scheduled)
    for one in (queued, scheduled):
        assert expire(queue, one.message.id) == "no"
    assert queue.ready() == [queued.message.id]
    assert queue.scheduled() == [scheduled.message.id]


def test_what_has_no_expiry_stays(queue: Queue) -> None:
    [queued] = queue.queued()
    named = queue.message(name="order-42")
    queue.enqueue(named)
    assert [expire(queue, id) for id in (queued, named.message.id)] == ["no", "no"]


def test_what_has_started_stays(queue: Queue) -> None:
    one = queue.message(expires_ms=queue.now_ms + 60_000)
    queue.enqueue(one)
    queue.worker().claim()
    raw = queue.raw_record(one.message.id)
    assert raw is not None
    assert expire(queue, one.message.id) == "no"
    assert queue.raw_record(one.message.id) == raw


def test_what_is_over_stays(queue: Queue) -> None:
    [id] = queue.queued()
    worker = queue.worker()
    worker.claim()
    worker.finish(worker.succeeded(id))
    assert expire(queue, id) == "no"
    assert queue.state(id) is State.SUCCEEDED


def test_what_redis_does_not_know_is_not_invented(queue: Queue) -> None:
    assert expire(queue, "f" * 32) == "no"
    assert queue.keys() == []


def test_it_works_on_a_full_server(full: FullQueue) -> None:
    late = full.message(expires_ms=1)
    full.enqueue(late)
    full.fill()
    assert expire(full, late.message.id) == "ok"
    full.audit()
