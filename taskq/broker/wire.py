"""An open connection of an event loop: commands out, replies in.

The client opens it, and says who we are; what it does for each command after that takes four
times as long as the command. So its transport is taken over, where it has one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

import hiredis
import redis

from taskq.broker.line import pack

# What a reader says while a reply is not complete.
_INCOMPLETE = object()


class Wire(Protocol):
    """One connection. What is raised is the client's, `CLIENT_ERRORS`."""

    # As the client opened it.
    connection: Any

    # Send one command; the replies come in the order of the commands.
    async def send(self, arguments: tuple[Any, ...]) -> None: ...

    # Return when the next reply, or the end, begins to arrive, or where that cannot be told.
    async def heard(self) -> None: ...

    # Return the next reply, or raise it, if it is an error.
    async def receive(self) -> Any: ...


def take_over(connection: Any) -> Wire:
    """Return the wire of an open connection, which nobody else may use from now on."""
    writer, parser = getattr(connection, "_writer", None), getattr(connection, "_parser", None)
    if isinstance(writer, asyncio.StreamWriter) and hasattr(parser, "parse_error"):
        return _Direct(connection, writer.transport)
    return _Indirect(connection)


class _Direct(asyncio.Protocol):
    """It reads and writes itself."""

    def __init__(self, connection: Any, transport: asyncio.WriteTransport) -> None:
        self.connection, self._transport = connection, transport
        # Errors are of the client's classes.
        error: Any = connection._parser.parse_error  # noqa: SLF001
        self._reader: Any = hiredis.Reader(replyError=error, notEnoughData=_INCOMPLETE)
        self._limit: float | None = connection.socket_timeout
        self._loop = asyncio.get_running_loop()
        self._replies: deque[Any] = deque()
        self._waiting: asyncio.Future[None] | None = None
        # Since when, by the loop's clock; and when it is looked whether that is too long.
        self._since = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._end: Exception | None = None
        transport.set_protocol(self)

    async def send(self, arguments: tuple[Any, ...]) -> None:
        if self._transport.is_closing():
            raise self._end or redis.ConnectionError("the connection is closed")
        self._transport.write(pack(arguments))

    async def heard(self) -> None:
        if not self._replies and self._end is None:
            await self._arrival()

    async def receive(self) -> Any:
        while not self._replies:
            if self._end is not None:
                raise self._end
            await self._arrival()
        reply = self._replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _arrival(self) -> None:
        """Return when something came, be it the end."""
        self._waiting, self._since = self._loop.create_future(), self._loop.time()
        if self._look is None and self._limit is not None:
            self._look = self._loop.call_later(self._limit, self._look_at_limit, self._limit)
        try:
            await self._waiting
        finally:
            self._waiting = None

    # What follows is called by the event loop.

    def _look_at_limit(self, limit: float) -> None:
        """Give up what is waited for too long. One look a limit is cheaper than one a reply."""
        self._look = None
        if self._waiting is None or self._waiting.done():
            return
        left = self._since + limit - self._loop.time()
        if left > 0:
            self._look = self._loop.call_later(left, self._look_at_limit, limit)
        else:
            self._finish(redis.TimeoutError("no answer in time"))

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                self._replies.append(reply)
        except hiredis.ProtocolError as error:
            self._finish(redis.InvalidResponse(str(error)))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end."""
        self._finish(redis.ConnectionError(str(exc or "the server closed the connection")))
        if self._look is not None:
            self._look.cancel()

    def _finish(self, error: Exception) -> None:
        self._end = self._end or error
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class _Indirect:
    """The client reads and writes: that of tests without a server, or a version not known."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def send(self, arguments: tuple[Any, ...]) -> None:
        before = cancellations()
        await self.connection.send_command(*arguments, check_health=False)
        obey(before)

    async def heard(self) -> None:
        pass

    async def receive(self) -> Any:
        before = cancellations()
        reply = await self.connection.read_response()
        obey(before)
        return reply


def cancellations() -> int:
    """Return how often this task was told to end."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def obey(before: int) -> None:
    """Raise a cancellation that came since and was not raised.

    The client uses `asyncio.wait_for`, which swallows some in Python 3.11: a wait would go on.
    """
    if cancellations() > before:
        raise asyncio.CancelledError
