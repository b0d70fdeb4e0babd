"""Who waits at once for what he sends: the next outcome is listened for before it is sent."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from taskq import ResultTimeout, TaskQ
from taskq.client.waiter import Wait
from taskq.testing import running_worker
from tests.eventually import let_pass, until
from tests.failure.proxy import Proxy, Request
from tests.features.conftest import SECRET, NewApp
from tests.servers import Server


def echoing(app: TaskQ) -> Any:
    @app.task(name="echo")
    def echo(number: int) -> int:
        return number

    return echo


@pytest.fixture
def line(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def shop(new_redis_app: NewApp, line: Proxy, server: Server) -> Iterator[Any]:
    """A producer on a line, its worker beside it, and what the producer said."""
    producer = new_redis_app(url=line.url)
    worker = TaskQ(producer.name, url=server.url, secret=SECRET)
    echoing(worker)
    said, gate = list[str](), threading.Event()
    worker.task(name="hold")(lambda: gate.wait(20))

    def note(request: Request) -> None:
        said.append(request.name)

    with running_worker(worker, threads=2):
        line.watch = note
        yield SimpleNamespace(app=producer, echo=echoing(producer), said=said, line=line, gate=gate)
    worker.close()


def haste(shop: Any) -> None:
    """Wait at once, until that is expected. A slow machine may not count it as such."""

    def expected() -> bool:
        assert shop.echo.delay(1).get(timeout=10) == 1
        shop.said.clear()
        return listens(shop, shop.echo.delay(2))

    until(expected)


def listens(shop: Any, result: Any) -> bool:
    """Tell whether an outcome was listened for before anybody waited for it; wait for it."""
    let_pass(0.02)
    heard = "subscribe" in shop.said
    assert result.get(timeout=10) == 2
    shop.said.clear()
    return heard


def test_the_next_outcome_is_listened_for_when_the_call_is_sent(shop: Any) -> None:
    haste(shop)
    for _ in range(10):
        assert listens(shop, shop.echo.delay(2))


def test_awaited_as_well(shop: Any) -> None:
    async def expected() -> bool:
        assert await (await shop.echo.adelay(1)).aget(timeout=10) == 1
        shop.said.clear()
        result = await shop.echo.adelay(2)
        return await asyncio.to_thread(listens, shop, result)

    async def main() -> None:
        while not await expected():
            pass

    asyncio.run(asyncio.wait_for(main(), 12))


def test_who_does_not_wait_is_not_listened_for(shop: Any, server: Server) -> None:
    haste(shop)
    results = [shop.echo.delay(number) for number in range(20)]
    # The first was expected to be waited for.
    assert shop.said.count("subscribe") == 1
    assert [one.get(timeout=10) for one in results] == list(range(20))
    haste(shop)
    with server.client() as client:
        channels = client.pubsub_channels(f"*{shop.app.name}*done:*")
    # What is waited for no more is left with the next that is sent.
    assert len(channels) <= 3


def test_news_that_come_before_anybody_waits_are_kept(shop: Any, server: Server) -> None:
    haste(shop)
    held = shop.app.send_task("hold")
    # It reads what is published for everybody.
    reader = threading.Thread(target=lambda: held.get(timeout=20))
    reader.start()
    for number in range(10):
        result = shop.echo.delay(number)
        until(lambda result=result: server_knows(server, result))
        assert result.get(timeout=1) == number
    shop.gate.set()
    reader.join()


def server_knows(server: Server, result: Any) -> bool:
    """Tell whether it is over, without a word from the producer."""
    with server.client() as client:
        (name,) = client.scan_iter(f"*m:{result.wire_id}")
        return client.getrange(name, 0, 0) == b"s"


def test_a_connection_that_breaks_before_the_wait_costs_no_outcome(shop: Any) -> None:
    for number in range(5):
        haste(shop)
        result = shop.echo.delay(number)
        shop.line.reset(subscribed=True)
        assert result.get(timeout=3) == number


def test_a_connection_that_broke_while_nobody_waited_is_replaced_at_once(shop: Any) -> None:
    for number in range(3):
        assert shop.echo.delay(number).get(timeout=10) == number
        (result,) = shop.app.enqueue_many([shop.echo.s(number)])
        shop.line.reset(subscribed=True)
        # It would be read again after 4 s in any case.
        assert result.get(timeout=3) == number


def test_who_subscribes_on_a_broken_connection_does_not_replace_it_unseen(shop: Any) -> None:
    waiter, first, second = shop.app.waiter, Wait(), Wait()
    assert shop.echo.delay(1).get(timeout=10) == 1
    waiter.subscribe([b"a"], first)
    until(lambda: waiter.rest(first, 0.05) or not first.unconfirmed)
    shop.line.reset(subscribed=True)
    let_pass(0.05)
    for channel in (b"b", b"c", b"d"):
        waiter.subscribe([channel], second)
    waiter.rest(first, 2)
    assert first.missed


def test_a_call_that_is_repeated_under_its_id_is_heard(shop: Any) -> None:
    haste(shop)
    held = shop.app.send_task("hold", id="again")
    with pytest.raises(ResultTimeout):
        held.get(timeout=0.05)
    again = shop.app.send_task("hold", id="again")
    opener = threading.Timer(0.1, shop.gate.set)
    opener.start()
    # Read again after 4 s it is in any case.
    assert again.get(timeout=3)
    opener.join()


def test_who_repeats_a_call_takes_no_news_from_those_who_wait_for_it(shop: Any) -> None:
    held = shop.app.send_task("hold", id="once")
    told: list[Any] = []
    waiting = threading.Thread(target=lambda: told.append(held.get(timeout=3)))
    waiting.start()
    until(lambda: "subscribe" in shop.said)
    haste(shop)
    shop.app.send_task("hold", id="once")
    for number in range(3):
        assert shop.echo.delay(number).get(timeout=10) == number
    shop.gate.set()
    waiting.join()
    assert told == [True]


def test_threads_that_wait_now_and_then_hear_of_all(new_app: NewApp, seed: int) -> None:
    app = new_app()
    echo, chances = echoing(app), [random.Random(seed + at) for at in range(4)]
    wrong: list[Any] = []

    def produce(chance: random.Random) -> None:
        left = []
        for number in range(60):
            result = echo.delay(number)
            if chance.random() < 0.7:
                if chance.random() < 0.2:
                    let_pass(chance.uniform(0, 0.005))
                if (value := result.get(timeout=10)) != number:
                    wrong.append((number, value))
            else:
                left.append((number, result))
        wrong.extend((n, one) for n, one in left if one.get(timeout=10) != n)

    threads = [threading.Thread(target=produce, args=(chance,)) for chance in chances]
    with running_worker(app, threads=2):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
