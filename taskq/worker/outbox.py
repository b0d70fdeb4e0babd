"""Ended attempts on their way to Redis."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from taskq.model import clock
from taskq.worker.delivery import Done


class Outbox:
    """Filled by the slots, emptied by the exchange."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        # Guards the rest: a mark must not outlive what it stands for.
        self._lock = threading.Lock()
        self._done: deque[Done] = deque()
        # When the oldest unsent one ended, by the monotonic clock; None while empty.
        self.since: float | None = None
        # Whether something in it should be sent now rather than in a few milliseconds.
        self.prompt = False

    def __len__(self) -> int:
        return len(self._done)

    def put(self, done: Done, *, prompt: bool = False, quiet: bool = False) -> None:
        """Add one; `prompt` if it should be sent at once, `quiet` if the caller sees to it."""
        with self._lock:
            self._done.append(done)
            news = self.since is None or (prompt and not self.prompt)
            self.prompt = self.prompt or prompt
            if self.since is None:
                self.since = clock.monotonic()
        if news and not quiet:
            self._notify()

    def take(self) -> list[Done]:
        """Return all there is at this moment. Called under the exchange's lock only."""
        with self._lock:
            taken = list(self._done)
            self._done.clear()
            self.since, self.prompt = None, False
        return taken
