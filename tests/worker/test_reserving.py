"""A claim that stands behind the call by which an idle child waits for a bell."""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from taskq import State, TaskQ
from taskq.broker.claims import Finish
from taskq.testing import running_worker
from taskq.worker.delivery import Done
from tests.eventually import let_pass, until
from tests.failure.proxy import Act, Proxy, Request
from tests.servers import Server


class Heard:
    """What a worker said, in the order in which it passed."""

    def __init__(self, proxy: Proxy) -> None:
        self.names: list[str] = []
        proxy.watch = self._note

    def rests(self) -> bool:
        """Whether a claim was the last that was said, and nothing followed."""
        before = len(self.names)
        let_pass(0.05)
        return self.names[-1:] == ["claim"] and len(self.names) == before

    def _note(self, request: Request) -> None:
        claims = request.name == "exchange" and not request.ends
        self.names.append("claim" if claims else request.name)


@pytest.fixture
def line(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


class Shop:
    """An app of which the worker is reached over a line, and its producers are not."""

    def __init__(self, new_app: Any, line: Proxy, server: Server, **settings: Any) -> None:
        self.app: TaskQ = new_app(url=line.url, **settings)
        self.outside = TaskQ(self.app.name, url=server.url, **settings)
        # Guards the runs: how often each number was noted.
        self.runs: Counter[int] = Counter()
        lock = threading.Lock()

        @self.app.task(name="note")
        def note(number: int) -> int:
            with lock:
                self.runs[number] += 1
            return number

        @self.app.task(name="anote")
        async def anote(number: int) -> int:
            return note(number)

    def send(self, number: int, task: str = "note", **options: Any) -> Any:
        return self.outside.send_task(task, (number,), **options)


@pytest.fixture
def shop(new_app: Any, line: Proxy, server: Server) -> Iterator[Shop]:
    shop = Shop(new_app, line, server)
    yield shop
    shop.outside.close()


@pytest.mark.parametrize("task", ["note", "anote"])
def test_redis_hands_out_to_an_idle_worker_without_asking_it(
    shop: Shop, line: Proxy, task: str
) -> None:
    heard = Heard(line)
    with running_worker(shop.app, threads=1, coroutines=1):
        for number in range(4):
            until(heard.rests)
            # Whatever the worker says from here on, Redis does not hear it.
            line.flow.clear()
            result = shop.send(number, task)
            until(lambda result=result: result.status is State.RUNNING, 2)
            assert not shop.runs[number]
            line.flow.set()
            assert result.get(timeout=5) == number
    assert shop.runs == dict.fromkeys(range(4), 1)


def test_a_turn_taken_meanwhile_makes_it_void(shop: Shop, line: Proxy, seed: int) -> None:
    """What falls due is claimed by a turn of its own, while a bell may ring for other messages."""
    chance = random.Random(seed)
    with running_worker(shop.app, threads=2, coroutines=2):
        results = []
        for number in range(300):
            later = {"countdown": chance.uniform(0.01, 0.1)} if chance.random() < 0.4 else {}
            results.append(shop.send(number, chance.choice(["note", "anote"]), **later))
            if chance.random() < 0.5:
                let_pass(chance.uniform(0, 0.02))
        assert [result.get(timeout=10) for result in results] == list(range(300))
    assert shop.runs == dict.fromkeys(range(300), 1)


@pytest.mark.parametrize("act", list(Act)[:2], ids=["request", "reply"])
def test_one_whose_reply_is_lost_is_made_again(shop: Shop, line: Proxy, act: Act) -> None:
    heard = Heard(line)
    with running_worker(shop.app, threads=1, coroutines=1):
        until(heard.rests)
        # The blocked call goes first in the same packet: the line ends at what is behind it.
        rule = line.on("exchange", act)
        results = [shop.send(0)]
        for number in range(1, 6):
            assert results[-1].get(timeout=10) == number - 1
            results.append(shop.send(number))
        assert results[-1].get(timeout=10) == 5
        assert rule.fired == 1
    assert shop.runs == dict.fromkeys(range(6), 1)


def test_what_arrives_while_a_worker_stops_is_run_once_by_it_or_by_the_next(
    shop: Shop, seed: int
) -> None:
    chance, results = random.Random(seed), []
    for number in range(0, 40, 2):
        with running_worker(shop.app, threads=1, coroutines=1, drain=5):
            results.append(shop.send(number))
            assert results[-1].get(timeout=5) == number
            sender = threading.Timer(
                chance.uniform(0, 0.01), lambda number=number: results.append(shop.send(number + 1))
            )
            sender.start()
            let_pass(chance.uniform(0, 0.01))
        sender.join()
    with running_worker(shop.app, threads=1, coroutines=1):
        assert [result.get(timeout=5) for result in results] == list(range(40))
    assert shop.runs == dict.fromkeys(range(40), 1)


def test_with_several_queues_the_one_that_rang_is_asked(
    new_app: Any, line: Proxy, server: Server
) -> None:
    shop = Shop(new_app, line, server, queues=["a", "b"])
    with running_worker(shop.app, threads=1, coroutines=1):
        for number in range(6):
            result = shop.send(number, queue="ab"[number % 2])
            assert result.get(timeout=5) == number
    shop.outside.close()
    assert shop.runs == dict.fromkeys(range(6), 1)


def test_one_that_is_void_may_be_refused(
    shop: Shop, line: Proxy, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(line)
    with (
        caplog.at_level(logging.DEBUG, "taskq.worker"),
        running_worker(shop.app, threads=1, coroutines=1) as engine,
    ):
        until(heard.rests)
        engine.look()  # a turn makes it void
        until(heard.rests)
        with server.client() as client:
            client.script_flush()
        assert shop.send(0).get(timeout=5) == 0
    told = [record.getMessage() for record in caplog.records]
    assert any("a claim that was void was refused" in one for one in told)
    assert not any(one.startswith("the bell") for one in told)


def test_it_is_nothing_unfinished(new_app: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Server() as server, Proxy(server.port) as line:
        heard, app = Heard(line), new_app(url=line.url)
        with running_worker(app, threads=1, coroutines=1):
            until(heard.rests)
            server.pause()
        server.resume()
    assert "unfinished" not in caplog.text


def test_who_ends_while_another_reserves_is_not_forgotten(shop: Shop, line: Proxy) -> None:
    """Whoever leads looks again when he is done; who reserves goes to listen, for 2.5 s."""
    heard = Heard(line)
    with running_worker(shop.app, threads=1, coroutines=1) as engine:
        exchange, outbox = engine.exchange, engine._outbox
        room = exchange.handover.room

        def end() -> None:
            outbox.put(Done(object(), Finish("b", b"")), quiet=True)  # type: ignore[arg-type]
            exchange.lead()

        def room_while_another_ends(*arguments: Any) -> Any:
            exchange.handover.room = room  # type: ignore[method-assign]
            other = threading.Thread(target=end)
            other.start()
            other.join()
            assert len(outbox)  # the exchange was busy
            return room(*arguments)

        until(heard.rests)
        let_pass(0.1)  # until the tender sleeps
        exchange.handover.room = room_while_another_ends  # type: ignore[method-assign]
        exchange.reserve()
        until(lambda: not len(outbox), 1)
