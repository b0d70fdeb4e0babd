"""The ticks of a cron expression found the slow way: by watching a clock on a wall.

It shares nothing with the code it checks but zoneinfo: every instant is looked at, and no
time is calculated from another.
"""

from __future__ import annotations

import calendar
import dataclasses
import functools
import itertools
import zoneinfo
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

_NAMES = {
    name: at
    for names in (
        "sun mon tue wed thu fri sat",
        "- jan feb mar apr may jun jul aug sep oct nov dec",
    )
    for at, name in enumerate(names.split())
}


@dataclasses.dataclass(frozen=True)
class Expression:
    """A cron expression, read in the simplest way; no `L`, no `#`."""

    text: str

    @functools.cached_property
    def fields(self) -> list[str]:
        fields = self.text.split()
        return fields if len(fields) == 6 else ["0", *fields]

    def shows_a_time_of_day(self) -> bool:
        _, minute, hour, *_ = self.fields
        return not minute.startswith("*") and not hour.startswith("*")

    def matches(self, wall: datetime) -> bool:
        second, minute, hour, day, month, weekday = self.fields
        return (
            _has(minute, wall.minute, 0, 59)
            and _has(second, wall.second, 0, 59)
            and _has(hour, wall.hour, 0, 23)
            and _has(month, wall.month, 1, 12)
            and self._is_day(day, weekday, wall)
        )

    def _is_day(self, day: str, weekday: str, wall: datetime) -> bool:
        of_month = _has(day, wall.day, 1, 31)
        # Sunday is 0 and 7.
        numbers = {wall.isoweekday(), wall.isoweekday() % 7}
        of_week = any(_has(weekday, number, 0, 7) for number in numbers)
        if day.startswith("*") or weekday.startswith("*"):
            return of_month and of_week
        return of_month or of_week


@functools.cache
def _has(field: str, value: int, lowest: int, highest: int) -> bool:
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, dash, high = span.partition("-")
        first = lowest if low == "*" else _number(low)
        last = highest if low == "*" or (step and not dash) else _number(high or low)
        if first <= value <= last and (value - first) % int(step or 1) == 0:
            return True
    return False


def _number(text: str) -> int:
    return _NAMES[text.lower()] if text.isalpha() else int(text)


@dataclasses.dataclass(frozen=True)
class Film:
    """What a clock showed at every step of a span, instant by instant."""

    instants: Sequence[int]
    walls: Sequence[datetime]
    step: timedelta

    @classmethod
    def of(cls, zone: str, first: int, last: int, step: int = 60) -> Film:
        place = zoneinfo.ZoneInfo(zone)
        instants = range(first - first % step, last, step)
        walls = [datetime.fromtimestamp(at, place).replace(tzinfo=None, fold=0) for at in instants]
        return cls(instants, walls, timedelta(seconds=step))

    def ticks(self, expression: Expression) -> list[int]:
        if expression.shows_a_time_of_day():
            return list(self._once_a_day(expression))
        shown = zip(self.instants, self.walls, strict=True)
        return [at for at, wall in shown if expression.matches(wall)]

    def _once_a_day(self, expression: Expression) -> Iterator[int]:
        """Yield when the clock first shows, or steps over, a time that matches."""
        latest = self.walls[0] - self.step
        for at, wall in zip(self.instants, self.walls, strict=True):
            new = False
            while latest < wall:
                latest += self.step
                new = expression.matches(latest) or new
            if new:
                yield at


def changes(zone: str, first_year: int, years: int) -> list[int]:
    """Return every instant at which the clock of a zone was, or will be, changed."""
    place = zoneinfo.ZoneInfo(zone)

    def offset(at: int) -> timedelta | None:
        return datetime.fromtimestamp(at, place).utcoffset()

    start = calendar.timegm((first_year, 1, 1, 0, 0, 0))
    stop = calendar.timegm((first_year + years, 1, 1, 0, 0, 0))
    hours = [(at, offset(at)) for at in range(start, stop, 3600)]
    return [
        next(at for at in range(hour + 1, hour + 3601) if offset(at) != before)
        for (hour, before), (_, after) in itertools.pairwise(hours)
        if before != after
    ]


def shown(at: int, zone: str) -> str:
    """Say an instant as the clock of a zone shows it."""
    return (
        f"{datetime.fromtimestamp(at, zoneinfo.ZoneInfo(zone))} = {datetime.fromtimestamp(at, UTC)}"
    )
