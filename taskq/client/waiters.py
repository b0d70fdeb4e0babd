"""Waiting for outcomes of queues that are on several nodes of a cluster: a waiter for each.

What is published at a node is heard there alone, so that no node hears of all outcomes.
Whoever waits for those of one queue reads its connection himself; for others a thread does.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable

from taskq.broker.cluster import base_of
from taskq.broker.connection import Endpoint
from taskq.broker.guides import Address
from taskq.client.waiter import Wait, Waiter


class Waiters(Waiter):
    """A waiter for each queue, behind the face of one."""

    def reset(self) -> None:
        """Begin without subscriptions."""
        super().reset()
        self._waiters: dict[str, Waiter] = {}
        self._mine = threading.Lock()
        # Who looks after a wait.
        self._joined: weakref.WeakKeyDictionary[Wait, list[Waiter]] = weakref.WeakKeyDictionary()

    def subscribe(self, channels: Iterable[bytes], wait: Wait) -> None:
        """Bring the news of these channels to `wait`."""
        for base, some in _by_queue(channels):
            waiter = self._of(base)
            with self._mine:
                joined = self._joined.setdefault(wait, [])
                if waiter not in joined:
                    joined.append(waiter)
            waiter.subscribe(some, wait)

    def listen(self, channel: bytes) -> None:
        """Listen for an outcome that somebody is about to wait for."""
        self._of(base_of(channel)).listen(channel)

    def forgo(self, channel: bytes) -> bool:
        """End what `listen` began; return whether nobody has come to wait."""
        return self._of(base_of(channel)).forgo(channel)

    def unsubscribe(self, channels: Iterable[bytes], wait: Wait) -> None:
        """End what `subscribe` began."""
        for base, some in _by_queue(channels):
            self._of(base).unsubscribe(some, wait)

    def leave(self, wait: Wait) -> None:
        """Note that a wait is over."""
        with self._mine:
            joined = self._joined.pop(wait, [])
        for waiter in joined:
            waiter.leave(wait)

    def node_of(self, base: str) -> Address | None:
        """Return the node of a queue, once its waiter was connected to it."""
        return self._of(base).node_of(base)

    def rest(self, wait: Wait, seconds: float) -> None:
        """Block until `wait` is notified, at most so long."""
        joined = list(self._joined.get(wait, ()))
        if len(joined) == 1:
            joined[0].rest(wait, seconds)
            return
        for waiter in joined:
            waiter.attend(wait)
        wait.wake.wait(seconds)
        wait.wake.clear()

    def close(self) -> None:
        """Close the connections. A later wait opens new ones."""
        for waiter in list(self._waiters.values()):
            waiter.close()

    def _of(self, base: str) -> Waiter:
        with self._mine:
            waiter = self._waiters.get(base)
            if waiter is None:
                waiter = self._waiters[base] = Waiter(self._endpoint.at(base))
            return waiter


def open_waiter(endpoint: Endpoint) -> Waiter:
    """Return what waits for outcomes at a place."""
    return (Waiters if endpoint.clustered else Waiter)(endpoint)


def _by_queue(channels: Iterable[bytes]) -> Iterable[tuple[str, list[bytes]]]:
    for base, some in itertools.groupby(sorted(channels), base_of):
        yield base, list(some)
