"""The example's own worker processes: `taskq worker`, started and ended with a block."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
STOP_SECONDS = 40.0


class WorkerFailed(Exception):
    """The worker ended while it was needed; the text is the end of its log."""


class OwnWorker:
    """A `taskq worker` process, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raise `WorkerFailed` unless it runs."""
        if self._process.poll() is not None:
            msg = f"the worker ended with {self._process.returncode}:\n{self.log()}"
            raise WorkerFailed(msg)

    def log(self) -> str:
        """Return the end of what it wrote."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:].rstrip()


@contextlib.contextmanager
def own_worker(processes: int | None) -> Iterator[OwnWorker]:
    """Run a worker until the block ends, then let it finish what it has begun."""
    command = [sys.executable, "-m", "taskq", "worker", "example_project.app", "-l", "WARNING"]
    if processes:
        command += ["-p", str(processes)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            # A Ctrl-C is for the one who asks; the worker is then told by us, once.
            start_new_session=True,
        )
        try:
            yield OwnWorker(process, log)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
