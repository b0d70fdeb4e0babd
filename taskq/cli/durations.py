"""Seconds and instants on the command line."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import click


class Duration(click.FloatRange):
    """A number of seconds in a range. NaN is in none, whatever its comparisons say."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail in click's way."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return number


class Instant(click.DateTime):
    """An instant in ISO 8601, with its offset: nobody need guess the zone that was meant."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the aware datetime, or fail in click's way."""
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no instant like 2030-01-31T07:00+01:00", param, ctx)
        if instant.tzinfo is None:
            self.fail(f"{value!r} says no offset: +01:00, or Z for UTC", param, ctx)
        return instant
