"""A project folder of a user, and the commands typed in it."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import taskq
from taskq import TaskQ
from taskq.cli import main
from tests.eventually import until

SECRET = "a secret that all the command line tests share"
ROOT = str(Path(taskq.__file__).parent.parent)

PROJECT = '''
import os
import sys
import threading
from pathlib import Path

from taskq import TaskQ, RetryPolicy
from tenacity import wait_fixed

app = TaskQ("{name}", queues=["mail"])
PAUSE = threading.Event()


@app.task
def add(x, y):
    return x + y


@app.task(bind=True)
def hold(ctx, folder):
    """Say that it runs; end when the file `go` is there."""
    Path(folder, f"started-{{ctx.id}}-{{ctx.delivery}}").touch()
    while not Path(folder, "go").exists():
        PAUSE.wait(0.02)
    return [ctx.attempt, ctx.delivery]


@app.task(bind=True, retry=RetryPolicy(wait=wait_fixed(0.5)))
def flaky(ctx):
    if ctx.attempt == 1:
        raise ValueError("first time")
    return ctx.attempt


@app.task
def pid():
    return os.getpid()


@app.task
def fail():
    raise KeyError("told you so")
'''


class Running:
    """A command that goes on, with what it said so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def says(self, text: str, seconds: float = 60) -> str:
        """Wait until its output holds `text`; return all of it."""

        def said() -> bool:
            if text not in self.log and self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode}:\n{self.log}")
            return text in self.log

        until(said, seconds)
        return self.log

    def children(self) -> list[int]:
        table = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        pairs = [line.split() for line in table if line.strip()]
        return [int(pid) for pid, parent in pairs if int(parent) == self.process.pid]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self, seconds: float = 60) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.ends()


class Shell:
    """A folder with a `proj.py`, where commands are typed."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.name = f"t{secrets.token_hex(6)}"
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONPATH": ROOT,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TASKQ_URL": url,
            "TASKQ_SECRET": SECRET,
            "COLUMNS": "200",
        }
        # What commands are started by, as `nohup`.
        self.prefix: list[str] = []
        self._running: list[Running] = []
        self.write("proj.py", PROJECT.format(name=self.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, file: str, text: str) -> Path:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def type(
        self, *words: str, seconds: float = 60, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `taskq …` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "taskq", *words],
            cwd=self.folder,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def say(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Do what `type` does within this process, which is quicker: no worker may come of it."""
        out, err = io.StringIO(), io.StringIO()
        known, code = set(sys.modules), 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name, value in (self.environment | variables).items():
                patch.setenv(name, value)
            patch.setattr(sys, "path", [str(self.folder), *sys.path])
            patch.setattr(sys, "stdin", io.StringIO())
            try:
                main(list(words), prog_name="python -m taskq")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        for name in sys.modules.keys() - known:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(str(self.folder)):
                del sys.modules[name]
        importlib.invalidate_caches()
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def start(self, *words: str, **variables: str) -> Running:
        """Start `taskq …`; it is ended with the test."""
        log = self.folder / f"log-{len(self._running)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "taskq", *words],
                cwd=self.folder,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(process, log)
        self._running.append(running)
        return running

    def worker(self, *words: str, **variables: str) -> Running:
        """Start a worker and wait until it serves."""
        running = self.start("worker", *(words or ("proj", "-p", "1")), **variables)
        running.says(" on redis")
        return running

    def app(self, **settings: Any) -> TaskQ:
        """Return an app that reaches the project's, without its code."""
        return TaskQ(
            self.name, url=self.environment["TASKQ_URL"], secret=SECRET, queues=["mail"], **settings
        )

    def close(self) -> None:
        for running in self._running:
            if running.process.poll() is None:
                for child in running.children():
                    _kill(child)
                running.process.kill()
                running.process.wait(10)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture
def shell(tmp_path: Path, redis_url: str) -> Iterator[Shell]:
    with Shell(tmp_path, redis_url) as made:
        yield made


@pytest.fixture
def app(shell: Shell) -> Iterator[TaskQ]:
    made = shell.app()
    yield made
    made.close()


@pytest.fixture
def stopwatch() -> Any:
    """Tell how many seconds have passed since the test began."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
