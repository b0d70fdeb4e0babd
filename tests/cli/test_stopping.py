"""How a worker ends: by request, by force, and when nothing is left to do."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import State
from tests.eventually import let_pass, until

pytestmark = pytest.mark.slow


def started(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("started-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_end_is_good(
    shell: Any, app: Any, tmp_path: Path, number: signal.Signals
) -> None:
    worker = shell.worker("proj", "-p", "2", "-t", "1")
    running = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    waiting = app.send_task("proj.add", (1, 1))
    worker.send(number)
    worker.says("stopping")
    let_pass(0.3)
    assert worker.process.poll() is None
    (tmp_path / "go").touch()
    assert worker.ends() == 0
    assert taskq.gather(running, timeout=14) == [[1, 1], [1, 1]]
    assert waiting.status is State.QUEUED
    assert worker.children() == []


def test_what_does_not_end_in_time_is_handed_back_uncounted(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    first = shell.worker("proj", "-p", "1", "--shutdown-timeout", "0.3")
    result = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    second = shell.worker("proj", "-p", "1")
    first.send(signal.SIGTERM)
    until(lambda: len(started(tmp_path)) == 2)
    assert first.ends() == 0
    (tmp_path / "go").touch()
    assert result.get(timeout=14) == [1, 2]
    assert second.stop() == 0


def test_a_second_signal_hands_back_at_once(
    shell: Any, app: Any, tmp_path: Path, stopwatch: Any
) -> None:
    first = shell.worker("proj", "-p", "1")
    result = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    second = shell.worker("proj", "-p", "1")
    first.send(signal.SIGTERM)
    first.says("stopping")
    first.send(signal.SIGTERM)
    since = stopwatch()
    until(lambda: len(started(tmp_path)) == 2)
    assert first.ends() == 0
    # Those that drain have 25.
    assert stopwatch() - since < 20
    (tmp_path / "go").touch()
    assert result.get(timeout=14) == [1, 2]
    assert second.stop() == 0


def test_burst_ends_when_all_is_done(shell: Any, app: Any) -> None:
    """Its own retry is waited for; what lies in the future, or is unknown, is not."""
    results = [app.send_task("proj.add", (x, 1)) for x in range(50)]
    retried = app.send_task("proj.flaky")
    later = app.send_task("proj.add", (1, 1), countdown=3600)
    unknown = app.send_task("proj.nobody")
    done = shell.type("worker", "proj", "-p", "1", "--burst")
    assert done.returncode == 0
    assert taskq.gather(results, timeout=1) == [x + 1 for x in range(50)]
    assert retried.get(timeout=1) == 2
    assert later.status is State.SCHEDULED
    assert unknown.status is State.QUEUED


def test_burst_on_nothing_ends_soon(shell: Any, stopwatch: Any) -> None:
    assert shell.type("worker", "proj", "-p", "2", "--burst").returncode == 0
    assert stopwatch() < 20


def test_reload_brings_the_new_code(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "--reload")
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    source = (shell.folder / "proj.py").read_text()
    shell.write("proj.py", source.replace("return x + y", "return [x, y]"))
    worker.says("changed")

    def answer() -> Any:
        return app.send_task("proj.add", (2, 3)).get(timeout=14)

    until(lambda: answer() == [2, 3], 8)

    shell.write("proj.py", source + "\nthis is no python\n")
    worker.says("cannot start")
    shell.write("proj.py", source)
    until(lambda: answer() == 5, 8)
    assert worker.stop() == 0


def test_a_worker_may_be_stopped_before_it_serves(shell: Any) -> None:
    shell.write("slow.py", "import threading\nthreading.Event().wait(30)\n")
    worker = shell.start("worker", "slow")
    until(worker.children)
    assert worker.stop() == 0
    assert worker.children() == []
