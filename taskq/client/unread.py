"""Records still to be read in a wait, by queue, and the order in which the queues are asked.

A node of a cluster that does not answer is asked for one of its queues alone, and then left to
the next round: it holds up the others once, however many queues it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from taskq.broker.cluster import base_of

# So long a queue may take to answer where others are waited for on other nodes: what it takes to
# connect to one that is far away.
SHORT_SECONDS = 1.0


class Unread:
    """Channels whose records are to be read, each queue's by one question."""

    def __init__(self, node_of: Callable[[str], Any]) -> None:
        # Tells where a queue is; what is not known counts as one node.
        self._node_of = node_of
        # By the queue's base, the next one first.
        self._channels: dict[str, dict[bytes, None]] = {}
        self._known: set[str] = set()
        # Queues on nodes that did not answer, first of which was asked longest ago.
        self._away: dict[str, None] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to be read now."""
        return bool(self._channels)

    @property
    def within(self) -> float:
        """How many seconds a queue may take to answer; where all are on one node, any number."""
        nodes = map(self._node_of, self._known)
        first = next(nodes, None)
        return SHORT_SECONDS if any(node != first for node in nodes) else math.inf

    def add(self, channels: Iterable[bytes]) -> None:
        """Have these read too."""
        for channel in channels:
            base = base_of(channel)
            self._known.add(base)
            self._channels.setdefault(base, {})[channel] = None

    def add_new(self, channels: Iterable[bytes]) -> None:
        """Have these read, which are new to the wait; who is away is left to the next round."""
        self.add(one for one in channels if base_of(one) not in self._away)

    def begin_round(self, channels: Iterable[bytes]) -> None:
        """Have all of these read: behind what is left of the round before, and who is away last."""
        places = dict.fromkeys(self._channels, 0)
        self.add(channels)
        away = {base: number for number, base in enumerate(self._away, 2)}
        order = sorted(self._channels, key=lambda base: places.get(base, away.get(base, 1)))
        self._channels = {base: self._channels[base] for base in order}

    def take(self) -> tuple[str, list[bytes]]:
        """Take what is read next: a queue, and channels of it."""
        base = next(iter(self._channels))
        return base, list(self._channels.pop(base))

    def note(self, base: str, *, answered: bool) -> None:
        """Note whether a queue answered; if not, its node is left to the next round."""
        self._away.pop(base, None)
        if not answered:
            node = self._node_of(base)
            for other in [one for one in self._channels if self._node_of(one) == node]:
                del self._channels[other]
                self._away.setdefault(other)
            self._away[base] = None
