"""Messages that kill their workers are stopped, and nobody else pays for them."""

from __future__ import annotations

import time
from typing import Any

import pytest

import taskq
from taskq import HardTimeLimitExceeded, WorkerCrashed
from tests.eventually import until
from tests.failure.books import check_after, is_alive
from tests.failure.scene import Scene


@pytest.mark.alone
def test_a_segfault_under_load_is_given_up_soon_and_costs_nobody_else_anything(
    scene: Scene,
) -> None:
    """F18: in ten seconds, after no more runs than the budget has; the rest succeeds."""
    worker = scene.worker("-p", "2", "-t", "4")
    expected: dict[Any, Any] = {scene.send("work", at, 0.05): at for at in range(100)}
    since = time.monotonic()
    poison = scene.send("crash")
    expected |= {scene.send("work", 100 + at, 0.05): 100 + at for at in range(100)}
    error = poison.exception(timeout=20)
    took = time.monotonic() - since
    print(f"given up after {took:.1f} s: {error}")
    assert isinstance(error, WorkerCrashed)
    assert took <= 10
    assert taskq.gather(list(expected), timeout=30) == list(expected.values())
    runs = scene.runs()
    assert len(runs[poison.id]) <= 3
    deaths = [(run.pid, run.started) for run in runs[poison.id]]
    for pid, at in deaths:
        scene.note("segfault", {pid}, at)
    check_after(scene, expected)
    assert "SIGSEGV" in worker.log


def test_what_a_condemned_task_has_started_dies_with_it(scene: Scene) -> None:
    """F42: the whole process group."""
    scene.worker("-p", "1", "-t", "2")
    result = scene.send("bomb", str(scene.folder), 40)
    mark = scene.folder / "bomb"
    pids = [int(pid) for pid in until(lambda: mark.exists() and mark.read_text().split(), 10)]
    assert len(pids) == 40
    assert isinstance(result.exception(timeout=30), HardTimeLimitExceeded)
    until(lambda: not any(map(is_alive, pids)))
    scene.note("hard limit")
    check_after(scene, {scene.send("note", 1): 1})
