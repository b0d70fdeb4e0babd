"""Soft time limits: one thread and one heap for a child, none until a task has a limit."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from taskq.model import clock

# Alarms that were put off lie in the heap until their time, or until they are most of it.
_PRUNE_FROM = 64


class Alarm:
    """One call at one instant, unless it is dropped before."""

    __slots__ = ("at", "ring")

    def __init__(self, at: float, ring: Callable[[], object]) -> None:
        self.at = at
        # None once it rang or was dropped.
        self.ring: Callable[[], object] | None = ring


class Alarms:
    """Rings each alarm at its monotonic instant."""

    def __init__(self) -> None:
        # Guards all below.
        self._change = threading.Condition()
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._stopped = False

    def set(self, at: float, ring: Callable[[], object]) -> Alarm:
        """Call `ring` at that instant, in the thread of the alarms; it must be short."""
        alarm = Alarm(at, ring)
        with self._change:
            heapq.heappush(self._heap, (at, next(self._numbers), alarm))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="taskq-alarms", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is alarm:
                self._change.notify()
        return alarm

    def drop(self, alarm: Alarm) -> None:
        """Let it not ring; it may be ringing already."""
        with self._change:
            if alarm.ring is None:
                return
            alarm.ring = None
            self._dropped += 1
            if self._dropped > _PRUNE_FROM and 2 * self._dropped > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].ring is not None]
                heapq.heapify(self._heap)
                self._dropped = 0

    def stop(self) -> None:
        """End the thread."""
        with self._change:
            self._stopped = True
            self._change.notify()

    def _run(self) -> None:
        while (ring := self._next()) is not None:
            ring()

    def _next(self) -> Callable[[], object] | None:
        """Wait for the next alarm that is to ring; None when stopped."""
        with self._change:
            while not self._stopped:
                while self._heap and self._heap[0][2].ring is None:
                    heapq.heappop(self._heap)
                    self._dropped -= 1
                left = self._heap[0][0] - clock.monotonic() if self._heap else None
                if left is not None and left <= 0:
                    alarm = heapq.heappop(self._heap)[2]
                    ring, alarm.ring = alarm.ring, None
                    return ring
                self._change.wait(left)
        return None
