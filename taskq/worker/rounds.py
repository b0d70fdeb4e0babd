"""In which order ports have their turns: queues take turns, and so do the partitions of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from taskq.broker import keys
from taskq.worker.port import Port

# How often a child asks a partition, of each queue, in which nothing was announced. What is
# announced and not heard, maintenance announces again.
LOOK_SECONDS = 4.0


class Rounds:
    """The ports of a child, those next in line first."""

    def __init__(self, ports: Sequence[Port]) -> None:
        # By queue; of dicts, for what is put in anew comes last.
        self._lines: dict[str, dict[Port, None]] = {}
        for port in ports:
            self._lines.setdefault(keys.queue_of(port.queue), {})[port] = None
        # For whoever finds nothing to do: used by the thread that listens, without a lock.
        self._plain = [next(iter(line)) for line in self._lines.values() if len(line) == 1]
        lines = (line for line in self._lines.values() if len(line) > 1)
        self._divided: list[Iterator[Port]] = [itertools.cycle(list(line)) for line in lines]
        self._look_at = 0.0
        for line in self._lines.values():
            for port in line:
                port.divided = len(line) > 1

    def order(self) -> list[Port]:
        """Return all ports: the queue that was served least lately, then the partition."""
        return [port for line in self._lines.values() for port in line]

    def serve(self, port: Port) -> None:
        """Note that a port has brought something: all others come before it now."""
        queue = keys.queue_of(port.queue)
        line = self._lines.pop(queue)
        self._lines[queue] = line
        del line[port]
        line[port] = None

    def next_idle(self, now: float) -> list[Port]:
        """Return whom to ask where no bell has rung for a while: of partitions, the next one."""
        if now < self._look_at:
            return self._plain
        self._look_at = now + LOOK_SECONDS
        return [*self._plain, *map(next, self._divided)]
