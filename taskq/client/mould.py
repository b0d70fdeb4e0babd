"""What all calls of one task under one set of options have in common.

Kept for the calls that follow: what is left for each is to write, sign and number it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from taskq.broker import keys, records
from taskq.broker.commands import Lot, Outgoing
from taskq.client.result import Result
from taskq.client.signature import Options
from taskq.config import replicas, seconds
from taskq.errors import MessageTooLarge, SerializationError
from taskq.model import clock, context, message, queues, serializers
from taskq.model.message import Envelope, Message
from taskq.model.signing import Domain

if TYPE_CHECKING:
    from taskq.client.app import TaskQ


# How the arguments were written (`serializers.dumps`), and their bytes.
Written: TypeAlias = tuple[str, bytes]

# More than header, tag, names and numbers take.
_MOST_BESIDES = 1024


class Mould:
    """Casts calls of one task into signed messages."""

    def __init__(
        self, app: TaskQ, task: str, options: Options, partition: tuple[int, int] = (0, 1)
    ) -> None:
        """Make the mould for one partition of the queue, of so many."""
        config = app.config
        number, count = partition
        self.place = keys.place(options.queue or config.default_queue, number)
        priority = keys.DEFAULT_PRIORITY if options.priority is None else options.priority
        ttl, headers = options.result_ttl, options.headers
        self.base = keys.base(app.name, self.place)
        self._app, self.task, self.options = app, task, options
        self.replicas = replicas(options.durability or config.durability)
        self._seal = app.seal(Domain.MESSAGE, self.place)
        self._serializer = options.serializer or config.serializer
        self._most_bytes = config.max_message_bytes
        self._lane = keys.lane(task, priority)
        self._due = options.due
        self._id = None if options.id is None else app.wire_id(options.id)
        self._stored = not options.ignore_result
        self._partition = partition
        # An id says its partition.
        self._new_id = (
            message.new_id
            if count == 1
            else functools.partial(queues.new_id, partition=number, count=count)
        )
        self._mark = None if options.id is None else records.mark_of(task)
        self._ttl_ms = None if ttl is None else round(seconds("result_ttl", ttl) * 1000)
        self._headers = dict(headers) if headers else None
        soft, hard = options.limits
        self._limits_ms = _ms(soft), _ms(hard)
        self._limited = options.expires is not None or options.deadline is not None
        # At most so many bytes of a message are not its arguments.
        self.besides = _MOST_BESIDES + len(msgspec.msgpack.encode(self._headers))
        # Arguments up to this size make no message that is too large.
        self._close_to_most = self._most_bytes - self.besides

    def choose(self) -> Mould:
        """Return itself, as `Spread.choose` returns the one for the next call."""
        return self

    def write(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written:
        """Return how the arguments are written, and their bytes.

        Raises:
            SerializationError: an argument cannot be written; the text names it.
            MessageTooLarge: the message would be over `max_message_bytes`.

        """
        try:
            written = serializers.dumps(self._serializer, (args, kwargs))
        except SerializationError as error:
            raise self._culprit(args, kwargs, error) from error
        if len(written[1]) > self._close_to_most:
            size = len(self.cast(written).raw)
            if size > self._most_bytes:
                raise self._too_large(size)
        return written

    def cast(self, written: Written) -> Outgoing:
        """Return the signed message of a call made now, ready to be sent."""
        how, body = written
        now_ms, (expires_ms, deadline_ms) = clock.now_ms(), self._ends()
        one = self._message(now_ms, expires_ms, deadline_ms, how, body)
        label = records.label(self._mark, expires_ms)
        return Outgoing(one, message.encode(one, self._seal), self._lane, label, self._due)

    def cast_all(self, hows: Sequence[str], bodies: Sequence[bytes]) -> tuple[list[str], Lot]:
        """Return the ids of calls made now, and their signed messages, ready to be sent."""
        now_ms, (expires_ms, deadline_ms) = clock.now_ms(), self._ends()
        like = self._message(now_ms, expires_ms, deadline_ms, "", b"")
        ids = self._ids(now_ms, len(bodies))
        raws = message.encode_all(like, ids, hows, bodies, self._seal)
        return ids, Lot(self._lane, records.label(self._mark, expires_ms), self._due, raws)

    def results(self, ids: Iterable[str]) -> list[Result[Any]]:
        """Return the handles on messages that were cast here."""
        app, place, task, stored = self._app, self.place, self.task, self._stored
        name = self.options.id
        return [Result(app, name or id, place, id, task, stored) for id in ids]

    def _message(
        self, now_ms: int, expires_ms: int, deadline_ms: int | None, how: str, body: bytes
    ) -> Message:
        options, (soft_ms, hard_ms) = self.options, self._limits_ms
        envelope = Envelope(
            self.task, now_ms, how, body, options.id, options.ignore_result, self._ttl_ms,
            self._headers, soft_ms, hard_ms, deadline_ms,
        )  # fmt: skip
        return Message(self._id or self._new_id(now_ms), expires_ms, envelope)

    def _ids(self, now_ms: int, count: int) -> list[str]:
        if self._id:
            return [self._id] * count
        ids = message.new_ids(now_ms, count)
        number, partitions = self._partition
        return ids if partitions == 1 else [queues.fitted(id, number, partitions) for id in ids]

    def _ends(self) -> tuple[int, int | None]:
        """Return when a call made now must have started (0: no matter), and have ended."""
        # A mould outlives the task that is calling now, if one is.
        calling = context.running()
        deadline_ms = calling.deadline_ms if calling else 0
        if not self._limited and not deadline_ms:
            return 0, None
        expires_ms, own_ms = self.options.expires_ms, self.options.deadline_ms
        if own_ms and (not deadline_ms or own_ms < deadline_ms):
            deadline_ms = own_ms
        if not deadline_ms:
            return expires_ms, None
        return min(expires_ms or deadline_ms, deadline_ms), deadline_ms

    def _too_large(self, size: int) -> MessageTooLarge:
        msg = (
            f"{self.task}: the message has {size:,} bytes, over max_message_bytes="
            f"{self._most_bytes:,}; store the data elsewhere and send where"
        )
        return MessageTooLarge(msg)

    def _culprit(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], error: SerializationError
    ) -> SerializationError:
        """Return the error that names the argument at fault."""
        task = self._app.tasks.get(self.task)
        names = task.parameters.names if task else ()
        numbers = (f"number {at}" for at in range(len(names) + 1, len(args) + 1))
        named = zip((*map(repr, names), *numbers), args, strict=False)
        for name, value in (*named, *((repr(k), v) for k, v in kwargs.items())):
            try:
                serializers.dumps(self._serializer, value)
            except SerializationError as cause:
                return SerializationError(f"{self.task}: argument {name}: {cause}")
        return SerializationError(f"{self.task}: {error}")


def _ms(limit: float | None) -> int | None:
    return None if limit is None else max(1, round(limit * 1000))
