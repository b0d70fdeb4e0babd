"""The app that is measured: its worker processes import this module as well."""

from __future__ import annotations

import os
import secrets
import time

from taskq import TaskQ

# The first process names the run, those that it starts inherit the name. So runs on one
# Redis do not meet.
RUN = os.environ.setdefault("BENCHMARKS_RUN", secrets.token_hex(4))

app = TaskQ(f"benchmarks-{RUN}")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def now() -> float:
    return time.time()
