"""A worker in this process that drains what is queued, and prints what its stages took.

`python -m benchmarks.profile.worker MESSAGES [timed]`: one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.profile.stopwatch import Stopwatch
from benchmarks.tasks import app
from taskq.testing import running_worker
from taskq.worker.handover import Handover

LOOK_SECONDS = 0.005
STALL_SECONDS = 60.0


def drained(n: int, *, timed: bool) -> dict[str, object]:
    """Run so many messages on one thread; return nanoseconds for each, and those by stage."""
    watch = Stopwatch()
    if timed:
        watch.install()
    with running_worker(app, threads=1, coroutines=1) as engine:
        # Without what it takes to start.
        first, begun = wait(engine.exchange.handover, 1)
        last, ended = wait(engine.exchange.handover, n)
    calls = {name: share.calls for name, share in watch.shares.items()}
    each = 1e9 * (ended - begun) / (last - first) if last > first else 0.0
    return {"each": each, "stages": watch.nanoseconds() if timed else {}, "calls": calls}


def wait(handover: Handover, n: int) -> tuple[int, float]:
    """Wait until so many have ended; return how many have, and when that was."""
    deadline = time.perf_counter() + STALL_SECONDS
    while handover.ended < n:
        time.sleep(LOOK_SECONDS)
        if time.perf_counter() > deadline:
            msg = f"{handover.ended} of {n} messages ended"
            raise TimeoutError(msg)
    return handover.ended, time.perf_counter()


if __name__ == "__main__":
    print(json.dumps(drained(int(sys.argv[1]), timed="timed" in sys.argv[2:])))
