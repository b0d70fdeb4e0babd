"""Sending: signatures become commands, and what Redis says to those becomes results."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from taskq.broker import commands, keys
from taskq.broker.commands import Command, Outgoing
from taskq.broker.connection import Interrupted
from taskq.client.mould import Mould, Written
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
    try:
        for verdicts in app.broker.run_each(batch.commands()):
            batch.accept(verdicts)
    except BrokerError as error:
        raise batch.torn(error) from error
    return batch.results()


async def asend_many(app: TaskQ, calls: Iterable[Signature[T]]) -> list[Result[T]]:
    """Send many messages; as `send_many`, awaited."""
    batch = _Batch(app, calls)
    try:
        async for verdicts in app.abroker().run_each(batch.commands()):
            batch.accept(verdicts)
    except BrokerError as error:
        raise batch.torn(error) from error
    return batch.results()


class _Entry(msgspec.Struct, Generic[T]):
    """One call of a batch, on its way."""

    call: Signature[T]
    mould: Mould
    written: Written
    outgoing: Outgoing | None = None
    verdict: str = ""

    def cast(self) -> Outgoing:
        """Return the signed message; it is made once."""
        if self.outgoing is None:
            self.outgoing = self.mould.cast(self.written)
        return self.outgoing


class _Batch(Generic[T]):
    """Many messages on their way, in the order in which they were given.

    All are written, and so checked, at first; they are signed page by page, while Redis
    works at the page before.
    """

    def __init__(self, app: TaskQ, calls: Iterable[Signature[T]]) -> None:
        self._app = app
        self._entries = list(self._written(calls))
        # Those on the way, page by page.
        self._pages: deque[list[_Entry[T]]] = deque()

    def commands(self) -> Iterator[Command[str]]:
        """Return the commands that send them, queue by queue."""
        queues: dict[str, list[_Entry[T]]] = {}
        for entry in self._entries:
            queues.setdefault(entry.mould.base, []).append(entry)
        for base, entries in queues.items():
            for at in range(0, len(entries), commands.MOST_MESSAGES):
                by_message = {
                    id(one.cast()): one for one in entries[at : at + commands.MOST_MESSAGES]
                }
                outgoing = [one.cast() for one in by_message.values()]
                for page, command in commands.send(base, outgoing):
                    self._pages.append([by_message[id(one)] for one in page])
                    yield command

    def accept(self, verdicts: str) -> None:
        """Note what Redis said to the page that was sent first."""
        for entry, verdict in zip(self._pages.popleft(), verdicts, strict=True):
            entry.verdict = verdict

    def results(self) -> list[Result[T]]:
        """Return the handles, in the order of the calls."""
        for entry in self._entries:
            if entry.verdict == REFUSED:
                raise self._with_parts(_duplicate(entry.call, entry.cast()))
        return [_result(self._app, entry.call, entry.cast()) for entry in self._entries]

    def torn(self, error: BrokerError) -> BrokerError:
        """Return the error that befell a page, with what was sent and what was not."""
        if isinstance(error, Interrupted):
            first = self._pages[0][0]
            error = _uncertain(error, first.call, first.cast())
        return self._with_parts(error)

    def _written(self, calls: Iterable[Signature[T]]) -> Iterable[_Entry[T]]:
        moulds: dict[tuple[int, str, int], Mould] = {}
        for call in calls:
            kind = (id(call.app), call.task, id(call.options))
            mould = moulds.get(kind)
            if mould is None:
                _check_app(self._app, call)
                mould = moulds[kind] = Mould(self._app, call.task, call.options)
            yield _Entry(call, mould, mould.write(call.args, call.kwargs))

    def _with_parts(self, error: E) -> E:
        parts: tuple[list[_Entry[T]], list[_Entry[T]]] = ([], [])
        for entry in self._entries:
            parts[entry.verdict in ("", REFUSED)].append(entry)
        error.sent = [_result(self._app, entry.call, entry.cast()) for entry in parts[0]]
        error.unsent = [entry.call.fixed(entry.cast()) for entry in parts[1]]
        return error


def _command(app: TaskQ, signature: Signature[Any]) -> tuple[Outgoing, Command[str]]:
    _check_app(app, signature)
    mould = Mould(app, signature.task, signature.options)
    one = mould.cast(mould.write(signature.args, signature.kwargs))
    build = commands.enqueue if one.due is None else commands.schedule
    return one, build(mould.base, (one,))


def _accepted(app: TaskQ, signature: Signature[T], one: Outgoing, verdict: str) -> Result[T]:
    if verdict == REFUSED:
        raise _duplicate(signature, one)
    return _result(app, signature, one)


def _duplicate(signature: Signature[Any], one: Outgoing) -> DuplicateMessage:
    name = one.message.envelope.name or one.message.id
    msg = f"the id {name!r} is in use by a message of another task than {signature.task}"
    return DuplicateMessage(msg)


def _result(app: TaskQ, signature: Signature[T], one: Outgoing) -> Result[T]:
    message = one.message
    return Result(
        app,
        message.envelope.name or message.id,
        signature.queue,
        wire_id=message.id,
        task=signature.task,
        stored=not message.envelope.ignore_result,
    )


def _uncertain(error: Interrupted, signature: Signature[Any], one: Outgoing) -> EnqueueUncertain:
    name = one.message.envelope.name or one.message.id
    address = keys.address(name, signature.queue)
    msg = (
        f"{error}; Redis may or may not have accepted {signature.task} {address}: enqueueing it "
        f"again with options(id={name!r}) is safe"
    )
    return EnqueueUncertain(msg, name)


def _check_app(app: TaskQ, signature: Signature[Any]) -> None:
    if signature.app is not app:
        msg = f"{signature.task} is of the app {signature.app.name!r}: send it by that one"
        raise ConfigError(msg)
