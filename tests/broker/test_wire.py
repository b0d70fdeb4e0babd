"""A connection of an event loop, without the client that opened it."""

from __future__ import annotations

import asyncio
import enum
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from taskq.broker.aio import AsyncBroker
from taskq.broker.connection import Endpoint
from taskq.broker.line import pack, packed
from taskq.broker.wire import Wire, take_over
from taskq.model import clock
from tests.eventually import let_pass
from tests.servers import HOST, Server

Story = Callable[[Wire, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

LIMIT = 0.4


def tell(story: Story) -> None:
    """Run a story between a wire and the other end of it."""

    async def run() -> None:
        ends: asyncio.Queue[Any] = asyncio.Queue()
        server = await asyncio.start_server(lambda *both: ends.put(both), HOST, 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(f"redis://{HOST}:{port}/?socket_timeout={LIMIT}")
        wire = take_over(await endpoint.aopen())
        reader, writer = await ends.get()
        try:
            async with asyncio.timeout(20):
                await story(wire, reader, writer)
        finally:
            await wire.connection.disconnect(nowait=True)
            writer.close()
            server.close()

    asyncio.run(run())


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def heard(wire: Wire, *arguments: Any) -> Any:
    await wire.send(arguments)
    return await wire.receive()


def test_of_a_real_server_needs_the_client_no_more(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the client is not known well enough it still reads and writes, four times as slow."""

    async def story() -> None:
        connection = await Endpoint(server.url).aopen()
        for name in ("send_command", "send_packed_command", "read_response"):
            monkeypatch.setattr(connection, name, None)
        wire = take_over(connection)
        assert await heard(wire, "ECHO", b"x") == b"x"
        large = b"x" * 3_000_000
        assert await heard(wire, "ECHO", large) == large
        with pytest.raises(redis.exceptions.NoScriptError):
            await heard(wire, "EVALSHA", "0" * 40, 0)
        assert await heard(wire, "ECHO", b"y") == b"y"
        await connection.disconnect(nowait=True)

    asyncio.run(story())


class Word(str, enum.Enum):  # noqa: UP042 - its text is not its value
    ONE = "one"


@pytest.mark.parametrize("size", [1, 1 << 16, (1 << 16) + 1, 1 << 20])
def test_what_is_large_is_sent_as_it_is(size: int) -> None:
    large, last = b"x" * size, b"y" * size
    words = ("EVALSHA", "0" * 40, 1, "é", large, -5, 0.5, Word.ONE, large, b"", last)
    pieces = packed(words)
    assert b"".join(pieces) == pack(words)
    assert len(pieces) == (1 if size <= 1 << 16 else 7)
    assert b"".join(packed((large,))) == pack((large,))


def test_replies_come_in_the_order_of_the_commands() -> None:
    async def story(wire: Wire, _: Any, writer: asyncio.StreamWriter) -> None:
        for word in ("one", "two", "three"):
            await wire.send((word,))
        writer.write(b"+1\r\n-ERR 2\r\n*2\r\n:3\r\n")
        assert await wire.receive() == b"1"
        with pytest.raises(redis.ResponseError, match="2"):
            await wire.receive()
        late = asyncio.ensure_future(wire.receive())
        await asyncio.sleep(0)
        writer.write(b"$3\r\nend\r\n")
        assert await late == [3, b"end"]

    tell(story)


def test_silence_is_told_when_the_limit_is_reached() -> None:
    async def story(wire: Wire, _: Any, __: Any) -> None:
        began = clock.monotonic()
        with pytest.raises(redis.TimeoutError):
            await heard(wire, "PING")
        assert LIMIT - 0.05 < clock.monotonic() - began < LIMIT + 2

    tell(story)


def test_the_limit_begins_anew_with_each_command_and_with_whatever_comes() -> None:
    async def story(wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer() -> None:
            while await reader.read(1000):
                for one in (b"$5", b"\r\nhe", b"llo", b"\r\n"):
                    await asyncio.to_thread(let_pass, LIMIT / 2)
                    writer.write(one)

        answering = asyncio.ensure_future(answer())
        for _ in range(2):
            assert await heard(wire, "PING") == b"hello"
        answering.cancel()
        with pytest.raises(redis.TimeoutError):
            await heard(wire, "PING")

    tell(story)


def test_the_end_is_told_to_who_waits_and_to_who_comes_later() -> None:
    async def story(wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = asyncio.ensure_future(heard(wire, "PING"))
        await reader.read(1000)
        writer.write(b"+whole\r\n$5\r\nhal")
        writer.close()
        assert await waiting == b"whole"
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                await wire.receive()
            with pytest.raises(redis.ConnectionError):
                await wire.send(("PING",))

    tell(story)


def test_what_is_no_reply_is_told() -> None:
    async def story(wire: Wire, _: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(redis.InvalidResponse):
            await heard(wire, "PING")

    tell(story)


def test_a_wait_that_is_cancelled_ends_at_once() -> None:
    async def story(wire: Wire, _: Any, __: Any) -> None:
        waiting = asyncio.ensure_future(heard(wire, "PING"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    tell(story)


def test_the_limit_does_not_count_while_what_is_sent_gets_on() -> None:
    async def story(wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def take_slowly() -> None:
            began = clock.monotonic()
            while clock.monotonic() - began < 3 * LIMIT:
                await reader.read(1 << 16)
                await asyncio.to_thread(let_pass, 0.002)
            writer.write(b"+taken\r\n")  # it need not be all

        taking = asyncio.ensure_future(take_slowly())
        assert await heard(wire, "ECHO", b"x" * 50_000_000) == b"taken"
        await taking

    tell(story)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_driver_that_is_dropped_leaves_no_socket_open(server: Server) -> None:
    async def story() -> int:
        before = open_files()
        for _ in range(10):
            assert await AsyncBroker(Endpoint(server.url), 5).call("PING") == b"PONG"
        gc.collect()
        await asyncio.sleep(0)
        return open_files() - before

    assert asyncio.run(story()) < 5
