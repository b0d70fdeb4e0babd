"""`taskq schedule` and `taskq beat`: calls that are made periodically."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taskq.cli.place import (
    app_and_modules,
    app_option,
    fail,
    open_app,
    printable,
    process_name,
    split_names,
)
from taskq.cli.send import keywords_of, task_of, value_of
from taskq.cli.work import LEVELS
from taskq.client.app import TaskQ
from taskq.client.loader import load_app
from taskq.client.outlook import Schedule
from taskq.client.result import Result
from taskq.errors import ScheduleError
from taskq.model.schedule import CatchUp, Overlap
from taskq.worker import beat as worker_beat
from taskq.worker import logs

# Where nobody's terminal says how wide a line may be.
_PIPE_WIDTH = 250
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def period(text: str) -> float:
    """Return seconds: a number, or one with a unit: 90, 90s, 5m, 12h, 7d."""
    found = _PERIOD.fullmatch(text)
    if found is None:
        msg = f"{text!r} is no duration; type 90, 90s, 5m, 12h or 7d"
        raise click.BadParameter(msg)
    return float(found[1]) * _UNITS[found[2]]


def instant(text: str) -> datetime:
    """Return an instant that is written in ISO 8601, with its zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        example = datetime(2026, 11, 26, 7, tzinfo=UTC).isoformat()
        msg = f"{text!r} is no instant with its zone; type for example {example}"
        raise click.BadParameter(msg)
    return found


@click.group()
def schedule() -> None:
    """Make, show, pause and remove calls that are made periodically."""


@schedule.command("list")
@click.option("-Q", "--queue", help="Only this queue; else all that the app declares.")
@app_option
@_json_option
@click.pass_context
def list_schedules(
    context: click.Context, queue: str | None, app: str | None, *, as_json: bool
) -> None:
    """List the schedules, with their next tick and their last."""
    with open_app(context, app) as opened:
        _show(opened.schedules.list(queue), as_json=as_json)


@schedule.command()
@click.argument("name")
@click.argument("task")
@click.argument("args", nargs=-1)
@app_option
@click.option("--kwargs", "kwargs", help="Keyword arguments, as a JSON object.")
@click.option("-Q", "--queue", help="Another queue than the task's own.")
@click.option("--cron", help="Five fields, or six with seconds first, or @daily and the like.")
@click.option("--every", type=period, metavar="DURATION", help="A period: 90, 90s, 5m, 12h, 7d.")
@click.option("--timezone", help="The zone of --cron: Europe/Berlin. [UTC]")
@click.option(
    "--start", type=instant, metavar="INSTANT", help="No tick before: 2026-11-26T07:00:00+01:00."
)
@click.option("--end", type=instant, metavar="INSTANT", help="No tick after.")
@click.option(
    "--jitter",
    type=period,
    metavar="DURATION",
    help="Fire up to so much later, to spread the load.",
)
@click.option("--overlap", help=f"While the last message runs: {', '.join(Overlap)}. [allow]")
@click.option("--catch-up", help=f"Of missed ticks, fire: {', '.join(CatchUp)}. [last]")
@click.option("--window", type=period, metavar="DURATION", help="Catch up no tick that is older.")
@_json_option
@click.pass_context
def add(
    context: click.Context,
    /,
    name: str,
    task: str,
    args: tuple[str, ...],
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a schedule, or change it: taskq schedule add NAME TASK 42 --cron "0 7 * * mon".

    Each argument is read as JSON where it is that, else as text.
    """
    with open_app(context, options["app"]) as app:
        keywords = keywords_of(options["kwargs"])
        names = ("cron", "every", "timezone", "start", "end", "jitter", "overlap", "catch_up")
        when: Any = {one: options[one] for one in (*names, "window") if options[one] is not None}
        try:
            chosen = task_of(app, task).options(queue=options["queue"])
            call = chosen.s(*[value_of(text) for text in args], **keywords)
            made = app.schedules.add(name, call, **when)
        except (TypeError, ValueError) as error:
            fail(f"{type(error).__name__}: {error}" if isinstance(error, TypeError) else str(error))
        if as_json:
            click.echo(json.dumps(_as_data(made), indent=2))
        else:
            click.echo(f"{printable(name)}: {_next_in_words(made)}")


def _one(verb: str, what: str, said: str) -> click.Command:
    """Return a verb that does something to the schedules named."""

    @schedule.command(verb, help=what)
    @click.argument("names", nargs=-1, required=True, metavar="NAME...")
    @app_option
    @_json_option
    @click.pass_context
    def run(
        context: click.Context, names: tuple[str, ...], app: str | None, *, as_json: bool
    ) -> None:
        with open_app(context, app) as opened:
            _each(opened, verb, names, said, as_json=as_json)

    return run


def _each(
    app: TaskQ, verb: str, names: Iterable[str], said: str, *, as_json: bool, **more: Any
) -> None:
    """Do something to each; what cannot be done is told, and the others are done."""
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    try:
        for name in dict.fromkeys(names):
            try:
                outcome = getattr(app.schedules, verb.replace("run", "run_now"))(name, **more)
            except ScheduleError as error:
                failed[name] = str(error)
                if not as_json:
                    click.echo(f"taskq: {printable(error)}", err=True)
                continue
            done[name] = outcome.id if isinstance(outcome, Result) else said
            if not as_json:
                click.echo(f"{printable(name)}: {printable(done[name])}")
    finally:
        if as_json:
            click.echo(json.dumps({"done": done, "failed": failed}, indent=2))
    if failed:
        raise SystemExit(1)


resume = _one("resume", "Fire the ticks of paused schedules from now on.", "resumed")
remove = _one("remove", "Remove schedules; what they have enqueued stays.", "removed")
run = _one("run", "Enqueue the calls of schedules at once, and print the ids.", "")


@schedule.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@app_option
@click.option("--note", default="", help="Why; it stands in the list.")
@_json_option
@click.pass_context
def pause(
    context: click.Context, names: tuple[str, ...], app: str | None, note: str, *, as_json: bool
) -> None:
    """Fire the ticks of schedules no more, until they are resumed."""
    with open_app(context, app) as opened:
        try:
            _each(opened, "pause", names, "paused", as_json=as_json, note=note)
        except ValueError as error:
            fail(str(error))


@schedule.command("next")
@click.argument("name")
@app_option
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=5, show_default=True)
@_json_option
@click.pass_context
def next_ticks(
    context: click.Context, name: str, app: str | None, count: int, *, as_json: bool
) -> None:
    """Print the next ticks of a schedule, in its zone."""
    with open_app(context, app) as opened:
        ticks = [tick.isoformat() for tick in opened.schedules.next(name, count)]
    click.echo(json.dumps(ticks, indent=2) if as_json else "\n".join(ticks) or "it has ended")


@schedule.command()
@click.argument("name")
@click.argument("start", type=instant)
@click.argument("end", type=instant)
@app_option
@_json_option
@click.pass_context
def backfill(
    context: click.Context,
    name: str,
    start: datetime,
    end: datetime,
    app: str | None,
    *,
    as_json: bool,
) -> None:
    """Enqueue the calls of all ticks from START until before END, in the past.

    A tick whose message Redis knows is not fired again.
    """
    with open_app(context, app) as opened:
        try:
            ids = [one.id for one in opened.schedules.backfill(name, start, end)]
        except ValueError as error:
            fail(str(error))
    click.echo(json.dumps(ids, indent=2) if as_json else f"{printable(name)}: {len(ids)} ticks")


@click.command()
@click.argument("modules", nargs=-1)
@app_option
@click.option("-Q", "--queues", help="Only the schedules of these queues, comma-separated.")
@click.option("-n", "--name", help="Its name in the log. [host-pid]")
@click.option("-l", "--loglevel", type=LEVELS, default="info", show_default=True)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.pass_context
def beat(context: click.Context, /, modules: tuple[str, ...], **options: Any) -> None:
    """Fire schedules and run no task: taskq beat proj [MODULE...].

    Workers do that as well; any number of both may run at once.
    """
    app, modules = app_and_modules(context, options["app"], modules)
    name = process_name(options["name"])
    opened = load_app(app, modules)
    logs.configure(options["loglevel"], options["log_format"], name)
    with opened:
        named = None if options["queues"] is None else split_names(options["queues"])
        queues = opened.queues if named is None else tuple(map(opened.check_queue, named))
        raise SystemExit(worker_beat.run(opened, queues, name))


def _show(schedules: Sequence[Schedule], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_as_data(one) for one in schedules], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    # A name that is cut could not be given to the other verbs.
    widest = max((len(one.name) for one in schedules), default=4)
    table.add_column("name", no_wrap=True, min_width=widest)
    for name in (
        "queue",
        "task",
        "rule",
        "next",
        "last",
        "fired",
        "skipped",
        "missed",
        "declared by",
    ):
        table.add_column(name)
    for one in schedules:
        table.add_row(*(escape(printable(cell)) for cell in _cells(one)))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table if table.row_count else "no schedules")


def _cells(one: Schedule) -> Iterable[str]:
    last = one.last_at.isoformat(" ", "seconds") if one.last_at else "-"
    counts = (str(one.fired), str(one.skipped), str(one.missed))
    return (
        one.name, one.queue, one.task, one.rule, _next_in_words(one), last, *counts,
        one.declared_by or "-",
    )  # fmt: skip


def _next_in_words(one: Schedule) -> str:
    if one.obstacle:
        return one.obstacle
    if one.paused:
        return f"paused: {one.note}" if one.note else "paused"
    return one.next_at.isoformat(" ", "seconds") if one.next_at else "ended"


def _as_data(one: Schedule) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in msgspec.structs.asdict(one).items()
    }
