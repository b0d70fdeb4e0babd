"""The tasks that every peer runs: each notes that it ran, and returns the sum."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.peers.peer import Kind
from benchmarks.peers.probe import recorder

NAP_SECONDS = 0.05
BURN_SECONDS = 0.005


def add(x: int, y: int) -> int:
    recorder.record()
    return x + y


async def add_async(x: int, y: int) -> int:
    recorder.record()
    return x + y


def nap(x: int, y: int) -> int:
    time.sleep(NAP_SECONDS)
    recorder.record()
    return x + y


async def nap_async(x: int, y: int) -> int:
    await asyncio.sleep(NAP_SECONDS)
    recorder.record()
    return x + y


def burn(x: int, y: int) -> int:
    """Use the processor for a fixed time of this thread's own, however fast it is."""
    end = time.thread_time() + BURN_SECONDS
    while time.thread_time() < end:
        for number in range(100):
            number * number  # work is all it is
    recorder.record()
    return x + y


async def burn_async(x: int, y: int) -> int:
    return burn(x, y)


TASKS: Mapping[Kind, Mapping[str, Callable[..., Any]]] = {
    "def": {"add": add, "nap": nap, "burn": burn},
    "async def": {"add": add_async, "nap": nap_async, "burn": burn_async},
}
