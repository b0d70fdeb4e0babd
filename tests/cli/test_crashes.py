"""Tasks that kill their process, run too long or eat memory: who pays, and who does not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import HardTimeLimitExceeded, SoftTimeLimitExceeded, State, WorkerCrashed
from tests.eventually import until

# Processes are killed, and their ends waited for.
pytestmark = pytest.mark.slow

TASKS = """

import ctypes


@app.task
def segfault():
    ctypes.string_at(0)


@app.task
def leave(code):
    os._exit(code)


@app.task
def shoot():
    os.kill(os.getpid(), 9)


@app.task(max_crashes=1)
def leave_once(code):
    os._exit(code)


@app.task
async def fall():
    ctypes.string_at(0)


@app.task
def eat(folder):
    Path(folder, "eats").touch()
    eaten = bytearray(400 << 20)
    for at in range(0, len(eaten), 4096):
        eaten[at] = 1
    PAUSE.wait(20)


@app.task(bind=True, hard_timeout=0.6)
def read_for_ever(ctx, folder):
    Path(folder, f"reads-{ctx.id}-{ctx.delivery}").touch()
    os.read(os.pipe()[0], 1)


@app.task(hard_timeout=0.6)
async def block_for_ever():
    os.read(os.pipe()[0], 1)


@app.task(timeout=0.3, hard_timeout=1.2)
def stubborn():
    while True:
        try:
            PAUSE.wait(0.01)
        except BaseException:
            continue


@app.task(timeout=0.2, hard_timeout=20)
def obedient():
    while True:
        PAUSE.wait(0.01)


class Slow:
    def __del__(self):
        PAUSE.wait(0.6)


@app.task(timeout=0.2, hard_timeout=40)
def drop():
    Slow()
    while True:
        PAUSE.wait(0.01)


@app.task(hard_timeout=0.8)
def just_in_time():
    PAUSE.wait(1.0)
    return "whole"


@app.task(bind=True)
async def keep_the_loop(ctx, gate):
    with open(gate) as reader:
        reader.read()
    return ctx.delivery


@app.task(bind=True)
async def anote(ctx):
    return ctx.delivery


@app.task(bind=True)
def note(ctx, folder):
    with open(Path(folder, f"ran-{ctx.id}-{ctx.attempt}"), "x"):
        return os.getpid()
"""


@pytest.fixture
def shell(shell: Any) -> Any:
    shell.write("proj.py", (shell.folder / "proj.py").read_text() + TASKS)
    return shell


def started(folder: Path, what: str = "started") -> list[str]:
    return sorted(path.name for path in folder.glob(f"{what}-*"))


@pytest.mark.alone
def test_a_task_that_segfaults_is_given_up_and_its_neighbours_are_not_charged(
    shell: Any, app: Any, tmp_path: Path, stopwatch: Any
) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "3")
    neighbours = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    began = stopwatch()
    culprit = app.send_task("proj.segfault")
    error = culprit.exception(timeout=15)
    assert stopwatch() - began < 10
    assert isinstance(error, WorkerCrashed)
    assert "3 times" in str(error)
    assert "SIGSEGV" in str(error)
    # The neighbours were interrupted by the first crash alone: then it ran by itself.
    assert len(started(tmp_path)) == 4
    (tmp_path / "go").touch()
    assert taskq.gather(neighbours, timeout=14) == [[1, 2], [1, 2]]
    assert culprit.snapshot().note is not None
    assert culprit.status is State.FAILED
    assert "Current thread" in worker.log
    assert app.send_task("proj.add", (1, 1)).get(timeout=14) == 2
    assert worker.stop() == 0


def test_many_that_ran_when_a_child_was_killed_run_again_at_once(
    shell: Any, app: Any, tmp_path: Path, stopwatch: Any
) -> None:
    worker = shell.worker("proj", "-p", "2", "-t", "8")
    results = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(8)]
    until(lambda: len(started(tmp_path)) == 8)
    for child in worker.children():
        os.kill(child, signal.SIGKILL)
    began = stopwatch()
    until(lambda: len(started(tmp_path)) == 16)
    assert stopwatch() - began < 10
    (tmp_path / "go").touch()
    assert taskq.gather(results, timeout=14) == [[1, 2]] * 8
    assert worker.stop() == 0


@pytest.mark.parametrize(("task", "words"), [("leave", "exit code 7"), ("shoot", "SIGKILL")])
def test_whoever_ends_its_process_without_a_trace_is_found_by_running_alone(
    shell: Any, app: Any, tmp_path: Path, task: str, words: str
) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "3")
    neighbours = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    culprit = app.send_task(f"proj.{task}", (7,) if task == "leave" else ())
    error = culprit.exception(timeout=20)
    assert isinstance(error, WorkerCrashed)
    assert words in str(error)
    until(lambda: len(started(tmp_path)) == 4)
    (tmp_path / "go").touch()
    assert taskq.gather(neighbours, timeout=14) == [[1, 2], [1, 2]]
    assert worker.stop() == 0


def test_a_task_may_have_a_budget_of_its_own(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    error = app.send_task("proj.leave_once", (3,)).exception(timeout=14)
    assert isinstance(error, WorkerCrashed)
    assert "once; the last one ended with exit code 3" in str(error)
    assert worker.stop() == 0


def test_an_app_may_have_another_budget(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_MAX_CRASHES="2")
    result = app.send_task("proj.leave", (0,))
    error = result.exception(timeout=14)
    assert "2 times; the last one ended with exit code 0" in str(error)
    assert result.snapshot().delivery == 2
    assert worker.stop() == 0


def test_a_coroutine_that_segfaults_is_given_up(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1")
    error = app.send_task("proj.fall").exception(timeout=15)
    assert isinstance(error, WorkerCrashed)
    assert "Segmentation fault" in str(error)
    assert worker.stop() == 0


def test_a_child_for_a_suspect_is_there_while_it_is_needed(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    assert isinstance(app.send_task("proj.shoot").exception(timeout=15), WorkerCrashed)
    until(lambda: len(worker.children()) == 1, 10)
    assert worker.stop() == 0


def test_a_worker_started_later_takes_suspects_up(shell: Any, app: Any, tmp_path: Path) -> None:
    first = shell.worker("proj", "-p", "1", "-t", "2", TASKQ_LEASE="1")
    results = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    (child,) = first.children()
    os.kill(child, signal.SIGKILL)
    first.send(signal.SIGKILL)
    first.ends()
    (tmp_path / "go").touch()
    second = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1")
    assert taskq.gather(results, timeout=15) == [[1, 2], [1, 2]]
    assert second.stop() == 0


def test_a_task_past_its_hard_limit_fails_and_its_neighbours_run_at_once(
    shell: Any, app: Any, tmp_path: Path, stopwatch: Any
) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "2")
    neighbour = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: len(started(tmp_path)) == 1)
    began = stopwatch()
    result = app.send_task("proj.read_for_ever", (str(tmp_path),))
    error = result.exception(timeout=14)
    assert stopwatch() - began < 8
    assert isinstance(error, HardTimeLimitExceeded)
    assert "hard_timeout of 0.6 s" in str(error)
    until(lambda: len(started(tmp_path)) == 2)
    (tmp_path / "go").touch()
    assert neighbour.get(timeout=14) == [1, 2]
    assert len(started(tmp_path, "reads")) == 1
    assert worker.stop() == 0


def test_a_coroutine_that_blocks_the_loop_is_ended_by_its_hard_limit(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1")
    error = app.send_task("proj.block_for_ever").exception(timeout=14)
    assert isinstance(error, HardTimeLimitExceeded)
    assert worker.stop() == 0


def test_a_task_that_ignores_the_soft_limit_meets_the_hard_one(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    error = app.send_task("proj.stubborn").exception(timeout=14)
    assert isinstance(error, HardTimeLimitExceeded)
    error = app.send_task("proj.obedient").exception(timeout=14)
    assert isinstance(error, SoftTimeLimitExceeded)
    assert worker.stop() == 0


def test_what_ends_while_its_process_is_condemned_has_its_outcome(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    (child,) = worker.children()
    assert app.send_task("proj.just_in_time").get(timeout=14) == "whole"
    # The process, which was told to claim no more, is replaced.
    assert app.send_task("proj.pid").get(timeout=14) != child
    assert worker.stop() == 0


def test_a_process_over_its_memory_limit_is_killed_and_the_reason_told(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1", "--memory-limit", "300M")
    result = app.send_task("proj.eat", (str(tmp_path),))
    error = result.exception(timeout=25)
    assert isinstance(error, WorkerCrashed)
    assert "MiB of memory; allowed are 300 MiB" in str(error)
    assert "MiB of memory" in worker.log
    assert worker.stop() == 0


def test_a_child_that_uses_much_memory_is_replaced_after_its_work(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "2", "--max-memory-per-child", "5M")
    result = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    worker.says("is replaced: it uses", 10)
    (tmp_path / "go").touch()
    assert result.get(timeout=14) == [1, 1]
    worker.stop()


def test_a_limit_that_meets_a_destructor_is_told_after_it(shell: Any, app: Any) -> None:
    """Python lets no exception out of one."""
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    error = app.send_task("proj.drop").exception(timeout=30)
    assert isinstance(error, SoftTimeLimitExceeded)
    assert "Exception ignored" not in worker.log
    assert app.send_task("proj.add", (1, 1)).get(timeout=14) == 2
    assert worker.stop() == 0


def test_a_child_that_ran_its_share_is_replaced_without_a_pause(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1", "--max-tasks-per-child", "5")
    sent: set[str] = set()
    pids: set[int] = set()

    def three_processes() -> bool:
        result = app.send_task("proj.note", (str(tmp_path),))
        sent.add(result.id)
        pids.add(result.get(timeout=30))
        return len(pids) == 3

    until(three_processes, 60)
    # One that was claimed may go back before it starts; what began is seen through.
    assert sorted(path.name for path in tmp_path.glob("ran-*")) == sorted(
        f"ran-{id}-1" for id in sent
    )
    assert "ran 5 messages" in worker.log
    until(lambda: len(worker.children()) == 1, 30)
    assert worker.stop() == 0


def test_a_child_that_ran_its_share_goes_on_where_no_other_can_start(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1", "--max-tasks-per-child", "1")
    shell.write("proj.py", (shell.folder / "proj.py").read_text() + "\nthis is no python\n")
    first = app.send_task("proj.pid").get(timeout=14)
    worker.says("a child cannot start: cannot import 'proj'")
    assert app.send_task("proj.pid").get(timeout=14) == first
    assert worker.children() == [first]
    assert worker.stop() == 0


def test_what_a_busy_child_cannot_start_runs_elsewhere(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    """A coroutine keeps the loop to itself: only the supervisor can give the others back."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    busy = app.send_task("proj.keep_the_loop", (str(gate),))
    others = [app.send_task("proj.anote") for _ in range(3)]
    first = shell.worker("proj", "-p", "1", "-t", "0")
    first.says("gave back 3 messages of a busy child")
    second = shell.worker("proj", "-p", "1", "-t", "0")
    assert taskq.gather(others, timeout=14) == [2, 2, 2]
    assert not busy.ready()
    with gate.open("w") as writer:
        writer.write("go")
    assert busy.get(timeout=14) == 1
    assert "came too late" not in first.log
    assert [worker.stop() for worker in (first, second)] == [0, 0]


def test_what_kills_the_first_child_of_a_worker_at_once_does_not_end_the_worker(
    shell: Any, app: Any
) -> None:
    result = app.send_task("proj.segfault")
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    assert isinstance(result.exception(timeout=15), WorkerCrashed)
    assert result.snapshot().delivery == 3
    assert app.send_task("proj.add", (1, 1)).get(timeout=14) == 2
    assert worker.stop() == 0


def test_a_burst_worker_sees_suspects_through(shell: Any, app: Any) -> None:
    results = [app.send_task("proj.shoot"), app.send_task("proj.add", (1, 1))]
    done = shell.type("worker", "proj", "-p", "1", "-t", "2", "--burst", seconds=40)
    assert done.returncode == 0
    assert isinstance(results[0].exception(timeout=1), WorkerCrashed)
    assert results[1].get(timeout=1) == 2


def test_a_child_killed_from_outside_costs_no_attempt(shell: Any, app: Any, tmp_path: Path) -> None:
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    result = app.send_task("proj.hold", (str(tmp_path),))
    for run in (1, 2):
        until(lambda n=run: len(started(tmp_path)) == n, 10)
        for child in worker.children():
            os.kill(child, signal.SIGKILL)
    until(lambda: len(started(tmp_path)) == 3, 10)
    (tmp_path / "go").touch()
    assert result.get(timeout=14) == [1, 3]
    assert worker.stop() == 0
