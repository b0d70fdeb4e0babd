"""`taskq cancel`, and what a real worker with its supervisor makes of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from taskq import Cancellation, Cancelled, State, TaskQ
from tests.eventually import until

SLOW = '''

@app.task
def in_c(folder):
    """Hold the GIL in one call into C, so that no thread of this process does anything."""
    Path(folder, "in-c").touch()
    (1 << 400_000_000) // 3 ** 30_000_000


@app.task(bind=True)
async def linger(ctx, folder):
    import asyncio
    Path(folder, f"started-{ctx.id}-{ctx.delivery}").touch()
    await asyncio.Event().wait()
'''


@pytest.fixture
def slow(shell: Any) -> Any:
    shell.write("proj.py", (shell.folder / "proj.py").read_text() + SLOW)
    return shell


def test_it_says_what_it_did(shell: Any, app: TaskQ) -> None:
    waits = app.send_task("proj.add", (1, 2))
    over = app.send_task("proj.add", (1, 2), countdown=100)
    over.cancel("first")
    words = ("cancel", "-A", "proj", waits.id, over.id, "nobody", "--reason", "second")
    done = shell.say(*words)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{waits.id}: cancelled; it does not start",
        f"{over.id}: it was over already",
        "nobody: Redis does not know this id",
    ]
    assert str(waits.exception(timeout=14)) == f"{waits.id}: second"
    told = json.loads(shell.say(*words, "--json").stdout)
    assert told == {waits.id: "cancelled", over.id: "over", "nobody": "unknown"}


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "ID"), (["x@a b"], "queue name"), (["x" * 200], "id must be 1 to 128")],
)
def test_bad_input_is_told_in_a_line(shell: Any, words: list[str], told: str) -> None:
    done = shell.say("cancel", "-A", "proj", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_running_coroutine_is_told(slow: Any, app: TaskQ, tmp_path: Path) -> None:
    worker = slow.worker()
    result = app.send_task("proj.linger", (str(tmp_path),))
    until(lambda: list(tmp_path.glob("started-*")))
    done = slow.type("cancel", "-A", "proj", result.id, "--reason", "enough")
    assert done.stdout == f"{result.id}: it runs; its worker was told\n"
    error = result.exception(timeout=14)
    assert isinstance(error, Cancelled)
    assert error.reason == "enough"
    assert worker.stop() == 0


def test_terminate_kills_the_process_and_its_neighbours_run_again(
    slow: Any, app: TaskQ, tmp_path: Path
) -> None:
    worker = slow.worker("proj", "-p", "1", "-t", "2")
    victim, neighbour = (app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2))
    until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
    assert victim.cancel("enough", terminate=True) is Cancellation.TOLD
    assert isinstance(victim.exception(timeout=14), Cancelled)
    worker.says("is to be terminated")
    until((tmp_path / f"started-{neighbour.id}-2").exists, 10)
    (tmp_path / "go").touch()
    assert neighbour.get(timeout=14) == [1, 2]
    assert not (tmp_path / f"started-{victim.id}-2").exists()
    assert worker.stop() == 0


def test_terminate_reaches_a_process_that_hears_nothing(
    slow: Any, app: TaskQ, tmp_path: Path
) -> None:
    worker = slow.worker("proj", "-p", "1", TASKQ_LEASE="1.5")
    result = app.send_task("proj.in_c", (str(tmp_path),))
    until((tmp_path / "in-c").exists)
    assert result.cancel(terminate=True) is Cancellation.TOLD
    assert isinstance(result.exception(timeout=8), Cancelled)
    assert app.send_task("proj.add", (1, 2)).get(timeout=14) == 3
    assert worker.stop() == 0


def test_what_died_with_its_worker_is_not_run_again(shell: Any, app: TaskQ, tmp_path: Path) -> None:
    """It was told while it was stopped, and killed before it could hear."""
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    result = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: list(tmp_path.glob("started-*")))
    [child] = worker.children()
    signal_child(child, signal.SIGSTOP)
    assert result.cancel("enough") is Cancellation.TOLD
    assert result.status is State.RUNNING
    signal_child(child, signal.SIGKILL)
    assert isinstance(result.exception(timeout=14), Cancelled)
    assert app.send_task("proj.add", (1, 2)).get(timeout=14) == 3
    assert len(list(tmp_path.glob("started-*"))) == 1
    assert worker.stop() == 0


def signal_child(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)
