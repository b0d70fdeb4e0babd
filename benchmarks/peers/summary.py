"""Measurements become medians and ratios; whatever is said about them is said here."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.catalog import OURS, PEERS, named
from benchmarks.peers.peer import Peer


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a workload."""

    id: str
    title: str
    unit: str
    # Is more of it better?
    higher: bool = True

    @property
    def workload(self) -> str:
        return self.id.partition(" ")[0]


METRICS = (
    Metric("enqueue one", "W1: enqueue, one call at a time", "calls/s"),
    Metric("enqueue threads", "W1: enqueue, 8 threads of one producer", "calls/s"),
    Metric("enqueue gather", "W1: enqueue, 100 awaited at once", "calls/s"),
    Metric("enqueue bulk", "W1: enqueue, in bulk", "calls/s"),
    Metric("drain", "W2: drain, results kept, one process", "tasks/s"),
    Metric("drain_off", "W2: drain, no results, one process", "tasks/s"),
    Metric("drain_two", "W2: drain, results kept, two processes", "tasks/s"),
    Metric("round_trip p50", "W3: round trip, idle worker, p50", "ms", higher=False),
    Metric("round_trip p99", "W3: round trip, idle worker, p99", "ms", higher=False),
    Metric("together", "W4: produce, run and gather", "tasks/s"),
    Metric("sleeps", "W5: sleeps of 50 ms, 100 slots", "x ideal", higher=False),
    Metric("cpu", "W6: 5 ms of CPU, two processes", "% of ideal"),
)
LEFT = Metric("drain_two left", "processors left", "%", higher=False)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as good the one was as the other: above 1 is better, whatever the unit."""

    rival: str
    rounds: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One of our rows beside its rivals, at one metric."""

    metric: Metric
    ours: str
    value: float
    ratios: Sequence[Ratio]

    @property
    def fastest(self) -> Ratio | None:
        """The rival that came nearest, or went ahead."""
        return min(self.ratios, key=lambda one: one.median, default=None)

    @property
    def fastest_safe(self) -> Ratio | None:
        safe = [one for one in self.ratios if named(one.rival).safe]
        return min(safe, key=lambda one: one.median, default=None)

    def against(self, project: str) -> Ratio | None:
        rows = [one for one in self.ratios if named(one.rival).project == project]
        return min(rows, key=lambda one: one.median, default=None)

    @property
    def ahead(self) -> Sequence[Ratio]:
        """Those rivals whose median is better than ours."""
        return sorted((one for one in self.ratios if one.median < 1), key=lambda one: one.median)


class Summary:
    """The measurements of one run, as the runner's data has them."""

    def __init__(self, measurements: Sequence[Mapping[str, Any]]) -> None:
        self._measurements = measurements
        self._rounds: dict[tuple[str, str], dict[int, float]] = {}
        for one in measurements:
            for metric, value in one["figures"].items():
                self._rounds.setdefault((metric, one["peer"]), {})[one["round"]] = value

    def peers(self, metric: Metric) -> list[Peer]:
        """Return who has this figure, the best first."""
        having = [peer for peer in PEERS if (metric.id, peer.name) in self._rounds]
        return sorted(
            having, key=lambda peer: self.median(metric, peer.name), reverse=metric.higher
        )

    def rounds(self, metric: str, peer: str) -> Mapping[int, float]:
        """Return a figure by round."""
        return self._rounds.get((metric, peer), {})

    def values(self, metric: Metric, peer: str) -> list[float]:
        return list(self.rounds(metric.id, peer).values())

    def median(self, metric: Metric, peer: str) -> float:
        return statistics.median(self.values(metric, peer))

    def ratio(self, metric: Metric, ours: str, rival: str) -> Ratio | None:
        """Compare inside each round: the machine's drift from round to round drops out."""
        mine, theirs = self.rounds(metric.id, ours), self.rounds(metric.id, rival)
        found = [
            mine[number] / theirs[number] if metric.higher else theirs[number] / mine[number]
            for number in mine
            if number in theirs
        ]
        return Ratio(rival, found) if found else None

    def comparisons(self) -> list[Comparison]:
        """Return each of our rows beside the peers; coroutines beside coroutines."""
        found = []
        for metric in METRICS:
            having = self.peers(metric)
            for ours in PEERS:
                if ours.project != OURS or ours not in having:
                    continue
                rivals = [
                    self.ratio(metric, ours.name, peer.name)
                    for peer in having
                    if peer.project != OURS and (ours.kind in {"def", peer.kind})
                ]
                ratios = [one for one in rivals if one]
                value = self.median(metric, ours.name)
                found.append(Comparison(metric, ours.name, value, ratios))
        return found

    def commands(self, where: str, peer: str) -> dict[str, float]:
        """Return commands and reads for one task, the medians of the rounds."""
        rounds = [
            one["commands"][where]
            for one in self._measurements
            if one["peer"] == peer and where in one["commands"]
        ]
        names = {name: None for one in rounds for name in one}
        return {name: statistics.median(one.get(name, 0.0) for one in rounds) for name in names}

    def failures(self) -> dict[tuple[str, str], list[str]]:
        """Return what went wrong, by peer and workload."""
        found: dict[tuple[str, str], list[str]] = {}
        for one in self._measurements:
            if one["error"]:
                found.setdefault((one["peer"], one["workload"]), []).append(one["error"])
        return found


def figure(value: float) -> str:
    """Return a number as people read it: three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
