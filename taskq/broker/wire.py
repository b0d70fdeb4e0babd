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

from taskq.broker.line import packed

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
    writer = getattr(connection, "_writer", None)
    # What is said in a reply that is an error → an error of the client's classes.
    classed = getattr(getattr(connection, "_parser", None), "parse_error", None)
    if isinstance(writer, asyncio.StreamWriter) and classed:
        return _Direct(connection, writer.transport, classed)
    return _Indirect(connection)


class _Direct:
    """It reads and writes itself."""

    def __init__(self, connection: Any, transport: asyncio.WriteTransport, classed: Any) -> None:
        self.connection, self._transport = connection, transport
        # The loop has it, and it does not have the connection: that ends with who drops it.
        self._replies = _Replies(transport, connection.socket_timeout, classed)

    async def send(self, arguments: tuple[Any, ...]) -> None:
        if self._transport.is_closing():
            raise self._replies.end or redis.ConnectionError("the connection is closed")
        for piece in packed(arguments):
            self._transport.write(piece)
            if self._transport.is_closing():
                return  # it broke: who waits for the reply is told

    async def heard(self) -> None:
        await self._replies.begun()

    async def receive(self) -> Any:
        return await self._replies.next()


class _Replies(asyncio.Protocol):
    """What comes by a transport, which this takes over."""

    def __init__(
        self, transport: asyncio.WriteTransport, limit: float | None, classed: Any
    ) -> None:
        self._reader: Any = hiredis.Reader(replyError=classed, notEnoughData=_INCOMPLETE)
        self._transport, self._limit = transport, limit
        self._loop = asyncio.get_running_loop()
        self._whole: deque[Any] = deque()
        self._waiting: asyncio.Future[None] | None = None
        # Since when, by the loop's clock; and when it is looked whether that is too long, and how
        # much was to be sent still at the last look.
        self._since, self._unsent = 0.0, 0
        self._look: asyncio.TimerHandle | None = None
        # Why nothing more will come.
        self.end: Exception | None = None
        transport.set_protocol(self)

    async def begun(self) -> None:
        """Return when a reply, or the end, begins to arrive."""
        if not self._whole and self.end is None:
            await self._arrival()

    async def next(self) -> Any:
        """Return the next reply, or raise it, if it is an error."""
        while not self._whole:
            if self.end is not None:
                raise self.end
            await self._arrival()
        reply = self._whole.popleft()
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
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        if self._unsent != before:
            self._since = self._loop.time()  # it is still on its way, and gets on
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
                self._whole.append(reply)
        except hiredis.ProtocolError as error:
            self._finish(redis.InvalidResponse(str(error)))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end."""
        self._finish(redis.ConnectionError(str(exc or "the server closed the connection")))
        if self._look is not None:
            self._look.cancel()

    def _finish(self, error: Exception) -> None:
        self.end = self.end or error
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
