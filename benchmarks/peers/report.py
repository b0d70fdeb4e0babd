"""The report in Markdown: ratios first, then who was measured and how, then every figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.peers import bars
from benchmarks.peers.catalog import OURS, PEERS, named
from benchmarks.peers.peer import Peer
from benchmarks.peers.summary import LEFT, METRICS, Comparison, Metric, Ratio, Summary, figure
from benchmarks.peers.workloads import WORKLOADS

COUNTED = ("enqueue", "drain", "drain, no results")
METHOD = """\
- All processes of a run share one machine and one server, which `benchmarks/servers.py` starts for
  the run: on the loopback interface, without persistence. Every row runs on the same Python, in an
  environment of its own.
- Rounds are interleaved: in each, every row takes its turn at every workload, and who goes first
  changes with the round. Ratios are taken inside each round; shown are their medians, and in
  brackets the lowest and the highest. Where those ranges include 1, the order is not established.
- A task says that it ran by an instant in shared memory, the same in every row. A drain (W2, W5,
  W6) is timed from the first task, on two processes from when both are at work, to the last. The
  start of the worker is left out; so is what follows the last task: its acknowledgement.
- W3 and W4 verify every result. "No results" is each queue's own way to store none.
- How many tasks are measured follows from the round before, so that fast and slow rows take
  about as long, and all rounds fit into the time limit. W5 and W6 have fixed numbers, and so has
  W4, 50,000, in rows that gather those in about ten seconds. W3 is 1,000 round trips, fewer where
  they are slow: then its p99 is about the slowest.
- Commands are counted by the server, those inside scripts too. "Reads" is how often the server
  read from a connection: about the round trips.
- "Processors left" is what the workers, the server and the harness did not use of all processors,
  from the first task to the last; Linux only. Where nothing is left, nothing can be gained.
- "Safe" says whether a task whose worker process is killed while it runs is run again by itself, in
  the configuration that was measured. It was read in sources and guides, not measured here.
- The settings are the best we know by the guides. A row that is tuned better may be faster."""


def markdown(data: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """Return the report of a run: `data` as `python -m benchmarks.peers` writes it."""
    summary = Summary(data["measurements"])
    comparisons = summary.comparisons()
    parts = [
        "# taskq and its peers, measured",
        _opening(data),
        "## How many times as fast as its peers taskq was",
        _ratios(comparisons),
        "## What taskq wants to reach",
        _bars(summary),
        "## Where a peer is ahead",
        _ahead(comparisons),
        *(f"![{name}]({name})" for name in plots),
        "## Who was measured",
        _who(summary, data),
        "## What was not measured",
        _missing(summary, data),
        "## Redis commands for one task",
        _commands(summary),
        "## Every figure",
        *(part for metric in METRICS for part in _metric(summary, metric)),
        "## How it was measured",
        METHOD,
    ]
    return "\n\n".join(parts) + "\n"


def _opening(data: Mapping[str, Any]) -> str:
    conditions = [f"- {name}: {_cell(value)}" for name, value in data["machine"].items()]
    cut = data.get("stopped")
    stopped = "\nIt was stopped at its time limit: not every row has every round." if cut else ""
    quick = data["scale"] < 1 or data["rounds"] < 3
    coarse = "\n**A trial run: too short to compare anything.**" if quick else ""
    said = "Written by `make bench-peers`, and made anew by running that."
    rounds = f"- rounds: {data['rounds']}, of which medians are shown"
    took = f"- duration: {data['minutes']} minutes"
    return "\n".join([said + stopped + coarse, "", *conditions, rounds, took])


def _ratios(comparisons: Iterable[Comparison]) -> str:
    rows = [
        (
            one.metric.title,
            one.ours,
            f"{figure(one.value)} {one.metric.unit}",
            _against(one.fastest),
            _against(one.fastest_safe),
            _against(one.against("celery"), name=False),
        )
        for one in comparisons
    ]
    heads = ("workload", "row", "median", "the fastest peer", "the fastest that is safe", "Celery")
    note = (
        "Above 1, taskq is better, also where less is better. `taskq async` runs `async def` tasks "
        "and is held against peers that do; a safe peer loses no running task when its worker is "
        "killed."
    )
    return f"{note}\n\n{_table(heads, rows)}"


def _against(ratio: Ratio | None, *, name: bool = True) -> str:
    if ratio is None:
        return "none"
    text = f"**{figure(ratio.median)} x**"
    if len(ratio.rounds) > 1:
        text += f" ({figure(min(ratio.rounds))} .. {figure(max(ratio.rounds))})"
    return f"{text} {ratio.rival}" if name else text


def _bars(summary: Summary) -> str:
    found = bars.verdicts(summary)
    rows = [
        (
            one.title,
            one.bar.ours,
            f"**{figure(statistics.median(one.rounds))}**" if one.rounds else "",
            f"{figure(min(one.rounds))} .. {figure(max(one.rounds))}" if one.rounds else "",
            one.bar.wanted,
            one.words,
            one.against,
        )
        for one in found
    ]
    met = sum(one.words.startswith("met") for one in found)
    unknown = sum(one.words == "not measured" for one in found)
    note = (
        f"{met} of {len(found)} bars were met, {unknown} could not be judged. A bar is met by the "
        "median of the rounds; of a ratio, above 1 taskq is better."
    )
    heads = ("workload", "row", "median", "rounds", "wanted", "", "held against")
    return f"{note}\n\n{_table(heads, rows)}"


def _ahead(comparisons: Iterable[Comparison]) -> str:
    lines = [
        f"- {one.metric.title}, against {one.ours}: {'; '.join(map(_lead, one.ahead))}"
        for one in comparisons
        if one.ahead
    ]
    return "\n".join(lines) or "Nowhere in this run was the median of a peer better."


def _lead(ratio: Ratio) -> str:
    sure = "" if max(ratio.rounds) < 1 else ", though not in every round"
    safe = "" if named(ratio.rival).safe else " (not safe)"
    return f"**{ratio.rival}**{safe} is {figure(1 / ratio.median)} times as fast{sure}"


def _who(summary: Summary, data: Mapping[str, Any]) -> str:
    rows = [
        (
            peer.name,
            ", ".join(f"{name} {version}" for name, version in data["versions"][peer.name].items()),
            peer.kind,
            "yes" if peer.safe else "no",
            peer.safety,
            peer.settings,
        )
        for peer in measured(summary)
    ]
    heads = ("row", "versions", "tasks", "safe", "a task whose worker is killed", "settings")
    return _table(heads, rows)


def measured(summary: Summary) -> list[Peer]:
    """Return the rows that have any figure."""
    having = {peer.name for metric in METRICS for peer in summary.peers(metric)}
    return [peer for peer in PEERS if peer.name in having]


def _missing(summary: Summary, data: Mapping[str, Any]) -> str:
    absent = [f"- {name}: {_cell(reason)}" for name, reason in data["absent"].items()]
    failed = [
        f"- {peer}, {workload}, in {len(errors)} of {data['rounds']} rounds: {_cell(errors[-1])}"
        for (peer, workload), errors in summary.failures().items()
    ]
    omitted = [
        f"- {peer.name}, {workload}: {reason}"
        for peer in measured(summary)
        for workload, reason in peer.omits.items()
        if workload in WORKLOADS
    ]
    return "\n".join([*absent, *failed, *omitted]) or "Nothing."


def _commands(summary: Summary) -> str:
    rows = []
    for peer in measured(summary):
        for where in COUNTED:
            calls = summary.commands(where, peer.name)
            reads = calls.pop("reads", 0.0)
            if calls:
                names = ", ".join(f"{name} {count:.3g}" for name, count in calls.items())
                total = figure(sum(calls.values()))
                rows.append((peer.name, where, total, figure(reads), names))
    return _table(("row", "", "commands", "reads", "which"), rows)


def _metric(summary: Summary, metric: Metric) -> list[str]:
    peers = summary.peers(metric)
    if not peers:
        return []
    told = any(summary.values(LEFT, peer.name) for peer in peers) and metric.id == LEFT.workload
    heads = ["row", "tasks", "safe", metric.unit, "lowest .. highest", "taskq is", "rounds"]
    rows = []
    for peer in peers:
        values = summary.values(metric, peer.name)
        row = [
            peer.name,
            peer.kind,
            "yes" if peer.safe else "no",
            figure(statistics.median(values)),
            f"{figure(min(values))} .. {figure(max(values))}",
            _beside(summary, metric, peer),
            str(len(values)),
        ]
        if told:
            unused = summary.values(LEFT, peer.name)
            row.append(f"{figure(statistics.median(unused))} %" if unused else "")
        rows.append(row)
    return [f"### {metric.title}", _table([*heads, LEFT.title] if told else heads, rows)]


def _beside(summary: Summary, metric: Metric, peer: Peer) -> str:
    """Compare with `taskq`, or with `taskq async` where only that has the figure."""
    ours = next((one for one in summary.peers(metric) if one.name == OURS), None)
    ours = ours or next((one for one in summary.peers(metric) if one.project == OURS), None)
    ratio = summary.ratio(metric, ours.name, peer.name) if ours else None
    return f"{figure(ratio.median)} x" if ratio and peer.project != OURS else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Return text that cannot leave its cell: errors hold whatever a program said."""
    if text.count("`") % 2 or "``" in text:
        text = text.replace("`", "'")
    return text.replace("|", "/").replace("](", "] (").replace("~~~", "~~").replace("\n", " ")
