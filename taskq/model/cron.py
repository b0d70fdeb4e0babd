"""Cron expressions on the clock of a zone: the next instant that one names.

cronsim reads an expression and walks the calendar, without a zone. What it means that a
clock is put forward or back is decided here, by the rule of Debian's cron:

- An expression with a fixed minute and a fixed hour names times of day. One that the
  clock skips is due at the first instant after the gap; one that it shows twice is due
  the first time.
- Where the minute or the hour begins with `*`, it is due whenever the clock shows it: not
  in an hour that is skipped, and in both that have one name.

All instants are whole seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

from taskq.config import nearest
from taskq.errors import ConfigError

# Imported by the two functions that need them, and for types here: a twentieth of what
# `import taskq` takes, and most programs have no cron expression.
if TYPE_CHECKING:
    import zoneinfo

DEFAULT_ZONE = "UTC"
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = "minute hour day-of-month month day-of-week, with seconds before them if six"
_LONGEST = 256
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - what a clock on a wall shows
_SECOND = timedelta(seconds=1)
# No two changes of one clock are as near to each other.
_DAY = 86_400
# 1 January 9900: datetime's last year is 9999, and an expression is looked for in 50.
_END = 250_246_627_200


def check_expression(expression: object) -> str:
    """Return a cron expression in its plain form: an alias spelled out, single spaces.

    Raises:
        TypeError: not a str.
        ConfigError: no cron expression, or one that never comes.

    """
    if not isinstance(expression, str):
        msg = f"cron must be a str, not {type(expression).__name__}"
        raise TypeError(msg)
    plain = " ".join(expression.split())
    if len(plain) > _LONGEST:
        msg = f"cron has {len(plain):,} characters; at most {_LONGEST}"
        raise ConfigError(msg)
    if plain.startswith("@"):
        if plain.lower() not in ALIASES:
            msg = f"cron {expression!r:.140}: unknown alias{nearest(plain.lower(), ALIASES)}"
            raise ConfigError(msg)
        return ALIASES[plain.lower()]
    comes = next(_walk(plain, _EPOCH), None)
    if comes is None:
        msg = f"cron {expression!r:.140}: no such day within 50 years"
        raise ConfigError(msg)
    return plain


def zone_of(name: object) -> zoneinfo.ZoneInfo:
    """Return the zone of an IANA name.

    Raises:
        TypeError: not a str.
        ConfigError: no such zone.

    """
    if not isinstance(name, str):
        msg = f"timezone must be a str such as 'Europe/Berlin', not {type(name).__name__}"
        raise TypeError(msg)
    import zoneinfo  # noqa: PLC0415 - see above

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        hint = nearest(name[:140], zoneinfo.available_timezones())
        msg = f"unknown timezone {name[:140]!r}{hint}"
        raise ConfigError(msg) from None


def next_match(expression: str, place: zoneinfo.ZoneInfo, at: int) -> int | None:
    """Return the first instant after `at` that an expression names, or None.

    Raises:
        ConfigError: this version of cronsim cannot read it.

    """
    if at >= _END:
        return None
    minute, hour = expression.split()[-5:-3]
    if minute.startswith("*") or hour.startswith("*"):
        return _whenever_shown(expression, place, at)
    return _once_a_day(expression, place, at)


def _whenever_shown(expression: str, place: tzinfo, at: int) -> int | None:
    """Go by what the clock shows, from one change of it to the next."""
    after = at
    while True:
        offset = _offset(place, at)
        shown = next(_walk(expression, _clock(after + offset)), None)
        if shown is None:
            return None
        moment = _count(shown) - offset
        change = _next_change(place, at, moment)
        if change is None:
            return moment
        # On with the new offset; the instant of the change may itself be meant.
        at, after = change, change - 1


def _once_a_day(expression: str, place: tzinfo, at: int) -> int | None:
    """Go by the calendar, each of whose times is one instant."""
    start = _count(datetime.fromtimestamp(at, place).replace(tzinfo=None))
    if datetime.fromtimestamp(at, place).fold:
        # The clock shows for the second time what was done the first time: it goes on
        # with the time at which the clock was put back.
        first = _first_instant(place, _clock(start))
        change = _change(place, first, at)
        start = change + _offset(place, first) - 1
    for shown in _walk(expression, _clock(start)):
        moment = _first_instant(place, shown)
        if moment > at:
            return moment
    return None


def _first_instant(place: tzinfo, shown: datetime) -> int:
    """Return when a clock first shows a time or, if it skips it, the end of the gap."""
    local = shown.replace(tzinfo=place)
    # PEP 495: by the clock of before the change, and by that of after it.
    before, after = (_count(shown) - _seconds(local.replace(fold=fold)) for fold in (0, 1))
    return _change(place, after, before) if after < before else before


def _next_change(place: tzinfo, low: int, high: int) -> int | None:
    """Return the first instant of a new offset, after `low` and up to `high`, or None."""
    offset = _offset(place, low)
    while low < high:
        probe = min(low + _DAY, high)
        if _offset(place, probe) != offset:
            return _change(place, low, probe)
        low = probe
    return None


def _change(place: tzinfo, low: int, high: int) -> int:
    """Return the first instant of the offset that holds at `high` and not at `low`."""
    offset = _offset(place, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(place, middle) == offset:
            low = middle
        else:
            high = middle
    return high


def _walk(expression: str, shown: datetime) -> Iterator[datetime]:
    """Yield the times after one, on a clock that is never changed."""
    from cronsim import CronSim, CronSimError  # noqa: PLC0415 - see above

    try:
        return CronSim(expression, shown)
    except (CronSimError, AssertionError) as error:
        why = str(error) or "Bad field"
        msg = f"cron {expression!r:.140}: {why[0].lower()}{why[1:]}; its fields: {_FIELDS}"
        raise ConfigError(msg) from None


def _offset(place: tzinfo, at: int) -> int:
    return _seconds(datetime.fromtimestamp(at, place))


def _seconds(local: datetime) -> int:
    return (local.utcoffset() or timedelta()) // _SECOND


def _clock(count: int) -> datetime:
    return _EPOCH + timedelta(seconds=count)


def _count(shown: datetime) -> int:
    return (shown - _EPOCH) // _SECOND
