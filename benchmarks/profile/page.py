"""The profile in Markdown: two tables, and how they came about."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.profile.server import Spent
from benchmarks.profile.stages import STAGES

METHOD = """\
- All messages are queued, then one thread drains them: the worker of `taskq.testing`, in a process
  of its own, on a server without persistence.
- The stages are functions of taskq and redis-py, put under a stopwatch. A stage's time is its own,
  without the stages that it calls and without what the watch itself costs, which is measured on a
  function that does nothing. So they add up to all that the thread did, waiting included.
- What Redis spent is counted by Redis, while a worker without the watch drains as many: processor
  time for the server, time by the clock for commands. What is above the scripts is reading, writing
  and commands that are in no script; on a busy machine the clock runs on while the server waits for
  a processor, and this comes out as too little.
- Rounds take turns; the figures are their medians. Compare within one page only."""


@dataclasses.dataclass
class Profile:
    """The rounds of one run; all times in microseconds for one message."""

    conditions: Mapping[str, str]
    messages: int
    # Stage → its time in each round, and its calls for one message.
    stages: dict[str, list[float]]
    calls: dict[str, float]
    # A drain without the watch.
    plain: list[float]
    server: list[Spent]


def markdown(profile: Profile) -> str:
    conditions = [f"- {name}: {value}" for name, value in profile.conditions.items()]
    rounds = len(profile.plain)
    coarse = "" if profile.messages >= 10_000 and rounds >= 3 else "\n**A trial, too short.**"
    parts = [
        "# Where each microsecond of a task goes",
        "Written by `python -m benchmarks.profile --write`, and made anew by running that.\n"
        "The task does nothing but add; its result is stored and published." + coarse,
        "\n".join([*conditions, f"- messages: {profile.messages:,}, rounds: {rounds}"]),
        "## The worker's thread, by stage",
        _stages(profile),
        "## Redis, by command",
        _commands(profile.server),
        "## How it was measured",
        METHOD,
    ]
    return "\n\n".join(parts) + "\n"


def _stages(profile: Profile) -> str:
    medians = {name: statistics.median(took) for name, took in profile.stages.items()}
    whole = sum(medians.values()) or 1.0
    rows = [
        (
            stage.name,
            f"{medians[stage.name]:.2f}",
            f"{100 * medians[stage.name] / whole:.0f} %",
            f"{profile.calls[stage.name]:.2f}",
            stage.words,
        )
        for stage in STAGES
    ]
    plain = statistics.median(profile.plain)
    rows.append(("all", f"{whole:.2f}", "100 %", "", f"without the watch: {plain:.2f} µs"))
    return table(("stage", "µs", "share", "calls", "what it does"), rows)


def _commands(rounds: Sequence[Spent]) -> str:
    names = {name: None for one in rounds for name in one.inside}
    processor = _median(one.processor for one in rounds)
    scripts = _median(one.scripts for one in rounds)
    whole = processor or 1.0
    spent = {
        "Lua itself": (_median(one.lua for one in rounds), None),
        **{
            name.upper(): (
                _median(one.usec.get(name, 0.0) for one in rounds),
                _median(one.calls.get(name, 0.0) for one in rounds),
            )
            for name in names
        },
        "all scripts": (scripts, _median(one.calls.get("evalsha", 0.0) for one in rounds)),
        "reading, writing, all else": (max(0.0, processor - scripts), None),
        "the server": (processor, None),
    }
    rows = [
        (
            name,
            f"{usec:.2f}",
            f"{100 * usec / whole:.0f} %",
            "" if calls is None else f"{calls:.3f}",
        )
        for name, (usec, calls) in spent.items()
        if usec >= 0.005 or calls is None
    ]
    return table(("command", "µs", "share", "calls"), rows)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
