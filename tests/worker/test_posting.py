"""What coroutines came to is sent by their event loop, which waits for nobody."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from taskq import TaskQ
from taskq.model import clock
from taskq.testing import running_worker
from tests.eventually import let_pass, until
from tests.failure.failpoints import ENDS_AT
from tests.failure.proxy import Act, Proxy, Request
from tests.servers import Server

LITTLE, SOME, MUCH = 10, 40_000, 12 << 20


@pytest.fixture
def line(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


class Shop:
    """An app of which the worker is reached over a line, and its producers are not."""

    def __init__(self, app: TaskQ, server: Server) -> None:
        self.app = app
        self.outside = TaskQ(app.name, url=server.url)
        self.runs: Counter[int] = Counter()
        # Set by those who run; and what lets them end.
        self.running, self.gate = threading.Event(), asyncio.Event()
        # For how long the loop came to nothing else, at the most; while somebody looks.
        self.longest, self.looks = 0.0, True

        @app.task(name="echo")
        async def echo(number: int) -> int:
            self.runs[number] += 1
            return number

        @app.task(name="hold")
        async def hold(size: int) -> bytes:
            self.running.set()
            await self.gate.wait()
            return b"x" * size

        @app.task(name="look")
        async def look() -> None:
            last = clock.monotonic()
            while self.looks:
                await asyncio.sleep(0)
                now = clock.monotonic()
                self.longest, last = max(self.longest, now - last), now

    def send(self, task: str, *arguments: Any) -> Any:
        return self.outside.send_task(task, arguments)


@pytest.fixture
def shop(new_app: Any, line: Proxy, server: Server) -> Iterator[Shop]:
    shop = Shop(new_app(url=line.url), server)
    yield shop
    shop.outside.close()


@pytest.mark.parametrize("size", [LITTLE, SOME, MUCH])
def test_the_loop_goes_on_while_redis_takes_nothing(new_app: Any, size: int) -> None:
    with Server() as server:
        shop = Shop(new_app(url=server.url), server)
        with running_worker(shop.app, threads=1, coroutines=10) as engine:
            looked, ended = shop.send("look"), shop.send("hold", size)
            until(lambda: shop.longest)
            assert shop.running.wait(5)
            server.pause()
            engine._coroutines.loop.call_soon_threadsafe(shop.gate.set)
            until(lambda: len(engine._coroutines._running) == 1)
            let_pass(0.6)
            shop.looks = False
            server.resume()
            assert ended.get(timeout=20) == b"x" * size
            looked.get(timeout=5)
        shop.outside.close()
    # What it takes to pack and sign the larger one is the loop's.
    assert shop.longest < 0.4


@pytest.mark.parametrize("act", list(Act)[:2], ids=["request", "reply"])
def test_what_was_lost_on_the_way_is_sent_again(shop: Shop, line: Proxy, act: Act) -> None:
    with running_worker(shop.app, threads=1, coroutines=10):
        for number in range(2):
            rule = line.on("exchange", act, ends=True)
            assert shop.send("echo", number).get(timeout=10) == number
            assert rule.fired == 1
    assert shop.runs == dict.fromkeys(range(2), 1)


def test_while_another_thread_is_at_it_the_tender_sends(shop: Shop) -> None:
    with running_worker(shop.app, threads=1, coroutines=10) as engine:
        ended = shop.send("hold", LITTLE)
        assert shop.running.wait(5)
        with engine.exchange._lock:
            engine._coroutines.loop.call_soon_threadsafe(shop.gate.set)
            until(lambda: len(engine._outbox))
            let_pass(0.05)
        assert ended.get(timeout=1) == b"x" * LITTLE


def test_many_that_end_at_one_moment_are_sent_together(shop: Shop, line: Proxy) -> None:
    sent: list[int] = []

    def note(request: Request) -> None:
        if request.name == "exchange":
            # Of the first lot.
            sent.append(int(request.words[ENDS_AT + 3]) if request.ends else 0)

    with running_worker(shop.app, threads=1, coroutines=50) as engine:
        results = [shop.send("hold", LITTLE) for _ in range(50)]
        until(lambda: len(engine._coroutines._running) == 50)
        line.watch = note
        engine._coroutines.loop.call_soon_threadsafe(shop.gate.set)
        assert [one.get(timeout=5) for one in results] == [b"x" * LITTLE] * 50
    assert max(sent) == 50
