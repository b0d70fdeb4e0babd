"""The two drivers when Redis is away, full or slow, and when a caller is stopped half-way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from taskq.broker import commands, connection, keys, queries
from taskq.broker.aio import AsyncBroker
from taskq.broker.commands import Command
from taskq.broker.connection import Endpoint
from taskq.broker.line import MOST_LINES, MOST_STREAMS, AllInUse, Line
from taskq.broker.sync import Broker
from taskq.errors import BrokerError, BrokerFull, BrokerUnavailable, Interrupted
from taskq.model import clock
from taskq.model.states import State
from tests.broker.drivers import DRIVERS, Blocking, Driver, all_of
from tests.broker.proxies import Proxy
from tests.broker.queues import FullQueue, Queue
from tests.eventually import let_pass
from tests.servers import HOST, Server, free_port

ROOT = Path(__file__).parents[2]
SECRET = "not-to-be-shown"

OpenDriver = Callable[..., Driver]
each_driver = pytest.mark.parametrize("kind", DRIVERS.values(), ids=DRIVERS)

# Uses one broker before a fork, in the child and in the parent.
FORK = """
import os, sys, threading
from taskq.broker.connection import Endpoint
from taskq.broker.sync import Broker
broker = Broker(Endpoint(sys.argv[1]), 5)
mine = broker.call("CLIENT", "ID")
child = os.fork()
if not child:
    answers = [broker.call("ECHO", b"child%d" % n) for n in range(200)]
    good = answers == [b"child%d" % n for n in range(200)]
    os._exit(0 if good and broker.call("CLIENT", "ID") != mine else 1)
answers = [broker.call("ECHO", b"parent%d" % n) for n in range(200)]
_, status = os.waitpid(child, 0)
assert status == 0, "the child got answers that were not its own"
assert answers == [b"parent%d" % n for n in range(200)]
assert broker.call("CLIENT", "ID") == mine, "the child closed the parent's connection"
"""


@pytest.fixture
def open_driver() -> Iterator[OpenDriver]:
    """Open drivers that are closed when the test is over."""
    opened: list[Driver] = []

    def open_one(kind: type[Driver], url: str, deadline: float = 5.0) -> Driver:
        opened.append(kind(url, deadline))
        return opened[-1]

    yield open_one
    for driver in opened:
        driver.close()


class TestAway:
    """No server answers."""

    @each_driver
    def test_is_told_within_the_deadline(self, kind: type[Driver], open_driver: OpenDriver) -> None:
        port = free_port()
        driver = open_driver(kind, f"redis://user:{SECRET}@{HOST}:{port}/0", 0.3)
        began = clock.monotonic()
        with pytest.raises(BrokerUnavailable) as raised:
            driver.run(queries.survey("tq:{a:b}:", "b"))
        assert clock.monotonic() - began < 2
        assert not isinstance(raised.value, Interrupted)  # nothing was sent
        assert f"{HOST}:{port}" in str(raised.value)
        assert SECRET not in str(raised.value)
        assert SECRET not in repr(Endpoint(f"redis://user:{SECRET}@{HOST}:{port}/0"))

    @each_driver
    def test_has_no_error_that_is_its_own_cause(
        self, kind: type[Driver], open_driver: OpenDriver
    ) -> None:
        """Whoever walks along the causes would never arrive."""
        driver = open_driver(kind, f"redis://{HOST}:{free_port()}", 0.1)
        with pytest.raises(BrokerUnavailable) as raised:
            driver.call("PING")
        assert raised.value.__cause__ is not raised.value

    @each_driver
    def test_is_met_again_when_it_comes_back(
        self, kind: type[Driver], open_driver: OpenDriver
    ) -> None:
        with Server() as server:
            driver = open_driver(kind, server.url)
            driver.call("PING")
            server.restart()
            assert driver.call("PING") in (b"PONG", True)

    @each_driver
    def test_is_waited_for(self, kind: type[Driver], open_driver: OpenDriver) -> None:
        server = Server()
        driver = open_driver(kind, server.url)
        starter = threading.Timer(0.3, server.start)
        starter.start()
        assert driver.call("ECHO", b"hello") == b"hello"
        starter.join()
        server.close()

    @each_driver
    def test_leaves_a_closed_connection_for_a_new_one(
        self, kind: type[Driver], open_driver: OpenDriver
    ) -> None:
        with Server() as server:
            driver = open_driver(kind, server.url)
            driver.call("PING")
            with server.client() as client:
                client.execute_command("CLIENT KILL TYPE normal SKIPME yes")
            assert driver.call("ECHO", b"hello") == b"hello"

    @each_driver
    def test_an_attempt_that_used_up_the_deadline_is_the_last(
        self, kind: type[Driver], open_driver: OpenDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "SOCKET_TIMEOUT", 2.0)
        with socket.create_server((HOST, 0)) as silent:
            driver = open_driver(kind, f"redis://{HOST}:{silent.getsockname()[1]}", 0.3)
            began = clock.monotonic()
            with pytest.raises(Interrupted):
                driver.call("PING")
            assert clock.monotonic() - began < 3.9


class TestCutLine:
    """The connection breaks after the request was sent: nobody knows what became of it."""

    @each_driver
    def test_is_told_though_later_attempts_were_refused(
        self, kind: type[Driver], open_driver: OpenDriver, server: Server, namespace: str
    ) -> None:
        direct = Blocking(server.url)
        queue = Queue(direct, server.url, namespace)
        queue.queued()  # the script is loaded
        one = queue.message()
        with Proxy(server.port) as proxy:
            driver = open_driver(kind, proxy.url, 0.3)
            driver.call("PING")
            proxy.cut_at_reply = True
            with pytest.raises(Interrupted):
                driver.run(commands.enqueue(queue.base, [one]))
        # Here it was carried out; to send it again is safe.
        assert queue.state(one.message.id) is State.QUEUED
        assert queue.enqueue(one) == "d"
        direct.close()

    @each_driver
    def test_of_many_commands_too(
        self, kind: type[Driver], open_driver: OpenDriver, server: Server, namespace: str
    ) -> None:
        survey = queries.survey(keys.base(namespace, "default"), "default")
        with Proxy(server.port) as proxy:
            driver = open_driver(kind, proxy.url, 0.3)
            driver.run(survey)
            proxy.cut_at_reply = True
            with pytest.raises(Interrupted):
                driver.run_many([survey, survey])

    @each_driver
    def test_is_not_told_where_another_attempt_was_answered(
        self, kind: type[Driver], open_driver: OpenDriver, namespace: str
    ) -> None:
        with Server() as server:
            driver = open_driver(kind, server.url)
            queue = Queue(driver, server.url, namespace)
            queue.queued()
            with server.client() as client:
                client.execute_command("CLIENT KILL TYPE normal SKIPME yes")
            assert queue.enqueue(queue.message()) == "o"

    @each_driver
    def test_a_broken_line_that_meets_a_refusal_stays_uncertain(
        self, kind: type[Driver], open_driver: OpenDriver, full: FullQueue
    ) -> None:
        """The first attempt may have been carried out; the second found Redis full."""
        driver = open_driver(kind, full.url)
        driver.call("PING")
        full.fill()
        assert full.call("EXISTS", "nothing") == 0
        kill_others(full)
        with pytest.raises(Interrupted):
            driver.run(commands.enqueue(full.base, [full.message()]))


class TestRefused:
    @each_driver
    def test_a_full_server(
        self, kind: type[Driver], open_driver: OpenDriver, full: FullQueue
    ) -> None:
        driver = open_driver(kind, full.url)
        full.fill()
        began = clock.monotonic()
        with pytest.raises(BrokerFull, match=f"{HOST}.*maxmemory"):
            driver.run(commands.enqueue(full.base, [full.message()]))
        assert clock.monotonic() - began < 2  # that is no reason to try again

    @each_driver
    def test_a_wrong_password_is_not_tried_again(
        self, kind: type[Driver], open_driver: OpenDriver
    ) -> None:
        with Server(requirepass="right") as server, Proxy(server.port) as proxy:
            driver = open_driver(kind, f"redis://:{SECRET}@{HOST}:{proxy.port}", 5)
            with pytest.raises(BrokerError, match="refused user or password") as raised:
                driver.call("PING")
            assert not isinstance(raised.value, BrokerUnavailable)
            assert SECRET not in str(raised.value)
            assert proxy.count == 1

    @each_driver
    def test_a_missing_password_is_not_tried_again(
        self, kind: type[Driver], open_driver: OpenDriver
    ) -> None:
        with Server(requirepass="right") as server, Proxy(server.port) as proxy:
            driver = open_driver(kind, proxy.url, 5)
            with pytest.raises(BrokerError, match="refused user or password"):
                driver.call("PING")
            assert proxy.count == 1

    def test_a_command_leaves_the_connection_whole(self, queue: Queue) -> None:
        with pytest.raises(BrokerError, match="unknown command"):
            queue.call("NOSUCHCOMMAND", "key")
        assert queue.call("EXISTS", "key") == 0


class TestMany:
    def test_are_answered_in_one_round_trip(self, driver: Driver, queue: Queue) -> None:
        messages = queue.messages(20)
        replies = driver.run_many([commands.enqueue(queue.base, [one]) for one in messages])
        assert replies == ["o"] * 20

    def test_a_refused_one_ends_it_and_shifts_no_reply(self, driver: Driver, queue: Queue) -> None:
        queue.call("SET", "ready:t.mail", "in the way")
        queue.enqueue(queue.message())  # the script is loaded
        good, bad, last = queue.message(), queue.message("t.mail"), queue.message()
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            driver.run_many([commands.enqueue(queue.base, [one]) for one in (good, bad, last)])
        assert driver.call("ECHO", b"mine") == b"mine"
        queue.call("DEL", "ready:t.mail")

    def test_the_script_is_loaded_on_the_way(self, driver: Driver, queue: Queue) -> None:
        messages = queue.messages(4)
        driver.call("SCRIPT", "FLUSH")
        replies = driver.run_many([commands.enqueue(queue.base, [one]) for one in messages])
        assert replies == ["o"] * 4

    def test_none_at_all(self, driver: Driver) -> None:
        assert driver.run_many([]) == []

    def test_a_caller_that_hears_enough_leaves_no_reply_behind(self, queue: Queue) -> None:
        broker = Broker(Endpoint(queue.url), 5)
        replies = broker.run_each(commands.enqueue(queue.base, [one]) for one in queue.messages(5))
        assert next(iter(replies)) == "o"
        del replies
        assert broker.call("ECHO", b"mine") == b"mine"
        broker.close()

    def test_nor_does_a_producer_that_fails(self, driver: Driver, queue: Queue) -> None:
        def commands_and_an_error() -> Iterator[Any]:
            yield commands.enqueue(queue.base, [queue.message()])
            yield commands.enqueue(queue.base, [queue.message()])
            msg = "the third cannot be made"
            raise ValueError(msg)

        with pytest.raises(ValueError, match="the third"):
            driver.run_many(commands_and_an_error())  # type: ignore[arg-type]
        assert driver.call("ECHO", b"mine") == b"mine"


class TestStopped:
    """A caller that is stopped half-way must not leave its reply to the next one."""

    def test_cancelled_while_it_waits(self, server: Server, namespace: str) -> None:
        async def story() -> None:
            broker = AsyncBroker(Endpoint(server.url), 5)
            waiting = asyncio.create_task(broker.call("BLPOP", f"{namespace}:bell", 30))
            await until(lambda: blocked(server) == 1)
            for _ in range(20):  # until it has seen its request off, and waits
                await step()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await broker.call("ECHO", b"mine") == b"mine"
            await until(lambda: blocked(server) == 0)
            await broker.close()

        asyncio.run(story())

    def test_cancelled_in_the_middle_of_many(self, server: Server, namespace: str) -> None:
        survey = queries.survey(keys.base(namespace, "default"), "default")

        async def story() -> None:
            broker = AsyncBroker(Endpoint(server.url), 5)
            for turns in range(12):
                many = asyncio.create_task(all_of(broker.run_each([survey] * 3)))
                for _ in range(turns):
                    await step()
                many.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await many
                assert await broker.call("ECHO", b"%d" % turns) == b"%d" % turns
            await broker.close()

        asyncio.run(story())

    def test_cancelled_while_it_connects_nothing_stays_open(self) -> None:
        async def story(silent: socket.socket) -> None:
            port = silent.getsockname()[1]
            # Its password is sent on connecting, and is never answered.
            broker = AsyncBroker(Endpoint(f"redis://:{SECRET}@{HOST}:{port}"), 5)
            waiting = asyncio.create_task(broker.call("PING"))
            peer, _ = await asyncio.get_running_loop().sock_accept(silent)
            peer.settimeout(0)
            with peer:
                assert await asyncio.get_running_loop().sock_recv(peer, 10)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                del waiting
                await broker.close()
                gc.collect()
                rest = asyncio.get_running_loop().sock_recv(peer, 1000)
                while await asyncio.wait_for(rest, 2):
                    rest = asyncio.get_running_loop().sock_recv(peer, 1000)

        with socket.create_server((HOST, 0)) as silent:
            silent.settimeout(0)
            asyncio.run(story(silent))

    def test_interrupted_while_it_waits(self, server: Server, namespace: str) -> None:
        broker = Broker(Endpoint(server.url), 5)
        with pytest.raises(KeyboardInterrupt), alarm(0.1):
            broker.call("BLPOP", f"{namespace}:bell", 30)
        assert broker.call("ECHO", b"mine") == b"mine"
        broker.close()

    def test_interrupted_between_request_and_reply(
        self, server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Python may raise Ctrl-C between any two steps: here, after the first of many."""
        survey = queries.survey(keys.base(namespace, "default"), "default")
        broker = Broker(Endpoint(server.url), 5)
        broker.run(survey)
        receive = Line.receive

        def interrupted(line: Line) -> Any:
            receive(line)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Line, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(broker.run_each([survey] * 3))
        assert broker.call("ECHO", b"mine") == b"mine"
        broker.close()


class TestThreads:
    def test_share_a_few_connections(self) -> None:
        with Server() as server, ThreadPoolExecutor(40) as pool:
            broker = Broker(Endpoint(server.url), 5)
            texts = [b"%d" % number for number in range(2000)]
            assert list(pool.map(lambda text: broker.call("ECHO", text), texts)) == texts
            with server.client() as client:
                assert client.info("clients")["connected_clients"] <= MOST_LINES + 1
            broker.close()

    def test_wait_for_one_until_the_deadline(self, server: Server) -> None:
        broker = Broker(Endpoint(server.url), 0.3)
        for _ in range(MOST_LINES):
            broker._places.get()
        ended: list[Exception] = []

        def ask() -> None:
            try:
                broker.call("PING")
            except BrokerUnavailable as error:
                ended.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(20)
        assert [type(error) for error in ended] == [AllInUse]
        assert f"all {MOST_LINES} connections are in use" in str(ended[0])
        broker._places.put(None)
        assert broker.call("ECHO", b"free") == b"free"
        broker.close()

    def test_send_many_however_long_others_do(self, server: Server, namespace: str) -> None:
        broker = Broker(Endpoint(server.url), 3)
        for _ in range(MOST_LINES - 1):
            broker._places.get()
        survey = queries.survey(keys.base(namespace, "default"), "default")
        one_has_it = threading.Event()

        def slowly() -> Iterator[Command[Any]]:
            for _ in range(10):
                yield survey
                one_has_it.set()
                let_pass(0.5)

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(lambda: list(broker.run_each(slowly())))
            assert one_has_it.wait(20)
            second = pool.submit(lambda: list(broker.run_each([survey] * 2)))
            let_pass(3.5)
            assert not second.done()
            assert (len(first.result(60)), len(second.result(60))) == (10, 2)
        broker.close()

    def test_send_many_behind_others_only_while_those_are_answered(
        self, server: Server, namespace: str
    ) -> None:
        broker = Broker(Endpoint(server.url), 0.3)
        survey = queries.survey(keys.base(namespace, "default"), "default")
        ended: list[Exception] = []

        def send() -> None:
            try:
                list(broker.run_each([survey] * 2))
            except BrokerUnavailable as error:
                ended.append(error)

        for places in (broker._stream_places, broker._places):
            taken = places.qsize()
            for _ in range(taken):
                places.get()
            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            thread.join(20)
            for _ in range(taken):
                places.put(None)
        assert [type(error) for error in ended] == [AllInUse] * 2
        assert f"all {MOST_STREAMS} connections that may send many" in str(ended[0])
        assert len(list(broker.run_each([survey] * 2))) == 2
        broker.close()

    def test_of_a_loop_send_many_behind_others_only_while_those_are_answered(
        self, server: Server, namespace: str
    ) -> None:
        survey = queries.survey(keys.base(namespace, "default"), "default")

        async def story() -> None:
            broker = AsyncBroker(Endpoint(server.url), 0.3)
            for places, count in (
                (broker._stream_places, MOST_STREAMS),
                (broker._places, MOST_LINES),
            ):
                for _ in range(count):
                    await places.acquire()
                with pytest.raises(AllInUse, match=f"all {count} "):
                    await asyncio.wait_for(all_of(broker.run_each([survey] * 2)), 20)
                for _ in range(count):
                    places.release()
            assert len(await all_of(broker.run_each([survey] * 2))) == 2
            await broker.close()

        asyncio.run(story())

    @pytest.mark.parametrize("awaited", [False, True])
    def test_that_send_many_all_hear_of_an_outage_after_one_deadline(
        self, namespace: str, *, awaited: bool
    ) -> None:
        """In lots of four, each with a deadline of its own, it would take the last a minute."""
        survey = queries.survey(keys.base(namespace, "default"), "default")

        async def awaiting(url: str) -> list[Any]:
            broker = AsyncBroker(Endpoint(url), 1)
            await broker.call("PING")
            server.pause()
            lots = (all_of(broker.run_each([survey] * 3)) for _ in range(40))
            return await asyncio.gather(*lots, return_exceptions=True)

        def blocking(url: str) -> list[Any]:
            broker = Broker(Endpoint(url), 1)
            broker.call("PING")
            server.pause()
            with ThreadPoolExecutor(40) as pool:
                lots = [pool.submit(list, broker.run_each([survey] * 3)) for _ in range(40)]
                return [lot.exception() for lot in lots]

        with Server() as server:
            began = clock.monotonic()
            errors = asyncio.run(awaiting(server.url)) if awaited else blocking(server.url)
            assert clock.monotonic() - began < 30
        assert all(isinstance(error, BrokerUnavailable) for error in errors)

    def test_tasks_of_a_loop_do_too(self) -> None:
        async def story(server: Server) -> None:
            broker = AsyncBroker(Endpoint(server.url), 5)
            texts = [b"%d" % number for number in range(500)]
            replies = await asyncio.gather(*(broker.call("ECHO", text) for text in texts))
            assert replies == texts
            with server.client() as client:
                assert client.info("clients")["connected_clients"] <= MOST_LINES + 1
            await broker.close()

        with Server() as server:
            asyncio.run(story(server))

    def test_tasks_of_a_loop_wait_for_one_until_the_deadline(self, server: Server) -> None:
        async def story() -> None:
            broker = AsyncBroker(Endpoint(server.url), 0.3)
            for _ in range(MOST_LINES):
                await broker._places.acquire()
            with pytest.raises(AllInUse, match="in use"):
                await asyncio.wait_for(broker.call("PING"), 20)
            broker._places.release()
            assert await broker.call("ECHO", b"free") == b"free"
            await broker.close()

        asyncio.run(story())

    def test_tasks_of_a_loop_wait_as_long_as_others_are_served(
        self, server: Server, namespace: str
    ) -> None:
        """Of them there may be more than can be served by the deadline."""

        async def story() -> None:
            broker = AsyncBroker(Endpoint(server.url), 2)
            for _ in range(MOST_LINES - 1):
                await broker._places.acquire()
            began = clock.monotonic()
            calls = (broker.call("BLPOP", f"{namespace}:nothing", 0.4) for _ in range(8))
            assert await asyncio.gather(*calls) == [None] * 8
            assert clock.monotonic() - began > 3
            await broker.close()

        asyncio.run(story())

    def test_a_closed_broker_opens_anew(self, server: Server) -> None:
        broker = Broker(Endpoint(server.url), 5)
        for _ in range(2):
            assert broker.call("ECHO", b"hello") == b"hello"
            broker.close()


def test_a_forked_process_has_connections_of_its_own(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, server.url],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def step() -> None:
    """Let the other tasks of the loop take one step."""
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return once `condition` is true; fail if that takes too long."""
    deadline = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < deadline, "it never came true"
        await step()


def blocked(server: Server) -> int:
    with server.client() as client:
        return int(client.info("clients")["blocked_clients"])


def kill_others(queue: Queue) -> None:
    """Close all connections to the server but the queue's own."""
    queue._driver.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread after so many seconds."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
