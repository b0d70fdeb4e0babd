"""User and password from a provider: who is asked, when, and what is told of what went wrong."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider

from taskq import TaskQ
from taskq.broker.aio import AsyncBroker
from taskq.broker.connection import Endpoint
from taskq.broker.credentials import Provider
from taskq.errors import BrokerError, BrokerUnavailable, ConfigError
from tests.broker.drivers import DRIVERS, Awaited, Blocking
from tests.fleets import Cluster, SentinelSet
from tests.servers import Server

Kind: TypeAlias = type[Blocking | Awaited]
each_driver = pytest.mark.parametrize("kind", DRIVERS.values(), ids=DRIVERS)
SECRET = "not-to-be-shown"


class Vault:
    """A server with one user, whose password changes, and who is asked for that."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.asked = 0
        self.change("first")

    def change(self, password: str) -> None:
        self.password = password
        with self.server.client() as client:
            rules = ("on", "resetpass", f">{password}", "~*", "&*", "+@all")
            client.execute_command("ACL", "SETUSER", "ann", *rules)

    def cut(self) -> None:
        with self.server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def __call__(self) -> tuple[str, str]:
        self.asked += 1
        return "ann", self.password


@pytest.fixture
def vault() -> Iterator[Vault]:
    with Server() as server:
        yield Vault(server)


@each_driver
def test_it_is_asked_at_each_new_connection(vault: Vault, kind: Kind) -> None:
    driver = kind(vault.server.url, provider=Provider(vault))
    assert driver.call("ACL", "WHOAMI") == b"ann"
    vault.change("second")
    assert driver.call("ACL", "WHOAMI") == b"ann"  # who is in stays in
    assert vault.asked == 1
    vault.cut()
    assert driver.call("ACL", "WHOAMI") == b"ann"
    assert vault.asked == 2
    driver.close()


@each_driver
@pytest.mark.parametrize("login", [SECRET, (SECRET,), ("", SECRET)])
def test_a_password_alone_is_that_of_the_default_user(kind: Kind, login: Any) -> None:
    with Server(requirepass=SECRET) as server:
        url = server.url.replace(f":{SECRET}@", "")
        driver = kind(url, provider=Provider(lambda: login))
        assert driver.call("ACL", "WHOAMI") == b"default"
        driver.close()


@each_driver
def test_it_may_be_one_of_the_clients_own(vault: Vault, kind: Kind) -> None:
    own = UsernamePasswordCredentialProvider("ann", "first")
    driver = kind(vault.server.url, provider=Provider(own))
    assert driver.call("ACL", "WHOAMI") == b"ann"
    driver.close()


def test_which_is_asked_in_its_own_way_where_that_is_awaited(vault: Vault) -> None:
    class Own(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            raise NotImplementedError

        async def get_credentials_async(self) -> tuple[str, str]:
            await asyncio.sleep(0)
            return vault()

    driver = Awaited(vault.server.url, provider=Provider(Own()))
    assert driver.call("ACL", "WHOAMI") == b"ann"
    driver.close()


def test_one_that_blocks_keeps_no_coroutine_waiting(vault: Vault) -> None:
    begun, others_go_on = threading.Event(), threading.Event()

    def slow() -> tuple[str, str]:
        begun.set()
        assert others_go_on.wait(60)
        return vault()

    async def story() -> None:
        broker = AsyncBroker(Endpoint(vault.server.url, Provider(slow)), 60)
        call = asyncio.create_task(broker.call("ACL", "WHOAMI"))
        assert await asyncio.to_thread(begun.wait, 60)
        others_go_on.set()
        assert await call == b"ann"
        await broker.close()

    asyncio.run(story())


@each_driver
def test_what_it_raises_is_told_at_the_deadline_without_its_words(vault: Vault, kind: Kind) -> None:
    def fail() -> str:
        vault.asked += 1
        raise KeyError(SECRET)

    driver = kind(vault.server.url, 0.5, Provider(fail))
    with pytest.raises(BrokerUnavailable, match=r"credentials raised KeyError .*\.py:\d+") as told:
        driver.call("PING")
    assert SECRET not in str(told.value)
    assert vault.asked > 1
    driver.close()


@each_driver
def test_one_that_fails_for_a_while_is_asked_again(vault: Vault, kind: Kind) -> None:
    def hesitate() -> tuple[str, str]:
        login = vault()
        if vault.asked < 3:
            raise OSError
        return login

    driver = kind(vault.server.url, 30, Provider(hesitate))
    assert driver.call("ACL", "WHOAMI") == b"ann"
    driver.close()


@each_driver
@pytest.mark.parametrize("login", [None, b"bytes", {"a": SECRET}, ("a", 5), ("a", SECRET, "c")])
def test_what_is_no_login_is_told_at_once(vault: Vault, kind: Kind, login: Any) -> None:
    driver = kind(vault.server.url, 60, Provider(lambda: login))
    with pytest.raises(BrokerError, match="neither a password nor") as told:
        driver.call("PING")
    assert not isinstance(told.value, BrokerUnavailable)
    assert SECRET not in str(told.value)
    driver.close()


@each_driver
def test_a_wrong_one_is_refused_without_being_shown(vault: Vault, kind: Kind) -> None:
    driver = kind(vault.server.url, 60, Provider(lambda: ("ann", SECRET)))
    with pytest.raises(BrokerError, match="refused user or password") as told:
        driver.call("PING")
    assert SECRET not in str(told.value)
    driver.close()


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h",
        f"redis://h?password={SECRET}",
        "redis://h?username=ann",
        f"unix://:{SECRET}@/tmp/s",
        f"rediss+sentinel://ann:{SECRET}@h1,h2/main",
        f"redis+cluster://:{SECRET}@h1,h2/",
    ],
)
def test_a_login_in_the_url_as_well_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="leave out one of the two") as told:
        Endpoint(url, Provider(lambda: SECRET))
    assert SECRET not in str(told.value)


@pytest.mark.parametrize("url", ["memory://", "embedded://"])
def test_where_there_are_no_users_it_is_a_config_error(url: str, namespace: str) -> None:
    app = TaskQ(namespace, url=url, credentials=lambda: SECRET)
    with pytest.raises(ConfigError, match="leave them out"):
        app.send_task("add")


async def _awaited() -> str:
    return SECRET


@pytest.mark.parametrize("one", [SECRET, ("ann", SECRET), UsernamePasswordCredentialProvider])
def test_what_cannot_be_asked_is_a_config_error(one: Any, namespace: str) -> None:
    with pytest.raises(ConfigError, match="must be a function without arguments") as told:
        TaskQ(namespace, credentials=one)
    assert SECRET not in str(told.value)


def test_nor_can_what_is_awaited_be_asked_by_threads(namespace: str) -> None:
    with pytest.raises(ConfigError, match="coroutines alone"):
        TaskQ(namespace, credentials=_awaited)  # type: ignore[arg-type]


@pytest.mark.slow
@each_driver
def test_of_sentinels_the_servers_ask_for_it_and_not_they(kind: Kind) -> None:
    with SentinelSet(requirepass=SECRET, sentinel_password="theirs") as fleet:
        url = fleet.url.replace(f":{SECRET}@", "")
        driver = kind(url, provider=Provider(lambda: SECRET))
        assert driver.call("ACL", "WHOAMI") == b"default"
        driver.close()


@pytest.mark.slow
@each_driver
def test_each_node_of_a_cluster_asks_for_it(kind: Kind) -> None:
    with Cluster(requirepass=SECRET) as cluster:
        url = re.sub(r"//.*@", "//", cluster.url)
        driver = kind(url, provider=Provider(lambda: SECRET))
        owners = set[int]()
        for number in range(60):
            driver.call("SET", f"k{number}", number)
            owners.add(cluster.owner(f"k{number}").port)
        assert len(owners) == 3
        driver.close()


@each_driver
def test_a_cluster_whose_nodes_nobody_may_ask_says_why(kind: Kind, cluster: Cluster) -> None:
    driver = kind(cluster.url, 60, Provider(lambda: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(BrokerError, match="neither a password nor"):
        driver.call("SET", "k", 1)
    driver.close()
