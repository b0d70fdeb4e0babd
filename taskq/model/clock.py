"""Wall and monotonic time. No other module of taskq reads a clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime

# Seconds for measuring differences and setting local deadlines; never stored.
monotonic = time.monotonic
# Blocks the calling thread; for pauses between attempts, never for waiting on an event.
sleep = time.sleep


def now() -> float:
    """Return seconds since the epoch by this machine's clock."""
    return time.time()


def now_ms() -> int:
    """Return whole milliseconds since the epoch by this machine's clock."""
    return time.time_ns() // 1_000_000


def instant(ms: int) -> datetime:
    """Return milliseconds since the epoch as an aware datetime in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
