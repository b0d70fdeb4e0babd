"""What the supervisor sees to from outside, with children that only seem to be."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from taskq.model import clock
from taskq.worker.blame import Cause
from taskq.worker.board import CLAIMED, STARTED, Entry
from taskq.worker.guard import Guard
from taskq.worker.process import Orders

PING, FLUSH = {"kind": "ping"}, {"kind": "flush"}


class Child:
    """A child of which the guard sees what it reads of a real one."""

    def __init__(self, *entries: Entry, size: int = 0) -> None:
        self.pid, self.hello, self.frozen, self.alone = (
            7,
            {"queues": ["default", "mail"]},
            False,
            False,
        )
        self.members = {"default": "w1", "mail": "w2"}
        self.born = self.answered_at = clock.monotonic()
        self.condemned_at: float | None = None
        self.pinged_at: float | None = None
        self.list = list(entries)
        self.said: list[Any] = []
        self.killed: list[tuple[Cause, str]] = []
        self.board = SimpleNamespace(
            entries=lambda *states: [e for e in self.list if e.state in states]
        )
        self.channel = SimpleNamespace(send=self.said.append)
        self.memory = lambda: size

    def kill(self, cause: Cause = Cause.OURS, why: str = "") -> None:
        self.killed.append((cause, why))

    def queue_of(self, one: Entry) -> str:
        return str(self.hello["queues"][one.queue])


class Clock:
    """Monotonic time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clock, "monotonic", made)
    return made


def entry(
    state: int = STARTED, *, deadline: float = math.inf, queue: int = 0, id: str = "a"
) -> Entry:
    thread = 1 if state == STARTED else 0
    return Entry(state, 0, queue, thread, 1000.0, deadline, 1000.0, 1, id * 32)


class Watch:
    """A guard, and what it did."""

    def __init__(self, **orders: Any) -> None:
        self.released: list[Any] = []
        self.recycled: list[Any] = []
        self.guard = Guard(
            Orders("app", **orders),
            lambda member, fields: self.released.append((member, list(fields))),
            lambda child, why: self.recycled.append((child, why)),
        )

    def look(self, child: Child) -> float:
        return self.guard.look([child])  # type: ignore[list-item]


def test_a_hard_limit_kills_after_time_to_flush(time: Clock) -> None:
    child, watch = Child(entry(deadline=1001.0)), Watch()
    assert watch.look(child) == 1001.0
    assert child.said == []
    time.now = 1001.1
    assert watch.look(child) == pytest.approx(1001.6)
    assert child.said == [FLUSH]
    time.now = 1001.5
    watch.look(child)
    assert child.killed == []
    time.now = 1001.7
    watch.look(child)
    assert [cause for cause, _ in child.killed] == [Cause.LIMIT]
    assert child.said == [FLUSH]


def test_what_ends_while_it_is_condemned_is_not_killed_for(time: Clock) -> None:
    child, watch = Child(entry(deadline=1001.0)), Watch()
    time.now = 1001.1
    watch.look(child)
    child.list.clear()
    time.now = 1002.0
    watch.look(child)
    assert child.killed == []
    assert [one for one, _ in watch.recycled] == [child]


def test_what_cannot_start_is_given_back_by_queue(time: Clock) -> None:
    mine, others = entry(CLAIMED), entry(CLAIMED, queue=1, id="b")
    child, watch = Child(mine, others, entry(id="c")), Watch()
    time.now = 1000.2
    watch.look(child)
    assert watch.released == []
    time.now = 1000.3
    watch.look(child)
    assert watch.released == [
        (("default", "w1"), [mine.field]),
        (("mail", "w2"), [others.field]),
    ]
    watch.look(child)
    assert len(watch.released) == 2


def silence(time: Clock, watch: Watch, child: Child, seconds: int) -> None:
    """Let a child say nothing for so long, looking at it each second."""
    for _ in range(seconds):
        time.now += 1
        watch.look(child)


def test_a_silent_child_that_runs_nothing_is_replaced(time: Clock) -> None:
    child, watch = Child(), Watch()
    silence(time, watch, child, 38)
    assert child.said == [PING]
    assert child.killed == []
    silence(time, watch, child, 10)
    assert {cause for cause, _ in child.killed} == {Cause.OURS}


def test_one_that_runs_something_is_told_of_once_a_minute_and_lives(
    time: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    child, watch = Child(entry()), Watch()
    silence(time, watch, child, 170)
    assert child.killed == []
    lines = [one.message for one in caplog.records if "too busy to answer" in one.message]
    assert len(lines) == 3
    assert "a" * 32 in lines[0]
    assert "default" in lines[0]


def test_one_that_answers_is_asked_again_and_one_that_is_stopped_is_not(time: Clock) -> None:
    child, watch = Child(), Watch()
    for _ in range(5):
        silence(time, watch, child, 11)
        child.pinged_at, child.answered_at = None, time.now
    assert child.said == [PING] * 5
    child.frozen = True
    silence(time, watch, child, 100)
    assert child.said == [PING] * 5
    assert child.killed == []


def test_over_the_limit_of_memory_it_is_killed_and_charged(time: Clock) -> None:
    child, watch = Child(entry(), size=300 << 20), Watch(memory_limit=200 << 20)
    watch.look(child)
    assert child.killed == [(Cause.CRASH, "it used 300 MiB of memory; allowed are 200 MiB")]


def test_over_the_bound_of_memory_it_is_replaced_once_it_has_lived(time: Clock) -> None:
    child, watch = Child(entry(), size=300 << 20), Watch(max_memory=200 << 20)
    watch.look(child)
    assert watch.recycled == []
    time.now += 6
    watch.look(child)
    assert watch.recycled == [(child, "it uses 300 MiB of memory")]
    assert child.killed == []


def test_a_child_for_suspects_may_use_what_it_likes_below_the_limit(time: Clock) -> None:
    child, watch = Child(size=300 << 20), Watch(max_memory=200 << 20)
    child.alone = True
    time.now += 6
    watch.look(child)
    assert watch.recycled == []


def test_a_child_that_has_not_said_hello_is_left_alone(time: Clock) -> None:
    child, watch = Child(entry(deadline=1.0)), Watch(memory_limit=1)
    child.hello = None  # type: ignore[assignment]
    time.now += 100
    assert watch.look(child) == math.inf
    assert (child.said, child.killed) == ([], [])
