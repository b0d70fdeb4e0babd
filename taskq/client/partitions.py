"""How many partitions each queue of an app has: what the app says, and what Redis knows.

Redis knows the greatest number that anybody said. Whoever says less would leave messages
where they are, or look for them elsewhere, so that is an error where a queue is first used.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from taskq.broker import commands, keys
from taskq.broker.commands import Command
from taskq.broker.queries import read_count
from taskq.config import read_queues
from taskq.errors import BrokerUnavailable, ConfigError, Interrupted
from taskq.model.queues import Queue

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

_VARIABLE = "TASKQ_QUEUES"


class Partitions:
    """The queues that an app declares, and how many partitions they have."""

    def __init__(self, app: TaskQ, declared: Iterable[Queue | str]) -> None:
        # An app that nobody has any more is to go at once, not when cycles are looked for.
        self._app: TaskQ = weakref.proxy(app)
        # What the code says, what the environment says, and what a worker was told.
        self._code = _joined(Queue.of(one) for one in declared)
        self._environment: dict[str, int | None] | None = None
        self._told: dict[str, int] = {}
        # Where the next message goes that is for any partition, by queue.
        self._turns: dict[str, Iterator[int]] = {}
        # The queues about which Redis was asked.
        self._opened: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The queues that are declared, besides those that tasks name."""
        return tuple(dict.fromkeys((*self._code, *self._named())))

    def tell(self, counts: Mapping[str, int]) -> None:
        """Use at least so many partitions of these queues."""
        self._told |= counts
        self.forget()

    def forget(self) -> None:
        """Ask again what Redis knows: it is another one, or the numbers are."""
        self._opened.clear()

    def count(self, queue: str) -> int:
        """Return how many partitions a queue has: the greatest number that this process knows."""
        said = (known.get(queue) for known in (self._told, self._code, self._named()))
        return max(filter(None, said), default=1)

    def places(self, queue: str) -> tuple[str, ...]:
        """Return the places of a queue."""
        return keys.places(queue, self.count(queue))

    def turn(self, queue: str) -> Iterator[int]:
        """Return the numbers by which messages for any partition go round."""
        found = self._turns.get(queue)
        if found is None:
            start = itertools.count(int.from_bytes(os.urandom(2)))
            found = self._turns.setdefault(queue, start)
        return found

    def is_open(self, queue: str) -> bool:
        """Whether it was looked at that Redis knows of no more partitions."""
        return queue in self._opened

    def open(self, queue: str, *, within: float = math.inf, adopt: bool = False) -> None:
        """Compare the number of a queue with what Redis knows, and raise that; once.

        It is tried for `within` seconds, and no longer than the deadline. With `adopt` a
        greater number is taken over, and is no error.

        Raises:
            ConfigError: the queue has more partitions.
            BrokerUnavailable: Redis is away.

        """
        if self.is_open(queue):
            return
        count, broker = self.count(queue), self._app.broker
        try:
            raw = broker.call("GET", keys.partitions(self._app.name, queue), within=within)
            if (known := read_count(raw)) < count:
                known = broker.run(self._widen(queue), within=within)
        except Interrupted as error:
            # No message was sent yet: that is certain.
            raise BrokerUnavailable(str(error)) from error
        if known > count and adopt:
            self._told[queue] = count = known
        self._note(queue, count, known)

    async def aopen(self, queue: str) -> None:
        """Compare the number of a queue with what Redis knows; as `open`, awaited."""
        if self.is_open(queue):
            return
        count, broker = self.count(queue), self._app.abroker()
        try:
            known = read_count(await broker.call("GET", keys.partitions(self._app.name, queue)))
            if known < count:
                known = await broker.run(self._widen(queue))
        except Interrupted as error:
            # No message was sent yet: that is certain.
            raise BrokerUnavailable(str(error)) from error
        self._note(queue, count, known)

    def known(self, queue: str) -> tuple[str, ...]:
        """Return the places of a queue that anybody may use, by what Redis knows."""
        found = self._app.broker.call("GET", keys.partitions(self._app.name, queue))
        return keys.places(queue, max(self.count(queue), read_count(found)))

    async def aknown(self, queue: str) -> tuple[str, ...]:
        """Return the places of a queue that anybody may use; as `known`, awaited."""
        found = await self._app.abroker().call("GET", keys.partitions(self._app.name, queue))
        return keys.places(queue, max(self.count(queue), read_count(found)))

    def _note(self, queue: str, count: int, known: int) -> None:
        if known > count:
            raise ConfigError(smaller(self._app.name, queue, known, count))
        self._opened.add(queue)

    def _widen(self, queue: str) -> Command[int]:
        return commands.widen(keys.base(self._app.name, queue), self.count(queue))

    def _named(self) -> dict[str, int | None]:
        if self._environment is None:
            self._environment = read_queues(_VARIABLE, os.environ.get(_VARIABLE, ""))
        return self._environment


def smaller(app: str, queue: str, known: int, count: int) -> str:
    """Say that a queue has more partitions than this process would use."""
    return (
        f"the queue {queue} of the app {app} has {known} partitions, not {count}: say "
        f"Queue({queue!r}, partitions={known}), or TASKQ_QUEUES={queue}:{known}; there can be "
        f"more of them later, and not fewer (docs/queues.md)"
    )


def _joined(declared: Iterable[Queue]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for one in declared:
        earlier = found.get(one.name)
        if earlier and one.partitions and earlier != one.partitions:
            msg = f"the queue {one.name} is declared with {earlier} partitions and {one.partitions}"
            raise ConfigError(msg)
        found[one.name] = one.partitions or earlier
    return found
