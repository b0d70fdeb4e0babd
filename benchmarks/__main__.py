"""`python -m benchmarks`: run the cases, print the table."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import redis
from rich.console import Console

from benchmarks import report, servers
from benchmarks.case import Bench, Case
from benchmarks.cases import CASES
from benchmarks.report import Row
from benchmarks.tasks import app
from benchmarks.workers import ROOT, Failed
from taskq.model.signing import new_secret

# The table is wide, whatever the output is.
WIDTH = 160
PAGE = ROOT / "docs" / "benchmarks" / "bars.md"

console = Console(width=max(WIDTH, Console().width))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", help="A Redis to measure on; else a server of its own is started.")
@click.option("--quick", is_flag=True, help="A tenth of the work; the figures are coarse.")
@click.option("--scale", type=click.FloatRange(0, 10), help="How much of the work.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--minutes", default=2.8, show_default=True, help="After so many, no new round.")
@click.option("--only", default="", metavar="TEXT", help="The cases with this in a name.")
@click.option("--all", "everything", is_flag=True, help="Also the long ones, without a limit.")
@click.option("--list", "listed", is_flag=True, help="Name the lines and their bars, and end.")
@click.option("--write", is_flag=True, help=f"Write {PAGE.relative_to(ROOT)}.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all rounds.")
def main(
    url: str | None, scale: float | None, rounds: int, minutes: float, only: str,
    file: Path | None, *, quick: bool, everything: bool, listed: bool, write: bool,
) -> None:  # fmt: skip
    """Measure taskq beside the least that a queue on Redis can do, and against its bars."""
    cases = _chosen(only, everything=everything)
    if listed:
        _list(cases)
        return
    if write and (only or quick or (scale or 1) < 1):
        msg = "--write is for a whole run"
        raise click.UsageError(msg)
    begun = time.monotonic()
    end = begun + minutes * 60 if not (everything or only) else math.inf
    with contextlib.ExitStack() as stack:
        bench = Bench(
            url or stack.enter_context(servers.own_server()), scale or (0.1 if quick else 1.0)
        )
        # Producer, workers and prototype sign with one key, which ends with the run.
        os.environ.setdefault("TASKQ_SECRET", new_secret())
        os.environ["TASKQ_URL"] = bench.url
        stack.callback(app.close)
        stack.callback(bench.clean)
        conditions = _conditions(bench)
        console.print(conditions, soft_wrap=True)
        rows = [row for each in run(bench, cases, rounds, end) for row in each]
    summary = _summary(rows, time.monotonic() - begun, bench)
    console.print(report.table(rows), summary)
    if write:
        PAGE.write_text(report.markdown(rows, conditions, summary), encoding="utf-8")
    if file:
        measured = [row.as_dict() for row in rows]
        file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _summary(rows: Sequence[Row], seconds: float, bench: Bench) -> str:
    counts = sorted({len(row.ours) for row in rows})
    took = f"{seconds / 60:.1f} minutes, {counts[-1]} rounds"
    some = f", of some cases {counts[0]}" if counts[0] != counts[-1] else ""
    trial = "; a trial, too short to judge by" if bench.scale < 1 else ""
    return f"{report.tally(rows)}; {took}{some}{trial}."


def _chosen(only: str, *, everything: bool) -> list[Case]:
    """Return the cases asked for; what is named is measured, however long it takes."""
    cases = [
        case
        for case in CASES
        if any(only in line.name for line in case.lines) and (only or everything or not case.extra)
    ]
    if not cases:
        raise click.BadParameter(only, param_hint="--only")
    return cases


def _list(cases: Sequence[Case]) -> None:
    for case in cases:
        for line in case.lines:
            click.echo(
                f"{line.name:<45} {line.bar or ''!s:<14} {'--all' if case.extra else ''}".rstrip()
            )


def run(bench: Bench, cases: Sequence[Case], rounds: int, end: float = math.inf) -> list[list[Row]]:
    """Let the cases take turns, `rounds` times; who goes first changes each round.

    At `end`, of `time.monotonic`, nothing more is begun but in the first round.
    """
    rows = [report.rows_of(case) for case in cases]
    with console.status("") as status:
        for number in range(rounds):
            for case, own_rows in zip(cases, rows, strict=True):
                if number and (case.once or time.monotonic() > end):
                    continue
                status.update(f"round {number + 1} of {rounds}: {case.lines[0].name}")
                for ours in (True, False) if number % 2 else (False, True):
                    measure(bench, case, own_rows, ours=ours)
    return rows


def measure(bench: Bench, case: Case, rows: Sequence[Row], *, ours: bool) -> None:
    """Take one side's figures of a case."""
    take = case.ours if ours else case.bare
    if take is None:
        return
    bench.clean()
    for row, value in zip(rows, take(bench), strict=True):
        (row.ours if ours else row.bare).append(value)


def _conditions(bench: Bench) -> str:
    load = os.getloadavg()[0]
    return (
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"redis-py {redis.__version__}, {servers.describe(bench.url)} at "
        f"{bench.url.partition(':')[0]}, {os.cpu_count()} processors, load {load:.2f}"
    )


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Ended from outside, too, we must end the server and the workers.
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except Failed as error:
        sys.exit(f"benchmarks: {error}")
