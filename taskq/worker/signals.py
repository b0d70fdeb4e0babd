"""What signals ask of a supervisor: handlers set flags, and wake whoever selects on them.

SIGTERM and SIGINT ask it to stop; a second one, or SIGQUIT, to hand back now; SIGHUP to
restart the children.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any, Self

_STDIN = 0


class Signals:
    """The wishes that came so far. Handlers stand while it is entered."""

    def __init__(self) -> None:
        # How often a stop was asked for; from 2 on it is urgent.
        self.stops = 0
        self._hangups = 0
        self._earlier: dict[int, Any] = {}
        self._wakeup = -1
        # In the foreground of a terminal SIGHUP may also mean that this is gone.
        self._terminal = os.isatty(_STDIN)
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)

    def __enter__(self) -> Self:
        # SIGCHLD only wakes. The others must have handlers: to a container's first process
        # the kernel gives no signal whose action is the default one.
        numbers = [signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            numbers.append(signal.SIGHUP)
        self._earlier = {number: signal.signal(number, self._note) for number in numbers}
        self._wakeup = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a signal came."""
        return self._wake_out

    def wake(self) -> None:
        """Wake the selecting thread, from another one."""
        with contextlib.suppress(BlockingIOError):  # it will wake anyway
            os.write(self._wake_in, b"\0")

    def clear(self) -> None:
        """Make the descriptor unreadable again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_out, 4096)

    def take_restart(self) -> bool:
        """Return whether a restart was asked for since the last call."""
        asked, self._hangups = self._hangups, 0
        if asked and self._terminal and not os.isatty(_STDIN):
            self.stops += 1  # the terminal was closed
            return False
        return bool(asked)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hangups += 1
        elif number != signal.SIGCHLD:
            self.stops += 2 if number == signal.SIGQUIT else 1
