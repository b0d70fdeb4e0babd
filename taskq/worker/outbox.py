"""Ended attempts on their way to Redis."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from taskq.model import clock
from taskq.worker.delivery import Done

# What a socket's buffer takes without waiting for the other side; and what goes with each end.
_LIGHT_BYTES, _EACH_BYTES = 64 << 10, 70


class Notify(Protocol):
    """Called when the outbox was empty, or has something urgent."""

    def __call__(self, *, prompt: bool) -> None: ...


class Outbox:
    """Filled by the slots, emptied by the exchange.

    Without a lock: the deque is never rebound, and what is put after a `take` has looked
    finds the marks cleared, so that it sets them. A mark may outlive what it stands for;
    then one `take` finds nothing.
    """

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._done: deque[Done] = deque()
        # When the oldest unsent one ended, by the monotonic clock; None while empty.
        self.since: float | None = None
        # Whether something in it should be sent now rather than in a few milliseconds.
        self.prompt = False

    def __len__(self) -> int:
        return len(self._done)

    @property
    def light(self) -> bool:
        """Whether there is something, and so little that the system takes it at once."""
        sizes = [len(done.finish.payload) + _EACH_BYTES for done in list(self._done)]
        return 0 < sum(sizes) <= _LIGHT_BYTES

    def put(self, done: Done, *, prompt: bool = False, quiet: bool = False) -> None:
        """Add one; `prompt` if it should be sent at once, `quiet` if the caller sees to it."""
        self._done.append(done)
        if self.since is None:
            self.since, self.prompt = clock.monotonic(), prompt or self.prompt
            if not quiet:
                self._notify(prompt=prompt)
        elif prompt and not self.prompt:
            self.prompt = True
            self._notify(prompt=True)

    def hurry(self) -> None:
        """Have what is in it sent at once."""
        if self._done and not self.prompt:
            self.prompt = True
            self._notify(prompt=True)

    def take(self) -> list[Done]:
        """Return all there is at this moment. Called under the exchange's lock only."""
        # The marks first: what is put from here on sets them anew.
        self.since, self.prompt = None, False
        done = self._done
        return [done.popleft() for _ in range(len(done))]
