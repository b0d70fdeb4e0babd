"""Sending: signatures become commands, and what Redis says to those becomes results."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from taskq.broker import commands, keys
from taskq.broker.commands import Outgoing
from taskq.broker.replication import Unreplicated
from taskq.client.batch import REFUSED, Batch, check_app, duplicate, uncertain
from taskq.client.mould import Mould
from taskq.client.result import Result
from taskq.client.signature import Signature
from taskq.client.spread import mould_of
from taskq.errors import BrokerError, DuplicateMessage, EnqueueUncertain, Interrupted

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")

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
            _expect(app, mould.place, one, threading.current_thread())
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
            _expect(app, mould.place, one, asyncio.current_task())
            verdict = await broker.enqueue(base, one, replicas)
        else:
            verdict = await broker.run(commands.schedule(base, (one,)).lasting(replicas))
    except (Interrupted, Unreplicated) as error:
        raise _unsure(error, mould.place, one) from error
    return _accepted(app, mould.place, one, verdict)


def send_many(app: TaskQ, calls: Iterable[Signature[T]]) -> list[Result[T]]:
    """Send many messages, a page in a round trip; all are checked before the first."""
    batch = Batch(app, calls)
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
    batch = Batch(app, calls)
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


def _is_first(app: TaskQ, signature: Signature[Any]) -> bool:
    """Whether its queue was not used yet; what is wrong with the call is told before that is."""
    check_app(app, signature)
    if app.partitions.is_open(signature.queue):
        return False
    mould = mould_of(app, signature.task, signature.options)
    mould.choose().write(signature.args, signature.kwargs)
    return True


def _known_mould(app: TaskQ, signature: Signature[Any]) -> Mould | None:
    """Return what casts a call that is like the last one of its task; else None."""
    mould = app.moulds.get(signature.task)
    if mould is None or mould.options is not signature.options or signature.app is not app:
        return None
    return mould.choose()


def _new_mould(app: TaskQ, signature: Signature[Any]) -> Mould:
    """Return what casts a call, and keep it for those that are like it."""
    mould = mould_of(app, signature.task, signature.options)
    if len(app.moulds) >= _MOST_MOULDS:
        app.moulds.clear()
    app.moulds[signature.task] = mould
    return mould.choose()


def _expect(app: TaskQ, place: str, one: Outgoing, who: object) -> None:
    """Listen for the outcome before it can come, if the sender will wait for it at once."""
    if app.waiter.hurried(who):
        app.waiter.expect(keys.done(app.name, place, one.message.id).encode(), who)


def _accepted(app: TaskQ, place: str, one: Outgoing, verdict: str) -> Result[Any]:
    if verdict == REFUSED:
        raise duplicate(one.task, one.name)
    return handle(app, one, place)


def handle(app: TaskQ, one: Outgoing, place: str) -> Result[Any]:
    """Return the handle on a message that was sent to a place."""
    stored = not one.message.envelope.ignore_result
    return Result(app, one.name, place, one.message.id, one.task, stored)


def _unsure(
    error: Interrupted | Unreplicated, place: str, one: Outgoing
) -> EnqueueUncertain | DuplicateMessage:
    if isinstance(error, Unreplicated) and error.verdicts == REFUSED:
        return duplicate(one.task, one.name)
    return uncertain(error, one.task, one.name, place)
