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
from benchmarks.peers.summary import METRICS, Metric, Summary, figure

FIGURES = {
    "enqueue.svg": METRICS[0:4],
    "drain.svg": METRICS[4:7],
    "latency.svg": METRICS[7:10],
    "sleeps-and-cpu.svg": METRICS[10:],
}
RATIOS = "ratios.svg"
NAMES = (RATIOS, *FIGURES)
OUR_COLOUR, THEIR_COLOUR = "#c0392b", "#34495e"


def draw(data: Any, folder: Path) -> None:
    """Write all of them into the folder."""
    import matplotlib as mpl  # noqa: PLC0415  # only the environment of the plots has it

    mpl.use("svg")
    # The same data, the same file.
    mpl.rcParams.update({"svg.hashsalt": "taskq", "svg.fonttype": "none", "font.size": 9})
    summary = Summary(data["measurements"])
    _draw_ratios(summary, folder / RATIOS)
    for name, metrics in FIGURES.items():
        _draw_metrics(summary, metrics, folder / name)


def _draw_ratios(summary: Summary, path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    shown = summary.comparisons()[::-1]
    sheet, axes = plt.subplots(figsize=(9, 0.34 * len(shown) + 1), layout="constrained")
    for at, one in enumerate(shown):
        for ratio, face in ((one.fastest_safe, "none"), (one.fastest, OUR_COLOUR)):
            if ratio:
                _draw_point(axes, at, ratio.rounds, OUR_COLOUR, face)
        if one.fastest:
            label = f"{figure(one.fastest.median)} x {one.fastest.rival}"
            axes.text(1.01, at, label, transform=axes.get_yaxis_transform(), va="center")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{one.metric.title} ({one.ours})" for one in shown])
    _scale(axes)
    sheet.suptitle(
        "taskq is so many times as fast as the fastest peer (ring: the fastest safe one)"
    )
    _save(sheet, path)


def _draw_metrics(summary: Summary, metrics: Sequence[Metric], path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    shown = [metric for metric in metrics if summary.peers(metric)]
    if not shown:
        return
    heights = [len(summary.peers(metric)) + 2 for metric in shown]
    sheet, grid = plt.subplots(
        len(shown),
        figsize=(9, 0.24 * sum(heights) + 0.5),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, metric in zip(grid[:, 0], shown, strict=True):
        _draw_metric(axes, summary, metric)
    _save(sheet, path)


def _draw_metric(axes: Any, summary: Summary, metric: Metric) -> None:
    """Draw points, not bars: on a scale of factors a bar has no foot."""
    names = [peer.name for peer in summary.peers(metric)][::-1]
    for at, name in enumerate(names):
        colour = _colour(name)
        face = colour if named(name).safe else "none"
        _draw_point(axes, at, summary.values(metric, name), colour, face)
        label = figure(summary.median(metric, name))
        axes.text(1.01, at, label, transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(names)), names)
    better = "more" if metric.higher else "less"
    title = f"{metric.title}: {metric.unit}, {better} is better (ring: not safe)"
    axes.set_title(title, loc="left")
    _scale(axes)


def _draw_point(axes: Any, at: int, values: Sequence[float], colour: str, face: str) -> None:
    """Draw the median, and a line from the lowest to the highest."""
    axes.hlines(at, min(values), max(values), color=colour)
    middle = statistics.median(values)
    axes.plot(middle, at, "o", color=colour, markerfacecolor=face)


def _scale(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figure(value)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#dddddd")
    axes.set_ylim(-0.6, len(axes.get_yticks()) - 0.4)


def _colour(name: str) -> str:
    return OUR_COLOUR if named(name).project == OURS else THEIR_COLOUR


def _save(sheet: Any, path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    sheet.savefig(path, metadata={"Date": None})
    plt.close(sheet)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
