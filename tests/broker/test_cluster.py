"""A queue is on one node of a cluster: it is found, and followed where it goes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis.exceptions import MovedError, ResponseError

from taskq.broker import commands, connection, keys, queries
from taskq.broker.cluster import (
    AsyncClusterBroker,
    AsyncNodeLine,
    ClusterBroker,
    Lines,
    base_of,
)
from taskq.broker.commands import Command
from taskq.broker.connection import Endpoint
from taskq.broker.guides import Misplaced
from taskq.broker.line import MOST_LINES, MOST_STREAMS
from taskq.errors import BrokerError, BrokerUnavailable, ConfigError
from taskq.model import clock
from tests.broker.drivers import DRIVERS, Awaited, Blocking, all_of
from tests.broker.queues import ADD, Queue
from tests.eventually import until
from tests.fleets import Cluster
from tests.servers import HOST, ClusterNode, Server, free_port

Kind = type[Blocking | Awaited]


@pytest.fixture(params=DRIVERS.values(), ids=DRIVERS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def queues_on_each(cluster: Cluster, app: str) -> list[str]:
    """Return three queues of an app, one on each node."""
    found: dict[int, str] = {}
    for number in range(100):
        queue = f"q{number}"
        found.setdefault(cluster.owner(keys.base(app, queue)).port, queue)
    assert len(found) == 3
    return list(found.values())


class TestUrl:
    def test_its_place_is_shown_without_the_password(self) -> None:
        assert Endpoint("redis+cluster://u:secret@h1,h2:1/").place == "redis+cluster://h1,h2:1/"

    @pytest.mark.parametrize("rest", ["", "h1,,h2", "h1:x", "h1/1", "h1,h2/db", "[::1"])
    def test_what_cannot_be_one_is_told_without_its_password(self, rest: str) -> None:
        with pytest.raises(ConfigError) as raised:
            Endpoint(f"redis+cluster://:hidden@{rest}")
        assert "hidden" not in str(raised.value)

    def test_it_is_local_if_all_its_nodes_are(self) -> None:
        assert Endpoint("redis+cluster://localhost,[::1]:5").local
        assert not Endpoint("redis+cluster://localhost,10.0.0.1").local

    @pytest.mark.parametrize(
        "key", ["tq:{app:queue}:", b"tq:{app:queue}:m:1}2", "tq:{app:queue}:done:x"]
    )
    def test_the_queue_of_a_key_is_read_from_its_tag(self, key: str | bytes) -> None:
        assert base_of(key) == keys.base("app", "queue")


def test_each_queue_is_spoken_to_on_its_own_node(
    cluster: Cluster, kind: Kind, namespace: str
) -> None:
    driver = kind(cluster.url)
    for name in queues_on_each(cluster, namespace):
        key = f"{keys.base(namespace, name)}x"
        driver.call("SET", key, name)
        with cluster.owner(key).client() as client:
            assert client.get(key) == name.encode()
    driver.close()


def test_calls_for_several_nodes_are_answered_in_order(
    cluster: Cluster, kind: Kind, namespace: str
) -> None:
    driver = kind(cluster.url)
    calls: list[Command[str]] = []
    for turn in range(3):
        for name in queues_on_each(cluster, namespace):
            queue = Queue(driver, cluster.url, namespace, name)
            calls += [commands.enqueue(queue.base, queue.messages(turn + 1))]
    assert driver.run_many(calls) == ["o"] * 3 + ["oo"] * 3 + ["ooo"] * 3
    driver.close()


def test_calls_for_several_nodes_are_under_way_at_the_same_time(
    cluster: Cluster, kind: Kind, namespace: str
) -> None:
    driver = kind(cluster.url, deadline=30)
    queues = [
        Queue(driver, cluster.url, namespace, name) for name in queues_on_each(cluster, namespace)
    ]
    # Each line is there before one of the nodes stands still.
    driver.run_many([commands.enqueue(one.base, one.messages(1)) for one in queues])
    calls = [commands.enqueue(one.base, one.messages(2)) for one in queues]
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(driver.run_many(calls)))
    with cluster.owner(queues[0].base).client() as slow:
        slow.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
        try:
            thread.start()
            for one in queues[1:]:
                with cluster.owner(one.base).client() as client:
                    until(functools.partial(holds, client, f"{one.base}ready:{ADD}", 3), 15)
        finally:
            slow.execute_command("CLIENT", "UNPAUSE")
    thread.join(20)
    assert found == ["oo"] * 3
    driver.close()


def holds(client: Any, key: str, count: int) -> bool:
    return bool(client.llen(key) == count)


def test_one_that_fails_keeps_no_other_from_being_told(
    cluster: Cluster, kind: Kind, namespace: str
) -> None:
    driver = kind(cluster.url)
    queues = [
        Queue(driver, cluster.url, namespace, name) for name in queues_on_each(cluster, namespace)
    ]
    queues[1].call("SET", f"ready:{ADD}", "no list")
    calls = [commands.enqueue(one.base, one.messages(1)) for one in queues for _ in range(2)]
    told: list[Any] = []
    with pytest.raises(BrokerError, match="WRONGTYPE"):
        driver.run_into(told, calls[::2] + calls[1::2])
    # What was on its way when that was told was waited for, and no more was sent.
    assert (told[0], type(told[1]), told[2]) == ("o", BrokerError, "o")
    assert len(queues[0].ready()) + len(queues[2].ready()) == told.count("o")
    driver.close()


def carried(broker: ClusterBroker, *lots: Iterator[Command[str]]) -> list[list[str | None]]:
    """Return what each lot is answered, each sent by a thread of its own."""
    found: list[list[str | None]] = [[] for _ in lots]

    def send(into: list[str | None], lot: Iterator[Command[str]]) -> None:
        into.extend(broker.run_each(lot))

    threads = [
        threading.Thread(target=send, args=pair, daemon=True)
        for pair in zip(found, lots, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return found


def all_but_one_in_use(broker: ClusterBroker, base: str) -> None:
    for _ in range(MOST_LINES - 1):
        broker._of(base)._places.get()


@pytest.mark.parametrize("trouble", ["forgotten", "cut"])
def test_one_line_is_enough_for_many_whatever_befalls_it(
    cluster: Cluster, namespace: str, trouble: str
) -> None:
    driver = Blocking(cluster.url)
    queue = Queue(driver, cluster.url, namespace)
    broker = ClusterBroker(Endpoint(cluster.url), 30)
    all_but_one_in_use(broker, queue.base)

    def calls(node: Any) -> Iterator[Command[str]]:
        if trouble == "forgotten":
            node.script_flush()
        yield commands.enqueue(queue.base, queue.messages(1))
        if trouble == "cut":
            node.client_kill_filter(_type="normal", skipme=True)
        yield commands.enqueue(queue.base, queue.messages(2))

    with cluster.owner(queue.base).client() as node:
        assert carried(broker, calls(node)) == [["o", "oo"]]
    broker.close()
    driver.close()


def test_threads_that_need_each_others_lines_do_not_wait_for_ever(
    cluster: Cluster, namespace: str
) -> None:
    driver = Blocking(cluster.url)
    first, second, _ = (
        Queue(driver, cluster.url, namespace, name) for name in queues_on_each(cluster, namespace)
    )
    broker = ClusterBroker(Endpoint(cluster.url), 30)
    both_hold_one = threading.Barrier(2)

    def calls(one: Queue, other: Queue) -> Iterator[Command[str]]:
        yield commands.enqueue(one.base, one.messages(1))
        both_hold_one.wait(10)
        yield commands.enqueue(other.base, other.messages(2))
        yield commands.enqueue(one.base, one.messages(3))

    for queue in (first, second):
        all_but_one_in_use(broker, queue.base)
    found = carried(broker, calls(first, second), calls(second, first))
    assert found == [["o", "oo", "ooo"]] * 2
    broker.close()
    driver.close()


def test_one_call_finds_a_line_however_many_threads_send_many(
    cluster: Cluster, namespace: str
) -> None:
    driver = Blocking(cluster.url)
    queue = Queue(driver, cluster.url, namespace)
    broker = ClusterBroker(Endpoint(cluster.url), 20)
    count, begun, go_on = MOST_LINES + 2, threading.Semaphore(0), threading.Event()

    def calls() -> Iterator[Command[str]]:
        yield commands.enqueue(queue.base, queue.messages(1))
        begun.release()  # with a line in hand
        go_on.wait(120)
        yield commands.enqueue(queue.base, queue.messages(1))

    with ThreadPoolExecutor(count) as pool:
        try:
            batches = [pool.submit(list, broker.run_each(calls())) for _ in range(count)]
            for _ in range(MOST_STREAMS):
                assert begun.acquire(timeout=20)
            assert broker.run(commands.enqueue(queue.base, queue.messages(1))) == "o"
            assert not any(one.done() for one in batches)
            assert not begun.acquire(blocking=False)
        finally:
            go_on.set()
        assert [one.result(60) for one in batches] == [["o", "o"]] * count
    broker.close()
    driver.close()


def test_nor_do_coroutines_that_send_many_take_all_lines(cluster: Cluster, namespace: str) -> None:
    base = keys.base(namespace, "default")
    survey = queries.survey(base, "default")

    async def story() -> None:
        broker = AsyncClusterBroker(Endpoint(cluster.url), 20)
        batches = asyncio.gather(*(all_of(broker.run_each([survey] * 5)) for _ in range(40)))
        fewest = MOST_LINES
        while not batches.done():
            await asyncio.sleep(0)
            fewest = min(fewest, broker._of(base)._places._value)
        assert [len(one) for one in batches.result()] == [5] * 40
        assert fewest == MOST_LINES - MOST_STREAMS
        await broker.close()

    asyncio.run(story())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a node be silent that does not answer for a second."""
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT", 1.0)


def bases_beside(cluster: Cluster, app: str, count: int) -> list[str]:
    """Return the bases of so many queues of an app that are on one node, that of `default`."""
    node = cluster.owner(keys.base(app, "default"))
    bases = (keys.base(app, f"q{number}") for number in range(100 * count))
    return list(itertools.islice((one for one in bases if cluster.owner(one) is node), count))


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_who_sends_many_waits_for_a_silent_node_once_for_all_its_queues(
    kind: Kind, namespace: str
) -> None:
    deadline, count = 4, 30
    with Cluster() as cluster:
        bases = bases_beside(cluster, namespace, count)
        surveys = [queries.survey(base, "default") for base in bases]
        driver = kind(cluster.url, deadline=deadline)
        driver.run_many(surveys)
        silent = cluster.owner(bases[0])
        silent.pause()
        try:
            began = clock.monotonic()
            with pytest.raises(BrokerUnavailable):
                driver.run_many(surveys)
            assert clock.monotonic() - began < deadline + count / 2
        finally:
            silent.resume()
        driver.close()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_who_sends_many_waits_for_the_successor_of_a_silent_node_once_for_all_its_queues(
    kind: Kind, namespace: str
) -> None:
    count = 40
    with Cluster(replicas=1) as cluster:
        bases = bases_beside(cluster, namespace, count)
        surveys = [queries.survey(base, "default") for base in bases]
        driver = kind(cluster.url, deadline=60)
        driver.run_many(surveys)
        silent = cluster.owner(bases[0])
        silent.pause()
        try:
            began = clock.monotonic()
            assert len(driver.run_many(surveys)) == count
            assert clock.monotonic() - began < count / 2
            # The lines are given back as good as they were lent.
            assert len(driver.run_many(surveys)) == count
        finally:
            silent.resume()
        driver.close()


@pytest.mark.slow
@pytest.mark.parametrize("awaited", [False, True])
def test_all_that_send_many_hear_of_an_outage_after_one_deadline(
    namespace: str, *, awaited: bool
) -> None:
    base, deadline = keys.base(namespace, "default"), 3
    surveys, count = [queries.survey(base, "default")] * 3, 3 * MOST_STREAMS

    async def awaiting(url: str) -> list[Any]:
        broker = AsyncClusterBroker(Endpoint(url), deadline)
        await broker.run(surveys[0])
        cluster.owner(base).kill()
        lots = (all_of(broker.run_each(surveys)) for _ in range(count))
        return await asyncio.gather(*lots, return_exceptions=True)

    def blocking(url: str) -> list[Any]:
        broker = ClusterBroker(Endpoint(url), deadline)
        broker.run(surveys[0])
        cluster.owner(base).kill()
        with ThreadPoolExecutor(count) as pool:
            lots = [pool.submit(list, broker.run_each(surveys)) for _ in range(count)]
            return [lot.exception() for lot in lots]

    with Cluster() as cluster:
        began = clock.monotonic()
        errors = asyncio.run(awaiting(cluster.url)) if awaited else blocking(cluster.url)
        assert clock.monotonic() - began < 1.5 * deadline
    assert all(isinstance(error, BrokerUnavailable) for error in errors)


def test_nodes_that_are_away_are_passed_over(cluster: Cluster, kind: Kind, namespace: str) -> None:
    driver = kind(cluster.url.replace("://", f"://{HOST}:{free_port()},"))
    assert driver.call("GET", keys.base(namespace, "x")) is None
    driver.close()


def test_nodes_that_were_taken_out_of_the_cluster_are_passed_over(
    cluster: Cluster, kind: Kind, namespace: str
) -> None:
    """They answer, and know of nobody."""
    with contextlib.ExitStack() as stack:
        out = [stack.enter_context(Server(**{"cluster-enabled": "yes"})) for _ in range(2)]
        hosts = ",".join(f"{HOST}:{one.port}" for one in (*out, cluster.nodes[0]))
        driver = kind(f"redis+cluster://{hosts}")
        assert driver.call("GET", keys.base(namespace, "x")) is None
        driver.close()


def test_where_no_node_has_the_slot_that_is_told(kind: Kind) -> None:
    with Server(**{"cluster-enabled": "yes"}) as alone:
        driver = kind(f"redis+cluster://{HOST}:{alone.port}", deadline=0.5)
        with pytest.raises(BrokerUnavailable, match="no node has the slot"):
            driver.call("GET", "x")
        driver.close()


def test_where_no_node_answers_it_is_tried_until_the_deadline(kind: Kind) -> None:
    driver = kind(f"redis+cluster://{HOST}:{free_port()}", deadline=0.5)
    with pytest.raises(BrokerUnavailable, match="no node answers"):
        driver.call("GET", "x")
    driver.close()


@pytest.mark.parametrize("away", ["none", "first", "last"])
def test_a_login_that_all_refuse_who_are_there_is_told_at_once(kind: Kind, away: str) -> None:
    with Server(requirepass="right", **{"cluster-enabled": "yes"}) as node:
        hosts = [node.port, free_port()]
        hosts = {"none": hosts[:1], "first": hosts[::-1], "last": hosts}[away]
        places = ",".join(f"{HOST}:{port}" for port in hosts)
        driver = kind(f"redis+cluster://:hidden@{places}", deadline=100_000)
        with pytest.raises(BrokerError, match=r"the login is refused; .*user or password") as told:
            driver.call("GET", "x")
        assert type(told.value) is BrokerError
        assert "hidden" not in str(told.value)
        driver.close()


def test_nodes_that_let_us_in_and_are_away_are_waited_for(kind: Kind, namespace: str) -> None:
    """One that refuses the login was passed over as long as they were there."""
    with ClusterNode() as node, Server(requirepass="other") as locked:
        driver = kind(f"redis+cluster://{HOST}:{locked.port},{HOST}:{node.port}", deadline=2)
        assert driver.call("GET", keys.base(namespace, "x")) is None
        node.stop()
        with pytest.raises(BrokerUnavailable, match="refused user or password"):
            driver.call("GET", keys.base(namespace, "x"))
        driver.close()


def test_a_node_that_was_taken_out_does_not_hide_that_the_others_refuse_the_login(
    kind: Kind,
) -> None:
    with Server(requirepass="other") as locked, Server(**{"cluster-enabled": "yes"}) as out:
        driver = kind(f"redis+cluster://{HOST}:{out.port},{HOST}:{locked.port}", deadline=0.5)
        with pytest.raises(BrokerUnavailable, match=r"no node has the slot .*user or password"):
            driver.call("GET", "x")
        driver.close()


def test_a_server_that_is_no_cluster_is_told_at_once(server: Server, kind: Kind) -> None:
    driver = kind(f"redis+cluster://{HOST}:{server.port}")
    with pytest.raises(Misplaced, match="it is no cluster; one server's URL begins"):
        driver.call("GET", "x")
    driver.close()


@pytest.mark.parametrize("words", ["MOVED 5 h2:7", "ASK 5 h2:7", "CLUSTERDOWN no", "TRYAGAIN x"])
def test_what_nodes_say_is_understood_where_the_client_has_no_class_for_it(words: str) -> None:
    """redis-py 5.2 hands it over as any error."""
    endpoint = Endpoint("redis+cluster://h1:1/").at("tq:{app:queue}:")
    found = endpoint.translate(ResponseError(words), sent=True)
    assert isinstance(found, BrokerUnavailable)


def test_a_cluster_that_is_taken_for_one_server_is_told_at_once(
    cluster: Cluster, kind: Kind, namespace: str
) -> None:
    key = keys.base(namespace, "x")
    other = next(node for node in cluster.masters if node is not cluster.owner(key))
    driver = kind(f"redis://{HOST}:{other.port}")
    with pytest.raises(BrokerError, match=r"begins with redis\+cluster://") as raised:
        driver.call("GET", key)
    assert type(raised.value) is BrokerError
    driver.close()


def test_a_slot_that_has_moved_is_followed(cluster: Cluster, kind: Kind, namespace: str) -> None:
    driver, key = kind(cluster.url), f"{keys.base(namespace, 'default')}x"
    driver.call("SET", key, "1")
    cluster.move(key)
    assert driver.call("GET", key) == b"1"
    cluster.move(key)
    driver.call("SET", key, "2")
    with cluster.owner(key).client() as client:
        assert client.get(key) == b"2"
    driver.close()


def test_scripts_wait_while_a_slot_is_moved_key_by_key(
    cluster: Cluster, kind: Kind, namespace: str
) -> None:
    """Half of the keys here, half there: whatever a script did would be torn."""
    driver = kind(cluster.url)
    queue = Queue(driver, cluster.url, namespace)
    queue.queued(10)
    sent = threading.Event()

    def send() -> None:
        other = kind(cluster.url)
        other.run(commands.enqueue(queue.base, queue.messages(1)))
        other.close()
        sent.set()

    thread = threading.Thread(target=send)

    def between() -> None:
        thread.start()
        assert not sent.wait(0.5)

    cluster.move(queue.base, between)
    thread.join(5)
    assert sent.is_set()
    assert len(queue.records()) == 11
    driver.close()


def test_what_is_published_is_heard_at_its_own_node_alone(cluster: Cluster, namespace: str) -> None:
    endpoint = Endpoint(cluster.url)
    lines = Lines(endpoint)
    names = queues_on_each(cluster, namespace)
    for name in names:
        line = lines.of(keys.base(namespace, name))
        line.call("TIME")
        assert line.endpoint.publish == "SPUBLISH"
    assert len({lines.of(keys.base(namespace, name)) for name in names}) == 3
    lines.close()


def test_one_server_has_one_line_for_all_queues(server: Server, namespace: str) -> None:
    lines = Lines(Endpoint(server.url))
    first, second = (lines.of(keys.base(namespace, name)) for name in ("a", "b"))
    assert first is second
    first.call("TIME")
    assert first.endpoint.publish == "PUBLISH"
    lines.close()


@pytest.mark.slow
def test_a_node_that_is_silent_is_waited_for_by_one_at_a_time(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT", 1.0)
    with Cluster() as cluster:
        lines, base = Lines(Endpoint(cluster.url)), keys.base(namespace, "default")
        silent = cluster.owner(base)
        others = (keys.base(namespace, f"q{number}") for number in range(100))
        beside = [one for one in others if cluster.owner(one) is silent][:20]
        for one in (base, *beside):
            lines.of(one).call("GET", f"{one}x")
        silent.pause()
        try:
            with pytest.raises(BrokerError):
                lines.of(base).call("GET", f"{base}x")
            began = clock.monotonic()
            for one in beside:
                # The first of these connects anew, and finds out the same.
                for _ in range(2):
                    with pytest.raises(BrokerUnavailable):
                        lines.of(one).call("GET", f"{one}x")
            assert clock.monotonic() - began < len(beside) / 2
        finally:
            silent.resume()
        until(functools.partial(answers, lines, base), 30)
        assert all(lines.of(one).call("GET", f"{one}x") is None for one in beside)
        lines.close()


def answers(lines: Lines, base: str) -> bool:
    try:
        return lines.of(base).call("GET", f"{base}x") is None
    except BrokerUnavailable:
        return False


def test_a_line_to_a_silent_node_is_not_replaced_within_a_call(
    cluster: Cluster, namespace: str
) -> None:
    """WAIT on a new connection would be told that replicas have what was never written there."""
    endpoint, base = Endpoint(cluster.url), keys.base(namespace, "default")
    lines = Lines(endpoint)
    line = lines.of(base)
    line.call("SET", f"{base}x", "1")
    note_silent(line.endpoint)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        line.call("WAIT", 0, 1)
    assert line.call("GET", f"{base}x") == b"1"
    lines.close()


def test_an_awaited_line_to_a_silent_node_is_not_replaced_either(
    cluster: Cluster, namespace: str
) -> None:
    async def story() -> None:
        base = keys.base(namespace, "default")
        line = AsyncNodeLine(Endpoint(cluster.url).at(base))
        await line.call("SET", f"{base}x", "1")
        note_silent(line.endpoint)
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            await line.call("WAIT", 0, 1)
        assert await line.call("GET", f"{base}x") == b"1"
        await line.close()

    asyncio.run(story())


def note_silent(endpoint: Endpoint) -> None:
    """Let a node be one from which no answer came in time."""
    connection = endpoint.open()
    endpoint.translate(TimeoutError(), sent=True, of=connection)
    connection.disconnect()


def test_an_answer_that_is_late_is_laid_to_the_node_that_was_asked(
    cluster: Cluster, namespace: str
) -> None:
    endpoint = Endpoint(cluster.url).at(keys.base(namespace, "default"))
    old = endpoint.open()
    (other, *_) = (one for one in cluster.masters if one.port != old.port)
    endpoint.translate(MovedError(f"1 {HOST}:{other.port}"), sent=True, of=old)
    new = endpoint.open()
    endpoint.translate(TimeoutError(), sent=True, of=old)
    assert (new.port, endpoint.is_silent(new)) == (other.port, False)
    assert endpoint.is_silent(old)
    for one in (old, new):
        one.disconnect()


def test_who_did_not_wait_long_does_not_call_a_node_silent(
    cluster: Cluster, namespace: str
) -> None:
    endpoint = Endpoint(cluster.url).at(keys.base(namespace, "default"))
    one = endpoint.open()
    endpoint.translate(TimeoutError(), sent=False, of=one, waited=0.1)
    assert not endpoint.is_silent(one)
    endpoint.translate(TimeoutError(), sent=False, of=one)
    assert endpoint.is_silent(one)
    endpoint.open().disconnect()
    assert not endpoint.is_silent(one)
    one.disconnect()


@pytest.mark.slow
def test_a_node_that_is_killed_is_replaced(kind: Kind, namespace: str) -> None:
    with Cluster(replicas=1) as cluster:
        driver, key = kind(cluster.url, deadline=20), f"{keys.base(namespace, 'default')}x"
        driver.call("SET", key, "before")
        old = cluster.owner(key)
        old.kill()
        driver.call("SET", key, "after")
        assert driver.call("GET", key) == b"after"
        old.start()
        until(lambda: cluster.owner(key) is not old)
        driver.close()
