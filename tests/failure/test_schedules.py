"""Schedules fired by several while they die, and while their clocks are wrong."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.cli.conftest import Running
from tests.eventually import let_pass, until
from tests.failure.books import check_after
from tests.failure.failpoints import Point, When, Who
from tests.failure.scene import MODULE, Scene

EVERY_SECOND = "* * * * * *"
NAME = "often"
# As much as Redis's own clock, each.
SKEWS = (-5.0, -2.5, 0.0, 2.5, 5.0)


class Beats:
    """Processes that fire schedules, each with a wrong clock; who dies is followed by another."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._skews: Iterator[float] = iter(())
        self.living: list[Running] = []
        # All that were started.
        self.started: list[Running] = []

    def start(self, *points: Point) -> Running:
        """Start one, which dies at these points."""
        skew = next(self._skews, None)
        if skew is None:
            self._skews = iter(SKEWS)
            skew = next(self._skews)
        variables = self._scene.skewed(skew) | (self._scene.doom(*points) if points else {})
        beat = self._scene.shell.start("beat", MODULE, **variables)
        self.living.append(beat)
        self.started.append(beat)
        return beat

    def serve(self) -> None:
        """Wait until all of them fire."""
        for beat in self.living:
            beat.says("fires the schedules of app")

    def kill(self, beat: Running) -> None:
        """Kill one, and start another in its place."""
        self.living.remove(beat)
        self._scene.kill(beat.process.pid)
        beat.ends()
        self.start()

    @property
    def dead(self) -> list[Running]:
        """Those that died and were not replaced."""
        return [beat for beat in self.living if beat.process.poll() is not None]

    def replace(self) -> int:
        """Start another for each that died at its point; return how many did."""
        dead = self.dead
        for beat in dead:
            assert beat.process.poll() == -signal.SIGKILL, beat.log
            self.living.remove(beat)
            self.start()
        return len(dead)

    def stop(self) -> None:
        """End those that live, as people do."""
        for beat in self.living:
            assert beat.stop() == 0, beat.log


def check_ticks(scene: Scene, least: int, *, tasks: str = "proj.note") -> list[str]:
    """Stop the schedule; each tick since its first must have been fired once, and have run."""
    schedules = scene.app.schedules
    one = schedules.get(NAME)
    schedules.pause(NAME)
    one = schedules.get(NAME)
    until(lambda: sum(map(of_schedule, scene.runs())) == one.fired, 30)
    ids = sorted(filter(of_schedule, scene.runs()))
    ticks = [datetime.fromisoformat(id.partition(":")[2]) for id in ids]
    assert one.last_at == ticks[-1]
    gaps = {later - earlier for earlier, later in pairwise(ticks)}
    assert gaps == {timedelta(seconds=1)}, ids
    assert (one.missed, one.skipped) == (0, 0)
    assert len(ids) == one.fired >= least
    schedules.remove(NAME)
    expected: dict[Any, Any] = {scene.app.result(id): None for id in ids}
    check_after(scene, expected)
    return ids


def of_schedule(id: str) -> bool:
    return id.startswith(NAME + ":")


def add(scene: Scene, cron: str = EVERY_SECOND, **options: Any) -> None:
    call = scene.app._unchecked("proj.note", (), None, {})
    scene.app.schedules.add(NAME, call, cron=cron, **options)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("patient")
def test_five_schedulers_that_die_with_wrong_clocks_fire_each_tick_once(
    scene: Scene, seed: int
) -> None:
    """F29: some die around the very call that fires, some anywhere; Redis dies as well."""
    draw = random.Random(seed)
    scene.worker("-p", "1", "-t", "2", "--no-schedules")
    beats = Beats(scene)
    for when in When:
        mark = str(scene.marks / f"beat-fire-{when}")
        beats.start(Point(Who.PRODUCER, "fire", when, mark, skip=1))
    for _ in range(2):
        beats.start()
    beats.serve()
    add(scene)
    until(lambda: scene.app.schedules.get(NAME).fired >= 2)
    scene.arm()
    began, died = time.monotonic(), 0
    # A point is marked before the process that met it is gone.
    # Whoever is to die fires twice before: who is first each second is left to chance.
    until(lambda: len(beats.dead) == len(When), 45)
    for step in range(6):
        died += beats.replace()
        let_pass(draw.uniform(0.5, 1.5))
        if step == 2:
            with scene.topology.primary.client():
                scene.topology.primary.kill()
            let_pass(1.0)
            scene.topology.primary.start()
            scene.note("kill_redis")
        else:
            beats.kill(draw.choice(beats.living))
    died += beats.replace()
    assert died == len(When)
    beats.serve()
    let_pass(max(0.0, 17 - (time.monotonic() - began)))
    ids = check_ticks(scene, 15)
    beats.stop()
    print(f"{len(ids)} ticks, {len(beats.started)} schedulers, {died} died at their points")


@pytest.mark.timeout(200)
@pytest.mark.usefixtures("patient")
def test_twenty_workers_of_which_some_are_killed_fire_each_tick_once(
    scene: Scene, seed: int
) -> None:
    draw = random.Random(seed)
    starting = [
        scene.shell.start(
            "worker", MODULE, "-p", "1", "-t", "1", **scene.skewed(SKEWS[number % len(SKEWS)])
        )
        for number in range(20)
    ]
    for worker in starting:
        worker.says(" on redis://", 90)
    scene.workers += starting
    add(scene)
    until(lambda: scene.app.schedules.get(NAME).fired >= 2)
    victims = draw.sample(starting, 6)
    for victim in victims:
        children = victim.children()
        scene.kill(victim.process.pid)
        scene.note("host lost", children)
        victim.ends()
        let_pass(draw.uniform(0.5, 1.5))
    scene.workers = [worker for worker in starting if worker not in victims]
    let_pass(5)
    ids = check_ticks(scene, 10)
    print(f"{len(ids)} ticks, 20 workers, {len(victims)} killed")


@pytest.mark.parametrize("catch_up", ["all", "none"])
def test_ticks_that_pass_while_nobody_is_there_are_made_up_for_as_was_said(
    scene: Scene, catch_up: Any
) -> None:
    """Redis restarts meanwhile: what was fired last is in it."""
    call = scene.app._unchecked("proj.note", (), None, {})
    scene.app.schedules.add(NAME, call, every=1, catch_up=catch_up)
    first = scene.app.schedules.next(NAME, 1)[0]
    scene.topology.primary.kill()
    scene.topology.primary.start()
    let_pass(14)
    worker = scene.worker("-p", "1", "-t", "2")
    until(lambda: scene.app.schedules.get(NAME).fired >= 3)
    scene.app.schedules.pause(NAME)
    one = scene.app.schedules.get(NAME)
    until(lambda: sum(map(of_schedule, scene.runs())) == one.fired)
    ticks = sorted(
        datetime.fromisoformat(id.partition(":")[2]) for id in filter(of_schedule, scene.runs())
    )
    # What is at most ten seconds late is on time.
    if catch_up == "all":
        assert (ticks[0], one.missed) == (first, 0)
    else:
        assert ticks[0] > first
        assert one.missed >= 3
    assert one.fired + one.missed == (ticks[-1] - first).total_seconds() + 1
    assert worker.stop() == 0
