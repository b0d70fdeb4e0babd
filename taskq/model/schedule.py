"""A schedule: what calls it makes, at which ticks, and which of those that are due it fires.

A *tick* is an instant that the rule names. With jitter it falls due somewhat later, always
by as much for the same schedule and tick, so that all workers agree. Instants are whole
milliseconds since the epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from taskq.config import Seconds, seconds
from taskq.errors import ConfigError
from taskq.model import clock
from taskq.model.cron import DEFAULT_ZONE, check_expression, next_match, zone_of
from taskq.model.retry import MAX_DELAY
from taskq.model.signing import KEY_ID_BYTES, TAG_BYTES, BadSignature, Seal, rest_of
from taskq.model.times import aware

# A tick that is fired so late is on time: a scheduler looks every few seconds.
GRACE_MS = 10_000
_MOST_MS = round(10 * MAX_DELAY * 1000)
# So many ticks ahead are looked at to see how near they come to each other.
_LOOKED_AT = 50
_TAG_AT = 1 + KEY_ID_BYTES
_BODY_AT = _TAG_AT + TAG_BYTES


class Unreadable(BadSignature):
    """What is signed by us, and cannot be read here; perhaps by a later version."""


class Overlap(StrEnum):
    """What is done at a tick while the message of the tick before is not over."""

    ALLOW = "allow"
    SKIP = "skip"
    # The tick waits until the other is over.
    QUEUE = "queue"
    # The other is cancelled.
    CANCEL_RUNNING = "cancel_running"


class CatchUp(StrEnum):
    """What is done about ticks that nobody was there to fire."""

    NONE = "none"
    # One message stands for all of them.
    LAST = "last"
    ALL = "all"


class Rule(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """When: the ticks of a cron expression, or of a period. Made by `Rule.of`."""

    # One of the two.
    cron: str = ""
    every_ms: int = 0
    zone: str = DEFAULT_ZONE
    # The first and the last instant at which it may tick; 0 is no limit.
    start_ms: int = 0
    end_ms: int = 0
    # A tick falls due by less than so much after its instant.
    jitter_ms: int = 0

    @classmethod
    def of(
        cls,
        *,
        cron: str | None = None,
        every: Seconds | None = None,
        timezone: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        jitter: Seconds = 0,
    ) -> Rule:
        """Return a checked rule.

        Raises:
            TypeError: a value of another kind than its annotation says.
            ValueError: a naive datetime, or a duration that is none; `ConfigError`, which
                is one, for all else that cannot work.

        """
        expression, every_ms, zone = _when(cron, every, timezone)
        rule = cls(
            expression,
            every_ms,
            zone,
            start_ms=0 if start is None else _instant("start", start),
            end_ms=0 if end is None else _instant("end", end),
            jitter_ms=round(seconds("jitter", jitter) * 1000),
        )
        _check_span(rule)
        _check_jitter(rule)
        return rule

    def __str__(self) -> str:
        """Say when, in a few words."""
        if self.every_ms:
            return f"every {self.every_ms / 1000:g} s"
        return self.cron if self.zone == DEFAULT_ZONE else f"{self.cron} {self.zone}"

    def next_after(self, at_ms: int) -> int | None:
        """Return the first tick strictly after an instant; None when it has ended.

        Raises:
            ConfigError: the zone or the expression means nothing on this machine.

        """
        tick = self._after(max(at_ms, self.start_ms - 1))
        return None if tick is None or self._is_over(tick) else tick

    def ticks(self, after_ms: int, upto_ms: int) -> Iterator[int]:
        """Yield the ticks later than one instant and not later than another, in order."""
        tick = self.next_after(after_ms)
        while tick is not None and tick <= upto_ms:
            yield tick
            tick = self.next_after(tick)

    def last_upto(self, at_ms: int, since_ms: int) -> int | None:
        """Return the latest tick not later than one instant and not before another."""
        last = self.next_after(since_ms - 1)
        if last is None or last > at_ms:
            return None
        # By halves: of a rule that ticks each second, there may be millions between.
        while last < at_ms:
            middle = (last + at_ms) // 2
            later = self.next_after(middle)
            if later is None or later > at_ms:
                at_ms = middle
            else:
                last = later
        return last

    def offset(self, name: str, tick_ms: int) -> int:
        """Return by how much the tick of a schedule is put off: 0 or more, under the jitter."""
        if not self.jitter_ms:
            return 0
        text = f"{name}\0{tick_ms}".encode()
        digest = hashlib.blake2b(text, digest_size=8, person=b"taskq-jitter").digest()
        return int.from_bytes(digest) % self.jitter_ms

    def due(self, name: str, tick_ms: int) -> int:
        """Return when the tick of a schedule falls due."""
        return tick_ms + self.offset(name, tick_ms)

    def _after(self, at_ms: int) -> int | None:
        if self.every_ms:
            # Counted from a fixed instant: no worker and no restart shifts it.
            past = (at_ms - self.start_ms) // self.every_ms
            return self.start_ms + (past + 1) * self.every_ms
        tick = next_match(self.cron, zone_of(self.zone), at_ms // 1000)
        return None if tick is None else tick * 1000

    def _is_over(self, tick_ms: int) -> bool:
        return 0 < self.end_ms < tick_ms


class Definition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A schedule as it is stored, signed. New fields go to the end, with a default."""

    rule: Rule
    # The call: as in `message.Envelope`, from which its options are taken.
    task: str
    serializer: str
    body: bytes
    overlap: Overlap = Overlap.ALLOW
    catch_up: CatchUp = CatchUp.LAST
    # Older ticks are not caught up; 0 is no limit.
    window_ms: int = 0
    priority: int | None = None
    # How long after it was enqueued a message may start; 0: for ever.
    expires_ms: int = 0
    timeout_ms: int | None = None
    hard_timeout_ms: int | None = None
    result_ttl_ms: int | None = None
    ignore_result: bool | None = None
    headers: dict[str, Any] | None = None
    # The module that declares it; empty for one made at run time.
    owner: str = ""
    created_ms: int = 0
    # How long after it was enqueued all of its work must have ended; 0: no matter.
    deadline_ms: int = 0

    def __repr__(self) -> str:
        """Name task and rule, and show no argument or header."""
        return f"Definition({self.task}, {self.rule})"


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What is to be done now about a schedule."""

    # The ticks to fire, in order.
    fire: tuple[int, ...]
    # The tick that comes after these; None when there is none.
    next: int | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Definition).decode


def sign(definition: Definition, name: str, seal: Seal) -> bytes:
    """Return the bytes of the schedule of that name; the seal is of `Domain.SCHEDULE`."""
    body = _encode(definition)
    return seal.stamp(name.encode(), body) + body


def renewed(raw: bytes, name: str, seal: Seal) -> bytes:
    """Return the same schedule, which was verified, signed with the newest key of the seal."""
    body = raw[_BODY_AT:]
    return seal.stamp(name.encode(), body) + body


def signer_of(raw: bytes) -> bytes:
    """Return the id of the key that it names."""
    return raw[1:_TAG_AT]


def read(raw: bytes, name: str, seal: Seal) -> Definition:
    """Return the schedule of that name in signed bytes.

    Raises:
        UnknownKey: they name a key that is not held here.
        BadSignature: they are not ours, or of another name.
        Unreadable: they are ours, and of a version that says what this one does not know.

    """
    body = rest_of(raw, _BODY_AT)
    seal.verify(raw[:_TAG_AT], name.encode(), body, raw[_TAG_AT:_BODY_AT])
    try:
        return _decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        msg = f"unreadable schedule: {str(error)[:200]}"
        raise Unreadable(msg) from error


def check_window(catch_up: CatchUp, window: Seconds | None) -> int:
    """Return how old a tick may be that is caught up, in ms; 0 is no limit."""
    if window is None:
        return 0
    window_ms = round(seconds("window", window) * 1000)
    if catch_up is CatchUp.NONE:
        msg = "catch_up='none' takes no window: it catches nothing up"
        raise ConfigError(msg)
    if window_ms < GRACE_MS:
        msg = f"window must be {GRACE_MS // 1000} s or more: up to that, a tick is on time"
        raise ConfigError(msg)
    return window_ms


def plan(definition: Definition, name: str, tick_ms: int, now_ms: int, *, limit: int = 100) -> Plan:
    """Return what to do now about a schedule whose next tick is `tick_ms`.

    Ticks on time are fired, whatever the policy says; of those that are missed, none, the
    latest one, or all. The latest is not fired beside one that is on time. If more than
    `limit` are to be fired, the next tick is the first of the others.
    """
    fire: list[int] = []
    for tick in _wanted(definition, name, tick_ms, now_ms):
        if len(fire) == limit:
            return Plan(tuple(fire), tick)
        fire.append(tick)
    return Plan(tuple(fire), _next(definition.rule, name, fire, tick_ms, now_ms))


def _wanted(definition: Definition, name: str, tick_ms: int, now_ms: int) -> Iterator[int]:
    """Yield the ticks to fire, from `tick_ms` on."""
    rule = definition.rule
    oldest = now_ms - definition.window_ms if definition.window_ms else 0
    if definition.catch_up is CatchUp.ALL:
        # What was put off by jitter may be as much younger than its tick.
        for tick in _due(rule, name, max(tick_ms, oldest - rule.jitter_ms), now_ms):
            if rule.due(name, tick) >= oldest:
                yield tick
        return
    recent = max(tick_ms, now_ms - GRACE_MS - rule.jitter_ms)
    on_time = [
        tick
        for tick in _due(rule, name, recent, now_ms)
        if rule.due(name, tick) >= now_ms - GRACE_MS
    ]
    yield from on_time
    if definition.catch_up is CatchUp.LAST and not on_time:
        last = _last_due(rule, name, tick_ms, now_ms)
        if last is not None and rule.due(name, last) >= oldest:
            yield last


def _due(rule: Rule, name: str, since_ms: int, now_ms: int) -> Iterator[int]:
    """Yield the ticks that are due, from an instant on, up to the first that is not."""
    for tick in rule.ticks(since_ms - 1, now_ms):
        if rule.due(name, tick) > now_ms:
            return
        yield tick


def _last_due(rule: Rule, name: str, since_ms: int, now_ms: int) -> int | None:
    """Return the latest of the ticks that are due, from an instant on."""
    last = rule.last_upto(now_ms - rule.jitter_ms, since_ms)
    later = since_ms if last is None else last + 1
    for later_tick in _due(rule, name, later, now_ms):
        last = later_tick
    return last


def _next(rule: Rule, name: str, fired: list[int], tick_ms: int, now_ms: int) -> int | None:
    """Return the first tick that is not due."""
    last = fired[-1] if fired else _last_due(rule, name, tick_ms, now_ms)
    return rule.next_after(tick_ms - 1 if last is None else last)


def _when(
    expression: str | None, every: Seconds | None, timezone: str | None
) -> tuple[str, int, str]:
    """Return the first three fields of a rule."""
    if (expression is None) == (every is None):
        msg = "a schedule needs cron= or every=, and not both"
        raise ConfigError(msg)
    if every is None:
        name = DEFAULT_ZONE if timezone is None else zone_of(timezone).key
        return check_expression(expression), 0, name
    if timezone is not None:
        msg = "timezone goes with cron=: a period is the same in every zone"
        raise ConfigError(msg)
    every_ms = round(seconds("every", every) * 1000)
    if not 1000 <= every_ms <= _MOST_MS:
        msg = f"every must be 1 second to ten years, not {every_ms / 1000:g} s"
        raise ConfigError(msg)
    return "", every_ms, DEFAULT_ZONE


def _instant(name: str, value: datetime) -> int:
    moment = round(aware(name, value).timestamp() * 1000)
    if moment <= 0:
        msg = f"{name} must be after 1970, not {value}"
        raise ConfigError(msg)
    return moment


def _check_span(rule: Rule) -> None:
    if rule.start_ms > clock.now_ms() + _MOST_MS:
        msg = "start is more than ten years away"
        raise ConfigError(msg)
    if not rule.end_ms:
        return
    if rule.end_ms <= rule.start_ms:
        msg = "end must be after start"
        raise ConfigError(msg)
    if rule.next_after(rule.start_ms - 1) is None:
        msg = "end comes before the first tick"
        raise ConfigError(msg)


def _check_jitter(rule: Rule) -> None:
    """Refuse a jitter that could bring one tick behind the next."""
    if not rule.jitter_ms:
        return
    gap = rule.every_ms or _smallest_gap(rule)
    if rule.jitter_ms > gap:
        msg = (
            f"jitter ({rule.jitter_ms / 1000:g} s) must not be longer than the time between "
            f"two ticks ({gap / 1000:g} s)"
        )
        raise ConfigError(msg)


def _smallest_gap(rule: Rule) -> int:
    gap, tick = _MOST_MS, rule.next_after(max(clock.now_ms(), rule.start_ms - 1))
    for _ in range(_LOOKED_AT):
        later = None if tick is None else rule.next_after(tick)
        if tick is None or later is None:
            break
        gap, tick = min(gap, later - tick), later
    return gap
