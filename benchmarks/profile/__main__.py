"""`python -m benchmarks.profile`: drain under a stopwatch, print or write the page."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks import servers
from benchmarks.case import Bench
from benchmarks.lookout import looking
from benchmarks.peers import machine
from benchmarks.profile import page, server
from benchmarks.profile.page import Profile
from benchmarks.profile.stages import STAGES
from benchmarks.tasks import add, app
from benchmarks.workers import ROOT
from taskq.model.signing import new_secret

PAGE = ROOT / "docs" / "benchmarks" / "profile.md"
SECONDS = 120


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", help="A Redis to measure on; else a server of its own is started.")
@click.option("--messages", default=50_000, show_default=True, help="In each drain.")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--write", is_flag=True, help=f"Write {PAGE.relative_to(ROOT)}.")
@click.option("--out", type=click.Path(path_type=Path), help="Write it elsewhere.")
def main(url: str | None, messages: int, rounds: int, out: Path | None, *, write: bool) -> None:
    """Tell where each microsecond of a task goes."""
    with contextlib.ExitStack() as stack:
        bench = Bench(url or stack.enter_context(servers.own_server()))
        os.environ.setdefault("TASKQ_SECRET", new_secret())
        os.environ["TASKQ_URL"] = bench.url
        stack.callback(app.close)
        stack.callback(bench.clean)
        text = page.markdown(measure(bench, messages, rounds))
    if target := out or (PAGE if write else None):
        target.write_text(text, encoding="utf-8")
        click.echo(f"the page: {target}")
    else:
        click.echo(text)


def measure(bench: Bench, messages: int, rounds: int) -> Profile:
    """Let drains with and without the watch take turns."""
    conditions = machine.describe(bench.url, sys.executable)
    profile = Profile(
        {name: value for name, value in conditions.items() if name != "Python"}
        | {"Python": f"{platform.python_implementation()} {platform.python_version()}"},
        messages,
        {stage.name: [] for stage in STAGES},
        {},
        [],
        [],
    )
    for _ in range(rounds):
        timed, _spent = _drain(bench, messages, "timed")
        plain, spent = _drain(bench, messages)
        for name, took in timed["stages"].items():
            profile.stages[name].append(took / 1000 / messages)
            profile.calls[name] = timed["calls"][name] / messages
        profile.plain.append(plain["each"] / 1000)
        profile.server.append(spent)
    return profile


def _drain(bench: Bench, messages: int, *options: str) -> tuple[dict[str, Any], server.Spent]:
    """Queue them, let a worker run them in a process of its own; return what both say."""
    bench.clean()
    results = add.starmap((number, number) for number in range(messages))
    words = [sys.executable, "-m", "benchmarks.profile.worker", str(messages), *options]
    with looking(bench.url, add) as lookout:
        before = server.look(lookout.client)
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        after = server.look(lookout.client)
        if done.returncode:
            msg = f"the worker failed: {done.stderr[-2000:]}"
            raise click.ClickException(msg)
        lookout.check(results)
    return json.loads(done.stdout), after.since(before, messages)


if __name__ == "__main__":
    main()
