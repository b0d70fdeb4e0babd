"""The plots of a report, made where matplotlib is.

`python -m benchmarks.peers.plots DATA FOLDER`
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.catalog import OURS, named
from benchmarks.peers.summary import METRICS, Metric, Summary

FIGURES = {
    "enqueue.svg": METRICS[0:4],
    "drain.svg": METRICS[4:7],
    "latency.svg": METRICS[7:10],
    "sleeps-and-cpu.svg": METRICS[10:],
}
RATIOS = "ratios.svg"
NAMES = (RATIOS, *FIGURES)
OUR_COLOUR, SAFE_COLOUR, UNSAFE_COLOUR = "#c0392b", "#34495e", "#b2bec3"


def draw(data: Any, folder: Path) -> None:
    """Write all of them into the folder."""
    import matplotlib as mpl  # noqa: PLC0415  # only the environment of the plots has it

    mpl.use("svg")
    # The same data, the same file.
    mpl.rcParams.update({"svg.hashsalt": "taskq", "svg.fonttype": "none", "font.size": 9})
    summary = Summary(data["measurements"])
    _draw_ratios(summary, folder / RATIOS)
    for name, metrics in FIGURES.items():
        _draw_bars(summary, metrics, folder / name)


def _draw_ratios(summary: Summary, path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    shown = [one for one in summary.comparisons() if one.fastest]
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(shown) + 1.2), layout="constrained")
    for at, one in enumerate(reversed(shown)):
        fastest = one.fastest
        if fastest is None:
            continue
        middle = fastest.median
        lengths = [[middle - min(fastest.rounds)], [max(fastest.rounds) - middle]]
        axes.errorbar(middle, at, xerr=lengths, fmt="o", color=OUR_COLOUR, capsize=3)
        axes.annotate(
            f"{middle:.2g} x {fastest.rival}", (middle, at), (6, 5), textcoords="offset points"
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_yticks(range(len(shown)), [f"{one.metric.title} ({one.ours})" for one in shown[::-1]])
    axes.set_title("taskq against the fastest peer of each workload (right of 1: taskq is better)")
    _save(figure, path)


def _draw_bars(summary: Summary, metrics: Sequence[Metric], path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    shown = [metric for metric in metrics if summary.peers(metric)]
    if not shown:
        return
    heights = [len(summary.peers(metric)) + 2 for metric in shown]
    figure, grid = plt.subplots(
        len(shown),
        figsize=(9, 0.25 * sum(heights) + 0.5),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, metric in zip(grid[:, 0], shown, strict=True):
        _draw_metric(axes, summary, metric)
    _save(figure, path)


def _draw_metric(axes: Any, summary: Summary, metric: Metric) -> None:
    names = [peer.name for peer in summary.peers(metric)][::-1]
    rounds = [summary.values(metric, name) for name in names]
    medians = [statistics.median(values) for values in rounds]
    low = [middle - min(values) for middle, values in zip(medians, rounds, strict=True)]
    high = [max(values) - middle for middle, values in zip(medians, rounds, strict=True)]
    axes.barh(names, medians, xerr=(low, high), color=[_colour(name) for name in names])
    axes.set_xscale("log")
    better = "more" if metric.higher else "less"
    axes.set_title(
        f"{metric.title}: {metric.unit}, {better} is better (pale: not safe)", loc="left"
    )


def _colour(name: str) -> str:
    peer = named(name)
    if peer.project == OURS:
        return OUR_COLOUR
    return SAFE_COLOUR if peer.safe else UNSAFE_COLOUR


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
