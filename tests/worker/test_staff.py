"""Who is replaced when, with children that are no processes."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.model import clock
from taskq.worker import staff as module
from taskq.worker.process import Orders
from taskq.worker.roll import LOAD_SECONDS
from taskq.worker.staff import Staff


class Child:
    def __init__(self, orders: Orders, number: int, name: str) -> None:
        self.number, self.alone, self.name = number, orders.alone, name
        self.pid = id(self)
        self.born = clock.monotonic()
        self.leaving = self.serves = self.killed = False
        self.successor: Child | None = None
        self.spent = ""
        self.failed: str | None = None
        self.condemned_at: float | None = None
        self.drained: list[float] = []
        self.members: dict[str, str] = {}
        # What is on its board; None: that is closed.
        self.board: set[bytes] | None = set()
        self.partitions = orders.partitions

    def held(self, _queue: str) -> set[bytes]:
        if self.board is None:
            raise ValueError
        return self.board

    def retire(self, seconds: float) -> None:
        self.leaving = True
        self.drained.append(seconds)

    def kill(self) -> None:
        self.killed = True


class World:
    def __init__(self) -> None:
        self.staff: Any = Staff(Orders("proj", processes=1, shutdown_timeout=25.0))
        self.now = 1000.0

    def start(self) -> Child:
        old: Child = self.staff.start(1)
        old.serves = True
        return old

    @property
    def children(self) -> list[Any]:
        return list(self.staff)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.staff.restart(self.now)

    def ends(self, child: Child) -> None:
        """As the supervisor does it."""
        self.staff.remove(child)
        if child.successor is None:
            self.staff.replace(child)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(clock, "monotonic", lambda: world.now)
    monkeypatch.setattr(module, "ChildProcess", Child)
    return world


def test_a_spent_child_goes_when_its_successor_serves(world: World) -> None:
    old = world.start()
    world.staff.recycle(old, "it ran 5 messages")
    new = world.children[1]
    assert old.drained == []
    new.serves = True
    world.staff.relieve(new)
    assert old.drained == [25.0]
    world.ends(old)
    world.pass_by(LOAD_SECONDS)
    assert world.children == [new]
    assert not new.killed


def test_a_successor_that_hangs_is_killed_and_the_next_one_is_tried_later(world: World) -> None:
    old = world.start()
    world.staff.recycle(old, "it ran 5 messages")
    new = world.children[1]
    world.pass_by(LOAD_SECONDS - 1)
    assert not new.killed
    world.pass_by(1)
    assert new.killed
    world.ends(new)
    assert (old.leaving, old.drained, world.children) == (False, [], [old])
    world.staff.recycle(old, "it uses much memory")  # it is not tried again and again
    world.pass_by(LOAD_SECONDS - 1)
    assert world.children == [old]
    world.pass_by(1)
    assert [one.number for one in world.children] == [1, 1]
    assert world.children[1] is old.successor


def test_new_code_is_tried_at_once(world: World) -> None:
    old = world.start()
    world.staff.recycle(old, "it ran 5 messages")
    world.ends(world.children[1])
    world.staff.hurry()
    world.pass_by(0)
    assert len(world.children) == 2


def test_a_spent_child_that_ends_by_itself_meanwhile_is_replaced_once(world: World) -> None:
    old = world.start()
    world.staff.recycle(old, "it ran 5 messages")
    world.ends(world.children[1])
    world.ends(old)
    world.pass_by(2)
    assert len(world.children) == 1
    world.pass_by(LOAD_SECONDS)
    assert len(world.children) == 1


def test_a_child_that_claims_no_more_does_not_go_on(world: World) -> None:
    """It was to be killed for a message, which ended at the last moment."""
    old = world.start()
    old.condemned_at = float("inf")
    world.staff.recycle(old, "a message ended just past its hard limit")
    world.ends(world.children[1])
    assert old.drained == [25.0]
    world.ends(old)
    world.pass_by(2)
    assert [one.number for one in world.children] == [1]


def test_a_spent_child_does_not_stay_beside_another_one(world: World) -> None:
    """A rolling restart has put one in its place."""
    old = world.start()
    world.staff.recycle(old, "it ran 5 messages")
    successor = world.children[1]
    rolled: Child = world.staff.start(1)
    successor.leaving = True
    world.ends(successor)
    assert old.drained == [25.0]
    assert not rolled.leaving


def test_a_member_holds_what_is_on_its_childs_board(world: World) -> None:
    child, member = world.start(), ("mail/1", "f" * 32)
    assert not world.staff.holds(member)
    child.members = dict([member])
    assert not world.staff.holds(member)
    child.board = {b"a field"}
    assert world.staff.holds(member)
    assert not world.staff.holds(("mail/1", "0" * 32))


def test_of_a_board_that_is_closed_meanwhile_the_worst_is_assumed(world: World) -> None:
    child, member = world.start(), ("mail/1", "f" * 32)
    child.members, child.board = dict([member]), None
    assert world.staff.holds(member)


def test_children_that_start_later_serve_the_partitions_that_there_are(world: World) -> None:
    old = world.start()
    world.staff.divide({"mail": 8})
    world.staff.divide({"low": 2})
    new = world.staff.start(1)
    assert (old.partitions, new.partitions) == ({}, {"mail": 8, "low": 2})
