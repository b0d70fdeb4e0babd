"""A URL becomes connections; what Redis and the network answer becomes our errors.

redis-py's own retries are off: it repeats a command whose reply was lost, up to eleven
times. Ours are in the drivers, with a deadline, over scripts that may be repeated.
"""

from __future__ import annotations

import inspect
import ipaddress
import re
import threading
from typing import Any
from urllib.parse import SplitResult, urlsplit

import redis
import redis.asyncio
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry
from tenacity import retry_if_exception_type, stop_before_delay, wait_random_exponential

from taskq.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError, Interrupted

SCHEMES = ("redis", "rediss", "unix", "memory", "embedded")
SOCKET_TIMEOUT = 5.0
# Answers that another attempt, on a new connection, may not get.
# Before Redis 7, one that a command in a script got stands inside the script's own.
_PASSING = re.compile(
    r"(^|: -)(NOREPLICAS|BUSY|UNBLOCKED|LOADING|MASTERDOWN|READONLY|CLUSTERDOWN|TRYAGAIN)\b"
)
_FULL = re.compile(r"(^|: -)OOM\b")

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


class ScriptMissing(BrokerError):
    """Redis does not have the script: nothing was done."""


class Endpoint:
    """Where Redis is, and how to connect to it. Opens nothing by itself."""

    def __init__(self, url: str) -> None:
        parts = _split(url)
        if parts.scheme not in SCHEMES:
            known = ", ".join(scheme + "://" for scheme in SCHEMES)
            # Not the rest of it: a password may stand there.
            msg = f"url begins with {parts.scheme!r}, and must begin with one of {known}"
            raise ConfigError(msg)
        self.url = url
        self.memory = parts.scheme == "memory"
        self.local = _is_local(parts.scheme, parts.hostname)
        self._pools = self._memory_pools() if self.memory else self._network_pools()

    def __repr__(self) -> str:
        """Name the place, never the password."""
        return f"Endpoint({self.place})"

    @property
    def place(self) -> str:
        """The URL without user and password."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"

    def connection(self) -> Any:
        """Return a new blocking connection, not yet open."""
        return _make(self._pools[0])

    def aconnection(self) -> Any:
        """Return a new asyncio connection, not yet open."""
        return _make(self._pools[1])

    def _network_pools(self) -> tuple[Any, Any]:
        # One socket option set for both; RESP2 gives the same reply shapes everywhere.
        options: dict[str, Any] = {
            "protocol": 2,
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            **_ANONYMOUS,
        }
        if not self.url.startswith("unix"):
            options["socket_keepalive"] = True
        if self.url.startswith("rediss"):
            # Older clients do not compare the host's name; what the URL says beats this.
            unchecked = "ssl_cert_reqs=none" in self.url.lower()
            options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": not unchecked}
        try:
            return (
                _Pool.from_url(self.url, retry=Retry(NoBackoff(), 0), **options),
                _AsyncPool.from_url(self.url, retry=AsyncRetry(NoBackoff(), 0), **options),
            )
        except ValueError as error:
            msg = f"url {self.place}: {error}"
            raise ConfigError(msg) from None

    def _memory_pools(self) -> tuple[Any, Any]:
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


def _make(pool: Any) -> Any:
    # Not `make_connection`: it counts, and refuses after 100 connections, closed or not.
    return pool.connection_class(**pool.connection_kwargs)


def _split(url: str) -> SplitResult:
    """Return the parts of a URL; its own text is told to nobody, for the password's sake."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        msg = (
            "url: host and port cannot be read; in a password, write / # ? @ and : as "
            "%2F %23 %3F %40 and %3A"
        )
        raise ConfigError(msg) from None
    return parts


def _is_local(scheme: str, host: str | None) -> bool:
    if scheme in ("unix", "memory", "embedded") or host in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def translate(error: Exception, place: str, *, sent: bool) -> BrokerError:
    """Return what a client error means to us; `sent`: the request may have arrived."""
    words = f"{place}: {type(error).__name__}: {error}"
    if isinstance(error, OutOfMemoryError) or _FULL.search(str(error)):
        return BrokerFull(f"{place}: Redis is at its maxmemory: {error}")
    if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
        return BrokerError(f"{place}: {type(error).__name__}: Redis refused user or password")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        # No time will mend that.
        fix = "name its CA in the URL, as ?ssl_ca_certs=/path/to/ca.pem"
        return BrokerError(f"{words}; {fix}")
    passing = (BusyLoadingError, ReadOnlyError, ClusterDownError, TryAgainError)
    refused = isinstance(error, ResponseError) and _PASSING.search(str(error))
    if refused or isinstance(error, passing):
        return BrokerUnavailable(words)
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
        return Interrupted(words) if sent else BrokerUnavailable(words)
    return BrokerError(words)


# Between two attempts at one request, seconds.
LONGEST_PAUSE = 1.0


def retrying(deadline: float) -> dict[str, Any]:
    """Return tenacity's keywords for one request: jitter, at most 1 s apart, a deadline."""
    return {
        "retry": retry_if_exception_type(BrokerUnavailable),
        "stop": stop_before_delay(deadline),
        "wait": wait_random_exponential(multiplier=0.05, max=LONGEST_PAUSE),
        "reraise": True,
    }


CLIENT_ERRORS = (RedisError, OSError)
