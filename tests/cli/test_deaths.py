"""What is killed, and who takes over."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import taskq
from tests.eventually import until

pytestmark = pytest.mark.slow


def started(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("started-*"))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text() if Path("/proc").exists() else True


def test_a_killed_child_is_replaced_and_its_messages_run_again(
    shell: Any, app: Any, tmp_path: Path, stopwatch: Any
) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "2")
    results = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    killed = stopwatch()
    until(lambda: len(started(tmp_path)) == 4)
    assert stopwatch() - killed < 10
    (tmp_path / "go").touch()
    assert taskq.gather(results, timeout=14) == [[1, 2], [1, 2]]
    assert "SIGKILL" in worker.log
    assert worker.stop() == 0


def test_neighbours_of_a_killed_child_go_on(shell: Any, app: Any, tmp_path: Path) -> None:
    worker = shell.worker("proj", "-p", "2", "-t", "1")
    results = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    victim = worker.children()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(started(tmp_path)) == 3)
    (tmp_path / "go").touch()
    assert sorted(taskq.gather(results, timeout=14)) == [[1, 1], [1, 2]]
    assert worker.stop() == 0


@pytest.mark.slow
def test_children_do_not_outlive_their_supervisor(
    shell: Any, app: Any, tmp_path: Path, stopwatch: Any
) -> None:
    """A host that is lost: another worker takes over within a lease or little more."""
    first = shell.worker("proj", "-p", "2", "-t", "1", TASKQ_LEASE="1")
    results = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    second = shell.worker("proj", "-p", "2", "-t", "1", TASKQ_LEASE="1")
    children = first.children()
    first.send(signal.SIGKILL)
    killed = stopwatch()
    until(lambda: not any(map(is_alive, children)))
    until(lambda: len(started(tmp_path)) == 4)
    assert stopwatch() - killed < 15
    (tmp_path / "go").touch()
    assert taskq.gather(results, timeout=14) == [[1, 2], [1, 2]]
    assert second.stop() == 0


@pytest.mark.slow
def test_a_worker_that_comes_later_takes_over_as_well(shell: Any, app: Any, tmp_path: Path) -> None:
    first = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1")
    result = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    first.send(signal.SIGKILL)
    first.ends()
    second = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1")
    until(lambda: len(started(tmp_path)) == 2, 8)
    (tmp_path / "go").touch()
    assert result.get(timeout=14) == [1, 2]
    assert second.stop() == 0


def test_a_child_that_ends_itself_is_replaced(shell: Any, app: Any) -> None:
    source = (shell.folder / "proj.py").read_text()
    shell.write(
        "proj.py",
        source + "\n@app.task(bind=True)\ndef leave(ctx):\n"
        "    if ctx.delivery == 1:\n        os._exit(7)\n    return ctx.delivery\n",
    )
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    assert app.send_task("proj.leave").get(timeout=8) == 2
    assert "exit code 7" in worker.log
    assert app.send_task("proj.add", (1, 1)).get(timeout=14) == 2
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_long_task_is_not_started_twice_while_its_worker_lives(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    """G3: three leases long, and without letting go of the interpreter for most of it."""
    source = (shell.folder / "proj.py").read_text()
    shell.write(
        "proj.py",
        source + "\n@app.task(bind=True)\ndef hog(ctx):\n"
        "    import re, time\n    since = time.monotonic()\n"
        "    while time.monotonic() - since < 3.2:\n"
        "        re.match('(a+)+$', 'a' * 23 + 'b')\n"
        "    return [ctx.attempt, ctx.delivery]\n",
    )
    workers = [
        shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1", TASKQ_COROUTINES="0")
        for _ in range(2)
    ]
    assert app.send_task("proj.hog").get(timeout=15) == [1, 1]
    assert [worker.stop() for worker in workers] == [0, 0]
