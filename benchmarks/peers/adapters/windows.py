"""Waiting for many handles of a client that awaits one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

WINDOW = 100


async def gathered(
    wait: Callable[[Any], Awaitable[Any]], handles: Sequence[Any], window: int = WINDOW
) -> list[Any]:
    """Await all, `window` of them at a time; return their values in order."""
    values: list[Any] = []
    for at in range(0, len(handles), window):
        values += await asyncio.gather(*map(wait, handles[at : at + window]))
    return values
