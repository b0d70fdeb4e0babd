"""`python -m benchmarks.peers`: make the environments, measure all, write the report."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import servers
from benchmarks.peers import bars, environments, machine, plots, report, runner
from benchmarks.peers.catalog import PEERS
from benchmarks.peers.counters import Server
from benchmarks.peers.peer import Peer
from benchmarks.peers.runner import Measurement, Plan
from benchmarks.peers.summary import Summary, figure
from benchmarks.peers.workloads import WORKLOADS, Bench
from taskq.model.signing import new_secret

PLOTS = "plots"  # the environment that has matplotlib
DOCS = environments.ROOT / "docs" / "benchmarks"
TRIAL = environments.FOLDER / "report"
DATA = environments.FOLDER / "rounds.json"
# Beside a peer itself, what its speed depends on.
BESIDE = ("taskiq-redis", "redis", "coredis", "hiredis", "kombu", "uvloop")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="What one measurement takes.")
@click.option("--scale", default=1.0, show_default=True, help="How much of everything.")
@click.option("--minutes", default=28.0, show_default=True, help="Begin nothing after so many.")
@click.option("--only", multiple=True, type=click.Choice(list(WORKLOADS)), help="Workloads.")
@click.option("--peer", "names", multiple=True, help="Projects or rows: celery, 'taskq async'.")
@click.option("--python", help="The interpreter of all environments. [3.13, else 3.12, 3.14]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.")
@click.option("--again", is_flag=True, help="Make the report anew from the last run's data.")
def main(**options: Any) -> None:
    """Measure taskq and its peers side by side."""
    began = time.monotonic()
    if not options["again"]:
        peers = _chosen(options["names"])
        data = measure(peers, options, began + options["minutes"] * 60)
        data["minutes"] = round((time.monotonic() - began) / 60, 1)
        DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    data = json.loads(DATA.read_text(encoding="utf-8"))
    # A trial must not replace the report that is published.
    whole = data["whole"] and data["scale"] >= 1 and data["rounds"] >= 3
    write(data, options["out"] or (DOCS if whole else TRIAL))


def _chosen(names: Sequence[str]) -> list[Peer]:
    chosen = [one for one in PEERS if not names or {one.name, one.project} & set(names)]
    unknown = set(names) - {word for one in PEERS for word in (one.name, one.project)}
    if unknown:
        raise click.BadParameter(", ".join(sorted(unknown)), param_hint="--peer")
    return chosen


def measure(peers: Sequence[Peer], options: dict[str, Any], end: float) -> dict[str, Any]:
    """Return everything about a run, as the report wants it."""
    python = options["python"] or environments.interpreter()
    projects = dict.fromkeys(one.project for one in peers)
    say(f"making environments of {python} for {', '.join(projects)}")
    absent = environments.make([*projects, PLOTS], python)
    for project, reason in absent.items():
        say(f"{project}: {reason}")
    here = [one for one in peers if one.project not in absent]
    chosen = options["only"] or tuple(WORKLOADS)
    with servers.own_server(loopback=True) as url:
        server = Server(url)
        bench = Bench(server, options["seconds"], options["scale"], {"TASKQ_SECRET": new_secret()})
        plan = Plan(here, {name: WORKLOADS[name] for name in chosen}, options["rounds"], end)
        conditions = machine.describe(url, python)
        done = runner.run(plan, bench, _tell)
        server.close()
    return {
        "machine": {"date": dt.datetime.now(dt.UTC).date().isoformat(), **conditions},
        "versions": _versions(here),
        "absent": {one.name: absent[one.project] for one in peers if one.project in absent},
        "rounds": options["rounds"],
        "scale": options["scale"],
        "whole": not (options["only"] or options["names"]),
        "stopped": len(done) < len(list(plan.turns())),
        "measurements": [dataclasses.asdict(one) for one in done],
    }


def _versions(peers: Iterable[Peer]) -> dict[str, dict[str, str]]:
    return {
        one.name: environments.versions(one.project, (one.distribution, *BESIDE)) for one in peers
    }


def _tell(one: Measurement) -> None:
    figures = ", ".join(f"{name} {figure(value)}" for name, value in one.figures.items())
    say(f"round {one.round + 1}, {one.workload}, {one.peer}: {one.error or figures}")


def write(data: dict[str, Any], folder: Path) -> None:
    """Write the plots, then the report that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in plots.NAMES:
        (folder / name).unlink(missing_ok=True)
    if why := _draw(folder):
        say(f"no plots: {why}")
    shown = [name for name in plots.NAMES if (folder / name).exists()]
    (folder / "report.md").write_text(report.markdown(data, shown), encoding="utf-8")
    for one in bars.verdicts(Summary(data["measurements"])):
        say(f"{one.words}: {one.title}, {one.bar.ours}, {one.told} (wanted {one.bar.wanted})")
    say(f"the report: {folder / 'report.md'}")


def _draw(folder: Path) -> str:
    """Draw where matplotlib is; return why not, if it failed."""
    python = environments.program(PLOTS)
    if not python.exists():
        return "matplotlib is not installed"
    drawn = subprocess.run(
        [str(python), "-m", plots.__name__, str(DATA), str(folder)],
        env=environments.environment(PLOTS, {}),
        capture_output=True,
        text=True,
        check=False,
    )
    return environments.last_line(drawn.stderr) if drawn.returncode else ""


def say(text: str) -> None:
    """Tell how the run goes on."""
    click.echo(text, err=True)


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Ended from outside, too, we must end the server and the workers.
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
