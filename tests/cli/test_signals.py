"""SIGQUIT, SIGHUP, the first process of a container, and a supervisor that is killed."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq.broker import keys, queries
from tests.cli.test_deaths import is_alive, started
from tests.eventually import let_pass, until

# Processes are killed, and their ends waited for.
pytestmark = pytest.mark.slow

LINUX = sys.platform == "linux"


def source(shell: Any) -> str:
    return (shell.folder / "proj.py").read_text()


def serving(app: Any) -> int:
    base = keys.base(app.name, "default")
    return len(app.broker.run(queries.survey(base, "default")).workers)


def test_sigquit_hands_back_at_once(shell: Any, app: Any, tmp_path: Path, stopwatch: Any) -> None:
    first = shell.worker("proj", "-p", "2", "-t", "1")
    results = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    second = shell.worker("proj", "-p", "1")
    since = stopwatch()
    first.send(signal.SIGQUIT)
    until(lambda: len(started(tmp_path)) == 4)
    assert first.ends() == 0
    # Those that drain have 25.
    assert stopwatch() - since < 20
    (tmp_path / "go").touch()
    assert taskq.gather(results, timeout=14) == [[1, 2], [1, 2]]
    assert second.stop() == 0


def test_sigquit_hurries_a_drain(shell: Any, app: Any, tmp_path: Path) -> None:
    first = shell.worker("proj", "-p", "1")
    result = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    first.send(signal.SIGTERM)
    first.says("stopping: waiting")
    first.send(signal.SIGQUIT)
    assert first.ends() == 0
    assert result.snapshot().status is taskq.State.QUEUED
    assert result.snapshot().attempt == 0


def test_sighup_brings_the_new_code_child_by_child_and_the_queue_never_stops(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    worker = shell.worker("proj", "-p", "2", "-t", "1")
    until(lambda: serving(app) == 2)
    old = worker.children()
    held = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    shell.write("proj.py", source(shell).replace("return x + y", "return [x, y]"))
    most, answers, stop = [0], list[Any](), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(app.send_task("proj.add", (2, 3)).get(timeout=4))
            most[0] = max(most[0], len(worker.children()))

    asking = threading.Thread(target=ask)
    asking.start()
    worker.send(signal.SIGHUP)
    # The one that runs the held message drains, and goes on with it; the new one serves.
    until(lambda: [2, 3] in answers, 10)
    assert not held.ready()
    (tmp_path / "go").touch()
    worker.says("restarted 2 children")
    stop.set()
    asking.join()
    assert held.get(timeout=14) == [1, 1]
    assert most[0] == 3
    assert answers[-1] == [2, 3]
    assert all(one in (5, [2, 3]) for one in answers)
    assert len(worker.children()) == 2
    assert not set(old) & set(worker.children())
    assert "starting another" not in worker.log
    assert worker.stop() == 0


def test_code_that_does_not_load_leaves_the_old_children_at_work(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "2")
    until(lambda: serving(app) == 2)
    good, old = source(shell), worker.children()
    shell.write("proj.py", good + "\nthis is no python\n")
    worker.send(signal.SIGHUP)
    worker.says("the restart is given up")
    assert "a child cannot start: cannot import 'proj'" in worker.log
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    assert sorted(worker.children()) == sorted(old)
    shell.write("proj.py", good)
    worker.send(signal.SIGHUP)
    worker.says("restarted 2 children")
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    assert worker.stop() == 0


def test_sighup_refreshes_what_the_supervisor_knows(shell: Any, app: Any) -> None:
    """A lease of 1 s would be lost if it were renewed as one of 15 s is."""
    shell.write("proj.py", source(shell).replace("TaskQ(", "TaskQ(processes=1, name=", 1))
    worker = shell.worker("proj", "-t", "1")
    assert len(worker.children()) == 1
    shell.write("proj.py", source(shell).replace("processes=1,", "processes=2, lease=1,"))
    worker.send(signal.SIGHUP)
    worker.says("restarted 1 children")
    until(lambda: len(worker.children()) == 2)
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    let_pass(3)
    assert "lost" not in worker.log
    shell.write("proj.py", source(shell).replace("processes=2,", "processes=1,"))
    worker.send(signal.SIGHUP)
    worker.says("restarted 2 children")
    until(lambda: len(worker.children()) == 1)
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    assert worker.stop() == 0


def test_another_app_needs_another_worker(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1")
    shell.write("proj.py", source(shell).replace(shell.name, shell.name + "x"))
    worker.send(signal.SIGHUP)
    worker.says("start a new worker")
    worker.says("the restart is given up")
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    assert worker.stop() == 0


def test_a_child_that_comes_back_with_another_app_ends_the_worker_in_a_line(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    """What the other child runs has the time that a stop gives it."""
    worker = shell.worker("proj", "-p", "2", "-t", "1")
    until(lambda: serving(app) == 2)
    held = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    runs = app.send_task("proj.pid").get(timeout=14)
    shell.write("proj.py", source(shell).replace(shell.name, shell.name + "x"))
    os.kill(runs, signal.SIGKILL)
    until(lambda: serving(app) == 1)
    (tmp_path / "go").touch()
    assert held.get(timeout=14) == [1, 1]
    assert worker.ends() == 2
    assert worker.log.count("start a new worker") == 1
    assert f"the app {shell.name}x on" in worker.log.splitlines()[-1]


def test_sighup_before_it_serves_waits_until_it_does(shell: Any, app: Any) -> None:
    worker = shell.start("worker", "proj", "-p", "1")
    until(worker.children)
    worker.send(signal.SIGHUP)
    worker.says("restarted 1 children")
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    assert worker.stop() == 0


def test_a_stop_in_the_midst_of_a_restart_ends_all(shell: Any, app: Any, tmp_path: Path) -> None:
    worker = shell.worker("proj", "-p", "2", "-t", "1")
    held = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    worker.send(signal.SIGHUP)
    worker.says("restarting 2 children")
    worker.send(signal.SIGQUIT)
    assert worker.ends() == 0
    assert worker.children() == []
    assert held.snapshot().status is taskq.State.QUEUED


def test_nohup_means_it(shell: Any, app: Any) -> None:
    shell.prefix = ["nohup"]
    worker = shell.worker("proj", "-p", "1")
    worker.send(signal.SIGHUP)
    assert app.send_task("proj.add", (2, 3)).get(timeout=14) == 5
    let_pass(0.3)
    assert "restarting" not in worker.log
    assert worker.stop() == 0


def test_a_terminal_that_closes_ends_its_worker(shell: Any) -> None:
    ours, theirs = pty.openpty()
    log = (shell.folder / "log").open("wb")

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", "worker", "proj", "-p", "1"],
        cwd=shell.folder, env=shell.environment, stdin=theirs, stdout=log, stderr=log,
        preexec_fn=own_terminal,  # noqa: PLW1509 - no other thread runs here
    )  # fmt: skip
    with log:
        os.close(theirs)
        try:
            until(lambda: b"tasks:" in (shell.folder / "log").read_bytes(), 15)
            os.close(ours)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
    assert b"stopping" in (shell.folder / "log").read_bytes()


# The first process of a container.

LITTER = """

@app.task
def litter(folder):
    '''Leave a process behind, which ends by itself once its parent has gone.'''
    import subprocess
    line = f"(while ! [ -e {folder}/go ]; do sleep 0.1; done; touch {folder}/gone) &"
    subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=True)
    return os.getpid()
"""
SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def zombies_of(pid: int) -> list[str]:
    table = subprocess.run(
        ["ps", "-A", "-o", "ppid=,stat=,comm="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in table if line.strip()]
    return [row[2] for row in rows if int(row[0]) == pid and row[1].startswith("Z")]


@pytest.mark.skipif(not LINUX, reason="namespaces and subreapers are Linux's")
@pytest.mark.parametrize("how", ["init", "subreaper"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_first_process_of_a_container_reaps_and_obeys(
    shell: Any, app: Any, tmp_path: Path, how: str, number: signal.Signals
) -> None:
    unshare = ["unshare", "--pid", "--fork"]
    if how == "init" and subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this user may not make a PID namespace; the subreaper is tried instead")
    shell.prefix = unshare if how == "init" else [sys.executable, "-c", SUBREAPER]
    shell.write("proj.py", source(shell) + LITTER)
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    supervisor = worker.children()[0] if how == "init" else worker.process.pid
    child = app.send_task("proj.litter", (str(tmp_path),)).get(timeout=14)
    assert how == "subreaper" or child < 100
    (tmp_path / "go").touch()
    until((tmp_path / "gone").exists)
    until(lambda: zombies_of(supervisor) == [])
    # Its own children's deaths are still told apart.
    os.kill(children_of(supervisor)[0], signal.SIGKILL)
    worker.says("by SIGKILL")
    assert app.send_task("proj.add", (2, 3)).get(timeout=8) == 5
    os.kill(supervisor, number)
    assert worker.ends() == 0
    worker.says("stopped")


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


# A supervisor that is killed leaves nobody behind.

NO_PRCTL = """
import ctypes

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)

ctypes.CDLL = Library
"""
HOG = """

@app.task
def hog(folder):
    '''Hold the interpreter: no other thread of this process comes to run.'''
    import re
    Path(folder, "started-hog").touch()
    re.match("(a+)+$", "a" * 60 + "b")
"""


def test_without_prctl_children_end_with_the_pipe(shell: Any, app: Any, tmp_path: Path) -> None:
    shell.write("site/sitecustomize.py", NO_PRCTL)
    shell.environment["PYTHONPATH"] += f":{shell.folder}/site"
    worker = shell.worker("proj", "-p", "2", "-t", "1")
    held = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    children = worker.children()
    worker.send(signal.SIGKILL)
    until(lambda: not any(map(is_alive, children)), 8)
    # Handed back on the way, though nobody was there to ask for it.
    assert held.snapshot().status is taskq.State.QUEUED


@pytest.mark.skipif(not LINUX, reason="the kernel's parent-death signal is Linux's")
def test_a_child_too_busy_for_its_pipe_ends_by_the_kernel(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    shell.write("proj.py", source(shell) + HOG)
    worker = shell.worker("proj", "-p", "1", "-t", "1")
    app.send_task("proj.hog", (str(tmp_path),))
    until(lambda: started(tmp_path))
    (child,) = worker.children()
    let_pass(0.2)
    worker.send(signal.SIGKILL)
    until(lambda: not is_alive(child))


def test_a_child_whose_supervisor_goes_while_it_loads_ends(shell: Any) -> None:
    shell.write("site/sitecustomize.py", NO_PRCTL)
    shell.environment["PYTHONPATH"] += f":{shell.folder}/site"
    waiting = "from pathlib import Path\nimport threading\nwhile not Path('go').exists():"
    shell.write("proj.py", f"{waiting}\n    threading.Event().wait(0.05)\n{source(shell)}")
    worker = shell.start("worker", "proj", "-p", "1")
    until(worker.children)
    (child,) = worker.children()
    worker.send(signal.SIGKILL)
    worker.ends()
    (shell.folder / "go").touch()
    until(lambda: not is_alive(child), 8)
