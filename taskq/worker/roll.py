"""A rolling restart: a new child serves before the old one in whose place it is drains.

One at a time: there is never more than one child beyond the number ordered. Where the new
code does not load, or not in a minute, the old children go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Generic, Protocol, TypeVar

from taskq.model import clock

log = logging.getLogger("taskq.worker")

# A new child that does not serve by then is given up; and sooner, if another restart begins.
LOAD_SECONDS, PATIENT_SECONDS = 60.0, 10.0


class Rolled(Protocol):
    """A child process, as far as a restart knows it."""

    number: int
    leaving: bool
    # By the monotonic clock.
    born: float

    # Whether it has said hello.
    @property
    def serves(self) -> bool: ...
    def kill(self) -> None: ...


C = TypeVar("C", bound=Rolled)


class Roll(Generic[C]):
    """Which children are still to be replaced, and the step under way."""

    def __init__(self, start: Callable[[int], C], drain: Callable[[C], None]) -> None:
        self._start, self._drain = start, drain
        self._old: deque[C] = deque()
        self._next: C | None = None
        self._new: C | None = None
        self._ending: C | None = None
        self._replaced = 0

    @property
    def active(self) -> bool:
        """Whether a restart is under way."""
        return bool(self._old or self._new or self._ending)

    def begin(self, children: Iterable[C]) -> None:
        """Replace all of these; what is under way already is finished first.

        But for a new child that has not come to serve for long: its code may be what this is
        to mend.
        """
        if self._new is not None and self._hangs(self._new, PATIENT_SECONDS):
            self._new.kill()
            children = [one for one in children if one is not self._new]
            self._new = self._next = None
        busy = (self._next, self._ending)
        self._old = deque(one for one in children if one not in busy and not one.leaving)
        self._replaced = 0

    def step(self, alive: Collection[C], wanted: int) -> None:
        """Take the next step if its time has come; `wanted` children are to be left."""
        if self._ending is not None:
            if self._ending in alive:
                return
            self._ending = None
            self._replaced += 1
        if self._new is not None and not self._old_may_go(self._new, alive):
            return
        if self._next is not None:
            self._end(self._next, alive)
            self._next = None
        elif self._old:
            one = self._old.popleft()
            if one.number > wanted:
                self._end(one, alive)
            elif one in alive:
                self._next, self._new = one, self._start(one.number)
        if self._replaced and not self.active:
            log.info("restarted %d children", self._replaced)
            self._replaced = 0

    def _old_may_go(self, new: C, alive: Collection[C]) -> bool:
        """Return whether the new child serves; give up where it ended before."""
        if new in alive:
            if new.serves:
                self._new = None
                return True
            if not self._hangs(new, LOAD_SECONDS):
                return False
            new.kill()
        log.error("the restart is given up: a new child did not come up; the old ones go on")
        self._new = self._next = None
        self._old.clear()
        return False

    def _hangs(self, new: C, seconds: float) -> bool:
        return not new.serves and clock.monotonic() - new.born >= seconds

    def _end(self, one: C, alive: Collection[C]) -> None:
        if one in alive:
            self._drain(one)
            self._ending = one
