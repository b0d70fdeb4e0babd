"""What processes use of the machine: their memory, and the processors' time."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def family(pid: int) -> dict[int, int]:
    """Return the resident bytes of a process and of each below it, by pid."""
    words = ["ps", "-A", "-o", "pid=,ppid=,rss="]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in text.splitlines()]
    found, size = {pid}, -1
    while len(found) != size:
        size = len(found)
        found |= {one for one, parent, _ in rows if parent in found}
    return {one: 1024 * rss for one, _, rss in rows if one in found}


def seconds(pids: Iterable[int]) -> float:
    """Return the processors' time that these have used; NaN where nobody tells."""
    if sys.platform != "linux":
        return math.nan
    threads = [one for pid in pids for one in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9


class Idle:
    """What nobody used of the processors that this process may run on, since this was made."""

    def __init__(self) -> None:
        self._idle, self._whole = _ticks()

    def percent(self) -> float:
        """Return its share; NaN where nobody tells, or too little time went by."""
        idle, whole = _ticks()
        return (
            100 * (idle - self._idle) / (whole - self._whole) if whole > self._whole else math.nan
        )


def _ticks() -> tuple[int, int]:
    """Return how many ticks these processors were idle, and all ticks; 0 where nobody tells."""
    if sys.platform != "linux":
        return 0, 0
    names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    # user, nice, system, idle, waiting for disks, interrupts (hard, soft), taken by other
    # machines; guests are in the first two.
    ticks = [[int(one) for one in row[1:9]] for row in rows if row[0] in names]
    return sum(sum(each[3:5]) for each in ticks), sum(map(sum, ticks))


class Left:
    """What a run has left of all processors since this was made.

    Not what was idle: others may have used that, and then the run could not.
    """

    def __init__(self, pids: Iterable[int], server: Callable[[], float]) -> None:
        """`server` returns the processors' time of the server, in seconds."""
        self._pids, self._server = list(pids), server
        self._begun, self._before = time.perf_counter(), self._used()

    def percent(self) -> float:
        """Return its share; NaN where nobody tells."""
        whole = (time.perf_counter() - self._begun) * (os.cpu_count() or 1)
        return 100 * (1 - (self._used() - self._before) / whole)

    def _used(self) -> float:
        """Return what the workers, the server and this program have used."""
        return seconds(self._pids) + self._server() + time.process_time()
