"""A message not yet sent, and the options that one call may set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

import msgspec

from taskq.config import SERIALIZERS, Seconds, check_name, nearest, replicas, seconds
from taskq.errors import ConfigError
from taskq.model import message, queues, times

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

R_co = TypeVar("R_co", covariant=True)

_MOST_HEADERS = 64 << 10


class CallOptions(TypedDict, total=False):
    """The keywords of `task.options`, typed; each is a field of `Options`."""

    queue: str | None
    priority: int | None
    countdown: Seconds | None
    eta: datetime | None
    expires: Seconds | datetime | None
    deadline: Seconds | datetime | None
    id: str | None
    partition_key: str | int | None
    serializer: str | None
    ignore_result: bool | None
    result_ttl: Seconds | None
    headers: Mapping[str, Any] | None
    timeout: Seconds | None
    hard_timeout: Seconds | None
    durability: str | None
    # Celery's names for these two.
    soft_time_limit: Seconds | None
    time_limit: Seconds | None


# Celery's name → ours.
ALIASES = {"soft_time_limit": "timeout", "time_limit": "hard_timeout"}


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What a call may set apart from its task's own options. None leaves those.

    Durations are float seconds or `timedelta`, instants aware datetimes.
    """

    queue: str | None = None
    # 0 to 9; 9 is served first.
    priority: int | None = None
    # Run no earlier than so many seconds from now, by Redis's clock ...
    countdown: Seconds | None = None
    # ... or than this instant.
    eta: datetime | None = None
    # Do not start later than this: seconds from now, or an instant.
    expires: Seconds | datetime | None = None
    # All must have ended by then: it, its retries, and what it enqueues.
    deadline: Seconds | datetime | None = None
    # A second call with the id of a living message enqueues nothing.
    id: str | None = None
    # Calls with one key go to one partition of the queue, in order; else they go round.
    partition_key: str | int | None = None
    serializer: str | None = None
    ignore_result: bool | None = None
    # How long the outcome is kept; at least 60 s.
    result_ttl: Seconds | None = None
    headers: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)
    # How long one attempt may run until `SoftTimeLimitExceeded` is raised in it ...
    timeout: Seconds | None = None
    # ... and until its process is killed.
    hard_timeout: Seconds | None = None
    # `replicas:<count>`: so many must have the message before the call returns.
    durability: str | None = None

    def __post_init__(self) -> None:
        if self.queue is not None:
            object.__setattr__(self, "queue", check_name("queue", self.queue))
        if self.priority is not None:
            check_priority(self.priority)
        if self.id is not None:
            object.__setattr__(self, "id", message.check_name(self.id))
        self._check_partition_key()
        self._check_times()
        if self.serializer is not None and self.serializer not in SERIALIZERS:
            msg = f"serializer must be one of {', '.join(SERIALIZERS)}, not {self.serializer!r}"
            raise ValueError(msg)
        if self.headers is not None:
            _check_headers(self.headers)
        if self.durability is not None:
            replicas(self.durability)

    def _check_partition_key(self) -> None:
        if self.partition_key is None:
            return
        queues.check_key(self.partition_key)
        if self.id is not None:
            msg = "id= says the partition as well: give it or partition_key=, not both"
            raise ConfigError(msg)

    def _check_times(self) -> None:
        times.check_due(self.countdown, self.eta)
        times.check_duration("result_ttl", self.result_ttl)
        times.check_limit("expires", self.expires)
        times.check_limit("deadline", self.deadline)
        self._check_limits()

    def _check_limits(self) -> None:
        soft, hard = self.limits
        for name, value in (("timeout", soft), ("hard_timeout", hard)):
            times.check_duration(name, value)
            if value == 0:
                msg = f"{name} must be more than 0 seconds; None is no limit"
                raise ValueError(msg)
        if soft is not None and hard is not None and hard <= soft:
            msg = (
                f"hard_timeout ({hard:g} s) must be longer than timeout ({soft:g} s): "
                "between the two the task may clean up"
            )
            raise ConfigError(msg)

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The soft and the hard time limit of an attempt, in seconds."""
        soft, hard = self.timeout, self.hard_timeout
        return (
            None if soft is None else seconds("timeout", soft),
            None if hard is None else seconds("hard_timeout", hard),
        )

    @classmethod
    def of(cls, options: CallOptions) -> Options:
        """Return the options given; `TypeError` names the nearest to an unknown one."""
        check_known("option", options, CallOptions.__annotations__)
        return cls(**unaliased(options))

    def merged(self, other: Options) -> Options:
        """Return these options with those that `other` sets in their place."""
        fields = (field.name for field in dataclasses.fields(other))
        given = {name: getattr(other, name) for name in fields}
        return dataclasses.replace(self, **{k: v for k, v in given.items() if v is not None})

    @property
    def due(self) -> str | None:
        """When to run, as the scheduling script wants it; None at once."""
        return times.due(self.countdown, self.eta)

    @property
    def expires_ms(self) -> int:
        """Milliseconds since the epoch after which it must not start; 0 never."""
        return times.limit_ms("expires", self.expires)

    @property
    def deadline_ms(self) -> int:
        """Milliseconds since the epoch by which all must have ended; 0 never."""
        return times.limit_ms("deadline", self.deadline)


class Signature(msgspec.Struct, Generic[R_co], frozen=True):
    """A message not yet sent; `app.enqueue_many` sends many. Made by `task.s(…)`."""

    app: TaskQ
    # The name of the task; the producer need not have its code.
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: Options = msgspec.field(default_factory=Options)

    def __repr__(self) -> str:
        """Name the task, and show no argument: a repr ends in logs."""
        return f"Signature({self.task}, {len(self.args) + len(self.kwargs)} arguments)"

    @property
    def queue(self) -> str:
        """The queue it goes to, whichever of its partitions that will be."""
        return self.options.queue or self.app.config.default_queue

    def fixed(self, name: str) -> Signature[R_co]:
        """Return this signature under the id it was sent with: to send it again is safe."""
        # It says the partition, whatever said that the first time.
        options = dataclasses.replace(self.options, id=name, partition_key=None)
        return msgspec.structs.replace(self, options=options)


class Alike(msgspec.Struct, Generic[R_co], frozen=True):
    """Calls that differ in their positional arguments alone: the signatures of all of them.

    Who sends them needs no signature of each, which the collector of garbage would look at.
    """

    # One of them, with other arguments.
    one: Signature[R_co]
    rows: Iterable[tuple[Any, ...]]

    def __iter__(self) -> Iterator[Signature[R_co]]:
        """Return each of them."""
        return map(self.of, self.rows)

    def of(self, args: tuple[Any, ...]) -> Signature[R_co]:
        """Return the one with these arguments."""
        return msgspec.structs.replace(self.one, args=args, kwargs={})


def check_known(kind: str, given: Iterable[str], known: Mapping[str, object]) -> None:
    """Raise `TypeError` for a keyword that is not known."""
    for name in given:
        if name not in known:
            msg = f"unknown {kind} {name!r}{nearest(name, known)}"
            raise TypeError(msg)


def unaliased(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under our names; `ConfigError` where both names of one are given."""
    for alias, name in ALIASES.items():
        if alias in options and name in options:
            msg = f"{alias} is Celery's name for {name}: give one of them"
            raise ConfigError(msg)
    return {ALIASES.get(name, name): value for name, value in options.items()}


def check_priority(value: object) -> int:
    """Return `value` if it is a priority, 0 to 9."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"priority must be an int, not {type(value).__name__}"
        raise TypeError(msg)
    if not 0 <= value <= 9:
        msg = f"priority must be 0 to 9 (9 is served first), not {value}"
        raise ValueError(msg)
    return value


def _check_headers(headers: Mapping[Any, Any]) -> None:
    if not all(isinstance(name, str) for name in headers):
        msg = "headers: every name must be a str"
        raise TypeError(msg)
    try:
        size = len(msgspec.msgpack.encode(dict(headers)))
    except TypeError as error:
        msg = f"headers: plain values only: {error}"
        raise TypeError(msg) from None
    if size > _MOST_HEADERS:
        msg = f"headers: {size:,} bytes are too many; at most {_MOST_HEADERS:,}"
        raise ValueError(msg)
