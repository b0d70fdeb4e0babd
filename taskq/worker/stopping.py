"""How all children are told to end: they drain, and hand back when their time is over.

Stopping twice is legal. Who does not leave even then is killed by the supervisor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from taskq.model import clock
from taskq.worker.process import ChildProcess

log = logging.getLogger("taskq.worker")

# A child hands back by itself when its time is over; after so long it is told to.
_GRACE_SECONDS = 0.5


class Stopping:
    """The protocol; `begun` says whether it is under way."""

    def __init__(self, children: Iterable[ChildProcess]) -> None:
        # Those there are, each time it is asked.
        self._children = children
        self.begun = False
        self._over_at = float("inf")

    def begin(self, seconds: float) -> None:
        """Let what runs end, at most so long."""
        self.begun = True
        self._over_at = clock.monotonic() + seconds
        for child in self._children:
            if child.serves:
                child.drain(seconds)
            else:
                child.kill()

    def hurry(self) -> None:
        """Let all hand back now."""
        if self._over_at > 0.0:
            log.info("stopping now: unfinished messages go back to their queues")
            self._over_at = 0.0
            self._hand_back()

    def step(self, now: float) -> None:
        """Let all hand back once their time is over."""
        if now > self._over_at + _GRACE_SECONDS:
            self._hand_back()

    def _hand_back(self) -> None:
        for child in self._children:
            child.hand_back()
