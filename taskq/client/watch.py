"""The plan of a wait, without waiting: what to ask Redis next, and when to pause.

`follow` is a generator of steps; one driver carries them out blocking, another awaits
them. Thus both wait by the same rules.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import msgspec

from taskq.broker import commands, keys, queries, records
from taskq.broker.commands import Command
from taskq.client.unread import Unread
from taskq.client.waiter import Wait, Waiter
from taskq.errors import BrokerUnavailable
from taskq.model import clock

log = logging.getLogger("taskq.client")

# How many subscriptions one wait keeps open, and how many records one read asks for.
WINDOW = 1000
# A publish can be lost with its connection; then this is how late we notice.
REREAD_SECONDS = 4.0
# After so long without an outcome we look whether any worker is there, and warn.
PATIENCE_SECONDS = 3.0
# What was sent so short a time ago is hardly over: to be told costs less than to ask.
_HARDLY_SECONDS = 0.002


class Followed(Protocol):
    """A result, as far as a wait knows it."""

    app: Any
    place: str
    wire_id: str

    @property
    def app_name(self) -> str: ...
    @property
    def id(self) -> str: ...
    # Whether nothing more can come.
    @property
    def settled(self) -> bool: ...

    # Begin a new wait.
    def look_again(self) -> None: ...

    # Take the record; return whether it is terminal, or gone.
    def settle(self, raw: bytes | None) -> bool: ...


F = TypeVar("F", bound=Followed)


class Ask(msgspec.Struct, frozen=True):
    """Send a command; the reply is wanted back, or the error where Redis is away."""

    arguments: tuple[Any, ...]
    # For so many seconds it is waited for that a reply begins.
    within: float


class Run(msgspec.Struct, frozen=True):
    """Run a script call; as `Ask`."""

    command: Command[Any]
    within: float


class Pause(msgspec.Struct, frozen=True):
    """Wait so many seconds, or until notified."""

    seconds: float


class Settled(msgspec.Struct, Generic[F], frozen=True):
    """This result is terminal now."""

    result: F


Step: TypeAlias = Ask | Run | Pause | Settled[F]
Steps: TypeAlias = Generator[Step[F], Any, None]


class _Window(Generic[F]):
    """The results followed at the moment, by channel; two handles may share one."""

    def __init__(self, waiter: Waiter) -> None:
        self.open: dict[bytes, list[F]] = {}
        self.unread = Unread(waiter.node_of)
        # Wall time in ms after which a message cannot start any more.
        self.expiries: dict[bytes, int] = {}

    def settle(self, channel: bytes, raw: bytes | None) -> list[F]:
        """Return the results that are terminal now."""
        results = self.open.get(channel, [])
        over = [one.settle(raw) for one in results]
        if results and all(over):
            del self.open[channel]
            self.expiries.pop(channel, None)
            return results
        if results and raw is not None and raw[:1] in b"QSY":
            expires = int(records.parse(raw).label[8:])
            if expires:
                self.expiries[channel] = expires
        return []


def channel_of(result: Followed) -> bytes:
    """Return the channel on which the outcome is published."""
    return keys.done(result.app_name, result.place, result.wire_id).encode()


def follow(waiter: Waiter, results: Iterable[F], wait: Wait) -> Steps[F]:
    """Settle each result once, as outcomes come; the order is theirs.

    What is known is handed out before anything is asked, and one queue is asked at a time.
    """
    rest, window = deque(results), _Window[F](waiter)
    patience = clock.monotonic() + PATIENCE_SECONDS
    reread_at = clock.monotonic() + REREAD_SECONDS
    try:
        while rest or window.open:
            unread = _refill(rest, window)
            if unread:
                window.unread.add_new(unread)
                wait.lingers = _sent_just_now(window.open[unread[0]][0])
                if wait.lingers and len(unread) == 1:
                    waiter.hurry(wait.owner)
                late = set(wait.unconfirmed)
                waiter.subscribe(unread, wait)
                yield from _linger(wait)
                yield from _confirmed(window, wait, late, reread_at)
            if wait.missed or clock.monotonic() > reread_at:
                wait.missed = False
                reread_at = clock.monotonic() + REREAD_SECONDS
                window.unread.begin_round(window.open)
            settled = _news(window, wait)
            yield from _hand_out(settled, waiter, wait)
            if window.unread:
                settled += (read := (yield from _read(window)))
                yield from _hand_out(read, waiter, wait)
            if settled or window.unread or (rest and len(window.open) < WINDOW):
                continue
            if clock.monotonic() > patience:
                patience = float("inf")
                yield from _complain(window)
            yield from _expire(window)
            if window.open and not wait.news:
                yield Pause(_nap(window, min(reread_at, patience)))
    finally:
        waiter.unsubscribe(list(window.open), wait)
        waiter.leave(wait)


def poll(waiter: Waiter, results: Iterable[F]) -> Steps[F]:
    """Settle what is over already; wait for nothing."""
    rest, window = deque(results), _Window[F](waiter)
    while rest:
        window.unread.add_new(_refill(rest, window))
        while window.unread:
            for result in (yield from _read(window)):
                yield Settled(result)
        window.open.clear()


def _confirmed(window: _Window[F], wait: Wait, late: set[Waiter], until: float) -> Steps[F]:
    """Pause until subscriptions are confirmed, but of who was late before; not too long."""
    began = clock.monotonic()
    while set(wait.unconfirmed) - late:
        # Redis may be away: then the reads that follow say so, or wait for it.
        yield Pause(0.5)
        if clock.monotonic() > min(until, began + window.unread.within):
            break
    wait.early.update(wait.unconfirmed)


def _hand_out(settled: list[F], waiter: Waiter, wait: Wait) -> Steps[F]:
    waiter.unsubscribe({channel_of(result) for result in settled}, wait)
    for result in settled:
        yield Settled(result)


def _refill(rest: deque[F], window: _Window[F]) -> list[bytes]:
    added: list[bytes] = []
    while rest and len(window.open) < WINDOW:
        result = rest.popleft()
        channel = channel_of(result)
        if channel not in window.open:
            added.append(channel)
        window.open.setdefault(channel, []).append(result)
    return added


def _read(window: _Window[F]) -> Generator[Step[F], Any, list[F]]:
    """Read the records of the next queue."""
    base, channels = window.unread.take()
    group = [channel for channel in channels if channel in window.open]
    if not group:
        return []
    firsts = [window.open[channel][0] for channel in group]
    names = [keys.record(one.app_name, one.place, one.wire_id) for one in firsts]
    replies = yield Ask(("MGET", *names), window.unread.within)
    answered = not isinstance(replies, BrokerUnavailable)
    window.unread.note(base, answered=answered)
    settled: list[F] = []
    for channel, raw in zip(group, replies if answered else (), strict=answered):
        settled += window.settle(channel, raw)
    return settled


def _news(window: _Window[F], wait: Wait) -> list[F]:
    """Take what was published; large outcomes must still be read."""
    settled: list[F] = []
    while wait.news:
        channel, payload = wait.news.popleft()
        if len(payload) == 1:
            window.unread.add([channel])
        else:
            settled += window.settle(channel, payload)
    return settled


def _expire(window: _Window[F]) -> Steps[F]:
    """Resolve what did not start in time, though no worker pops it."""
    now = clock.now_ms()
    for channel, expires in list(window.expiries.items()):
        if expires <= now and channel in window.open:
            del window.expiries[channel]
            one = window.open[channel][0]
            command = commands.expire(keys.base(one.app_name, one.place), one.wire_id)
            reply = yield Run(command, window.unread.within)
            if isinstance(reply, BrokerUnavailable):
                return  # news first


def _complain(window: _Window[F]) -> Steps[F]:
    places = {(ones[0].app_name, ones[0].place) for ones in window.open.values()}
    told: set[tuple[str, str]] = set()
    for app, place in sorted(places):
        queue = keys.queue_of(place)
        if (app, queue) in told:
            continue  # of another partition
        survey = yield Run(queries.survey(keys.base(app, place), queue), window.unread.within)
        if isinstance(survey, BrokerUnavailable):
            return
        if isinstance(survey, queries.Survey) and not survey.workers:
            told.add((app, queue))
            hint = "" if queue == "default" else f" -Q {queue}"
            log.warning(
                "no live worker serves the queue %r: start one with `taskq worker -A <module>%s`",
                queue,
                hint,
            )


def _linger(wait: Wait) -> Steps[Any]:
    """Let what was sent just now be told, before it is asked for."""
    if wait.lingers:
        yield Pause(_HARDLY_SECONDS)
        wait.lingers = False


def _sent_just_now(result: Followed) -> bool:
    """Whether the id was made just now: a UUIDv7 begins with the time."""
    return 0 <= clock.now_ms() - int(result.wire_id[:12], 16) <= 1000 * _HARDLY_SECONDS


def _nap(window: _Window[F], until: float) -> float:
    seconds = until - clock.monotonic()
    if window.expiries:
        seconds = min(seconds, (min(window.expiries.values()) - clock.now_ms()) / 1000)
    return max(0.001, seconds)
