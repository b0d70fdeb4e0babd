"""Durations and instants as people give them: checked, then in milliseconds."""

from __future__ import annotations

import math
from datetime import datetime

from taskq.config import Seconds, seconds
from taskq.errors import ConfigError
from taskq.model import clock

# Ten years, in seconds.
FURTHEST = 3660 * 86_400.0


def aware(name: str, value: object) -> datetime:
    """Return an aware datetime.

    Raises:
        TypeError: not a datetime.
        ValueError: naive.

    """
    if not isinstance(value, datetime):
        msg = f"{name} must be a datetime, not {type(value).__name__}"
        raise TypeError(msg)
    if value.tzinfo is None or value.utcoffset() is None:
        msg = f"{name} must be an aware datetime: add tzinfo=, for example datetime.UTC"
        raise ValueError(msg)
    if not math.isfinite(value.timestamp()):  # pragma: no cover - out of datetime's range
        raise ValueError(name)
    return value


def check_duration(name: str, value: Seconds | None) -> None:
    """Raise `TypeError` or `ValueError` for what is no duration of at most ten years."""
    if value is not None and seconds(name, value) > FURTHEST:
        msg = f"{name} is more than ten years away"
        raise ValueError(msg)


def check_instant(name: str, value: datetime) -> None:
    """Raise `TypeError` or `ValueError` for what is no instant within ten years."""
    left = aware(name, value).timestamp() - clock.now()
    check_duration(name, max(0.0, left))  # one that is past will do


def check_limit(name: str, value: Seconds | datetime | None) -> None:
    """Do one or the other: a limit is a duration from now, or an instant."""
    if isinstance(value, datetime):
        check_instant(name, value)
    else:
        check_duration(name, value)


def check_due(countdown: Seconds | None, eta: datetime | None) -> None:
    """Raise for what is no time to run at; with both there would be two."""
    if countdown is not None and eta is not None:
        msg = "countdown and eta do not go together"
        raise ConfigError(msg)
    check_duration("countdown", countdown)
    if eta is not None:
        check_instant("eta", eta)


def due(countdown: Seconds | None, eta: datetime | None) -> str | None:
    """Return when to run, as the scripts want it: '+<ms>' or '<ms>'; None at once."""
    if countdown is not None:
        return f"+{round(seconds('countdown', countdown) * 1000)}"
    return None if eta is None else str(round(eta.timestamp() * 1000))


def limit_ms(name: str, value: Seconds | datetime | None) -> int:
    """Return a limit in milliseconds since the epoch; 0 is none."""
    if value is None:
        return 0
    if isinstance(value, datetime):
        return max(1, round(value.timestamp() * 1000))
    return clock.now_ms() + round(seconds(name, value) * 1000)
