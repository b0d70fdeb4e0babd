"""purge.lua: what waits is thrown away, and whoever waits for it is told."""

from __future__ import annotations

from taskq.broker import commands, keys
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, MAIL, FullQueue, Queue

REASON = "purged by a test"


def purge(queue: Queue, task: str = "") -> int:
    """Purge until nothing is left; return how many messages that threw away."""
    total, left = 0, True
    while left:
        count, left = queue.run(commands.purge(queue.base, REASON, task))
        total += count
    return total


def test_all_that_waits_is_thrown_away(queue: Queue) -> None:
    ids = [*queue.queued(3), *queue.queued(2, MAIL, priority=9)]
    later = queue.message(due="+60000")
    queue.schedule(later)
    assert purge(queue) == 6
    assert {queue.state(id) for id in (*ids, later.message.id)} == {State.CANCELLED}
    assert (queue.scheduled(), queue.call("ZCARD", "lanes")) == ([], 0)
    assert queue.worker().claim() == []


def test_the_futures_are_told_why(queue: Queue) -> None:
    [id] = queue.queued()
    later = queue.message(due="+60000")
    queue.schedule(later)
    ids = [id, later.message.id]
    news = [queue.listen(id) for id in ids]
    purge(queue)
    for id, heard in zip(ids, news, strict=True):
        record = queue.record(id)
        assert (record.letter, record.tail) == (b"c", REASON.encode())
        assert 0 < queue.ttl(id) <= 86_400_000
        assert heard() == queue.raw_record(id)


def test_one_task_alone(queue: Queue) -> None:
    adds = [*queue.queued(2), *queue.queued(2, priority=9)]
    mails, similar = queue.queued(2, MAIL), queue.queued(2, f"{ADD}2")
    add_later, mail_later = queue.message(due="+60000"), queue.message(MAIL, due="+60000")
    queue.schedule(add_later, mail_later)
    assert purge(queue, ADD) == 5
    assert {queue.state(id) for id in adds} == {State.CANCELLED}
    assert (queue.ready(MAIL), queue.ready(f"{ADD}2")) == (mails, similar)
    assert queue.scheduled() == [mail_later.message.id]


def test_what_runs_goes_on(queue: Queue) -> None:
    running, waiting = queue.queued(2)
    worker = queue.worker()
    worker.claim(1)
    assert purge(queue) == 1
    assert queue.state(waiting) is State.CANCELLED
    assert worker.finish(worker.succeeded(running)) == "k"


def test_what_waits_for_another_attempt_goes_too(queue: Queue) -> None:
    [id] = queue.queued()
    worker = queue.worker()
    worker.claim()
    worker.finish(worker.retry(id, 60_000))
    assert purge(queue) == 1
    record = queue.record(id)
    assert (record.state, record.attempts) == (State.CANCELLED, 1)


def test_thousands_go_in_pages(queue: Queue) -> None:
    queue.queued(700)
    outgoing = queue.messages(700, CRAWL, due="+60000")
    queue.schedule(*outgoing)
    count, left = queue.run(commands.purge(queue.base, REASON))
    assert (count, left) == (500, True)
    queue.audit()
    assert purge(queue) == 900


def test_few_among_many_are_found(queue: Queue) -> None:
    queue.schedule(*queue.messages(900, MAIL, due="+60000"))
    queue.schedule(*queue.messages(3, ADD, due="+60000"))
    assert purge(queue, ADD) == 3
    assert len(queue.scheduled()) == 900


def test_what_was_resolved_already_is_not_counted(queue: Queue) -> None:
    late = queue.message(expires_ms=1)
    queue.enqueue(late)
    queue.run(commands.expire(queue.base, late.message.id))
    assert purge(queue) == 0
    assert queue.state(late.message.id) is State.EXPIRED
    assert queue.ttl(late.message.id) > 0


def test_garbage_goes_as_well(queue: Queue) -> None:
    queue.queued()
    queue.call("LPUSH", f"ready:{ADD}", b"garbage", b"", b"x" * 200)
    assert purge(queue) == 1
    assert queue.call("EXISTS", f"ready:{ADD}") == 0


def test_an_empty_queue(queue: Queue) -> None:
    assert purge(queue) == 0
    assert queue.keys() == []


def test_another_queue_is_not_touched(queue: Queue, namespace: str) -> None:
    other = keys.base(namespace, "other")
    one = queue.message()
    assert queue.run(commands.enqueue(other, [one])) == "o"
    purge(queue)
    assert queue.run(commands.enqueue(other, [one])) == "d"
    assert queue.run(commands.purge(other, REASON)) == (1, True)


def test_it_works_on_a_full_server(full: FullQueue) -> None:
    full.queued(10)
    full.schedule(*full.messages(10, due="+60000"))
    full.fill()
    assert purge(full) == 20
    full.audit()
