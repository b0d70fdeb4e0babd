"""Power is lost: Redis comes back as it was some time ago, and its clients do not."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import MessageLost
from tests.eventually import until
from tests.failure.books import check_after
from tests.failure.scene import Scene
from tests.servers import Server


class Snapshot:
    """What a server's log held at one moment, to be put back in its place."""

    def __init__(self, server: Server) -> None:
        self._folders = [path for path in server.folder.glob("appendonly*") if path.is_dir()]
        self._files = [path for path in server.folder.glob("appendonly*") if path.is_file()]
        for path in self._folders:
            shutil.copytree(path, self._copy(path))
        for path in self._files:
            shutil.copy(path, self._copy(path))

    def restore(self) -> None:
        for path in self._folders:
            shutil.rmtree(path)
            shutil.move(self._copy(path), path)
        for path in self._files:
            shutil.move(self._copy(path), path)

    def _copy(self, path: Path) -> Path:
        return path.with_name(f"copy-{path.name}")


def go_back(scene: Scene, snapshot: Snapshot) -> None:
    """Kill Redis, and let it come back as it was."""
    server, began = scene.topology.primary, time.monotonic()
    server.kill()
    snapshot.restore()
    server.start()
    scene.note("went back", began=began)


def test_what_ended_in_the_time_that_was_lost_ends_again(scene: Scene) -> None:
    """F14: the worker that Redis takes for its holder has forgotten it long since."""
    scene.worker("-p", "1", "-t", "2")
    held = [scene.send("hold", str(scene.folder)) for _ in range(2)]
    until(lambda: len(scene.started()) == 2)
    snapshot = Snapshot(scene.topology.primary)
    scene.go()
    assert taskq.gather(held, timeout=30) == [[1, 1]] * 2
    go_back(scene, snapshot)
    again = [scene.app.result(one.id) for one in held]
    assert taskq.gather(again, timeout=30) == [[1, 2]] * 2


def test_what_was_claimed_in_the_time_that_was_lost_is_claimed_again(scene: Scene) -> None:
    """F14: the worker runs what Redis takes for queued."""
    snapshot_of = scene.send_many("hold", [(str(scene.folder),)] * 2)
    snapshot = Snapshot(scene.topology.primary)
    scene.worker("-p", "1", "-t", "2")
    until(lambda: len(scene.started()) == 2)
    go_back(scene, snapshot)
    scene.go()
    told = taskq.gather(snapshot_of, timeout=30)
    assert [attempt for attempt, _ in told] == [1, 1]


@pytest.mark.parametrize("cut", [1, 20, 300, 3000])
def test_a_log_that_lost_its_tail_tears_no_message(scene: Scene, cut: int) -> None:
    """F14: what Redis forgot is told, what it kept runs, nothing hangs."""
    results: dict[Any, Any] = {scene.send("note", at): at for at in range(30)}
    scene.worker("-p", "1", "-t", "2")
    results |= {scene.send("work", at, 0.3): at for at in range(8)}
    until(lambda: len(scene.runs()) >= 32)
    server = scene.topology.primary
    began = time.monotonic()
    server.kill()
    _truncate(server.folder, cut)
    server.start()
    scene.note("power lost", began=began)
    scene.queue().audit()
    scene.witness.heard.clear()  # what Redis forgot may end once more
    told = taskq.gather(list(results), timeout=20, return_exceptions=True)
    lost = {one for one, value in zip(results, told, strict=True) if isinstance(value, MessageLost)}
    print(f"{len(lost)} of {len(told)} messages lost with {cut} bytes")
    expected = {one: value for one, value in results.items() if one not in lost}
    check_after(scene, expected | {scene.send("note", 99): 99}, runs=False)


def _truncate(folder: Path, count: int) -> None:
    (log,) = [*folder.glob("appendonlydir/*.incr.aof"), *folder.glob("appendonly.aof")]
    with log.open("rb+") as file:
        file.truncate(max(0, log.stat().st_size - count))
