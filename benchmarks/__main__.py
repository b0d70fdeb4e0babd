"""`python -m benchmarks`: run the cases, print the table."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import redis
from rich.console import Console

from benchmarks import cases, delayed, report, servers
from benchmarks.cases import Bench, Case
from benchmarks.report import Row
from benchmarks.tasks import app
from benchmarks.workers import Failed
from taskq.model.signing import new_secret

console = Console()
CASES = (*cases.CASES, *delayed.CASES)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", help="A Redis to measure on; else a server of its own is started.")
@click.option("--quick", is_flag=True, help="A tenth of the work; the figures are coarse.")
@click.option("--scale", type=click.FloatRange(0, 10), help="How much of the work.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--only", default="", metavar="TEXT", help="The cases with this in a name.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all rounds.")
def main(
    url: str | None, scale: float | None, rounds: int, only: str, file: Path | None, *, quick: bool
) -> None:
    """Measure taskq beside the least that a queue on Redis can do."""
    chosen = [case for case in CASES if any(only in name for name in case.rows)]
    if not chosen:
        raise click.BadParameter(only, param_hint="--only")
    with contextlib.ExitStack() as stack:
        bench = Bench(
            url or stack.enter_context(servers.own_server()), scale or (0.1 if quick else 1.0)
        )
        # Producer, workers and prototype sign with one key, which ends with the run.
        os.environ.setdefault("TASKQ_SECRET", new_secret())
        os.environ["TASKQ_URL"] = bench.url
        stack.callback(app.close)
        stack.callback(bench.clean)
        console.print(_conditions(bench))
        rows = run(bench, chosen, rounds)
    console.print(report.table([row for each in rows for row in each]))
    if file:
        measured = [row.as_dict() for each in rows for row in each]
        file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def run(bench: Bench, chosen: Sequence[Case], rounds: int) -> list[list[Row]]:
    """Let the cases take turns, `rounds` times; who goes first changes each round."""
    rows = [_rows(case) for case in chosen]
    with console.status("") as status:
        for number in range(rounds):
            for case, own_rows in zip(chosen, rows, strict=True):
                if case.once and number:
                    continue
                status.update(f"round {number + 1} of {rounds}: {case.rows[0]}")
                for ours in (True, False) if number % 2 else (False, True):
                    _measure(bench, case, own_rows, ours=ours)
    return rows


def _rows(case: Case) -> list[Row]:
    bars = case.bars or (case.bar, *("" for _ in case.rows[1:]))
    return [Row(name, case.unit, bar) for name, bar in zip(case.rows, bars, strict=True)]


def _measure(bench: Bench, case: Case, rows: Sequence[Row], *, ours: bool) -> None:
    measure = case.ours if ours else case.bare
    if measure is None:
        return
    bench.clean()
    for row, value in zip(rows, measure(bench), strict=True):
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
