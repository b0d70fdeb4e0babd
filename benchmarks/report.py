"""Rounds of measurements become a table: ratios, bars, medians."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from rich.table import Table

from benchmarks.case import ROOM, Case, Line

CAPTION = (
    "medians of the rounds; a ratio is taskq's figure by the other one, taken inside each "
    "round, the range that of the rounds; 'of it': the bar is on the ratio, else on taskq's "
    "figure; 'met, or': another line makes up for it"
)
WRITTEN = """\
Written by `python -m benchmarks --write`, and made anew by running that. What each line is and how
it was measured stands in [benchmarks](../../benchmarks/README.md)."""
HEADS = ("", "ratio", "range", "wanted", "", "taskq", "the other", "which is")
COLOURS = {"met": "green", "missed": "red"}


@dataclasses.dataclass
class Row:
    """One line of the table: what each round measured."""

    line: Line
    against: str = ""
    ours: list[float] = dataclasses.field(default_factory=list)
    bare: list[float] = dataclasses.field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """One for each round: the machine's drift from round to round drops out."""
        pairs = zip(self.ours, self.bare, strict=False)
        return [ours / bare for ours, bare in pairs if bare and math.isfinite(ours / bare)]

    @property
    def judged(self) -> float:
        """The median that the bar is about; NaN where there is none."""
        bar = self.line.bar
        figures = self.ours if bar is not None and bar.of == "value" else self.ratios
        return _finite_median(figures)

    def as_dict(self) -> dict[str, object]:
        """Return everything measured, for a file."""
        bar = self.line.bar
        return {
            "name": self.line.name,
            "unit": self.line.unit,
            "bar": str(bar) if bar else "",
            "against": self.against,
            "ours": self.ours,
            "bare": self.bare,
            "ratios": self.ratios,
        }


def rows_of(case: Case) -> list[Row]:
    return [Row(line, case.against) for line in case.lines]


def verdicts(rows: Sequence[Row]) -> dict[str, str]:
    """Return 'met', 'missed', 'no processor left' or 'not measured' for lines that have a bar."""
    named = {row.line.name: row for row in rows}
    return {name: _verdict(row, named) for name, row in named.items() if row.line.bar}


def _verdict(row: Row, named: dict[str, Row]) -> str:
    bar = row.line.bar
    if bar is None or math.isnan(row.judged):
        return "not measured"
    if bar.room:
        idle = _finite_median(named[bar.room].bare)
        if not idle >= ROOM:
            return "not measured" if math.isnan(idle) else f"no processor left: {idle:.0f} % idle"
    if bar.met(row.judged):
        return "met"
    other = named.get(bar.unless)
    instead = other is not None and other.line.bar is not None and other.line.bar.met(other.judged)
    return "met, or" if instead else "missed"


def table(rows: Sequence[Row]) -> Table:
    """Return what people read."""
    told = verdicts(rows)
    shown = Table(caption=CAPTION)
    shown.add_column(HEADS[0])
    for heading in HEADS[1:-1]:
        shown.add_column(heading, justify="right", no_wrap=bool(heading))
    shown.add_column(HEADS[-1])
    for row in rows:
        verdict = told.get(row.line.name, "")
        shown.add_row(*_cells(row, verdict), style=COLOURS.get(verdict.partition(" ")[0]))
    return shown


def _cells(row: Row, verdict: str) -> list[str]:
    ratios, unit = row.ratios, row.line.unit
    spread = f"{min(ratios):.2f} .. {max(ratios):.2f}" if len(ratios) > 1 else ""
    ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
    bar = str(row.line.bar or "")
    ours, bare = (f"{_median(one)} {unit}" if one else "" for one in (row.ours, row.bare))
    return [row.line.name, ratio, spread, bar, verdict, ours, bare, row.against]


def markdown(rows: Sequence[Row], conditions: str, summary: str) -> str:
    """Return the same as a page."""
    told = verdicts(rows)
    cells = [_cells(row, told.get(row.line.name, "")) for row in rows]
    lines = (HEADS, ["---"] * len(HEADS), *cells)
    parts = [
        "# taskq beside a bare prototype, and its bars",
        WRITTEN,
        f"{conditions}\n\n{summary}",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        f"The table shows {CAPTION}.",
    ]
    return "\n\n".join(parts) + "\n"


def tally(rows: Sequence[Row]) -> str:
    """Return how many bars were met, in words."""
    told = list(verdicts(rows).values())
    met = sum(one.startswith("met") for one in told)
    text = f"{met} of {len(told)} bars met"
    for word in ("not measured", "no processor left"):
        count = sum(one.startswith(word) for one in told)
        text += f", {count} {word}" if count else ""
    return text


def _finite_median(values: Sequence[float]) -> float:
    finite = [one for one in values if math.isfinite(one)]
    return statistics.median(finite) if finite else math.nan


def _median(values: Sequence[float]) -> str:
    value = _finite_median(values)
    if math.isnan(value):
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
