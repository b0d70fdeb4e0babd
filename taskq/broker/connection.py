"""A URL becomes connections: to one server, or to whom sentinels and nodes point."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import re
import threading
from typing import Any

import redis
import redis.asyncio
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, ResponseError
from redis.retry import Retry

from taskq.broker import faults, places
from taskq.broker.credentials import USELESS, Provider
from taskq.broker.faults import CLIENT_ERRORS, NoCredentials
from taskq.broker.guides import (
    Address,
    Fixed,
    Guide,
    Hello,
    Question,
    Sentinels,
    Slots,
    pairs,
    slot_of,
    spelt,
)
from taskq.broker.sockets import SOCKET_TIMEOUT, can_read, leave_limit_to_system
from taskq.broker.switches import Switches
from taskq.errors import BrokerError, BrokerUnavailable, ConfigError

log = logging.getLogger("taskq.broker")

# How long a server that was just connected to may take to say what it is.
_GREET_SECONDS = 2.0
# SPUBLISH came with Redis 7.
_SHARDED_SINCE = 7
_SILENT = "it can be connected to, and does not answer"
# How Python says it of a class of the client.
_UNKNOWN_OPTION = re.compile(r".*got an unexpected keyword argument")
# A connection without CLIENT SETINFO opens three times as fast; the word for it changed.
_ANONYMOUS: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(redis.connection.AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)

# What they take is typed in part only, and differs between versions.
_Pool: Any = redis.ConnectionPool
_AsyncPool: Any = redis.asyncio.ConnectionPool

_memory_lock = threading.Lock()
_memory_servers: dict[str, Any] = {}


class Endpoint:
    """Where Redis is, and how to connect to it. Opens nothing by itself."""

    def __init__(self, url: str, provider: Provider | None = None) -> None:
        place = places.read(url)
        # Who is asked for user and password, where the URL does not say them.
        self.provider = provider
        self.url, self.place, self.local = url, place.shown, place.local
        self.encrypted = place.encrypted
        self.memory = place.scheme == "memory"
        self._guide: Guide | None = place.guide
        # Whether each queue is on a node of its own.
        self.clustered = place.clustered
        # What is published reaches who listens at the same node, and no other: known once a
        # node was connected to.
        self.sharded = False
        # The node of a cluster that was connected to last.
        self.node: Address | None = None
        # Of a cluster; elsewhere it means nothing.
        self._slot = 0
        # Whether it is to be asked still if outcomes are heard there.
        self._unsure = self._guide is None and not self.memory
        self._pools = self._memory_pools() if self.memory else self._network_pools(place.plain)
        guide = self._guide
        self._switches = (
            Switches(
                guide,
                lambda address: _make(self._pools[0], _at(address) | guide.options),
                lambda: self._find(guide),
            )
            if isinstance(guide, Sentinels)
            else None
        )

    def __repr__(self) -> str:
        """Name the place, never the password."""
        return f"Endpoint({self.place})"

    def at(self, base: str) -> Endpoint:
        """Return where a queue is: on one node of a cluster, else simply here."""
        if not self.clustered:
            return self
        there = copy.copy(self)
        there._slot = slot_of(base)  # noqa: SLF001
        return there

    def is_silent(self, connection: Any) -> bool:
        """Whether the node of a cluster at the other end did not answer, to whomever it was."""
        return isinstance(self._guide, Slots) and self._guide.is_silent(_address(connection))

    @property
    def publish(self) -> str:
        """The word by which outcomes are published."""
        return "SPUBLISH" if self.sharded else "PUBLISH"

    def open(self, timeout: float = SOCKET_TIMEOUT, *, listens: bool = False) -> Any:
        """Return a new blocking connection, open; `timeout` is for the connecting alone.

        `listens`: for what is published. The first of those to a single server asks whether it is
        a node of a cluster, and warns.

        Raises:
            BrokerUnavailable: nobody is there, or nobody who takes writes.
            BrokerError: Redis refuses to be connected to.

        """
        if self._guide is not None:
            return self._enter(_at(self._find(self._guide)), timeout)
        if not (listens and self._unsure):
            return self._opened(self._pools[0], {}, timeout)
        return self._enter({}, timeout)

    async def aopen(self) -> Any:
        """Return a new asyncio connection, open; raises as `open` does."""
        if self._guide is None:
            return await self._aopened(self._pools[1], {})
        search, reply = self._guide.search(self._slot), None
        while True:
            try:
                question = search.send(reply)
            except StopIteration as found:
                return await self._aenter(found.value)
            reply = await self._aask(self._guide, question)

    def only(self, address: Address) -> Endpoint:
        """Return one of the servers behind a URL that names several."""
        there = copy.copy(self)
        scheme = "rediss" if self.encrypted else "redis"
        there._guide, there.place = Fixed(address), f"{scheme}://{spelt(address)}"  # noqa: SLF001
        return there

    def inquire(self) -> list[tuple[Address, Any]]:
        """Ask all sentinels, or nodes, what they know; return the replies, or the errors."""
        guide = self._guide
        if guide is None:
            return []
        return [(one.address, self._ask(guide, one)) for one in guide.questions()]

    def translate(
        self, error: Exception, *, sent: bool, of: Any = None, waited: float = SOCKET_TIMEOUT
    ) -> BrokerError:
        """Return what a client error means to us, and take note of it.

        `of` is the connection that it befell, if there was one; `waited` says for how many
        seconds an answer was waited for, if none came.
        """
        if isinstance(error, NoCredentials):
            known = BrokerUnavailable if error.passing else BrokerError
            return known(f"{self.place}: {error}")
        error = faults.classed(error)
        if self._guide is not None:
            if (
                isinstance(self._guide, Slots)
                and of is not None
                and waited >= _GREET_SECONDS
                and faults.is_late(error)
            ):
                self._guide.note_silent(_address(of))
            self._guide.heed(self._slot, error)
        if self.clustered and isinstance(error, AskError):  # or MovedError, which is one
            # ASK: some keys of the queue are here, some there. Scripts wait until all are there.
            there = "has moved" if isinstance(error, MovedError) else "is on its way"
            return BrokerUnavailable(f"{self.place}: the slot {there}: {error}")
        return faults.translate(error, self.place, sent=sent)

    def _opened(self, pool: Any, options: dict[str, Any], timeout: float = SOCKET_TIMEOUT) -> Any:
        connection = _make(pool, options)
        connection.socket_connect_timeout = timeout
        try:
            connection.connect()
        except CLIENT_ERRORS as error:
            raise self.translate(error, sent=False, of=connection, waited=timeout) from error
        except BaseException:
            # Interrupted half way: nobody else knows of this connection.
            connection.disconnect()
            raise
        leave_limit_to_system(connection)
        return connection

    async def _aopened(self, pool: Any, options: dict[str, Any]) -> Any:
        connection = _make(pool, options)
        try:
            await self._tell(connection)
            await connection.connect()
        except CLIENT_ERRORS as error:
            raise self.translate(error, sent=False, of=connection) from error
        except BaseException:
            # Cancelled half way: nobody else knows of this connection.
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _enter(self, options: dict[str, Any], timeout: float) -> Any:
        """Connect to a server, and look whether it is the right one."""
        connection = self._opened(self._pools[0], options, timeout)
        within = min(timeout, _GREET_SECONDS)
        try:
            self._note(_greet(connection, within), connection)
        except CLIENT_ERRORS as error:
            connection.disconnect()
            raise self.translate(error, sent=False, of=connection, waited=within) from error
        except BaseException:
            connection.disconnect()
            raise
        return connection

    async def _aenter(self, address: Address) -> Any:
        connection = await self._aopened(self._pools[1], _at(address))
        try:
            self._note(await _agreet(connection), connection)
        except CLIENT_ERRORS as error:
            await connection.disconnect(nowait=True)
            raise self.translate(error, sent=False, of=connection) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _note(self, hello: Hello, connection: Any) -> None:
        """Look whether a server is the right one and stays so, and how it publishes."""
        self._unsure = False
        if self._guide is not None:
            self._guide.check(_address(connection), hello)
        elif hello.get(b"mode") == b"cluster":
            log.warning(
                "%s is a node of a cluster, the URL of which begins with redis+cluster://: by this "
                "one, outcomes may come late",
                self.place,
            )
        if self._switches is not None:
            self._switches.watch(connection, _address(connection))
        version = hello.get(b"version", b"").split(b".")[0]
        self.node = _address(connection) if self.clustered else None
        self.sharded = self.clustered and version.isdigit() and int(version) >= _SHARDED_SINCE

    def _find(self, guide: Guide) -> Address:
        """Return who takes the writes, as those say who are asked."""
        search, reply = guide.search(self._slot), None
        while True:
            try:
                question = search.send(reply)
            except StopIteration as found:
                address: Address = found.value
                return address
            reply = self._ask(guide, question)

    def _ask(self, guide: Guide, question: Question) -> Any:
        """Return what one server answers, or the error."""
        connection = _make(self._pools[0], _at(question.address) | guide.options)
        try:
            connection.connect()
            connection.send_command(*question.words, check_health=False)
            return connection.read_response()
        except CLIENT_ERRORS as error:
            return error
        finally:
            connection.disconnect()

    async def _aask(self, guide: Guide, question: Question) -> Any:
        connection = _make(self._pools[1], _at(question.address) | guide.options)
        try:
            await self._tell(connection)
            await connection.connect()
            await connection.send_command(*question.words, check_health=False)
            return await connection.read_response()
        except CLIENT_ERRORS as error:
            return error
        finally:
            await connection.disconnect(nowait=True)

    async def _tell(self, connection: Any) -> None:
        """Let user and password be known to a connection that would ask for them."""
        if self.provider is not None and connection.credential_provider is self.provider:
            connection.credential_provider = await self.provider.told()

    def _network_pools(self, url: str) -> tuple[Any, Any]:
        # One socket option set for both; RESP2 gives the same reply shapes everywhere.
        options: dict[str, Any] = {
            "credential_provider": self.provider,
            "protocol": 2,
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            **_ANONYMOUS,
        }
        if not url.startswith("unix"):
            options["socket_keepalive"] = True
        if self.encrypted:
            # Older clients do not compare the host's name; what the URL says beats this.
            unchecked = "ssl_cert_reqs=none" in url.lower()
            options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": not unchecked}
        try:
            pools = (
                _Pool.from_url(url, retry=Retry(NoBackoff(), 0), **options),
                _AsyncPool.from_url(url, retry=AsyncRetry(NoBackoff(), 0), **options),
            )
            self._check_login(pools[0].connection_kwargs)
            # Opens nothing: the client looks now at the options that the URL says.
            _make(pools[0], {})
        except (ValueError, TypeError) as error:
            msg = f"url {self.place}: {_UNKNOWN_OPTION.sub('there is no option', str(error))}"
            raise ConfigError(msg) from None
        return pools

    def _check_login(self, options: dict[str, Any]) -> None:
        if self.provider and (options.get("username") or options.get("password")):
            msg = (
                f"url {self.place}: user or password stand in it, and credentials= would be asked "
                "for them: leave out one of the two"
            )
            raise ConfigError(msg)

    def _memory_pools(self) -> tuple[Any, Any]:
        if self.provider is not None:
            raise ConfigError(USELESS.format("memory://"))
        try:
            import fakeredis  # noqa: PLC0415 - of the `test` extra
        except ImportError:
            msg = "memory:// needs the extra: pip install 'taskq-redis[test]'"
            raise ConfigError(msg) from None
        with _memory_lock:
            server = _memory_servers.setdefault(self.url, fakeredis.FakeServer())
        return (
            fakeredis.FakeRedis(server=server, protocol=2).connection_pool,
            fakeredis.FakeAsyncRedis(server=server, protocol=2).connection_pool,
        )


def _make(pool: Any, options: dict[str, Any]) -> Any:
    # Not `make_connection`: it counts, and refuses after 100 connections, closed or not.
    return pool.connection_class(**(pool.connection_kwargs | options))


def _at(address: Address) -> dict[str, Any]:
    return {"host": address[0], "port": address[1]}


def _address(connection: Any) -> Address:
    return connection.host, connection.port


def _greet(connection: Any, within: float) -> Hello:
    """Return what a server says that it is; nothing where it is a proxy that knows no HELLO."""
    connection.send_command("HELLO", check_health=False)
    # One that is frozen still lets itself be connected to.
    if not can_read(connection, within):
        raise redis.TimeoutError(_SILENT)
    try:
        return pairs(connection.read_response())
    except ResponseError:
        return {}


async def _agreet(connection: Any) -> Hello:
    await connection.send_command("HELLO", check_health=False)
    try:
        async with asyncio.timeout(_GREET_SECONDS):
            return pairs(await connection.read_response())
    except ResponseError:
        return {}
