"""Seconds on the command line."""

from __future__ import annotations

import math
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
