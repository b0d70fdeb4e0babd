"""Carries out the steps of a wait: blocking, or awaited."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from taskq.client import watch
from taskq.client.waiter import Wait
from taskq.config import Seconds, seconds
from taskq.errors import BrokerUnavailable, ResultTimeout
from taskq.model import clock, context

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

F = TypeVar("F", bound=watch.Followed)

# Between two questions to a Redis that is away.
_AWAY_SECONDS = 0.2
# One question is given so long to be answered, however little time there is.
_LEAST_SECONDS = 0.5


def follow_sync(
    app: TaskQ, results: list[F], timeout: Seconds | None, *, in_task: bool
) -> Iterator[F]:
    """Yield each result once it is terminal, blocking."""
    _check_task(in_task=in_task)
    deadline = _deadline(timeout)
    wait = Wait()
    steps = _plan(app, results, wait, once=deadline <= clock.monotonic())
    reply: Any = None
    with contextlib.closing(steps):
        while (step := _next(steps, reply)) is not None:
            reply, left = None, deadline - clock.monotonic()
            try:
                if isinstance(step, watch.Settled):
                    yield step.result
                elif isinstance(step, watch.Run):
                    reply = app.broker.run(step.command, within=_within(left, step))
                elif isinstance(step, watch.Ask):
                    reply = app.broker.call(*step.arguments, within=_within(left, step))
                elif left > 0:
                    app.waiter.rest(wait, min(step.seconds, left))
                else:
                    break
            except BrokerUnavailable as error:
                reply = error
                clock.sleep(min(_AWAY_SECONDS, max(0.0, left)))
    _check_over(results)


async def follow_async(app: TaskQ, results: list[F], timeout: Seconds | None) -> AsyncIterator[F]:
    """Yield each result once it is terminal, awaited."""
    deadline = _deadline(timeout)
    wake, loop = asyncio.Event(), asyncio.get_running_loop()
    wait = Wait(lambda: _call_in(loop, wake))
    steps = _plan(app, results, wait, once=deadline <= clock.monotonic())
    reply: Any = None
    with contextlib.closing(steps):
        while (step := _next(steps, reply)) is not None:
            reply, left = None, deadline - clock.monotonic()
            try:
                if isinstance(step, watch.Settled):
                    yield step.result
                elif isinstance(step, watch.Run):
                    asked = app.abroker().run(step.command)
                    reply = await _in_time(min(left, step.within), asked)
                elif isinstance(step, watch.Ask):
                    asked = app.abroker().call(*step.arguments, within=step.within)
                    reply = await _in_time(left, asked)
                elif left > 0:
                    await _rest(wake, min(step.seconds, left))
                else:
                    break
            except BrokerUnavailable as error:
                reply = error
                await asyncio.sleep(min(_AWAY_SECONDS, max(0.0, left)))
    _check_over(results)


def _plan(app: TaskQ, results: list[F], wait: Wait, *, once: bool) -> watch.Steps[F]:
    if any(one.app is not app for one in results):
        msg = "one wait is for the results of one app"
        raise ValueError(msg)
    for one in results:
        one.look_again()
        if one.settled:
            yield watch.Settled(one)
    rest = [one for one in results if not one.settled]
    if rest:
        yield from watch.poll(app.waiter, rest) if once else watch.follow(app.waiter, rest, wait)


def _next(steps: watch.Steps[F], reply: Any) -> watch.Step[F] | None:
    try:
        return steps.send(reply)
    except StopIteration:
        return None


def _within(left: float, step: watch.Ask | watch.Run) -> float:
    return max(min(left, step.within), _LEAST_SECONDS)


async def _in_time(left: float, asked: Awaitable[Any]) -> Any:
    """Return a reply; `BrokerUnavailable` is raised where there is none in time."""
    try:
        async with asyncio.timeout(None if left == math.inf else max(left, _LEAST_SECONDS)):
            return await asked
    except TimeoutError:
        msg = "no answer in time"
        raise BrokerUnavailable(msg) from None


async def _rest(wake: asyncio.Event, seconds_left: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds_left)):
            await wake.wait()
    except TimeoutError:
        return
    finally:
        wake.clear()


def _call_in(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake.set)


def _deadline(timeout: Seconds | None) -> float:
    if timeout is None:
        return float("inf")
    return clock.monotonic() + seconds("timeout", timeout)


def _check_over(results: Sequence[watch.Followed]) -> None:
    waiting = [one for one in results if not one.settled]
    if waiting:
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        msg = f"{waiting[0].id}{more}: not over in time; the message goes on"
        raise ResultTimeout(msg)


def _check_task(*, in_task: bool) -> None:
    running = context.running()
    if running is None or (in_task and not running.coroutine):
        return
    if running.coroutine:
        msg = "in an `async def` task only awaiting is allowed: use `await result` or agather"
        raise RuntimeError(msg)
    msg = (
        "waiting for a result inside a task can lock up a full worker; "
        "say in_task=True if you know that it cannot"
    )
    raise RuntimeError(msg)
