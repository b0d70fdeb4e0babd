"""One call beside others that send very many: it is not kept waiting until those are through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskq import TaskQ
from taskq.broker import connection
from taskq.broker.line import MOST_LINES, MOST_STREAMS
from tests.eventually import until
from tests.failure.proxy import Proxy, Request
from tests.features.conftest import SECRET
from tests.servers import Server

MANY = MOST_LINES + 4
# Long enough for any machine, and shorter than what keeps a held request waiting.
DEADLINE, SOCKET_SECONDS = 20.0, 120.0


class Dam:
    """Holds back the pages of batches, each on the line that carries it."""

    def __init__(self, proxy: Proxy) -> None:
        self.held = 0
        self._lock, self._open = threading.Lock(), threading.Event()
        proxy.watch = self._see

    def open(self) -> None:
        self._open.set()

    def _see(self, request: Request) -> None:
        if request.name == "enqueue" and len(request.words) > 100:
            with self._lock:
                self.held += 1
            self._open.wait(SOCKET_SECONDS)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def app(proxy: Proxy, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskQ]:
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT", SOCKET_SECONDS)
    with TaskQ(namespace, url=proxy.url, secret=SECRET, enqueue_deadline=DEADLINE) as app:

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            return x + y

        yield app


def test_a_call_finds_a_line_however_many_threads_send_many(app: TaskQ, proxy: Proxy) -> None:
    add: Any = app.tasks["add"]
    add.delay(1, 1)  # the script is known from now on
    dam = Dam(proxy)
    with ThreadPoolExecutor(MANY) as pool:
        try:
            batches = [pool.submit(add.starmap, [(1, 2)] * 1_500) for _ in range(MANY)]
            until(lambda: dam.held >= MOST_STREAMS, DEADLINE)
            assert add.delay(1, 2).status
            assert add.options(countdown=60).delay(1, 2).status
            assert not any(one.done() for one in batches)
            assert dam.held == MOST_STREAMS
        finally:
            dam.open()
        assert [len(one.result(60)) for one in batches] == [1_500] * MANY


def test_and_however_many_coroutines_do(app: TaskQ, proxy: Proxy) -> None:
    add: Any = app.tasks["add"]

    async def story() -> None:
        await add.adelay(1, 1)
        dam = Dam(proxy)
        batches = [asyncio.create_task(add.astarmap([(1, 2)] * 1_500)) for _ in range(MANY)]
        try:
            await asyncio.to_thread(until, lambda: dam.held >= MOST_STREAMS, DEADLINE)
            one = await asyncio.wait_for(add.adelay(1, 2), DEADLINE)
            assert await asyncio.wait_for(one.astatus(), DEADLINE)
            assert not any(one.done() for one in batches)
            assert dam.held == MOST_STREAMS
        finally:
            dam.open()
        assert [len(one) for one in await asyncio.gather(*batches)] == [1_500] * MANY
        await app.aclose()

    asyncio.run(story())
