"""The master is asked for at each connection, and one that was demoted is left at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from taskq.broker.connection import Endpoint
from taskq.broker.guides import Misplaced
from taskq.errors import BrokerError, BrokerUnavailable, ConfigError
from tests.broker.drivers import DRIVERS, Awaited, Blocking
from tests.eventually import until
from tests.fleets import SERVICE, Sentinel, SentinelSet, role_of
from tests.servers import HOST, Server, free_port

Kind = type[Blocking | Awaited]


@pytest.fixture(params=DRIVERS.values(), ids=DRIVERS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def fleet() -> Iterator[SentinelSet]:
    """One for all tests of this module; whoever is the master when they begin."""
    with SentinelSet() as running:
        yield running


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "place"),
        [
            ("redis+sentinel://h1,h2:1,h3/main", "redis+sentinel://h1,h2:1,h3/main"),
            ("redis+sentinel://user:secret@h1,h2/main/2", "redis+sentinel://h1,h2/main/2"),
            ("redis+sentinel://:s@[::1]:5/m?sentinel_password=s", "redis+sentinel://[::1]:5/m"),
        ],
    )
    def test_its_place_is_shown_without_passwords(self, url: str, place: str) -> None:
        assert Endpoint(url).place == place

    @pytest.mark.parametrize(
        "rest",
        ["h1,h2", "h1,h2/", "h1,,h2/main", "/main", "h1:x/main", "h1/main/two", "h1:1,[::1/main"],
    )
    def test_what_cannot_be_one_is_told_without_its_password(self, rest: str) -> None:
        with pytest.raises(ConfigError) as raised:
            Endpoint(f"redis+sentinel://:hidden@{rest}?sentinel_password=hidden")
        assert "hidden" not in str(raised.value)

    def test_it_is_local_if_all_its_sentinels_are(self) -> None:
        assert Endpoint("redis+sentinel://localhost,127.0.0.1:5/main").local
        assert not Endpoint("redis+sentinel://localhost,10.0.0.1/main").local


def test_sentinels_that_are_away_are_passed_over(fleet: SentinelSet, kind: Kind) -> None:
    nobody = f"redis+sentinel://{HOST}:{free_port()},"
    driver = kind(fleet.url.replace("redis+sentinel://", nobody))
    assert driver.call("ECHO", b"hello") == b"hello"
    driver.close()


def test_the_database_is_the_masters(fleet: SentinelSet, kind: Kind, namespace: str) -> None:
    driver, other = kind(f"{fleet.url}/1"), kind(fleet.url)
    driver.call("SET", namespace, "here")
    assert (driver.call("GET", namespace), other.call("GET", namespace)) == (b"here", None)
    driver.close()
    other.close()


def test_where_no_sentinel_answers_it_is_tried_until_the_deadline(kind: Kind) -> None:
    driver = kind(f"redis+sentinel://{HOST}:{free_port()}/main", deadline=0.5)
    with pytest.raises(BrokerUnavailable, match="no sentinel names a master"):
        driver.call("PING")
    driver.close()


def test_an_unknown_service_is_no_reason_to_try_again(fleet: SentinelSet, kind: Kind) -> None:
    driver = kind(fleet.url.replace(f"/{SERVICE}", "/other"))
    with pytest.raises(Misplaced, match="no sentinel knows the master 'other'"):
        driver.call("PING")
    driver.close()


def test_a_server_that_is_no_sentinel_is_no_reason_to_try_again(server: Server, kind: Kind) -> None:
    driver = kind(f"redis+sentinel://{HOST}:{server.port}/main")
    with pytest.raises(Misplaced, match="unknown command 'SENTINEL'"):
        driver.call("PING")
    driver.close()


def test_the_url_of_a_server_to_a_sentinel_is_told(fleet: SentinelSet, kind: Kind) -> None:
    driver = kind(f"redis://{HOST}:{fleet.sentinels[0].port}/0")
    with pytest.raises(BrokerError, match=r"unknown command .* begins with redis\+sentinel://"):
        driver.call("GET", "key")
    driver.close()


def refused_by(kind: Kind, hosts: list[int], deadline: float = 100_000) -> BrokerError:
    """Return what a call raises where sentinels refuse the login; long before its deadline."""
    places = ",".join(f"{HOST}:{port}" for port in hosts)
    driver = kind(f"redis+sentinel://{places}/main?sentinel_password=hidden", deadline=deadline)
    with pytest.raises(BrokerError) as raised:
        driver.call("PING")
    driver.close()
    assert "refused user or password" in str(raised.value)
    assert "hidden" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("others", ["none", "as well", "away first", "away last"])
def test_a_login_that_all_refuse_who_are_there_is_told_at_once(
    kind: Kind, others: str, locked: list[Server]
) -> None:
    one, other = (server.port for server in locked)
    hosts = {
        "none": [one],
        "as well": [one, other],
        "away first": [free_port(), one],
        "away last": [one, free_port()],
    }[others]
    error = refused_by(kind, hosts)
    assert type(error) is BrokerError
    assert "no sentinel names the master: the login is refused" in str(error)
    assert "sentinel_password=" in str(error)


@pytest.fixture(scope="module")
def locked() -> Iterator[list[Server]]:
    """Two that let nobody in, sentinels or not."""
    with Server(requirepass="p1") as one, Server(requirepass="p2") as other:
        yield [one, other]


def test_one_that_let_us_in_and_is_away_is_waited_for(kind: Kind, locked: list[Server]) -> None:
    with Server() as master, Sentinel(master, down_after_ms=30_000, password="hidden") as lone:
        hosts = f"{HOST}:{locked[0].port},{HOST}:{lone.port}"
        driver = kind(f"redis+sentinel://{hosts}/main?sentinel_password=hidden", deadline=2)
        assert driver.call("PING") == b"PONG"
    with pytest.raises(BrokerUnavailable, match="no sentinel names a master that is up") as raised:
        driver.call("PING")
    for words in ("refused user or password", f"{HOST}:{lone.port}: "):
        assert words in str(raised.value)
    assert "hidden" not in str(raised.value)
    driver.close()


def test_one_that_does_not_know_the_master_does_not_hide_that_another_refuses_the_login(
    kind: Kind, server: Server, locked: list[Server]
) -> None:
    error = refused_by(kind, [locked[0].port, server.port])
    assert not isinstance(error, BrokerUnavailable)


@pytest.mark.slow
def test_sentinels_and_servers_have_passwords_of_their_own(kind: Kind) -> None:
    with SentinelSet(requirepass="p1", sentinel_password="p2") as fleet:
        driver = kind(fleet.url)
        assert driver.call("ECHO", b"hello") == b"hello"
        for wrong in (fleet.url.replace(":p1@", ":hidden@"), fleet.url.replace("=p2", "=hidden")):
            other = kind(wrong)
            with pytest.raises(BrokerError) as raised:
                other.call("PING")
            assert not isinstance(raised.value, BrokerUnavailable)
            assert "hidden" not in str(raised.value)
            other.close()
        driver.close()


@pytest.mark.slow
def test_a_master_that_is_demoted_is_left_at_once(
    fleet: SentinelSet, kind: Kind, namespace: str
) -> None:
    """It takes writes, for nothing, until its sentinels demote it, eight seconds later."""
    driver, old = kind(fleet.url), fleet.primary
    driver.call("SET", namespace, "before")
    fleet.fail_over()

    def arrives() -> bool:
        driver.call("SET", namespace, "after")
        with fleet.primary.client() as client:
            return client.get(namespace) == b"after"

    until(arrives, 6)
    assert role_of(old) == "master"
    driver.close()
    fleet.settle()


def test_a_master_that_was_replaced_is_not_gone_back_to(
    fleet: SentinelSet, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentinel has told of another master, and the one that is asked has not heard of that."""
    driver, looked = kind(fleet.url, deadline=0.5), threading.Event()
    switches = driver._broker.endpoint._switches
    assert switches is not None
    look = switches._look
    monkeypatch.setattr(switches, "_look", lambda: (look(), looked.set()))
    driver.call("PING")
    assert looked.wait(10)  # after which nobody asks again by himself
    master = f"{HOST} {fleet.primary.port}"
    switches._heed(f"{SERVICE} {master} {HOST} 1".split())
    with pytest.raises(BrokerUnavailable, match="was replaced just now"):
        driver.call("PING")
    switches._heed(f"{SERVICE} {HOST} 1 {master}".split())
    assert driver.call("PING") == b"PONG"
    driver.close()


def test_nobody_listens_to_sentinels_for_connections_that_are_closed(
    fleet: SentinelSet, kind: Kind
) -> None:
    before = listeners()
    driver = kind(fleet.url)
    driver.call("PING")
    ours = listeners() - before
    assert ours
    driver.close()
    until(lambda: not ours & listeners())


def listeners() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "taskq-sentinels"}


@pytest.mark.slow
def test_a_sentinel_that_is_silent_is_left_for_another(fleet: SentinelSet, kind: Kind) -> None:
    driver = kind(fleet.url)
    driver.call("PING")
    # Those of the tests before have gone.
    until(lambda: sum(map(subscribers, fleet.sentinels)) == 1, 20)
    (silent,) = filter(subscribers, fleet.sentinels)
    others = [one for one in fleet.sentinels if one is not silent]
    silent.pause()
    try:
        until(lambda: any(map(subscribers, others)), 20)
    finally:
        silent.resume()
    driver.close()
    fleet.settle()


def subscribers(sentinel: Server) -> int:
    with sentinel.client() as client:
        return sum(int(one["sub"]) for one in client.client_list())


@pytest.mark.slow
def test_a_master_that_is_killed_is_replaced(
    fleet: SentinelSet, kind: Kind, namespace: str
) -> None:
    driver = kind(fleet.url, deadline=15)
    driver.call("SET", namespace, "before")
    old = fleet.primary
    old.kill()
    driver.call("SET", namespace, "after")
    assert driver.call("GET", namespace) == b"after"
    driver.close()
    old.start()
    fleet.settle()


def test_a_replica_that_a_sentinel_takes_for_the_master_is_not_spoken_to(
    server: Server, kind: Kind
) -> None:
    """Sentinels learn late of what an operator did."""
    with SentinelSet(down_after_ms=30_000) as fleet:
        with fleet.primary.client() as client:
            client.execute_command("REPLICAOF", HOST, server.port)
        driver = kind(fleet.url, deadline=0.3)
        with pytest.raises(BrokerUnavailable, match="is a replica, and was named as the master"):
            driver.call("PING")
        driver.close()
