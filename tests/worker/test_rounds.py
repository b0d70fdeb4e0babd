"""Several partitions on one worker: none starves, none is asked in vain."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

import taskq
from taskq import Queue, TaskQ
from taskq.broker import claims, keys
from taskq.broker.cluster import Lines, open_broker
from taskq.broker.connection import Endpoint
from taskq.model import queues
from taskq.model.signing import Keyring
from taskq.testing import running_worker
from taskq.worker import rounds
from taskq.worker.maintenance import Maintenance
from taskq.worker.rounds import LOOK_SECONDS, Rounds
from tests.cli.conftest import SECRET, Shell
from tests.eventually import let_pass, until
from tests.fleets import Cluster, calls_of
from tests.servers import Server

COUNT = 8


class FakePort:
    """What rounds know of a port."""

    divided: bool | None = None

    def __init__(self, queue: str) -> None:
        self.queue = queue


def ports(*places: str) -> Any:
    return [FakePort(place) for place in places]


def names(some: Any) -> list[str]:
    return [port.queue for port in some]


class TestOrder:
    def test_who_was_served_comes_last(self) -> None:
        a, b, c = some = ports("a", "b", "c")
        rounds = Rounds(some)
        rounds.serve(a)
        assert names(rounds.order()) == ["b", "c", "a"]
        rounds.serve(c)
        rounds.serve(b)
        assert names(rounds.order()) == ["a", "c", "b"]

    def test_a_queue_with_many_partitions_has_one_turn_among_the_others(self) -> None:
        some = ports("mail", "mail/1", "mail/2", "low")
        rounds, served = Rounds(some), list[str]()
        for _ in range(8):
            first = rounds.order()[0]
            served.append(first.queue)
            rounds.serve(first)
        wanted = ["mail", "low", "mail/1", "low", "mail/2", "low", "mail", "low"]
        assert served == wanted

    def test_of_partitions_the_next_one_is_asked_where_nothing_is_told(self) -> None:
        rounds = Rounds(ports("mail", "mail/1", "low"))
        found = [names(rounds.next_idle(number * LOOK_SECONDS)) for number in range(1, 4)]
        assert found == [["low", "mail"], ["low", "mail/1"], ["low", "mail"]]
        assert names(rounds.next_idle(3.5 * LOOK_SECONDS)) == ["low"]

    def test_a_port_knows_whether_it_is_one_of_several(self) -> None:
        some = ports("mail", "mail/1", "low")
        Rounds(some)
        assert [port.divided for port in some] == [True, True, False]


@pytest.fixture(params=["redis", "memory"])
def app(request: pytest.FixtureRequest, new_app: Any, redis_url: str) -> TaskQ:
    settings = {"url": redis_url} if request.param == "redis" else {}
    made: TaskQ = new_app(queues=[Queue("mail", partitions=COUNT), "low"], **settings)
    return made


def test_all_partitions_that_are_full_share_a_worker(app: TaskQ) -> None:
    order: list[int] = []

    @app.task(queue="mail")
    def note(partition: int) -> None:
        order.append(partition)
        let_pass(0.001)

    key_of = {queue_key(partition): partition for partition in range(COUNT)}
    for key, partition in key_of.items():
        note.options(partition_key=key).map([partition] * 60)
    with running_worker(app, threads=2, coroutines=0):
        until(lambda: len(order) == 60 * COUNT, 30)
    counts = Counter(order[: 30 * COUNT])
    assert len(counts) == COUNT
    assert min(counts.values()) >= 10, counts


def queue_key(partition: int) -> str:
    """Return a key that leads to a partition."""
    return next(
        str(number)
        for number in itertools.count()
        if queues.of_key(str(number), COUNT) == partition
    )


def test_one_that_is_filled_again_and_again_does_not_starve_the_others(app: TaskQ) -> None:
    """The first bell that rings is heard: each must come first in its turn."""
    stop = threading.Event()

    @app.task(queue="mail")
    def busy() -> None:
        let_pass(0.002)
        if not stop.is_set():
            busy.options(partition_key=queue_key(0)).delay()

    @app.task(queue="mail")
    def rare(partition: int) -> int:
        return partition

    with running_worker(app, threads=2, coroutines=0):
        for _ in range(6):
            busy.options(partition_key=queue_key(0)).delay()
        for _ in range(2):
            sent = [rare.options(partition_key=queue_key(n)).delay(n) for n in range(1, COUNT)]
            assert taskq.gather(sent, timeout=10) == list(range(1, COUNT))
        stop.set()


def test_a_message_on_an_idle_worker_concerns_its_partition_alone(
    new_app: Any, redis_url: str, server: Server
) -> None:
    app = new_app(url=redis_url, queues=[Queue("mail", partitions=COUNT)])

    @app.task(queue="mail")
    def echo(value: int) -> int:
        return value

    asked: list[str] = []
    with running_worker(app) as engine:
        for port in engine.exchange.ports:
            begin = functools.partial(heard, asked, port, port.begin)
            port.begin = begin  # type: ignore[method-assign]
        until(lambda: all(port.enrolled for port in engine.exchange.ports))
        let_pass(0.3)
        asked.clear()
        places = [
            echo.options(partition_key=queue_key(3)).delay(n).get(timeout=5) for n in range(10)
        ]
        assert places == list(range(10))
        counts = Counter(asked)
    assert counts.pop("mail/3") >= 10
    # Now and then the next one is asked, whatever happens.
    assert sum(counts.values()) <= 3, counts


def heard(asked: list[str], port: Any, begin: Any, *arguments: Any) -> None:
    asked.append(port.queue)
    begin(*arguments)


def test_a_bell_that_rang_is_answered_whatever_is_asked_besides(new_app: Any) -> None:
    """Even without room: the answer rings for others."""
    with running_worker(new_app(queues=["mail"])) as engine:
        exchange = engine.exchange
        with exchange._lock:  # no turn in between
            exchange.ask(["mail"])
            exchange.ask()
            assert [port.queue for port in exchange.ports if port.rung] == ["mail"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["server", "cluster"])
def test_an_idle_worker_sends_two_commands_a_second_to_a_node_at_most(
    place: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    fleet: Server | Cluster = request.getfixturevalue(place)
    nodes = fleet.masters if isinstance(fleet, Cluster) else [fleet]
    with Shell(tmp_path, fleet.url) as shell:
        shell.worker("proj", "-p", "1", "-Q", f"mail:{COUNT}")
        let_pass(5)
        before = [calls_of(node) for node in nodes]
        let_pass(20)
        after = [calls_of(node) for node in nodes]
    for some, more in zip(before, after, strict=True):
        assert more - some <= 20 * 2


def enrol(endpoint: Endpoint, app: str, places: Iterable[str], worker: str, lease_ms: int) -> None:
    lines, kinds = Lines(endpoint), {"a": "t"}
    for place in places:
        base = keys.base(app, place)
        lines.run(claims.enrol(base, worker.encode(), lease_ms, "w", "d", kinds))
    lines.close()


@contextlib.contextmanager
def maintained(endpoint: Endpoint, app: str, places: list[str], **options: Any) -> Iterator[None]:
    """Look after partitions as a supervisor does."""
    maintenance = Maintenance(
        app, endpoint, places, keyring=Keyring(()), digest="d", **{"members": list} | options
    )
    maintenance.start()
    try:
        yield
    finally:
        maintenance.stop()


def test_leases_go_on_in_all_partitions_whoever_holds_something(
    redis_url: str, namespace: str
) -> None:
    endpoint, places, worker = Endpoint(redis_url), keys.places("mail", 3), "f" * 32
    enrol(endpoint, namespace, places, worker, 1000)
    broker = open_broker(endpoint, 5.0)
    with maintained(
        endpoint,
        namespace,
        places,
        lease=1.0,
        members=lambda: [(place, worker) for place in places],
        holds=lambda member: member[0] == "mail/1",
    ):
        let_pass(3)
        for place in places:
            key = f"{keys.base(namespace, place)}workers"
            assert broker.call("ZSCORE", key, worker) is not None, place
    broker.close()


@pytest.mark.slow
def test_all_partitions_on_healthy_nodes_are_looked_after_while_one_is_away(namespace: str) -> None:
    places, lost = keys.places("mail", 2 * COUNT), "f" * 32
    with Cluster() as cluster:
        endpoint = Endpoint(cluster.url)
        enrol(endpoint, namespace, places, lost, 1)
        owners = {place: cluster.owner(keys.base(namespace, place)) for place in places}
        away = owners[places[0]]
        away.kill()
        lines = Lines(endpoint)

        def forgotten(place: str) -> bool:
            base = keys.base(namespace, place)
            return lines.of(base).call("ZSCORE", f"{base}workers", lost) is None

        healthy = [place for place, owner in owners.items() if owner is not away]
        with maintained(endpoint, namespace, places, lease=15.0):
            until(lambda: all(map(forgotten, healthy)), 60)
        lines.close()


def forget(server: Server, app: str, what: str) -> None:
    """Let Redis forget some keys of all partitions, while all connections last."""
    with server.client() as client:
        if names := list(client.scan_iter(f"tq:{{{app}:mail*}}:{what}")):
            client.delete(*names)


FORGOTTEN = pytest.mark.parametrize("what", ["*", "known:*"])


@FORGOTTEN
def test_partitions_that_redis_forgot_are_served_again(
    what: str, new_app: Any, redis_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child asks none of them by itself.
    monkeypatch.setattr(rounds, "LOOK_SECONDS", 600.0)
    app = new_app(url=redis_url, lease=3.0, queues=[Queue("mail", partitions=COUNT)])

    @app.task(queue="mail")
    def echo(value: int) -> int:
        return value

    def send() -> list[Any]:
        return [echo.options(partition_key=queue_key(n)).delay(n) for n in range(COUNT)]

    with running_worker(app):
        assert taskq.gather(send(), timeout=20) == list(range(COUNT))
        forget(server, app.name, what)
        assert taskq.gather(send(), timeout=40) == list(range(COUNT))


LONE = """
import taskq.worker.rounds
taskq.worker.rounds.LOOK_SECONDS = 600.0
"""


@pytest.mark.slow
@FORGOTTEN
def test_a_child_that_redis_forgot_is_told_by_its_supervisor_and_kept(
    what: str, tmp_path: Any, server: Server
) -> None:
    queue = Queue("mail", partitions=COUNT)
    with Shell(tmp_path, server.url) as shell:
        shell.write("proj.py", (tmp_path / "proj.py").read_text() + LONE)
        shell.environment |= {"TASKQ_QUEUES": f"mail:{COUNT}", "TASKQ_LEASE": "3"}
        worker = shell.worker("proj", "-p", "1", "-t", "2", "-Q", "mail")
        with TaskQ(shell.name, url=server.url, secret=SECRET, queues=[queue]) as app:
            held = app.send_task("proj.hold", (str(tmp_path),), queue="mail")
            until(lambda: list(tmp_path.glob("started-*")), 60)
            children = set(worker.children())
            forget(server, shell.name, what)
            sent = [
                app.send_task("proj.pid", queue="mail", partition_key=queue_key(number))
                for number in range(COUNT)
            ]
            assert set(taskq.gather(sent, timeout=60)) == children
            (tmp_path / "go").touch()
            if what != "*":
                assert held.get(timeout=20) == [1, 1]
            assert worker.stop() == 0
