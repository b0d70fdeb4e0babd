"""Worker processes: started, watched from outside while they drain a queue, ended."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from benchmarks import processors
from benchmarks.tasks import add

ROOT = Path(__file__).parent.parent
STOP_SECONDS = 40.0
STALL_SECONDS = 60.0
POLL_SECONDS = 0.002


class Failed(Exception):
    """A worker ended, or stands still."""


class Process:
    """One worker command, its output kept for the case that it fails."""

    def __init__(self, popen: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.popen = popen
        self._log = log

    def check(self) -> None:
        """Raise `Failed`, with what it wrote, if it ended by itself and not well."""
        if self.popen.poll():
            self._log.seek(0)
            text = self._log.read().decode(errors="replace")[-2000:]
            msg = f"a worker ended with {self.popen.returncode}: {text}"
            raise Failed(msg)

    def family(self) -> dict[int, int]:
        """Return the resident bytes of the process and of each below it, by pid."""
        return processors.family(self.popen.pid)


@contextlib.contextmanager
def taskq_worker(
    threads: int = 8,
    processes: int = 1,
    variables: Mapping[str, str] | None = None,
    module: str = "benchmarks.tasks",
) -> Iterator[Process]:
    """Run `taskq worker`; it drains and ends with the block."""
    options = ("-p", str(processes), "-t", str(threads), "-l", "ERROR")
    words = ("-m", "taskq", "worker", module, *options)
    with running(*words, variables=variables) as process:
        yield process


@contextlib.contextmanager
def bare_worker(url: str, base: str, mode: str) -> Iterator[Process]:
    """Run the prototype: `mode` is `echo`, or the number of threads that drain."""
    with running("-m", "benchmarks.prototype", url, base, mode) as process:
        yield process


@contextlib.contextmanager
def running(*arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Run Python with these arguments, in a session of its own, until the block ends."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, **(variables or {})}
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # a Ctrl-C is for us, and we end them
        )
        process = Process(popen, log)
        try:
            yield process
            process.check()
        finally:
            _stop(popen)


def _stop(popen: subprocess.Popen[bytes]) -> None:
    popen.terminate()
    try:
        popen.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def rate_of_drain(left: Callable[[], int], total: int, process: Process) -> float:
    """Return messages a second, from the first end that is seen to the last.

    `left()` says how many wait or run. What ended before the first look with an end in
    it is not counted, nor is the time until then: the start of the process is left out.
    A drain that was over at that look is NaN: too short to be measured.
    """
    last = _next_below(left, total, process)
    first, begun = last, time.perf_counter()
    while last:
        last = _next_below(left, last, process)
    return first / (time.perf_counter() - begun) if first else math.nan


def warm(process: Process) -> None:
    """Wait until the worker has answered a few calls."""
    for number in range(20):
        result = add.delay(number, number)
        wait_for(result.ready, process)


def wait_for(done: Callable[[], bool], process: Process, seconds: float = STALL_SECONDS) -> None:
    """Wait for something that the worker does."""
    deadline = time.monotonic() + seconds
    while not done():
        process.check()
        if time.monotonic() > deadline:
            msg = f"what was waited for did not come in {seconds:.0f} s"
            raise Failed(msg)
        time.sleep(POLL_SECONDS)


def wait_until_empty(
    left: Callable[[], int], process: Process, every: float = POLL_SECONDS
) -> None:
    """Wait until nothing is left, however long it takes while something ends."""
    last = left()
    while last:
        last = _next_below(left, last, process, every)


def _next_below(
    left: Callable[[], int], last: int, process: Process, every: float = POLL_SECONDS
) -> int:
    """Wait until fewer than `last` are left; return how many."""
    deadline = time.monotonic() + STALL_SECONDS
    while (now := left()) >= last:
        process.check()
        if time.monotonic() > deadline:
            msg = f"{now} messages are left, and none ended for {STALL_SECONDS:.0f} s"
            raise Failed(msg)
        time.sleep(every)
    return now
