"""Ended attempts on their way to Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from taskq.model import clock
from taskq.worker.delivery import Done


class Outbox:
    """Filled by the slots, emptied by the exchange. One deque, never rebound."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._done: deque[Done] = deque()
        self._notify = notify
        # When the oldest unsent one ended, by the monotonic clock; None while empty.
        self.since: float | None = None
        # Whether something in it should be sent now rather than in a few milliseconds.
        self.prompt = False

    def __len__(self) -> int:
        return len(self._done)

    def put(self, done: Done, *, prompt: bool) -> None:
        """Add one; `prompt` if nobody else will look soon."""
        self._done.append(done)
        if prompt and not self.prompt:
            self.prompt = True
            self._notify()
        elif self.since is None:
            self.since = clock.monotonic()
            self._notify()

    def take(self) -> list[Done]:
        """Return all there is at this moment. Called under the exchange's lock only."""
        taken = [self._done.popleft() for _ in range(len(self._done))]
        self.since, self.prompt = None, False
        if self._done:
            # One that came in between saw the old mark, and told nobody.
            self.since = clock.monotonic()
            self._notify()
        return taken
