"""Sending: signatures become commands, and what Redis says to those becomes results."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from taskq.broker import commands, keys
from taskq.broker.commands import Command, Outgoing
from taskq.broker.replication import Unreplicated
from taskq.client.mould import Mould, Written
from taskq.client.result import Result
from taskq.client.signature import Signature
from taskq.client.spread import Spread, mould_of
from taskq.errors import (
    BrokerError,
    ConfigError,
    DuplicateMessage,
    EnqueueUncertain,
    Interrupted,
)

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")
E = TypeVar("E", BrokerError, DuplicateMessage)

# The script's letter for an id that another task's message has.
REFUSED = "x"
_SENT: Written = ("", b"")
# Of names that `send_task` is given there may be any number.
_MOST_MOULDS = 1000


def send(app: TaskQ, signature: Signature[T]) -> Result[T]:
    """Send one message."""
    mould = _known_mould(app, signature)
    if mould is None:
        if _is_first(app, signature):
            app.partitions.open(signature.queue)
        mould = _new_mould(app, signature)
    one = mould.cast(mould.write(signature.args, signature.kwargs))
    base, replicas, broker = mould.base, mould.replicas, app.broker
    try:
        if one.due is None:
            verdict = broker.enqueue(base, one, replicas)
        else:
            verdict = broker.run(commands.schedule(base, (one,)).lasting(replicas))
    except (Interrupted, Unreplicated) as error:
        raise _unsure(error, mould.place, one) from error
    return _accepted(app, mould.place, one, verdict)


async def asend(app: TaskQ, signature: Signature[T]) -> Result[T]:
    """Send one message; as `send`, awaited."""
    mould = _known_mould(app, signature)
    if mould is None:
        if _is_first(app, signature):
            await app.partitions.aopen(signature.queue)
        mould = _new_mould(app, signature)
    one = mould.cast(mould.write(signature.args, signature.kwargs))
    base, replicas, broker = mould.base, mould.replicas, app.abroker()
    try:
        if one.due is None:
            verdict = await broker.enqueue(base, one, replicas)
        else:
            verdict = await broker.run(commands.schedule(base, (one,)).lasting(replicas))
    except (Interrupted, Unreplicated) as error:
        raise _unsure(error, mould.place, one) from error
    return _accepted(app, mould.place, one, verdict)


def send_many(app: TaskQ, calls: Iterable[Signature[T]]) -> list[Result[T]]:
    """Send many messages, a page in a round trip; all are checked before the first."""
    batch = _Batch(app, calls)
    try:
        for queue in batch.queues:
            app.partitions.open(queue)
        for verdicts in app.broker.run_each(batch.commands()):
            batch.accept(verdicts)
    except BrokerError as error:
        told = batch.torn(error)
        # No error is its own cause: whoever walks along those would never arrive.
        raise told from error if told is not error else error.__cause__
    return batch.results()


async def asend_many(app: TaskQ, calls: Iterable[Signature[T]]) -> list[Result[T]]:
    """Send many messages; as `send_many`, awaited."""
    batch = _Batch(app, calls)
    try:
        for queue in batch.queues:
            await app.partitions.aopen(queue)
        async for verdicts in app.abroker().run_each(batch.commands()):
            batch.accept(verdicts)
    except BrokerError as error:
        told = batch.torn(error)
        # No error is its own cause: whoever walks along those would never arrive.
        raise told from error if told is not error else error.__cause__
    return batch.results()


class _Entry(msgspec.Struct, Generic[T], gc=False):
    """One call of a batch, on its way."""

    call: Signature[T]
    mould: Mould
    written: Written
    outgoing: Outgoing | None = None
    verdict: str = ""
    # Once it was accepted; its bytes are let go of.
    result: Result[T] | None = None

    def cast(self) -> Outgoing:
        """Return the signed message; it is made once."""
        if self.outgoing is None:
            self.outgoing = self.mould.cast(self.written)
        return self.outgoing


def _cast(entries: Sequence[_Entry[Any]]) -> Iterator[Outgoing]:
    """Sign what is not signed yet, each task's calls at once; return all of them."""
    for mould, lot in itertools.groupby(entries, lambda entry: entry.mould):
        fresh = list(lot)
        for entry, one in zip(fresh, mould.cast_all(entry.written for entry in fresh), strict=True):
            entry.outgoing = one
            yield one


class _Batch(Generic[T]):
    """Many messages on their way, in the order in which they were given.

    All are written, and so checked, at first; they are signed page by page, while Redis
    works at the page before.
    """

    def __init__(self, app: TaskQ, calls: Iterable[Signature[T]]) -> None:
        self._app = app
        self._moulds: dict[tuple[int, str, int], Mould | Spread] = {}
        # Those that are sent to.
        self.queues: set[str] = set()
        self._entries = list(self._written(calls))
        # Those on the way, page by page; and the first page that failed while others went on.
        self._pages: deque[list[_Entry[T]]] = deque()
        self._failed: list[_Entry[T]] | None = None

    def commands(self) -> Iterator[Command[str]]:
        """Return the commands that send them: a page of each queue, then the next of each."""
        queues: dict[tuple[str, int], list[_Entry[T]]] = {}
        for entry in self._entries:
            queues.setdefault((entry.mould.base, entry.mould.replicas), []).append(entry)
        rest = deque(self._paged(*of, entries) for of, entries in queues.items())
        while rest:
            pages = rest.popleft()
            for page, command in itertools.islice(pages, 1):
                self._pages.append(page)
                yield command
                rest.append(pages)

    def _paged(
        self, base: str, replicas: int, entries: list[_Entry[T]]
    ) -> Iterator[tuple[list[_Entry[T]], Command[str]]]:
        """Return what is sent to one place, page by page."""
        for at in range(0, len(entries), commands.MOST_MESSAGES):
            some = entries[at : at + commands.MOST_MESSAGES]
            by_message = {id(one): entry for one, entry in zip(_cast(some), some, strict=True)}
            outgoing = [entry.cast() for entry in some]
            for page, command in commands.send(base, outgoing):
                yield [by_message[id(one)] for one in page], command.lasting(replicas)

    def accept(self, verdicts: str | None) -> None:
        """Note what Redis said to the page that was sent first; None: that failed."""
        page = self._pages.popleft()
        if verdicts is None:
            self._failed = self._failed or page
            return
        for entry, verdict in zip(page, verdicts, strict=True):
            entry.verdict = verdict
            if verdict != REFUSED:
                entry.result = handle(self._app, entry.cast(), entry.mould.place)
                entry.outgoing, entry.written = None, _SENT

    def results(self) -> list[Result[T]]:
        """Return the handles, in the order of the calls."""
        accepted = [entry.result for entry in self._entries if entry.result is not None]
        if len(accepted) < len(self._entries):
            refused = next(entry for entry in self._entries if entry.verdict == REFUSED)
            raise self._with_parts(duplicate(refused.cast()))
        return accepted

    def torn(self, error: BrokerError) -> BrokerError:
        """Return the error that befell a page, with what was sent and what was not."""
        if isinstance(error, (Interrupted, Unreplicated)):
            first = (self._failed or self._pages[0])[0]
            error = _uncertain(error, first.mould.place, first.cast())
        return self._with_parts(error)

    def _written(self, calls: Iterable[Signature[T]]) -> Iterable[_Entry[T]]:
        last: Signature[T] | None = None
        found: Mould | Spread | None = None
        for call in calls:
            if found is None or last is None or not _alike(call, last):
                found = self._mould_of(call)
            last = call
            mould = found if isinstance(found, Mould) else found.choose()
            yield _Entry(call, mould, mould.write(call.args, call.kwargs))

    def _mould_of(self, call: Signature[T]) -> Mould | Spread:
        kind = (id(call.app), call.task, id(call.options))
        if kind not in self._moulds:
            _check_app(self._app, call)
            self._moulds[kind] = mould_of(self._app, call.task, call.options)
            self.queues.add(call.queue)
        return self._moulds[kind]

    def _with_parts(self, error: E) -> E:
        error.sent = [entry.result for entry in self._entries if entry.result is not None]
        rest = [entry for entry in self._entries if entry.result is None]
        error.unsent = [entry.call.fixed(entry.cast()) for entry in rest]
        return error


def _alike(one: Signature[Any], other: Signature[Any]) -> bool:
    """Whether both are cast in one mould, as far as can be seen at a glance."""
    return one.options is other.options and one.task is other.task and one.app is other.app


def _is_first(app: TaskQ, signature: Signature[Any]) -> bool:
    """Whether its queue was not used yet; what is wrong with the call is told before that is."""
    _check_app(app, signature)
    if app.partitions.is_open(signature.queue):
        return False
    mould = mould_of(app, signature.task, signature.options)
    one = mould if isinstance(mould, Mould) else mould.choose()
    one.write(signature.args, signature.kwargs)
    return True


def _known_mould(app: TaskQ, signature: Signature[Any]) -> Mould | None:
    """Return what casts a call that is like the last one of its task; else None."""
    mould = app.moulds.get(signature.task)
    if mould is None or mould.options is not signature.options or signature.app is not app:
        return None
    return mould if isinstance(mould, Mould) else mould.choose()


def _new_mould(app: TaskQ, signature: Signature[Any]) -> Mould:
    """Return what casts a call, and keep it for those that are like it."""
    mould = mould_of(app, signature.task, signature.options)
    if len(app.moulds) >= _MOST_MOULDS:
        app.moulds.clear()
    app.moulds[signature.task] = mould
    return mould if isinstance(mould, Mould) else mould.choose()


def _accepted(app: TaskQ, place: str, one: Outgoing, verdict: str) -> Result[Any]:
    if verdict == REFUSED:
        raise duplicate(one)
    return handle(app, one, place)


def duplicate(one: Outgoing) -> DuplicateMessage:
    """Return what is raised where another task's message has the id."""
    envelope = one.message.envelope
    name = envelope.name or one.message.id
    msg = f"the id {name!r} is in use by a message of another task than {envelope.task}"
    return DuplicateMessage(msg)


def handle(app: TaskQ, one: Outgoing, place: str) -> Result[Any]:
    """Return the handle on a message that was sent to a place."""
    message = one.message
    return Result(
        app,
        message.envelope.name or message.id,
        place,
        wire_id=message.id,
        task=message.envelope.task,
        stored=not message.envelope.ignore_result,
    )


def _unsure(
    error: Interrupted | Unreplicated, place: str, one: Outgoing
) -> EnqueueUncertain | DuplicateMessage:
    if isinstance(error, Unreplicated) and error.verdicts == REFUSED:
        return duplicate(one)
    return _uncertain(error, place, one)


def _uncertain(error: Interrupted | Unreplicated, place: str, one: Outgoing) -> EnqueueUncertain:
    envelope = one.message.envelope
    name = envelope.name or one.message.id
    address = keys.address(name, place)
    if isinstance(error, Unreplicated):
        told = f"if that dies now, {envelope.task} {address} may be lost"
    else:
        told = f"Redis may or may not have accepted {envelope.task} {address}"
    msg = f"{error}; {told}: enqueueing it again with options(id={name!r}) is safe"
    return EnqueueUncertain(msg, name)


def _check_app(app: TaskQ, signature: Signature[Any]) -> None:
    if signature.app is not app:
        msg = f"{signature.task} is of the app {signature.app.name!r}: send it by that one"
        raise ConfigError(msg)
