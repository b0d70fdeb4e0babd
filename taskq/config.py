"""Every setting of an app: its name, unit, default, check and environment variable.

A keyword of `TaskQ` beats the variable `TASKQ_<NAME>`, which beats the default. They are
read together, once, at the app's first use.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from taskq.errors import ConfigError

Seconds: TypeAlias = float | timedelta

MIN_SECRET_CHARACTERS = 32
# Bytes. What is larger is none of ours: no setting allows it.
LARGEST_MESSAGE = 64 << 20
SERIALIZERS = ("pickle", "json", "msgpack")
# What a worker logs of an exception that a task raised.
ERROR_DETAILS = ("traceback", "text", "type")
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
# What fits into its field of the board.
MOST_CRASHES = 100
# Read by the command line and the embedded server, before or without an app.
OTHER_VARIABLES = frozenset({"TASKQ_APP", "TASKQ_HEALTH_PORT", "TASKQ_QUEUES"})
MOST_PARTITIONS = 256
_MOST_DIGITS = 9


class Settings(TypedDict, total=False):
    """The keywords that `TaskQ` takes, typed; each is a field of `Config`."""

    url: str | None
    secret: str | None
    insecure_unsigned: bool
    allow_eviction: bool
    serializer: str
    log_errors: str
    default_queue: str
    result_ttl: Seconds
    failure_ttl: Seconds
    dead_letters: int
    dead_letter_age: Seconds
    max_message_bytes: int
    max_result_bytes: int
    enqueue_deadline: Seconds
    durability: str
    lease: Seconds
    max_crashes: int
    shutdown_timeout: Seconds
    processes: int
    threads: int
    coroutines: int
    state_dir: str | None
    redis_server: str | None


def check_name(kind: str, value: object) -> str:
    """Return `value` if it can name an app, a queue, a task or a worker."""
    if not isinstance(value, str):
        msg = f"{kind} name must be a str, not {type(value).__name__}"
        raise TypeError(msg)
    if not NAME.fullmatch(value):
        msg = f"{kind} name {value[:140]!r}: use 1 to 128 of A-Z a-z 0-9 _ . -"
        raise ConfigError(msg)
    # Of an enum, its value: written into a text it may be its name.
    return str.__str__(value)


def check_partitions(queue: str, value: object) -> int:
    """Return `value` if a queue can have so many partitions."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"partitions of the queue {queue} must be an int, not {type(value).__name__}"
        raise TypeError(msg)
    if not 1 <= value <= MOST_PARTITIONS:
        msg = f"partitions of the queue {queue} must be 1 to {MOST_PARTITIONS}, not {value}"
        raise ConfigError(msg)
    return value


def read_queues(what: str, text: str) -> dict[str, int | None]:
    """Return the queues in `a,b:8`, and how many partitions each is said to have.

    Raises:
        ConfigError: it is not written so; it names `what`.

    """
    found: dict[str, int | None] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, colon, count = part.partition(":")
        if not NAME.fullmatch(name):
            msg = f"{what} {text[:140]!r}: queue names have 1 to 128 of A-Z a-z 0-9 _ . -"
            raise ConfigError(msg)
        if colon and not (count.isascii() and count.isdigit() and len(count) <= _MOST_DIGITS):
            msg = f"{what} {text[:140]!r}: after the colon, how many partitions: {name}:8"
            raise ConfigError(msg)
        said = check_partitions(name, int(count)) if colon else None
        if said and said != (found.get(name) or said):
            msg = f"{what} {text[:140]!r}: says two numbers of partitions for {name}"
            raise ConfigError(msg)
        found[name] = said or found.get(name)
    return found


def seconds(name: str, value: object, *, minimum: float = 0.0) -> float:
    """Return a duration as finite float seconds.

    Raises:
        TypeError: not a number or a `timedelta` (a bool is neither).
        ValueError: NaN, infinite, or under `minimum`.

    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name} must be seconds or a timedelta, not {type(value).__name__}"
        raise TypeError(msg)
    try:
        number = float(value)
    except OverflowError:  # an int of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or number < minimum:
        msg = f"{name} must be a finite number of seconds >= {minimum:g}, not {value!r:.40}"
        raise ValueError(msg)
    return number


def _duration(minimum: float) -> Callable[[str, object], float]:
    def check(name: str, value: object) -> float:
        if isinstance(value, str):
            value = _number(name, value, float)
        return seconds(name, value, minimum=minimum)

    return check


def _count(minimum: int, maximum: int) -> Callable[[str, object], int]:
    def check(name: str, value: object) -> int:
        if isinstance(value, str):
            value = _number(name, value, int)
        if isinstance(value, bool) or not isinstance(value, int):
            msg = f"{name} must be an int, not {type(value).__name__}"
            raise TypeError(msg)
        if not minimum <= value <= maximum:
            msg = f"{name} must be {minimum} to {maximum}, not {value}"
            raise ValueError(msg)
        return value

    return check


def _number(name: str, text: str, kind: type[float | int]) -> float | int:
    try:
        return kind(text)
    except ValueError:
        msg = f"{name} must be a number, not {text!r}"
        raise ValueError(msg) from None


def _flag(name: str, value: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        msg = f"{name} must be a bool, not {value!r}"
        raise TypeError(msg)
    return value


def replicas(durability: str) -> int:
    """Return how many replicas a durability is, `replicas:<count>`; `ConfigError` if it is none."""
    text = durability if isinstance(durability, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance] - people pass anything
    word, colon, count = text.partition(":")
    if word == "replicas" and colon and re.fullmatch("[0-9]{1,2}", count, re.ASCII):
        return int(count)
    msg = f"durability must be 'replicas:<count>', of 0 to 99, not {durability!r:.100}"
    raise ConfigError(msg)


def _durability(name: str, value: object) -> str:
    if not isinstance(value, str):
        msg = f"{name} must be a str, not {type(value).__name__}"
        raise TypeError(msg)
    try:
        replicas(value)
    except ConfigError as error:
        raise ValueError(str(error).replace("durability", name, 1)) from None
    return value


def _text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        msg = f"{name} must be a str, not {type(value).__name__}"
        raise TypeError(msg)
    return value or None


def _secrets(name: str, value: object) -> tuple[str, ...]:
    text = _text(name, value)
    keys = tuple(part.strip() for part in text.split(",")) if text else ()
    if any(len(key) < MIN_SECRET_CHARACTERS for key in keys):
        msg = (
            f"{name}: each key needs {MIN_SECRET_CHARACTERS} characters or more; "
            "`taskq secret` prints one"
        )
        raise ValueError(msg)
    return keys


def _one_of(words: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if value not in words:
            msg = f"{name} must be one of {', '.join(words)}, not {value!r}"
            raise ValueError(msg)
        return words[words.index(value)]

    return check


def _queue(name: str, value: object) -> str:
    try:
        return check_name("queue", value)
    except (TypeError, ConfigError) as error:
        msg = f"{name}: {error}"
        raise ValueError(msg) from None


def usable_cpus() -> int:
    """Return the processors this process may use: affinity and cgroup quota counted."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return max(1, count)
    return max(1, count)


def _setting(check: Callable[[str, object], Any], *, default: Any) -> Any:
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"check": check})
    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One checked set of values. Durations are float seconds."""

    # It may hold a password.
    url: str | None = dataclasses.field(default=None, repr=False, metadata={"check": _text})
    # The first key signs, all of them verify.
    secret: tuple[str, ...] = dataclasses.field(
        default=(), repr=False, metadata={"check": _secrets}
    )
    insecure_unsigned: bool = _setting(_flag, default=False)
    # Start workers even on a Redis that may throw messages away.
    allow_eviction: bool = _setting(_flag, default=False)
    serializer: str = _setting(_one_of(SERIALIZERS), default="pickle")
    log_errors: str = _setting(_one_of(ERROR_DETAILS), default="traceback")
    default_queue: str = _setting(_queue, default="default")
    result_ttl: float = _setting(_duration(0), default=3600.0)
    failure_ttl: float = _setting(_duration(0), default=86_400.0)
    # What failed for good is kept for people: so many in each queue, for so long.
    dead_letters: int = _setting(_count(0, 1_000_000), default=10_000)
    dead_letter_age: float = _setting(_duration(60), default=7_776_000.0)
    max_message_bytes: int = _setting(_count(1024, LARGEST_MESSAGE), default=1 << 20)
    max_result_bytes: int = _setting(_count(1024, 256 << 20), default=16 << 20)
    # How long one enqueue or one read goes on trying to reach Redis.
    enqueue_deadline: float = _setting(_duration(0.1), default=10.0)
    # Who must have a message before its call returns, besides the master.
    durability: str = _setting(_durability, default="replicas:0")
    lease: float = _setting(_duration(0.5), default=15.0)
    # So many processes may one message kill.
    max_crashes: int = _setting(_count(1, MOST_CRASHES), default=3)
    shutdown_timeout: float = _setting(_duration(0), default=25.0)
    processes: int = _setting(_count(1, 1024), default=usable_cpus)
    threads: int = _setting(_count(0, 1024), default=8)
    coroutines: int = _setting(_count(0, 100_000), default=100)
    state_dir: str | None = _setting(_text, default=None)
    redis_server: str | None = _setting(_text, default=None)

    @classmethod
    def load(cls, keywords: Mapping[str, object], environ: Mapping[str, str]) -> Config:
        """Read and check every setting; raise `ConfigError` naming the one at fault."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in keywords:
            if name not in fields:
                msg = f"unknown setting {name!r}{nearest(name, fields)}"
                raise ConfigError(msg)
        _warn_of_unknown(environ, fields)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            variable = "TASKQ_" + name.upper()
            if name in keywords:
                values[name] = _checked(field, name, keywords[name])
            elif environ.get(variable):
                values[name] = _checked(field, variable, environ[variable])
        return cls(**values)


def _checked(field: dataclasses.Field[Any], name: str, value: object) -> Any:
    try:
        return field.metadata["check"](name, value)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _warn_of_unknown(environ: Mapping[str, str], fields: Mapping[str, object]) -> None:
    known = {"TASKQ_" + name.upper() for name in fields} | OTHER_VARIABLES
    for variable in environ:
        if variable.startswith("TASKQ_") and variable not in known:
            hint = nearest(variable, known)
            warnings.warn(f"unknown variable {variable}{hint}", stacklevel=2)


def nearest(name: str, known: Mapping[str, object] | set[str] | frozenset[str]) -> str:
    """Return `; did you mean 'x'?` for the most similar known name, or nothing."""
    import difflib  # noqa: PLC0415 - half a millisecond, and most names are right

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
