"""The protocol of stopping, with children that take down what they are told."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.model import clock
from taskq.worker.stopping import Stopping


class Child:
    def __init__(self, *, serves: bool = True) -> None:
        self.serves = serves
        self.told: list[Any] = []

    def drain(self, seconds: float) -> None:
        self.told.append(seconds)

    def hand_back(self) -> None:
        self.told.append("hand back")

    def kill(self) -> None:
        self.told.append("kill")


class World:
    def __init__(self) -> None:
        self.serving, self.loading = Child(), Child(serves=False)
        self.children: list[Any] = [self.serving, self.loading]
        self.stopping = Stopping(self.children)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0)
    return World()


def test_nothing_is_told_before_it_begins(world: World) -> None:
    world.stopping.step(2000.0)
    assert not world.stopping.begun
    assert world.serving.told == world.loading.told == []


def test_who_serves_drains_and_who_still_loads_is_killed(world: World) -> None:
    world.stopping.begin(25.0)
    assert world.stopping.begun
    assert world.serving.told == [25.0]
    assert world.loading.told == ["kill"]


def test_who_has_not_left_in_time_hands_back(world: World) -> None:
    world.stopping.begin(25.0)
    world.stopping.step(1025.4)
    assert world.serving.told == [25.0]
    world.stopping.step(1025.6)
    assert world.serving.told == [25.0, "hand back"]


def test_a_second_stop_hands_back_at_once_and_a_third_adds_nothing(world: World) -> None:
    world.stopping.begin(25.0)
    world.stopping.hurry()
    world.stopping.hurry()
    assert world.serving.told == [25.0, "hand back"]


def test_who_comes_up_during_the_end_is_told_as_well(world: World) -> None:
    world.stopping.begin(25.0)
    world.stopping.hurry()
    late = Child()
    world.children.append(late)
    world.stopping.step(1000.0)
    assert late.told == ["hand back"]
