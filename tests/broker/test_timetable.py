"""Schedules in Redis: made, vouched for, fired once, suspended and removed."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from taskq.broker import keys, timetable
from taskq.broker.commands import Outgoing
from taskq.broker.timetable import Agenda, Entry, Firing, Progress
from taskq.errors import BrokerError, BrokerFull
from taskq.model import clock, control
from taskq.model.schedule import Definition, Rule
from taskq.model.states import State
from tests.broker.queues import ADD, DAY_MS, FullQueue, Queue, order
from tests.eventually import until

LONG_AGO, HOUR_MS = 1_000_000, 3_600_000
LATER = LONG_AGO + 1000
NAME = "report-42"


@dataclasses.dataclass
class Book:
    """The schedules of a queue, as those who fire them see them."""

    queue: Queue

    def plan(self, name: str = NAME, tick: int = LONG_AGO, **options: Any) -> str:
        given: dict[str, Any] = {"known": None, "declared": 0, "definition": b"definition"}
        given |= options
        definition, due = given.pop("definition"), given.pop("due", tick)
        command = timetable.plan(self.queue.base, name, definition, (tick, due), **given)
        return self.queue.run(command)

    def agenda(self, declared: int = 0, **options: Any) -> Agenda:
        return self.queue.run(timetable.agenda(self.queue.base, declared=declared, **options))

    def due(self) -> list[str]:
        return [entry.name for entry in self.agenda().due]

    def entry(self, name: str = NAME) -> Entry | None:
        _, _, entries = self.queue.run(timetable.plans(self.queue.base, names=[name]))
        return entries[0] if entries else None

    def progress(self, name: str = NAME) -> Progress:
        entry = self.entry(name)
        assert entry is not None
        assert entry.progress is not None
        return entry.progress

    def fire(
        self,
        *messages: tuple[int, Outgoing],
        at: Progress | None = None,
        overlap: str = "a",
        then: int = 0,
        **more: Any,
    ) -> tuple[str, int]:
        """Fire as somebody who has read the progress `at`, by default just now."""
        more = {"due_ms": then, "order": b""} | more
        firing = Firing(overlap, next_ms=then, messages=messages, **more)
        known = at or self.progress()
        return self.queue.run(timetable.fire(self.queue.base, NAME, known, firing))


@pytest.fixture
def book(queue: Queue) -> Book:
    return Book(queue)


def test_what_is_made_is_due_at_its_tick(book: Book) -> None:
    assert book.plan() == "ok"
    assert book.plan("later", tick=clock.now_ms() + HOUR_MS) == "ok"
    agenda = book.agenda()
    assert [(one.name, one.definition) for one in agenda.due] == [(NAME, b"definition")]
    assert agenda.due[0].progress == book.progress()
    assert abs(agenda.now_ms + HOUR_MS - (agenda.next_ms or 0)) < 10_000


def test_the_time_it_is_put_off_counts_and_not_its_tick(book: Book) -> None:
    book.plan(due=clock.now_ms() + HOUR_MS)
    assert book.due() == []
    assert book.fire((LONG_AGO, book.queue.message())) == ("stale", 0)
    assert book.queue.ready() == []


def test_nothing_is_due_and_nothing_to_come(book: Book) -> None:
    agenda = book.agenda()
    assert (agenda.due, agenda.next_ms, agenda.gone, agenda.lapsed) == ([], None, [], [])


def test_the_same_plan_twice_is_the_reply_that_was_lost(book: Book) -> None:
    assert [book.plan(), book.plan()] == ["ok", "ok"]
    assert book.plan(definition=b"another") == "stale"
    other = msgspec.structs.replace(book.progress(), revision=b"0" * 16)
    assert book.plan(definition=b"another", known=other) == "stale"
    entry = book.entry()
    assert entry is not None
    assert entry.definition == b"definition"


def test_another_definition_keeps_what_was_fired(book: Book) -> None:
    book.plan()
    one = book.queue.message()
    book.fire((LONG_AGO, one), then=LATER)
    earlier = book.progress()
    assert book.plan(definition=b"another", known=earlier, tick=LATER + 5) == "ok"
    now = book.progress()
    assert (now.tick, now.last, now.id, now.fired) == (LATER + 5, LONG_AGO, one.message.id, 1)
    assert now.revision > earlier.revision
    # Whoever read the earlier one cannot fire it.
    assert book.fire((LATER, book.queue.message()), at=earlier) == ("stale", 0)


def test_a_tick_that_is_fired_while_a_definition_is_made_does_not_come_again(book: Book) -> None:
    book.plan()
    known = book.progress()
    one = book.queue.message()
    book.fire((LONG_AGO, one), then=LATER)
    assert book.plan(definition=b"another", known=known) == "stale"
    assert book.progress().tick == LATER
    assert book.plan(definition=b"another", known=book.progress(), tick=LATER) == "ok"


def test_a_change_is_announced(book: Book) -> None:
    queue = book.queue
    line = queue.listen_to(keys.agenda(queue.app, queue.name).encode())
    book.plan()
    assert line() == NAME.encode()
    queue.run(timetable.suspend(queue.base, NAME, ""))
    queue.run(timetable.resume(queue.base, NAME, book.progress().revision, (LATER, LATER)))
    assert line() == NAME.encode()


def test_one_of_many_fires_a_tick(book: Book) -> None:
    book.plan()
    known = book.progress()
    messages = [book.queue.message(name=f"{NAME}:tick") for _ in range(5)]
    said = [book.fire((LONG_AGO, one), at=known, then=LATER) for one in messages]
    assert said == [("ok", 1), *[("stale", 0)] * 4]
    assert book.queue.ready() == [messages[0].message.id]
    assert book.queue.state(messages[0].message.id) is State.QUEUED
    now = book.progress()
    assert (now.tick, now.last, now.fired) == (LATER, LONG_AGO, 1)
    assert abs(now.at - clock.now_ms()) < 10_000


def test_a_worker_that_knows_the_task_is_woken(book: Book) -> None:
    worker = book.queue.worker()
    book.plan()
    one = book.queue.message()
    book.fire((LONG_AGO, one))
    assert book.queue.bells(worker) == "t"
    assert worker.claim() == [one.message.id]


def test_a_message_that_is_known_is_not_enqueued_again(book: Book) -> None:
    book.plan()
    one = book.queue.message(name=f"{NAME}:tick")
    book.queue.enqueue(one)
    assert book.fire((LONG_AGO, one), then=LATER) == ("ok", 0)
    assert book.queue.ready() == [one.message.id]
    assert (book.progress().fired, book.progress().last) == (0, LONG_AGO)


def test_several_ticks_are_fired_in_their_order(book: Book) -> None:
    book.plan()
    messages = book.queue.messages(3)
    ticks = [LONG_AGO, LONG_AGO + 1, LONG_AGO + 2]
    fired = book.fire(*zip(ticks, messages, strict=True), then=LATER, missed=7)
    assert fired == ("ok", 3)
    assert book.queue.ready() == [one.message.id for one in messages]
    now = book.progress()
    assert (now.last, now.id, now.fired, now.missed) == (ticks[2], messages[2].message.id, 3, 7)


def test_what_has_ended_is_awaited_no_more(book: Book) -> None:
    book.plan()
    book.fire((LONG_AGO, book.queue.message()))
    assert book.agenda().next_ms is None
    assert book.due() == []
    assert book.progress().tick == 0
    assert book.fire((LONG_AGO, book.queue.message())) == ("stale", 0)


def test_a_tick_that_nobody_fires_is_passed_over(book: Book) -> None:
    book.plan()
    assert book.fire(then=LATER, missed=1) == ("ok", 0)
    assert (book.progress().tick, book.progress().missed, book.progress().last) == (LATER, 1, 0)


@pytest.fixture
def busy(book: Book) -> tuple[Book, str]:
    """A schedule whose first message is not over; its next tick is due."""
    book.plan()
    one = book.queue.message()
    book.fire((LONG_AGO, one), then=LATER)
    return book, one.message.id


def test_allow_does_not_look(busy: tuple[Book, str]) -> None:
    book, _ = busy
    assert book.fire((LATER, book.queue.message()), overlap="a") == ("ok", 1)
    assert len(book.queue.ready()) == 2


def test_skip_leaves_a_tick_out_while_the_message_before_is_not_over(
    busy: tuple[Book, str],
) -> None:
    book, first = busy
    assert book.fire((LATER, book.queue.message()), overlap="s", then=LATER + 1) == ("ok", 0)
    now = book.progress()
    assert (now.skipped, now.fired, now.last, now.id) == (1, 1, LONG_AGO, first)
    book.queue.cancel(first)
    assert book.fire((LATER + 1, book.queue.message()), overlap="s") == ("ok", 1)


@pytest.mark.parametrize("where", ["queued", "running", "retrying"])
def test_a_message_is_not_over_wherever_it_is(busy: tuple[Book, str], where: str) -> None:
    book, first = busy
    if where != "queued":
        worker = book.queue.worker()
        worker.claim()
        if where != "running":
            worker.finish(worker.retry(first, HOUR_MS))
    assert book.fire((LATER, book.queue.message()), overlap="s") == ("ok", 0)


def test_queue_waits_until_the_message_before_is_over(busy: tuple[Book, str]) -> None:
    book, first = busy
    second = book.queue.message()
    for _ in range(2):
        assert book.fire((LATER, second), overlap="q", then=LATER + 1) == ("wait", 0)
        assert book.progress().waits
        assert book.due() == [NAME]
    book.queue.cancel(first)
    assert book.fire((LATER, second), overlap="q", then=LATER + 1) == ("ok", 1)
    # The tick after it is due as well: it waits by right, however late it becomes.
    assert book.progress().waits
    assert book.progress().tick == LATER + 1
    book.queue.cancel(second.message.id)
    soon = clock.now_ms() + HOUR_MS
    assert book.fire((LATER + 1, book.queue.message()), overlap="q", then=soon) == ("ok", 1)
    assert not book.progress().waits


def test_cancel_running_takes_the_message_before_back(busy: tuple[Book, str]) -> None:
    book, first = busy
    second = book.queue.message()
    said = book.fire((LATER, second), overlap="c", order=order("the next came"))
    assert said == ("ok", 1)
    assert book.queue.state(first) is State.CANCELLED
    assert book.queue.record(first).tail == b"the next came"
    assert book.queue.worker().claim() == [second.message.id]


def test_cancel_running_tells_the_worker_of_the_message_before(busy: tuple[Book, str]) -> None:
    book, first = busy
    worker = book.queue.worker()
    worker.claim()
    book.fire((LATER, book.queue.message()), overlap="c", order=order("the next came"))
    [told] = worker.orders()
    assert told.id.decode() == first
    assert len(told.signed) > control.REASON_AT


def test_an_order_is_for_the_message_that_it_names(busy: tuple[Book, str]) -> None:
    """Somebody fired by hand meanwhile: the order is for the one before."""
    book, first = busy
    known = book.progress()
    book.queue.run(
        timetable.trigger(book.queue.base, NAME, known.revision, LATER, book.queue.message())
    )
    said = book.fire((LATER, book.queue.message()), at=known, overlap="c", order=order())
    assert said == ("stale", 0)
    assert book.queue.state(first) is State.QUEUED
    # Where nobody is to be cancelled it does not matter.
    assert book.fire((LATER, book.queue.message()), at=known) == ("ok", 1)


def test_a_message_is_never_cancelled_without_an_order(busy: tuple[Book, str]) -> None:
    book, first = busy
    before = book.queue.dump()
    with pytest.raises(BrokerError, match="not an order"):
        book.fire((LATER, book.queue.message()), overlap="c")
    assert book.queue.state(first) is State.QUEUED
    assert book.queue.dump().keys() == before.keys()


def test_fired_by_hand_it_is_the_message_before_the_next_tick(book: Book) -> None:
    queue = book.queue
    book.plan()
    one, revision = queue.message(), book.progress().revision
    for word in ("o", "d"):
        assert queue.run(timetable.trigger(queue.base, NAME, revision, LATER, one)) == word
    assert queue.ready() == [one.message.id]
    now = book.progress()
    assert (now.id, now.fired, now.last, now.tick) == (one.message.id, 1, 0, LONG_AGO)
    assert book.fire((LONG_AGO, queue.message()), overlap="s", then=LATER) == ("ok", 0)
    for name, known in ((NAME, b"0" * 16), ("nobody", revision)):
        command = timetable.trigger(queue.base, name, known, LATER, queue.message())
        assert queue.run(command) == "stale"


def test_paused_it_is_not_due_and_keeps_the_note(book: Book) -> None:
    queue = book.queue
    book.plan()
    for note in ("a note", "another"):
        assert queue.run(timetable.suspend(queue.base, NAME, note)) == "ok"
        assert (book.progress().paused, book.progress().note) == (True, note)
    assert book.due() == []
    assert book.fire((LONG_AGO, queue.message())) == ("stale", 0)
    assert queue.run(timetable.suspend(queue.base, "nobody", "")) == "no"


def test_a_new_definition_leaves_it_paused(book: Book) -> None:
    queue = book.queue
    book.plan()
    queue.run(timetable.suspend(queue.base, NAME, "a note"))
    assert book.plan(definition=b"another", known=book.progress()) == "ok"
    assert book.progress().note == "a note"
    assert book.due() == []


def test_resumed_it_goes_on_from_the_tick_that_is_given(book: Book) -> None:
    queue = book.queue
    book.plan()
    queue.run(timetable.suspend(queue.base, NAME, "a note"))
    revision = book.progress().revision

    def resume(tick: int, revision: bytes = revision) -> str:
        return queue.run(timetable.resume(queue.base, NAME, revision, (tick, tick)))

    assert resume(LATER, b"0" * 16) == "stale"
    assert [resume(LATER), resume(LATER + 1)] == ["ok", "ok"]
    now = book.progress()
    assert (now.tick, now.paused, now.note) == (LATER, False, "")
    assert book.due() == [NAME]


def test_removed_it_leaves_nothing_but_its_messages(book: Book) -> None:
    queue = book.queue
    book.plan()
    one = queue.message()
    book.fire((LONG_AGO, one), then=LATER)
    assert queue.run(timetable.unplan(queue.base, NAME, b"another")) == "no"
    assert queue.run(timetable.unplan(queue.base, NAME)) == "ok"
    assert queue.run(timetable.unplan(queue.base, NAME)) == "no"
    assert book.entry() is None
    assert not {"schedules", "fires", "ticks", "declared"} & {*queue.keys()}
    assert queue.ready() == [one.message.id]


def test_what_somebody_vouches_for_is_not_removed(book: Book) -> None:
    queue = book.queue
    book.plan(declared=HOUR_MS)
    assert queue.run(timetable.unplan(queue.base, NAME)) == "declared"
    entry = book.entry()
    assert entry is not None
    assert abs((entry.declared_ms or 0) - clock.now_ms() - HOUR_MS) < 10_000


def test_what_nobody_vouches_for_any_more_has_lapsed(book: Book) -> None:
    queue = book.queue
    book.plan(declared=1)
    book.plan("other", declared=HOUR_MS)
    book.plan("at run time")
    queue.call("ZADD", "declared", 1, NAME)
    assert book.agenda(HOUR_MS, names=["other", "gone"]).lapsed == [NAME]
    assert book.agenda(HOUR_MS, names=["other", "gone"]).gone == ["gone"]
    assert book.agenda(0).lapsed == []
    assert book.agenda(HOUR_MS, names=[NAME]).lapsed == []
    assert queue.run(timetable.unplan(queue.base, NAME)) == "declared"
    queue.call("ZADD", "declared", 1, NAME)
    assert queue.run(timetable.unplan(queue.base, NAME, b"definition")) == "ok"


def test_many_that_have_lapsed_do_not_hide_the_others(book: Book) -> None:
    for number in range(130):
        book.plan(f"s{number}", declared=HOUR_MS)
        book.queue.call("ZADD", "declared", 1, f"s{number}")
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.update(book.agenda(declared=HOUR_MS).lapsed)
        return len(seen) == 130

    until(all_seen)


def test_made_at_run_time_it_is_vouched_for_by_nobody(book: Book) -> None:
    book.plan(declared=HOUR_MS)
    book.plan(definition=b"mine", known=book.progress())
    entry = book.entry()
    assert entry is not None
    assert entry.declared_ms is None


def test_those_that_cannot_be_fired_here_do_not_stand_in_the_way(book: Book) -> None:
    names = [f"s{number:03d}" for number in range(timetable.MOST + 20)]
    for name in names:
        book.plan(name)
    first = book.agenda()
    assert len(first.due) == timetable.MOST
    assert first.next_ms == first.now_ms  # come again at once
    left = book.agenda(skipped=[entry.key for entry in first.due])
    assert {entry.name for entry in (*first.due, *left.due)} == {*names}


def test_what_is_not_proven_is_set_aside_and_counted_once(book: Book) -> None:
    queue = book.queue
    book.plan()
    [entry] = book.agenda().due
    other = msgspec.structs.replace(entry, definition=b"as it was before")
    assert queue.run(timetable.distrust(queue.base, [other])) == 0
    assert book.due() == [NAME]
    said = [queue.run(timetable.distrust(queue.base, [entry])) for _ in range(2)]
    assert said == [1, 0]
    assert book.due() == []
    assert queue.survey().counts == {"distrusted": 1}
    # It is there for people to see, and a plan puts it right.
    assert book.entry() is not None
    assert book.plan(definition=b"good", known=book.progress()) == "ok"
    assert book.due() == [NAME]


def test_half_of_a_schedule_is_no_schedule(book: Book) -> None:
    for key, name in (("schedules", "a"), ("fires", "b")):
        for one in (NAME, name):
            book.plan(one)
        book.queue.call("HDEL", key, name)
        assert book.due() == [NAME]
        assert book.queue.call("ZSCORE", "ticks", name) is None


def test_all_are_listed_page_by_page(book: Book) -> None:
    names = {f"s{number:03d}" for number in range(300)}
    for name in names:
        book.plan(name, definition=b"x" * 100)
    found: list[str] = []
    cursor, first = b"0", True
    while first or cursor != b"0":
        first = False
        _, cursor, page = book.queue.run(timetable.plans(book.queue.base, cursor))
        found += [entry.name for entry in page]
    assert {*found} == names


def test_what_no_script_wrote_is_told_from_progress(book: Book) -> None:
    book.plan()
    no_id = b"%b%b%b-" % (b"1" * 55, b"\xff" * 32, b"1" * 30)
    for wrong in ("", "x", "-" * 118, "1" * 116, "\0" * 200, no_id):
        book.queue.call("HSET", "fires", NAME, wrong)
        entry = book.entry()
        assert entry is not None
        assert entry.progress is None, wrong
        assert book.due() == []
        assert book.queue.run(timetable.suspend(book.queue.base, NAME, "")) == "no"
        assert book.agenda(HOUR_MS, names=[NAME]).gone == [NAME]
    assert book.plan(definition=b"another") == "ok"
    assert book.due() == [NAME]


def test_a_full_server_refuses_a_tick_and_tears_nothing(full: FullQueue) -> None:
    book = Book(full)
    book.plan(declared=HOUR_MS)
    known, before = book.progress(), full.keys()
    full.fill()
    with pytest.raises(BrokerFull):
        book.fire((LONG_AGO, full.message()), at=known, then=LATER)
    with pytest.raises(BrokerFull):
        book.plan("another")
    # It can be looked at, vouched for, paused and removed.
    assert book.agenda(DAY_MS, names=[NAME]).due[0].progress == known
    assert full.run(timetable.suspend(full.base, NAME, "full")) == "ok"
    assert set(full.keys()) <= {*before}
    full.make_room()
    full.run(timetable.resume(full.base, NAME, known.revision, (LONG_AGO, LONG_AGO)))
    assert book.fire((LONG_AGO, full.message()), then=LATER) == ("ok", 1)
    full.audit()


def test_the_message_of_a_tick_is_always_the_same(queue: Queue) -> None:
    definition = Definition(Rule.of(every=1), ADD, "json", b"[[1],{}]", expires_ms=5000)
    made = [
        timetable.cast(queue.app, NAME, definition, 1_500, now, queue.seal) for now in (2000, 9000)
    ]
    assert made[0].message.id == made[1].message.id
    assert made[0].message.envelope.name == f"{NAME}:1970-01-01T00:00:01.500Z"
    assert [one.message.expires_ms for one in made] == [7000, 14_000]
    assert made[0].message.envelope.headers == {
        timetable.NAME_HEADER: NAME,
        timetable.TICK_HEADER: "1970-01-01T00:00:01.500Z",
    }
