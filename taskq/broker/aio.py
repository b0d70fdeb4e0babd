"""Runs commands, awaited. `sync.py` is the same, blocking."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from typing import Any, TypeAlias, TypeVar

from redis.exceptions import NoScriptError, ResponseError
from tenacity import AsyncRetrying

from taskq.broker import commands, replication
from taskq.broker.commands import Command, Outgoing
from taskq.broker.connection import Endpoint
from taskq.broker.faults import CLIENT_ERRORS, ScriptMissing, retrying
from taskq.broker.grouping import AsyncGroup
from taskq.broker.line import (
    MOST_LASTING,
    MOST_LINES,
    MOST_STREAMS,
    AllInUse,
    Stream,
    words_of,
)
from taskq.broker.wire import Wire, cancellations, obey, take_over
from taskq.errors import BrokerError, BrokerUnavailable, Interrupted
from taskq.model import clock

T = TypeVar("T")


class AsyncLine:
    """One connection, used by one asyncio task at a time. Nothing is repeated here."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._wire: Wire | None = None

    async def call(self, *arguments: Any) -> Any:
        """Send one command and return the reply; raises as `Line.call` does."""
        await self.send(*arguments)
        return await self.receive()

    async def send(self, *arguments: Any) -> None:
        """Send one command, the reply to which must be received before the next."""
        wire = self._wire or await self._connect()
        try:
            await wire.send(arguments)
        except CLIENT_ERRORS as error:
            raise await self._broken(error) from error
        except BaseException:
            await self.close()
            raise

    async def heard(self) -> None:
        """Return when the next reply begins, or where that cannot be told."""
        if self._wire is not None:
            await self._wire.heard()

    async def receive(self) -> Any:
        """Return the next reply."""
        if self._wire is None:
            msg = f"{self.endpoint.place}: the connection broke before the reply"
            raise Interrupted(msg)
        try:
            return await self._wire.receive()
        except ResponseError as error:
            raise await self._refused(error) from error
        except CLIENT_ERRORS as error:
            raise await self._broken(error) from error
        except BaseException:
            # Cancelled before its reply: the next caller would read that one.
            await self.close()
            raise

    async def run(self, command: Command[T]) -> T:
        """Run a script call, loading the script where Redis does not have it."""
        try:
            reply = await self.call(*words_of(command))
        except ScriptMissing:
            text = command.script.text
            reply = await self.call("EVAL", text, 1, command.base, *command.arguments)
        return command.read(reply)

    async def replicate(self, command: Command[Any], verdicts: str, until: float) -> None:
        """Wait for the replicas that a call asks for; see `Line.replicate`."""
        steps, reply = replication.steps(self.endpoint.place, command, verdicts, until), None
        try:
            while True:
                try:
                    words = steps.send(reply)
                except StopIteration:
                    return
                reply = await self.call(*words)
        except replication.Unreplicated:
            raise
        except BrokerError as error:
            raise replication.troubled(error, verdicts) from error

    async def begin(self, command: Command[T]) -> None:
        """Send a script call, the reply to which must be read by `end`."""
        await self.send(*words_of(command))

    async def end(self, command: Command[T]) -> T:
        """Return what the first call begun and not ended was answered."""
        return command.read(await self.receive())

    async def close(self) -> None:
        """Drop the connection; the next call opens a new one."""
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(*CLIENT_ERRORS):  # it is broken, or soon gone
                await wire.connection.disconnect(nowait=True)

    async def _connect(self) -> Wire:
        before = cancellations()
        self._wire = take_over(await self.endpoint.aopen())
        obey(before)
        return self._wire

    async def _broken(self, error: Exception) -> BrokerError:
        broken = self._wire and self._wire.connection
        await self.close()
        return self.endpoint.translate(error, sent=True, of=broken)

    async def _refused(self, error: ResponseError) -> BrokerError:
        if isinstance(error, NoScriptError):
            return ScriptMissing(str(error))
        known = self.endpoint.translate(error, sent=True)
        if isinstance(known, BrokerUnavailable):
            await self.close()  # a demoted or a loading server: look for another one
        return known


# Of a broker: `_line`, `_lasting_line`.
_Lend: TypeAlias = Callable[[float], contextlib.AbstractAsyncContextManager[AsyncLine]]


class AsyncBroker:
    """Runs commands on a few connections of one event loop, again after a broken one."""

    make_line: Callable[[Endpoint], AsyncLine] = AsyncLine

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.endpoint = endpoint
        self._deadline = deadline
        self._idle: deque[AsyncLine] = deque()
        self._groups: dict[tuple[str, int], AsyncGroup] = {}
        self._places = asyncio.BoundedSemaphore(MOST_LINES)
        self._lasting_places = asyncio.BoundedSemaphore(MOST_LASTING)
        self._stream_places = asyncio.BoundedSemaphore(MOST_STREAMS)
        # A monotonic instant: when Redis answered somebody last.
        self._served_at = -math.inf
        # Begun with the first connection; see `_close_with_loop`.
        self._farewell: AsyncGenerator[None, None] | None = None

    async def run(self, command: Command[T], *, within: float = math.inf) -> T:
        """Run one script call; what broke on the way is tried again until the deadline.

        It is tried again for `within` seconds, and no longer than the deadline.
        """
        began = clock.monotonic()
        latest = began + min(within, self._deadline)
        ask, lend = _runner(command, latest), self._lender(command)
        try:
            async with lend(latest) as line:
                return await ask(line)
        except BrokerUnavailable as error:
            return await self._again(began, error, ask, within, lend)

    async def enqueue(self, base: str, one: Outgoing, replicas: int = 0) -> str:
        """Queue one message; with those that others send meanwhile, as `Broker.enqueue`."""
        group = self._groups.get((base, replicas))
        if group is None:

            def run(some: Sequence[Outgoing], *, within: float) -> Awaitable[str]:
                return self.run(commands.enqueue(base, some).lasting(replicas), within=within)

            group = self._groups[base, replicas] = AsyncGroup(run, self._deadline)
        return await group.send(one)

    async def run_each(self, calls: Iterable[Command[T]]) -> AsyncIterator[T | BrokerError]:
        """Run many; the next is made and sent while Redis works at the one before."""
        stream = Stream(calls)
        while True:
            try:
                async with self._stream_place(), self._line(self._latest()) as line:
                    # In an outage no deadline begins anew where others have waited for one.
                    stream.began = max(stream.began, self._served_at)
                    async for reply in _replies(line, stream):
                        self._served_at = clock.monotonic()
                        yield reply
            except ScriptMissing:
                while stream.sent:
                    yield await self.run(stream.sent[0])
                    stream.answered()
            except BrokerUnavailable as error:
                if not stream.sent:
                    raise
                # What was on the way is sent again, one by one: scripts may be repeated.
                while stream.sent:
                    command = stream.sent[0]
                    ask = _runner(command, stream.began + self._deadline)
                    yield await self._again(stream.began, error, ask, lend=self._lender(command))
                    stream.answered()
            else:
                if not stream.sent:
                    return
                yield await self.run(stream.sent[0])
                stream.answered()

    async def call(self, *arguments: Any, within: float = math.inf) -> Any:
        """Send one command that may be repeated, and return the reply; by the deadline.

        For `within` seconds it is waited for that the reply begins.
        """
        began = clock.monotonic()

        async def ask(line: AsyncLine) -> Any:
            await line.send(*arguments)
            await line.heard()
            limit.reschedule(None)
            return await line.receive()

        try:
            async with asyncio.timeout(None if within == math.inf else within) as limit:
                try:
                    async with self._line(self._latest()) as line:
                        return await ask(line)
                except BrokerUnavailable as error:
                    return await self._again(began, error, ask)
        except TimeoutError:
            msg = f"{self.endpoint.place}: no answer in time"
            raise BrokerUnavailable(msg) from None

    async def close(self) -> None:
        """Close the idle connections; the next call opens a new one."""
        while self._idle:
            await self._idle.pop().close()

    def _lender(self, command: Command[Any]) -> _Lend:
        return self._lasting_line if command.replicas else self._line

    async def _again(
        self,
        began: float,
        first: BrokerUnavailable,
        ask: Callable[[AsyncLine], Awaitable[T]],
        within: float = math.inf,
        lend: _Lend | None = None,
    ) -> T:
        interrupted = isinstance(first, Interrupted)
        latest = began + min(self._deadline, within)
        left = latest - clock.monotonic()
        if left <= 0:
            raise first

        async def once() -> T:
            nonlocal interrupted
            try:
                async with (lend or self._line)(latest) as line:
                    return await ask(line)
            except Interrupted:
                interrupted = True
                raise

        try:
            return await AsyncRetrying(**retrying(left))(once)
        except BrokerError as error:
            if not interrupted or isinstance(error, replication.Unreplicated):
                raise
            # One of the attempts may have been carried out, whatever the last one met.
            raise Interrupted(str(error)) from error

    def _latest(self) -> float:
        """Return until when a caller that comes now tries."""
        return clock.monotonic() + self._deadline

    @contextlib.asynccontextmanager
    async def _stream_place(self) -> AsyncGenerator[None, None]:
        """Let few at a time send many: what is sent alone finds another line."""
        await self._take(self._stream_places, self._latest())
        try:
            yield
        finally:
            self._stream_places.release()

    @contextlib.asynccontextmanager
    async def _lasting_line(self, latest: float) -> AsyncGenerator[AsyncLine, None]:
        """Lend a line to who waits for replicas."""
        await self._take(self._lasting_places, latest)
        try:
            async with self._line(latest) as line:
                yield line
        finally:
            self._lasting_places.release()

    @contextlib.asynccontextmanager
    async def _line(self, latest: float) -> AsyncGenerator[AsyncLine, None]:
        """Lend a line, which is waited for until `latest`, or while others get theirs."""
        await self._take(self._places, latest)
        line = self._idle.pop() if self._idle else await self._new_line()
        try:
            yield line
            self._served_at = clock.monotonic()
        except BrokerError:
            raise
        except BaseException:
            # Perhaps between a request and its reply: the next caller would read that.
            await line.close()
            raise
        finally:
            self._idle.append(line)
            self._places.release()

    async def _new_line(self) -> AsyncLine:
        if self._farewell is None:
            self._farewell = self._close_with_loop()
            await anext(self._farewell)
        return self.make_line(self.endpoint)

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """Close the connections where nobody did: `asyncio.run` ends generators last of all."""
        try:
            yield
        finally:
            await self.close()

    async def _take(self, places: asyncio.BoundedSemaphore, latest: float) -> None:
        if not places.locked():
            await places.acquire()  # at once
            return
        while True:
            # Of coroutines there may be very many: who is behind others that are served waits on.
            left = max(latest, self._served_at + self._deadline) - clock.monotonic()
            if left <= 0:
                msg = f"{self.endpoint.place}: all {MOST_LINES} connections are in use"
                if places is self._lasting_places:
                    msg = f"{self.endpoint.place}: all {MOST_LASTING} that may wait for replicas do"
                elif places is self._stream_places:
                    msg = f"{self.endpoint.place}: all {MOST_STREAMS} that may send many calls do"
                raise AllInUse(msg)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await places.acquire()
                return


def _runner(command: Command[T], until: float) -> Callable[[AsyncLine], Awaitable[T]]:
    if not command.replicas:
        return lambda line: line.run(command)

    async def run(line: AsyncLine) -> T:
        reply = await line.run(command)
        await line.replicate(command, str(reply), until)
        return reply

    return run


async def _replies(line: AsyncLine, stream: Stream[T]) -> AsyncIterator[T]:
    """Yield the replies, one command ahead.

    It ends before one that waits for replicas, which is left in `sent`: that takes another line.
    """
    sent = stream.sent
    try:
        for command in stream.rest():
            sent.append(command)
            if not command.replicas:
                await line.begin(command)
            if len(sent) > 1:
                yield await line.end(sent[0])
                stream.answered()
            if command.replicas:
                return
        while sent:
            yield await line.end(sent[0])
            stream.answered()
    except BrokerError:
        # The reply to a later command may still come.
        await line.close()
        raise
