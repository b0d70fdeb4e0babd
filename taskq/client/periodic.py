"""What is said of a schedule, at run time or by `@app.periodic`, becomes its definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeAlias, TypedDict, TypeVar

import msgspec

from taskq.client.mould import Mould
from taskq.client.signature import Options, Signature, check_known
from taskq.client.task import Task
from taskq.config import Seconds, check_name, nearest, seconds
from taskq.errors import ConfigError
from taskq.model.schedule import CatchUp, Definition, Overlap, Rule, check_window, sign
from taskq.model.signing import Domain

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=StrEnum)

OverlapWord: TypeAlias = Literal["allow", "skip", "queue", "cancel_running"]
CatchUpWord: TypeAlias = Literal["none", "last", "all"]

# An id of one of its messages, which has an instant behind it, is at most 128 long.
MOST_NAME = 100
# All that are due at once are read in one call.
MOST_BYTES = 64 << 10


# The options of a call that a definition holds.
_GOES_WITH = frozenset({
    "queue", "priority", "expires", "serializer", "ignore_result", "result_ttl", "headers",
    "timeout", "hard_timeout", "deadline",
})  # fmt: skip


class When(TypedDict, total=False):
    """The keywords that say when a schedule ticks, and what its ticks do, typed.

    Either `cron` or `every`. Durations are seconds or `timedelta`, instants aware datetimes.
    """

    # Five fields, or six with seconds before them, or @daily and the like; on the clock of
    # `timezone`, an IANA name, UTC unless it is given.
    cron: str | None
    timezone: str | None
    # 1 s or more, counted from `start` or from 1970.
    every: Seconds | None
    # No tick before or after.
    start: datetime | None
    end: datetime | None
    # A tick is fired by less than so much later, always the same for one tick.
    jitter: Seconds
    # What a tick does while the message before is not over.
    overlap: OverlapWord
    # What is done about ticks that nobody was there to fire, and how old they may be.
    catch_up: CatchUpWord
    window: Seconds | None


class PeriodicOptions(When, total=False):
    """The keywords of `@app.periodic`, typed."""

    # The task's name unless it is given.
    name: str
    args: Iterable[Any]
    kwargs: Mapping[str, Any]


class PeriodicDecorator(Protocol):
    """What `@app.periodic(...)` returns."""

    def __call__(self, task: Task[P, R], /) -> Task[P, R]: ...


class Timing(msgspec.Struct, frozen=True):
    """A rule and its policies, checked."""

    rule: Rule
    overlap: Overlap
    catch_up: CatchUp
    window_ms: int

    @classmethod
    def of(cls, when: When) -> Timing:
        """Return what the keywords say; `TypeError` names the nearest to an unknown one."""
        check_known("option of a schedule", when, When.__annotations__)
        policies = ("overlap", "catch_up", "window")
        given: dict[str, Any] = {k: value for k, value in when.items() if k not in policies}
        catch_up = _word("catch_up", CatchUp, when.get("catch_up", CatchUp.LAST))
        return cls(
            Rule.of(**given),
            _word("overlap", Overlap, when.get("overlap", Overlap.ALLOW)),
            catch_up,
            check_window(catch_up, when.get("window")),
        )


class Periodic(msgspec.Struct, frozen=True):
    """A schedule that code declares."""

    name: str
    call: Signature[Any]
    timing: Timing
    task: Task[..., Any]

    @property
    def origin(self) -> tuple[str, str]:
        """The module, and what was decorated there: to define it anew replaces the schedule."""
        return self.task.origin

    @classmethod
    def of(cls, task: Task[..., Any], options: PeriodicOptions) -> Periodic:
        """Return the schedule of a task; raises as `Timing.of`, and for what cannot be sent."""
        if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance] - people pass anything
            msg = (
                f"@app.periodic() stands above @app.task, and takes a task, "
                f"not {type(task).__name__}"
            )
            raise TypeError(msg)
        check_known("option of @app.periodic", options, PeriodicOptions.__annotations__)
        own = ("name", "args", "kwargs")
        when: Any = {name: value for name, value in options.items() if name not in own}
        call: Signature[Any] = task.s(*options.get("args", ()), **options.get("kwargs", {}))
        check_call(call.options)
        name = check_schedule(options.get("name", task.name))
        return cls(name, call, Timing.of(when), task)

    def sign(self, app: TaskQ) -> bytes:
        """Return the signed definition: the same for the same code."""
        return define(app, self.name, self.call, self.timing, owner=self.origin[0])


def define(
    app: TaskQ,
    name: str,
    call: Signature[Any],
    timing: Timing,
    *,
    owner: str = "",
    created_ms: int = 0,
) -> bytes:
    """Return the signed definition of a schedule.

    Raises:
        SerializationError: an argument of the call cannot be written, or is too large.
        ConfigError: the call has an option that does not go with a schedule.

    """
    check_call(call.options)
    options = call.options
    serializer, body = Mould(app, call.task, options).write(call.args, call.kwargs)
    soft, hard = options.limits
    definition = Definition(
        timing.rule, call.task, serializer, body, timing.overlap, timing.catch_up,
        timing.window_ms, options.priority, _ms("expires", options.expires) or 0, _ms("", soft),
        _ms("", hard), _ms("result_ttl", options.result_ttl), options.ignore_result,
        dict(options.headers) if options.headers else None, owner, created_ms,
        _ms("deadline", options.deadline) or 0,
    )  # fmt: skip
    raw = sign(definition, name, app.seal(Domain.SCHEDULE, call.queue))
    if len(raw) > MOST_BYTES:
        msg = (
            f"the schedule {name}: its call has {len(raw):,} bytes, and may have {MOST_BYTES:,}; "
            "store the data elsewhere and send where"
        )
        raise ConfigError(msg)
    return raw


def check_schedule(name: object) -> str:
    """Return `name` if it can name a schedule."""
    text = check_name("schedule", name)
    if len(text) > MOST_NAME:
        msg = f"schedule name {text!r}: {len(text)} characters are too many; {MOST_NAME} at most"
        raise ConfigError(msg)
    return text


def check_call(options: Options) -> None:
    """Raise `ConfigError` for an option of a call that means nothing in a schedule."""
    # Of itself durable: a failover that takes back a message takes back that its tick was fired.
    goes = _GOES_WITH | {"durability"}
    for field in dataclasses.fields(options):
        if field.name not in goes and getattr(options, field.name) is not None:
            msg = f"{field.name} does not go with a schedule: ticks say when, and name each message"
            raise ConfigError(msg)
    for name, value in (("expires", options.expires), ("deadline", options.deadline)):
        if isinstance(value, datetime):
            msg = (
                f"{name} of a schedule's call must be seconds or a timedelta: each tick has its own"
            )
            raise ConfigError(msg)


def _word(name: str, kind: type[E], value: object) -> E:
    if not isinstance(value, str):
        msg = f"{name} must be a str, not {type(value).__name__}"
        raise TypeError(msg)
    words = [str(one) for one in kind]
    if value not in words:
        hint = nearest(value, frozenset(words))
        msg = f"{name} must be one of {', '.join(words)}, not {value!r}{hint}"
        raise ConfigError(msg)
    return kind(value)


def _ms(name: str, value: Any) -> int | None:
    return None if value is None else max(1, round(seconds(name, value) * 1000))
