"""Rounds of measurements become a table: medians, spreads, ratios."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from rich.table import Table


@dataclasses.dataclass
class Row:
    """One line of the table: what each round measured."""

    name: str
    unit: str
    bar: str
    ours: list[float] = dataclasses.field(default_factory=list)
    bare: list[float] = dataclasses.field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """One for each round: the machine's drift from round to round drops out."""
        if not self.bare:
            return []
        return [ours / bare for ours, bare in zip(self.ours, self.bare, strict=True)]

    def as_dict(self) -> dict[str, object]:
        """Return everything measured, for a file."""
        return {**dataclasses.asdict(self), "ratios": self.ratios}


def table(rows: Sequence[Row]) -> Table:
    """Return what people read: medians, and how far the rounds lie apart."""
    shown = Table(caption="medians of the rounds; the range is that of the rounds' ratios")
    shown.add_column("")
    shown.add_column("")
    for heading in ("taskq", "bare", "ratio", "range", "wanted"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ratios = row.ratios
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}" if ratios else ""
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        shown.add_row(
            row.name, row.unit, _median(row.ours), _median(row.bare), ratio, spread, row.bar
        )
    return shown


def _median(values: Sequence[float]) -> str:
    if not values:
        return ""
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
