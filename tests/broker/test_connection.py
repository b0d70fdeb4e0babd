"""A URL becomes connections, and what goes wrong becomes our errors."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis import exceptions

from taskq import TaskQ
from taskq.broker.connection import Endpoint
from taskq.broker.faults import translate
from taskq.errors import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ConfigError,
    Interrupted,
    ResultTimeout,
    TaskQError,
)
from tests.broker.drivers import DRIVERS, Blocking
from tests.fleets import info_of
from tests.servers import HOST, Server

# What servers before Redis 7 say when a command within a script is refused.
OLD_OOM = (
    "Error running script (call to f_0f32): @user_script:48: @user_script: 48: "
    "-OOM command not allowed when used memory > 'maxmemory'."
)
OLD_READONLY = (
    "Error running script (call to f_0f32): @user_script:48: @user_script: 48: "
    "-READONLY You can't write against a read only replica."
)


def test_connections_are_made_without_end(server: Server) -> None:
    """redis-py's own pools refuse after 100, though all of them are closed."""
    endpoint = Endpoint(server.url)
    for _ in range(150):
        endpoint.open().disconnect()


def wait(url: str) -> None:
    """Wait for an outcome in both ways, each on a connection of its own."""
    with TaskQ("shop", url=url, secret="x" * 32) as app:
        result = app.send_task("nobody.knows.it")

        async def awaited() -> None:
            with pytest.raises(ResultTimeout):
                await result.aget(timeout=1)
            await app.leave_loop()

        with pytest.raises(ResultTimeout):
            result.get(timeout=1)
        app.waiter._disconnect()
        asyncio.run(awaited())
        result.cancel()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if "cluster" in one.message]


def test_who_waits_by_one_servers_url_at_a_node_of_a_cluster_is_warned_once(
    cluster_node: Server, caplog: pytest.LogCaptureFixture
) -> None:
    place = f"redis://{HOST}:{cluster_node.port}"
    wait(place)
    (text,) = said(caplog)
    assert text.startswith(f"{place} is a node of a cluster")
    assert "redis+cluster://" in text
    assert "late" in text


@pytest.mark.parametrize("how", ["url", "unix_url"])
def test_a_single_server_is_asked_once_whether_it_is_such_a_node(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as server:
        wait(getattr(server, how))
        assert info_of(server, "commandstats")["cmdstat_hello"]["calls"] == 1
    assert not said(caplog)


def test_by_resp3_it_is_asked_as_well(
    cluster_node: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://{HOST}:{cluster_node.port}?protocol=3"
    Endpoint(url).open(listens=True).disconnect()
    assert len(said(caplog)) == 1


def test_who_does_not_know_the_question_is_listened_to_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Server(**{"rename-command HELLO": "GREET"}) as server:
        connection = Endpoint(server.url).open(listens=True)
        connection.send_command("PING")
        assert connection.read_response() == b"PONG"
        connection.disconnect()
    assert not said(caplog)


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "place"),
        [
            ("redis://host:1234/2", "redis://host:1234/2"),
            ("redis://user:secret@host:1234/2", "redis://host:1234/2"),
            ("rediss://:sec%40ret@host", "rediss://host"),
            ("redis://:p@ss@host", "redis://host"),
            ("unix://:secret@/run/redis.sock?db=3", "unix:///run/redis.sock"),
            ("memory://name", "memory://name"),
        ],
    )
    def test_its_place_is_shown_without_the_password(self, url: str, place: str) -> None:
        endpoint = Endpoint(url)
        assert endpoint.place == place
        assert repr(endpoint) == f"Endpoint({place})"

    @pytest.mark.parametrize("url", ["", "localhost:6379", "http://host", "::"])
    def test_another_scheme_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigError, match="redis://"):
            Endpoint(url)

    @pytest.mark.parametrize("url", ["redis://host:port", "redis:/x:y", "redis://[::1"])
    def test_what_cannot_be_one_is_a_config_error(self, url: str) -> None:
        with pytest.raises(ConfigError):
            Endpoint(url)

    def test_a_bad_one_does_not_show_its_password(self) -> None:
        for url in ("redis://:hidden@host:port", "http://:hidden@host", ":hidden@host"):
            with pytest.raises(ConfigError) as raised:
                Endpoint(url)
            assert "hidden" not in str(raised.value)

    @pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster"])
    @pytest.mark.parametrize(
        "rest",
        ["u:12/hidden@h/0", ":12#hidden@h", ":12?hidden@h", ":a@12/hidden@h/x", "u/hidden@h"],
    )
    def test_a_password_is_not_taken_for_a_path(self, scheme: str, rest: str) -> None:
        with pytest.raises(ConfigError, match="in a password, write / #") as raised:
            Endpoint(f"{scheme}://{rest}")
        assert "hidden" not in str(raised.value)

    def test_nor_for_that_of_a_socket(self) -> None:
        with pytest.raises(ConfigError, match="in a password"):
            Endpoint("unix://:12/hidden@/run/redis.sock")
        assert Endpoint("unix:///run/a@b").place == "unix:///run/a@b"

    @pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+cluster"])
    def test_an_option_that_there_is_not_is_told_by_its_name(self, scheme: str) -> None:
        with pytest.raises(ConfigError, match="there is no option 'bogus'") as raised:
            Endpoint(f"{scheme}://:secret@host/?bogus=hidden")
        assert "secret" not in str(raised.value)
        assert "hidden" not in str(raised.value)

    @pytest.mark.parametrize(
        ("url", "local"),
        [
            ("redis://localhost", True),
            ("redis://127.0.0.2:1", True),
            ("redis://[::1]:6379", True),
            ("unix:///run/redis.sock", True),
            ("memory://", True),
            ("redis://10.0.0.1", False),
            ("redis://localhost.example.com", False),
            ("rediss://redis.example.com", False),
        ],
    )
    def test_this_machine_is_told_from_others(self, url: str, *, local: bool) -> None:
        assert Endpoint(url).local is local

    def test_nothing_is_opened(self) -> None:
        Endpoint("redis://no.such.host.invalid:1")

    def test_a_unix_socket(self, server: Server) -> None:
        driver = Blocking(server.unix_url)
        assert driver.call("ECHO", b"hello") == b"hello"
        driver.close()

    @pytest.mark.parametrize("kind", DRIVERS.values(), ids=DRIVERS)
    def test_memory_is_shared_under_one_name(self, kind: type[Blocking], namespace: str) -> None:
        first, second = kind(f"memory://{namespace}"), Blocking(f"memory://{namespace}")
        other = kind(f"memory://{namespace}-other")
        first.call("SET", "key", "value")
        assert second.call("GET", "key") == b"value"
        assert other.call("GET", "key") is None
        for driver in (first, second, other):
            driver.close()


class TestTranslate:
    """What redis-py raises, and what it means to us."""

    @pytest.mark.parametrize("sent", [False, True])
    @pytest.mark.parametrize(
        "error",
        [
            exceptions.ReadOnlyError("You can't write against a read only replica."),
            exceptions.ClusterDownError("The cluster is down"),
            exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
            exceptions.MasterDownError("Link with MASTER is down"),
            exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
            exceptions.ResponseError("BUSY Redis is busy running a script."),
            exceptions.ResponseError("UNBLOCKED force unblock from blocking operation"),
            exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
            exceptions.ResponseError(OLD_READONLY),
        ],
        ids=lambda error: str(error)[:20],
    )
    def test_a_server_that_cannot_serve_now_did_nothing(
        self, error: Exception, *, sent: bool
    ) -> None:
        told = translate(error, "redis://host", sent=sent)
        assert type(told) is BrokerUnavailable

    @pytest.mark.parametrize(
        "error",
        [
            exceptions.ConnectionError("Connection closed by server."),
            exceptions.TimeoutError("Timeout reading from socket"),
            ConnectionResetError(104, "Connection reset by peer"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_broken_line_is_uncertain_once_the_request_was_sent(self, error: Exception) -> None:
        assert type(translate(error, "redis://host", sent=True)) is Interrupted
        assert type(translate(error, "redis://host", sent=False)) is BrokerUnavailable

    @pytest.mark.parametrize(
        "error",
        [
            exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
            exceptions.ResponseError("OOM command not allowed"),
            exceptions.ResponseError(OLD_OOM),
        ],
        ids=["named", "in words", "in a script, Redis 6"],
    )
    def test_out_of_memory(self, error: Exception) -> None:
        told = translate(error, "redis://host", sent=True)
        assert type(told) is BrokerFull
        assert "maxmemory" in str(told)

    @pytest.mark.parametrize(
        "error",
        [
            exceptions.AuthenticationError("invalid username-password pair 'hidden'"),
            exceptions.NoPermissionError("this user 'hidden' has no permissions"),
            exceptions.AuthorizationError("hidden"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_refused_user_is_no_reason_to_try_again(self, error: Exception) -> None:
        told = translate(error, "redis://host", sent=True)
        assert type(told) is BrokerError
        assert "hidden" not in str(told)

    def test_anything_else_is_an_answer(self) -> None:
        told = translate(exceptions.ResponseError("WRONGTYPE"), "redis://host", sent=True)
        assert type(told) is BrokerError
        assert "redis://host" in str(told)

    def test_no_redis_error_is_one_of_ours(self) -> None:
        told = translate(redis.ConnectionError("x"), "redis://host", sent=True)
        assert isinstance(told, TaskQError)
        assert not isinstance(told, redis.RedisError)
