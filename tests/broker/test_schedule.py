"""schedule.lua: messages wait in their records until they are due."""

from __future__ import annotations

import pytest

from taskq.broker import commands
from taskq.errors import BrokerFull
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, MAIL, FullQueue, Queue

HOUR_MS = 3_600_000
LONG_AGO = "1"


def test_a_message_waits_in_its_record(queue: Queue) -> None:
    one = queue.message(due=f"+{HOUR_MS}", body=b"any \x00 bytes \xff")
    before = queue.now_ms
    assert queue.schedule(one) == "o"
    record = queue.record(one.message.id)
    assert record.state is State.SCHEDULED
    assert record.tail.endswith(one.raw)
    [(id, due)] = scores(queue)
    assert id == one.message.id
    assert before + HOUR_MS <= due <= queue.now_ms + HOUR_MS
    assert queue.ready() == []


def test_an_instant_is_taken_as_it_is(queue: Queue) -> None:
    one = queue.message(due="4102444800000")
    queue.schedule(one)
    assert scores(queue) == [(one.message.id, 4102444800000)]


def test_messages_become_ready_in_the_order_of_their_due_times(queue: Queue) -> None:
    dues = ["3", "1", "2", f"+{HOUR_MS}"]
    third, first, second, waiting = [queue.message(due=due) for due in dues]
    queue.schedule(third, first, second, waiting)
    worker = queue.worker()
    order = [one.message.id for one in (first, second, third)]
    assert worker.claim() == order
    assert queue.scheduled() == [waiting.message.id]


def test_what_is_due_goes_behind_what_is_ready(queue: Queue) -> None:
    later = queue.message(due=LONG_AGO)
    queue.schedule(later)
    ready = queue.queued(2)
    assert queue.worker().claim() == [*ready, later.message.id]


def test_the_bytes_come_out_as_they_went_in(queue: Queue) -> None:
    one = queue.message(due=LONG_AGO, body=bytes(range(256)) * 3)
    queue.schedule(one)
    reply = queue.worker().exchange(threads=1)
    assert [raw for _, raw in reply.claimed] == [one.raw]


def test_lane_and_label_survive_the_wait(queue: Queue) -> None:
    one = queue.message(name="order-42", priority=9, due=LONG_AGO, expires_ms=4_102_444_800_000)
    queue.schedule(one)
    assert queue.record(one.message.id).label == one.label
    worker = queue.worker({MAIL: "t"})  # promotes, but does not know the task
    worker.claim()
    assert queue.ready(f"{ADD}:9") == [one.message.id]
    assert queue.record(one.message.id).label == one.label


def test_an_id_is_scheduled_once(queue: Queue) -> None:
    one = queue.message(name="order-42", due=f"+{HOUR_MS}")
    other = queue.message(MAIL, name="order-42", due=LONG_AGO)
    assert queue.schedule(one, one, other) == "odx"
    assert queue.schedule(one, other) == "dx"
    assert len(scores(queue)) == 1


def test_a_queued_message_is_not_scheduled_as_well(queue: Queue) -> None:
    [id] = queue.queued()
    assert queue.schedule(queue.message(id=id, due=LONG_AGO)) == "d"
    assert queue.state(id) is State.QUEUED


def test_the_earliest_wakes_a_worker_that_knows_its_task(queue: Queue) -> None:
    worker, stranger = queue.worker({ADD: "t"}), queue.worker({MAIL: "t"})
    queue.schedule(queue.message(due=f"+{2 * HOUR_MS}"))
    assert queue.bells(worker) == "t"
    queue.schedule(queue.message(due=f"+{3 * HOUR_MS}"))
    assert queue.bells(worker) == ""
    queue.schedule(queue.message(due=f"+{HOUR_MS}"))
    assert queue.bells(worker) == "t"
    assert queue.bells(stranger) == ""


def test_the_earliest_makes_the_workers_look_again(queue: Queue) -> None:
    watching, other = queue.worker(), queue.worker()
    queue.schedule(queue.message(due=f"+{2 * HOUR_MS}"))
    watching.claim()
    soon = queue.message(due=f"+{HOUR_MS}")
    queue.schedule(soon)
    [(_, due), _] = scores(queue)
    assert other.exchange(threads=1).next_due == due


def test_what_is_due_and_claimed_at_once_wakes_nobody_else(queue: Queue) -> None:
    one = queue.message(due=LONG_AGO, name="order-42", expires_ms=4_102_444_800_000)
    queue.schedule(one)
    worker, other = queue.worker(), queue.worker()
    queue.bells(other)
    assert worker.claim() == [one.message.id]
    assert (queue.bells(worker), queue.bells(other)) == ("", "")
    assert queue.record(one.message.id).label == one.label
    assert worker.again().claimed[0][1] == one.raw
    queue.audit()


def test_what_is_due_and_not_claimed_is_queued_for_others(queue: Queue) -> None:
    outgoing = queue.messages(250, due=LONG_AGO)
    ids = [one.message.id for one in outgoing]
    queue.schedule(*outgoing)
    queue.schedule(later := queue.message(due="+60000"))
    worker, other = queue.worker(), queue.worker()
    assert worker.claim(1) == ids[:1]
    # A hundred at least, so that priorities have something to choose from.
    assert queue.ready() == ids[1:100]
    assert "t" in queue.bells(other)
    assert other.claim(120) == ids[1:121]
    assert queue.ready() == ids[121:200]
    queue.audit()
    assert worker.claim(200) == ids[121:]
    assert queue.scheduled() == [later.message.id]


def test_others_are_woken_for_what_is_due_and_was_not_looked_at(queue: Queue) -> None:
    """Though all that was looked at is claimed."""
    queue.schedule(*queue.messages(250, due=LONG_AGO))
    worker, other = queue.worker(), queue.worker()
    queue.bells(other)
    reply = worker.exchange(threads=200)
    assert (len(reply.claimed), len(queue.ready())) == (200, 0)
    # Its own slots are full: it comes when one is free, and not at once.
    assert (reply.next_due, reply.more) == (None, "t")
    assert queue.bells(other) == "t"


def test_who_was_shown_nothing_that_it_knows_comes_again_at_once(queue: Queue) -> None:
    queue.schedule(*queue.messages(250, CRAWL, due=LONG_AGO))
    queue.schedule(known := queue.message(due="2"))
    worker = queue.worker({ADD: "t"})
    for threads in (1, 0, 1):
        reply = worker.exchange(threads=threads)
        if reply.claimed:
            break
        assert reply.next_due == int(LONG_AGO)
    assert [raw for _, raw in reply.claimed] == [known.raw]


def test_the_highest_priority_comes_first_among_what_is_due(queue: Queue) -> None:
    low, high = queue.message(due="1"), queue.message(due="2", priority=9)
    queue.schedule(low, high)
    worker = queue.worker()
    assert worker.claim(1) == [high.message.id]
    assert queue.ready() == [low.message.id]
    assert worker.claim(1) == [low.message.id]
    queue.audit()


def test_what_expired_while_it_waited_is_resolved_by_the_claim(queue: Queue) -> None:
    late = queue.message(due=LONG_AGO, expires_ms=5)
    good = queue.message(due=LONG_AGO)
    queue.schedule(late, good)
    assert queue.worker().claim() == [good.message.id]
    assert queue.state(late.message.id) is State.EXPIRED
    assert queue.survey().counts == {"expired": 1}
    queue.audit()


def test_bytes_that_wait_under_the_id_of_another_message_are_set_aside(queue: Queue) -> None:
    mine, other, good = (queue.message(due=LONG_AGO) for _ in range(3))
    queue.schedule(mine, good)
    raw = queue.raw_record(mine.message.id)
    assert raw is not None
    queue.call("SET", f"m:{mine.message.id}", raw.replace(mine.raw, other.raw))
    worker = queue.worker()
    assert worker.claim() == [good.message.id]
    assert (queue.state(mine.message.id), queue.state(other.message.id)) == ("FAILED", "UNKNOWN")
    assert queue.survey().counts == {"refused": 1}
    assert queue.survey().tasks[ADD].scheduled == 0
    queue.audit()


def test_a_lane_keeps_its_place_in_the_line_when_more_of_it_falls_due(queue: Queue) -> None:
    """One that began anew each time would be served before all others, and only it."""
    queue.queued(100, MAIL)
    queue.schedule(*queue.messages(300, due=LONG_AGO))
    worker = queue.worker()
    for _ in range(10):
        worker.exchange(threads=10)
    assert len(queue.ready(MAIL)) == 50


def test_five_hundred_are_looked_at_at_a_time(queue: Queue) -> None:
    outgoing = queue.messages(600, due=LONG_AGO)
    for _, command in commands.send(queue.base, outgoing):
        assert set(queue.run(command)) == {"o"}
    worker = queue.worker()
    reply = worker.exchange(threads=2000)
    assert len(reply.claimed) == 500
    assert len(queue.scheduled()) == 100
    # It is told to come again at once.
    assert reply.next_due == int(LONG_AGO)
    assert len(worker.claim(2000)) == 100


def test_four_mebibytes_are_read_at_a_time(queue: Queue) -> None:
    """A thousand large ones at once would hold Redis up for seconds."""
    outgoing = queue.messages(9, due=LONG_AGO, body=b"x" * (1 << 20))
    for _, command in commands.send(queue.base, outgoing):
        queue.run(command)
    worker = queue.worker()
    claimed = []
    for left in (5, 1, 0):
        claimed += worker.claim(4)
        assert len(queue.scheduled()) == left
    claimed += worker.claim(4)
    assert claimed == [one.message.id for one in outgoing]


def test_a_full_server_refuses_and_tears_nothing(full: FullQueue) -> None:
    full.worker()
    before = full.keys()
    full.fill()
    with pytest.raises(BrokerFull):
        full.schedule(*full.messages(2, due=LONG_AGO))
    assert full.keys() == before
    full.audit()


def scores(queue: Queue) -> list[tuple[str, int]]:
    flat = queue.call("ZRANGE", "scheduled", 0, -1, "WITHSCORES")
    return [(id.decode(), int(due)) for id, due in zip(flat[::2], flat[1::2], strict=True)]
