"""The app that is measured: its worker processes import this module as well."""

from __future__ import annotations

import os
import secrets
import time

from benchmarks.peers import work
from taskq import TaskQ

# The first process names the run, those that it starts inherit the name. So runs on one
# Redis do not meet.
RUN = os.environ.setdefault("BENCHMARKS_RUN", secrets.token_hex(4))
LARGEST = 1 << 20

# A message is its arguments and some words more.
app = TaskQ(f"benchmarks-{RUN}", max_message_bytes=2 * LARGEST)

# These note the instant at which they ran: see `peers/probe.py`.
noted = app.task(name="noted")(work.add)
nap = app.task(name="nap")(work.nap)
nap_async = app.task(name="nap_async")(work.nap_async)
burn = app.task(name="burn")(work.burn)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
async def add_async(x: int, y: int) -> int:
    return x + y


@app.task(ignore_result=True)
def add_only(x: int, y: int) -> int:
    return x + y


@app.task
def rest(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


@app.task
def now() -> float:
    return time.time()


@app.task
def weigh(data: bytes) -> int:
    return len(data)
