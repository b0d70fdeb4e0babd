"""What taskq wants to reach beside its peers, and whether a run says that it did."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Literal

from benchmarks.peers.summary import LEFT, METRICS, Comparison, Metric, Summary, figure

RIVALS = {
    "fastest": "the fastest peer",
    "safe": "the fastest that is safe",
    "celery": "Celery",
    "own": "taskq itself",
    "": "",
}


@dataclasses.dataclass(frozen=True)
class Bar:
    """A limit of one figure of one of our rows."""

    metric: str
    ours: str
    # Of the ratio to a peer, above 1 is better whatever the unit; else of the bare figure.
    against: Literal["fastest", "safe", "celery", "own", ""] = ""
    least: float | None = None
    most: float | None = None
    # Another figure of the same row, by which this one is divided: `own`.
    base: str = ""
    # Where no more than this was left of the processors, in percent, the bar does not count.
    unless_left: float | None = None

    @property
    def wanted(self) -> str:
        word, limit = (">=", self.least) if self.most is None else ("<=", self.most)
        or_full = (
            "" if self.unless_left is None else f", or processors left < {self.unless_left:g} %"
        )
        return f"{word} {limit:g}{or_full}"

    def reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


BARS = (
    Bar("enqueue one", "taskq", "fastest", least=1.25),
    Bar("enqueue one", "taskq", "celery", least=5),
    Bar("enqueue threads", "taskq", "fastest", least=2),
    Bar("enqueue gather", "taskq async", "fastest", least=2),
    Bar("enqueue bulk", "taskq", "fastest", least=2),
    Bar("drain", "taskq", "safe", least=4),
    Bar("drain", "taskq, 1 thread", "safe", least=4),
    Bar("drain", "taskq", "celery", least=80),
    Bar("drain", "taskq async", "fastest", least=5),
    Bar("drain_off", "taskq", "own", least=1.2, base="drain"),
    Bar("drain_two", "taskq", "fastest", least=2),
    Bar("drain_two", "taskq", "own", least=1.3, base="drain", unless_left=5),
    Bar("round_trip p50", "taskq", "fastest", least=2),
    Bar("round_trip p50", "taskq async", "fastest", least=2),
    Bar("round_trip p99", "taskq", "own", most=5, base="round_trip p50"),
    Bar("round_trip p99", "taskq async", "own", most=5, base="round_trip p50"),
    Bar("together", "taskq", "fastest", least=3),
    Bar("sleeps", "taskq", most=1.1),
    Bar("sleeps", "taskq async", most=1.1),
    Bar("cpu", "taskq", least=92),
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A bar, and what each round says of it."""

    bar: Bar
    rounds: Sequence[float] = ()
    rival: str = ""
    # The median of what was left of the processors, where the bar asks for it.
    left: float | None = None

    @property
    def title(self) -> str:
        return _metric(self.bar.metric).title

    @property
    def words(self) -> str:
        """Return 'met', 'missed' or 'not measured', and how sure that is."""
        if not self.rounds:
            return "not measured"
        limit = self.bar.unless_left
        if limit is not None and self.left is not None and self.left < limit:
            return f"met: {figure(self.left)} % left"
        reached = self.bar.reached(statistics.median(self.rounds))
        sure = all(self.bar.reached(one) == reached for one in self.rounds)
        return ("met" if reached else "missed") + ("" if sure else ", not in every round")

    @property
    def told(self) -> str:
        """Return the median, and to whom it is a ratio."""
        if not self.rounds:
            return "?"
        median = figure(statistics.median(self.rounds))
        return f"{median} of {self.against}" if self.bar.against else median

    @property
    def against(self) -> str:
        bar = self.bar
        if bar.against == "own":
            return f"its own: {_metric(bar.base).title}"
        words = RIVALS[bar.against]
        return f"{words}: {self.rival}" if self.rival and words != self.rival else words


def verdicts(summary: Summary) -> list[Verdict]:
    """Hold a run against all bars."""
    comparisons = {(one.metric.id, one.ours): one for one in summary.comparisons()}
    return [_verdict(summary, comparisons.get((bar.metric, bar.ours)), bar) for bar in BARS]


def _verdict(summary: Summary, comparison: Comparison | None, bar: Bar) -> Verdict:
    if comparison is None:
        return Verdict(bar)
    if bar.against in ("own", ""):
        rounds = summary.rounds(bar.metric, bar.ours)
        base = summary.rounds(bar.base, bar.ours) if bar.base else dict.fromkeys(rounds, 1.0)
        found = [value / base[number] for number, value in rounds.items() if number in base]
        left = list(summary.rounds(LEFT.id, bar.ours).values())
        return Verdict(bar, found, left=statistics.median(left) if left else None)
    ratio = {
        "fastest": comparison.fastest,
        "safe": comparison.fastest_safe,
        "celery": comparison.against("celery"),
    }[bar.against]
    return Verdict(bar, ratio.rounds, ratio.rival) if ratio else Verdict(bar)


def _metric(id: str) -> Metric:
    return next(metric for metric in METRICS if metric.id == id)
