"""The moulds of a call to a queue with partitions: one for each, and which comes next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from taskq.client.mould import Mould
from taskq.client.signature import Options
from taskq.model import queues

if TYPE_CHECKING:
    from taskq.client.app import TaskQ


class Spread:
    """Chooses a partition for each call, by its id, by its key, or in turn."""

    def __init__(self, app: TaskQ, task: str, options: Options, queue: str) -> None:
        self.options = options
        self._app, self._task = app, task
        self._count = app.partitions.count(queue)
        self._turn: Iterator[int] = app.partitions.turn(queue)
        self._moulds: list[Mould | None] = [None] * self._count
        self._one: Mould | None = None
        if options.id is not None:
            self._one = self._of(queues.of_id(app.wire_id(options.id), self._count))
        elif options.partition_key is not None:
            key = queues.check_key(options.partition_key)
            self._one = self._of(queues.of_key(key, self._count))

    def choose(self) -> Mould:
        """Return the mould for the partition of the next call."""
        return self._one or self._of(next(self._turn) % self._count)

    def _of(self, partition: int) -> Mould:
        mould = self._moulds[partition]
        if mould is None:
            mould = Mould(self._app, self._task, self.options, (partition, self._count))
            self._moulds[partition] = mould
        return mould


def mould_of(app: TaskQ, task: str, options: Options) -> Mould | Spread:
    """Return what casts the calls of a task under some options.

    Raises:
        ConfigError: they are to wait for replicas, of which there can be none.

    """
    app.awaited_replicas(options.durability)
    queue = options.queue or app.config.default_queue
    if app.partitions.count(queue) == 1:
        return Mould(app, task, options)
    return Spread(app, task, options, queue)
