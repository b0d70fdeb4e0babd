"""Waiting for what must come true, without guessing how long it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.01
_never = threading.Event()


def until(condition: Callable[[], T], seconds: float = 12.0) -> T:
    """Return the first true value of `condition()`; fail where none comes in time.

    The usual time is less than the 15 s after which leases end and looks come unasked.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            msg = f"not true within {seconds:g} s; the last answer was {value!r}"
            raise AssertionError(msg)
        _never.wait(_LOOK_SECONDS)
    return value


def let_pass(seconds: float) -> None:
    """Let time pass in which something must not happen."""
    _never.wait(seconds)
