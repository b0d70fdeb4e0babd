"""What Redis and the network answer becomes our errors, and says what may be tried again.

redis-py's own retries are off: it repeats a command whose reply was lost, up to eleven
times. Ours are in the drivers, with a deadline, over scripts that may be repeated.
"""

from __future__ import annotations

import re
from typing import Any

import redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from tenacity import retry_if_exception_type, stop_before_delay, wait_random_exponential

from taskq.errors import BrokerError, BrokerFull, BrokerUnavailable, Interrupted

CLIENT_ERRORS = (RedisError, OSError)
# Answers that another attempt, on a new connection, may not get.
# Before Redis 7, one that a command in a script got stands inside the script's own.
_PASSING = re.compile(
    r"(^|: -)(NOREPLICAS|BUSY|UNBLOCKED|LOADING|MASTERDOWN|READONLY|CLUSTERDOWN|TRYAGAIN)\b"
)
_FULL = re.compile(r"(^|: -)OOM\b")


class ScriptMissing(BrokerError):
    """Redis does not have the script: nothing was done."""


class NoCredentials(RedisError):
    """Who is asked for user and password has none."""

    # Another time there may be some.
    passing = True


class NeverCredentials(NoCredentials):
    """Nor will there be any another time."""

    passing = False


# What a node of a cluster says; the errors of older clients are of no class of their own.
_OF_NODES: dict[str, type[ResponseError]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "MOVED": MovedError,
    "TRYAGAIN": TryAgainError,
}


def classed(error: Exception) -> Exception:
    """Return an error as the newest client would have made it."""
    word, _, rest = str(error).partition(" ")
    kind = _OF_NODES.get(word) if type(error) is ResponseError else None
    return error if kind is None else kind(rest)


def told(error: Exception) -> str:
    """Return an error's words; those of a refused login are not ours to show."""
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return "refused user or password"
    if isinstance(error, NoCredentials):
        return str(error)
    words = f"{type(error).__name__}: {error}"
    if "mismatch" in words and distrusts(error):
        return f"{words}; its certificate must name the host as it is addressed"
    if distrusts(error):
        return f"{words}; name its CA in the URL, as ?ssl_ca_certs=/path/to/ca.pem"
    return words


def distrusts(error: Exception) -> bool:
    """Whether the other side showed a certificate that is not to be trusted."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def is_late(error: Exception) -> bool:
    """Whether no answer came in time, of any kind."""
    # The last is a socket's limit, by the system; see `sockets.py`.
    late = isinstance(error, (TimeoutError, redis.TimeoutError))
    return late or isinstance(error.__context__, BlockingIOError)


def translate(error: Exception, place: str, *, sent: bool) -> BrokerError:
    """Return what a client error means to us; `sent`: the request may have arrived."""
    if isinstance(error.__context__, BlockingIOError):  # see `sockets.py`
        error = redis.TimeoutError("no answer in time")
    words = f"{place}: {type(error).__name__}: {error}"
    if isinstance(error, OutOfMemoryError) or _FULL.search(str(error)):
        return BrokerFull(f"{place}: Redis is at its maxmemory: {error}")
    if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
        return BrokerError(f"{place}: {type(error).__name__}: Redis refused user or password")
    if distrusts(error):
        # No time will mend that.
        return BrokerError(f"{place}: {told(error)}")
    passing = (BusyLoadingError, ReadOnlyError, ClusterDownError, TryAgainError)
    refused = isinstance(error, ResponseError) and _PASSING.search(str(error))
    if refused or isinstance(error, passing):
        return BrokerUnavailable(words)
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
        return Interrupted(words) if sent else BrokerUnavailable(words)
    if isinstance(error, AskError):  # or MovedError, which is one
        words += "; that is a node of a cluster, the URL of which begins with redis+cluster://"
    elif "unknown command" in words:
        words += "; of a sentinel the URL begins with redis+sentinel://"
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
