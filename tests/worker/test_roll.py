"""A rolling restart, step by step, with children that are told what to do."""

from __future__ import annotations

import dataclasses

import pytest

from taskq.model import clock
from taskq.worker.roll import LOAD_SECONDS, PATIENT_SECONDS, Roll


@dataclasses.dataclass(eq=False)
class Child:
    number: int
    serves: bool = False
    leaving: bool = False
    born: float = dataclasses.field(default_factory=clock.monotonic)
    killed: bool = False

    def kill(self) -> None:
        self.killed = True


class World:
    def __init__(self, count: int) -> None:
        self.alive = [Child(number, serves=True) for number in range(1, count + 1)]
        self.roll = Roll(self.start, self.drain)
        self.wanted = count

    def start(self, number: int) -> Child:
        self.alive.append(Child(number))
        return self.alive[-1]

    def drain(self, child: Child) -> None:
        child.leaving = True

    def step(self) -> None:
        self.roll.step(self.alive, self.wanted)

    def finish(self) -> None:
        """Let everything that was begun end well, until nothing is left to do."""
        for _ in range(20):
            self.step()
            for child in list(self.alive):
                child.serves = True
                if child.leaving:
                    self.alive.remove(child)


@pytest.fixture
def world() -> World:
    world = World(2)
    world.roll.begin(world.alive)
    world.step()
    return world


def test_the_old_one_drains_when_the_new_one_serves(world: World) -> None:
    first, second, new = world.alive
    world.step()
    assert not first.leaving
    new.serves = True
    world.step()
    assert first.leaving
    world.step()
    assert len(world.alive) == 3  # the next one only when this one is gone
    world.alive.remove(first)
    world.step()
    world.step()
    assert [one.number for one in world.alive] == [2, 1, 2]
    assert not second.leaving


def test_all_are_replaced_once(world: World) -> None:
    old = world.alive[:2]
    world.finish()
    assert sorted(one.number for one in world.alive) == [1, 2]
    assert not {id(one) for one in old} & {id(one) for one in world.alive}
    assert not world.roll.active


def test_a_new_one_that_never_serves_is_given_up(world: World) -> None:
    first, second, new = world.alive
    world.step()
    assert not new.killed
    new.born -= LOAD_SECONDS
    world.step()
    assert new.killed
    assert not world.roll.active
    assert not any(one.leaving for one in (first, second))


def test_another_restart_does_not_wait_for_a_new_one_that_hangs(world: World) -> None:
    old, hangs = world.alive[:2], world.alive[2]
    hangs.born -= PATIENT_SECONDS
    world.roll.begin(world.alive)
    assert hangs.killed
    world.alive.remove(hangs)
    world.finish()
    assert not {id(one) for one in old} & {id(one) for one in world.alive}
    assert sorted(one.number for one in world.alive) == [1, 2]


def test_a_new_one_that_ends_before_it_serves_ends_the_restart(world: World) -> None:
    first, second, new = world.alive
    world.alive.remove(new)
    world.step()
    assert not world.roll.active
    world.finish()
    assert world.alive == [first, second]
    assert not first.leaving


def test_an_old_one_that_dies_meanwhile_is_not_drained(world: World) -> None:
    first, _, new = world.alive
    world.alive.remove(first)
    new.serves = True
    world.finish()
    assert not first.leaving
    assert sorted(one.number for one in world.alive) == [1, 2]


def test_a_second_request_replaces_the_new_ones_as_well(world: World) -> None:
    first, _, new = world.alive
    world.roll.begin(world.alive)
    world.finish()
    assert not {id(first), id(new)} & {id(one) for one in world.alive}
    assert sorted(one.number for one in world.alive) == [1, 2]


def test_fewer_are_wanted() -> None:
    world = World(3)
    world.wanted = 1
    world.roll.begin(world.alive)
    world.finish()
    assert [one.number for one in world.alive] == [1]
