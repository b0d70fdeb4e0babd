"""Sending: signatures become commands, and what Redis says to those becomes results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskq.broker import commands, keys
from taskq.broker.commands import Command, Outgoing
from taskq.broker.connection import Interrupted
from taskq.client.result import Result
from taskq.client.signature import Signature
from taskq.errors import BrokerError, ConfigError, DuplicateMessage, EnqueueUncertain

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")
E = TypeVar("E", BrokerError, DuplicateMessage)

# The script's letter for an id that another task's message has.
REFUSED = "x"


def send(app: TaskQ, signature: Signature[T]) -> Result[T]:
    """Send one message."""
    one, command = _command(app, signature)
    try:
        verdict = app.broker.run(command)
    except Interrupted as error:
        raise _uncertain(error, signature, one) from error
    return _accepted(app, signature, one, verdict)


async def asend(app: TaskQ, signature: Signature[T]) -> Result[T]:
    """Send one message; as `send`, awaited."""
    one, command = _command(app, signature)
    try:
        verdict = await app.abroker().run(command)
    except Interrupted as error:
        raise _uncertain(error, signature, one) from error
    return _accepted(app, signature, one, verdict)


def send_many(app: TaskQ, calls: Iterable[Signature[T]]) -> list[Result[T]]:
    """Send many messages, a page in a round trip; all are checked before the first."""
    batch = _Batch(app, calls)
    for page, command in batch.pages():
        try:
            batch.accept(page, app.broker.run(command))
        except BrokerError as error:
            raise batch.torn(error, page) from error
    return batch.results()


async def asend_many(app: TaskQ, calls: Iterable[Signature[T]]) -> list[Result[T]]:
    """Send many messages; as `send_many`, awaited."""
    batch = _Batch(app, calls)
    for page, command in batch.pages():
        try:
            batch.accept(page, await app.abroker().run(command))
        except BrokerError as error:
            raise batch.torn(error, page) from error
    return batch.results()


class _Batch(Generic[T]):
    """Many messages on their way, in the order in which they were given."""

    def __init__(self, app: TaskQ, calls: Iterable[Signature[T]]) -> None:
        self._app = app
        self._calls = list(calls)
        for signature in self._calls:
            _check_app(app, signature)
        self._outgoing = [signature.outgoing() for signature in self._calls]
        self._verdicts: dict[int, str] = {}

    def pages(self) -> Iterable[tuple[Sequence[Outgoing], Command[str]]]:
        """Return the commands that send them, queue by queue."""
        queues: dict[str, list[Outgoing]] = {}
        for signature, one in zip(self._calls, self._outgoing, strict=True):
            queues.setdefault(_queue_of(signature), []).append(one)
        for queue, group in queues.items():
            yield from commands.send(keys.base(self._app.name, queue), group)

    def accept(self, page: Sequence[Outgoing], verdicts: str) -> None:
        """Note what Redis said to a page."""
        self._verdicts.update(zip(map(id, page), verdicts, strict=True))

    def results(self) -> list[Result[T]]:
        """Return the handles, in the order of the calls."""
        for call, one in self._pairs:
            if self._verdicts[id(one)] == REFUSED:
                raise self._with_parts(_duplicate(call, one))
        return [_result(self._app, call, one) for call, one in self._pairs]

    def torn(self, error: BrokerError, page: Sequence[Outgoing]) -> BrokerError:
        """Return the error that befell a page, with what was sent and what was not."""
        if isinstance(error, Interrupted):
            at = next(at for at, one in enumerate(self._outgoing) if one is page[0])
            error = _uncertain(error, self._calls[at], page[0])
        return self._with_parts(error)

    @property
    def _pairs(self) -> Iterable[tuple[Signature[T], Outgoing]]:
        return zip(self._calls, self._outgoing, strict=True)

    def _with_parts(self, error: E) -> E:
        sent = {name for name, verdict in self._verdicts.items() if verdict != REFUSED}
        error.sent = [_result(self._app, call, one) for call, one in self._pairs if id(one) in sent]
        error.unsent = [call.fixed(one) for call, one in self._pairs if id(one) not in sent]
        return error


def _command(app: TaskQ, signature: Signature[Any]) -> tuple[Outgoing, Command[str]]:
    _check_app(app, signature)
    one = signature.outgoing()
    base = keys.base(app.name, _queue_of(signature))
    build = commands.enqueue if one.due is None else commands.schedule
    return one, build(base, (one,))


def _accepted(app: TaskQ, signature: Signature[T], one: Outgoing, verdict: str) -> Result[T]:
    if verdict == REFUSED:
        raise _duplicate(signature, one)
    return _result(app, signature, one)


def _duplicate(signature: Signature[Any], one: Outgoing) -> DuplicateMessage:
    name = one.message.envelope.name or one.message.id
    msg = f"the id {name!r} is in use by a message of another task than {signature.task}"
    return DuplicateMessage(msg)


def _result(app: TaskQ, signature: Signature[T], one: Outgoing) -> Result[T]:
    name = one.message.envelope.name or one.message.id
    stored = not one.message.envelope.ignore_result
    return Result(app, name, _queue_of(signature), task=signature.task, stored=stored)


def _uncertain(error: Interrupted, signature: Signature[Any], one: Outgoing) -> EnqueueUncertain:
    name = one.message.envelope.name or one.message.id
    address = keys.address(name, _queue_of(signature))
    msg = (
        f"{error}; Redis may or may not have accepted {signature.task} {address}: enqueueing it "
        f"again with options(id={name!r}) is safe"
    )
    return EnqueueUncertain(msg, name)


def _check_app(app: TaskQ, signature: Signature[Any]) -> None:
    if signature.app is not app:
        msg = f"{signature.task} is of the app {signature.app.name!r}: send it by that one"
        raise ConfigError(msg)


def _queue_of(signature: Signature[Any]) -> str:
    return signature.options.queue or signature.app.config.default_queue
