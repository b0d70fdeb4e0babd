"""How long it takes until something can be done: an import, the first task of a worker."""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import workers
from benchmarks.case import Bench
from benchmarks.tasks import app

BENEATH = "redis, redis.asyncio, tenacity, cloudpickle, msgspec"
TIMED = "import time; begun = time.perf_counter(); import {}; print(time.perf_counter() - begun)"
REPEATS = 5
# An app as small as can be.
PROJECT = """\
from taskq import TaskQ

app = TaskQ({name!r})


@app.task(name="first")
def first() -> None:
    pass
"""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return where bytecode and the project lie; it ends with this process.

    So the installed files stay as they are, whoever owns them.
    """
    return tempfile.TemporaryDirectory(prefix="tqb-")


def _variables() -> dict[str, str]:
    """Return the variables under which bytecode is kept in the folder, and found there."""
    folder = _folder().name
    path = os.pathsep.join((folder, str(workers.ROOT)))
    own = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
    return {**os.environ, **own, "PYTHONPATH": path}


def taskq(bench: Bench) -> Sequence[float]:
    """Return the milliseconds of `import taskq`, and of a worker until its first task is done."""
    return _imported(bench, "taskq"), _first_task(bench)


def beneath(bench: Bench) -> Sequence[float]:
    """Return the milliseconds of importing what taskq stands on, twice."""
    took = _imported(bench, BENEATH)
    return took, took


def _imported(bench: Bench, names: str) -> float:
    """Import in fresh processes; the first one compiles, and does not count."""
    words = [sys.executable, "-c", TIMED.format(names)]

    def once() -> float:
        done = subprocess.run(words, env=_variables(), capture_output=True, check=True)
        return float(done.stdout) * 1000

    once()
    return statistics.median(once() for _ in range(bench.count(REPEATS, 1)))


def _first_task(bench: Bench) -> float:
    """Start a worker for a message that waits; the first one compiles, and does not count."""
    project = Path(_folder().name, "project.py")
    project.write_text(PROJECT.format(name=app.name), encoding="utf-8")
    words = ("-m", "taskq", "worker", "project", "-p", "1", "-l", "ERROR")
    took = 0.0
    for _ in range(2):
        bench.clean()
        result = app.send_task("first")
        begun = time.perf_counter()
        with workers.running(*words, variables=_variables()) as process:
            workers.wait_for(result.ready, process)
            took = (time.perf_counter() - begun) * 1000
    return took
