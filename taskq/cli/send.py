"""`taskq call`, `taskq cancel` and `taskq reschedule`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from taskq.cli.durations import Duration, Instant
from taskq.cli.place import app_option, fail, open_app, printable
from taskq.client.app import TaskQ
from taskq.client.result import Result
from taskq.client.task import Task
from taskq.config import nearest
from taskq.model.states import Cancellation, Rescheduling


@click.command()
@click.argument("name")
@click.argument("args", nargs=-1)
@app_option
@click.option("-Q", "--queue", help="Another queue than the task's own.")
@click.option("--countdown", type=Duration(min=0), help="Seconds to wait before it runs.")
@click.option("--kwargs", "kwargs", help="Keyword arguments, as a JSON object.")
@click.option("--wait", is_flag=True, help="Wait for the outcome and print it.")
@click.option("--timeout", type=Duration(min=0), help="With --wait: seconds to wait.")
@click.pass_context
def call(context: click.Context, /, name: str, args: tuple[str, ...], **options: Any) -> None:
    """Enqueue a call: taskq call proj.add 2 3 --wait.

    Each argument is read as JSON where it is that, else as text.
    """
    app = open_app(context, options["app"])
    result: Result[Any] | None = None
    task, kwargs = task_of(app, name), keywords_of(options["kwargs"])
    try:
        chosen = task.options(queue=options["queue"], countdown=options["countdown"])
        result = chosen.apply_async([value_of(text) for text in args], kwargs)
        if not options["wait"]:
            click.echo(result.id)
            return
        value = result.get(options["timeout"])
    except Exception as error:  # noqa: BLE001 - told in a line, like what the task raised
        raised = f"{task.name} raised " if result is not None and result.settled else ""
        fail(f"{raised}{type(error).__name__}: {error}", 1)
    else:
        click.echo(printable(repr(value)))
    finally:
        app.close()


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@app_option
@click.option("--reason", help="What whoever waits is told.")
@click.option("--terminate", is_flag=True, help="Kill the process that runs it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def cancel(
    context: click.Context, /, ids: tuple[str, ...], *, as_json: bool, **options: Any
) -> None:
    """Take messages back: what waits does not start, what runs is told.

    Exits with 1 if Redis does not know one of the ids.
    """
    with open_app(context, options["app"]) as app:
        results = [app.result(id) for id in dict.fromkeys(ids)]
        done = {
            one.id: one.cancel(options["reason"], terminate=options["terminate"]) for one in results
        }
    _tell(done, _SAID, as_json=as_json)


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@app_option
@click.option("--eta", type=Instant(), help="When: 2030-01-31T07:00+01:00, or ending in Z.")
@click.option("--countdown", type=Duration(min=0), help="Seconds from now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def reschedule(
    context: click.Context,
    /,
    ids: tuple[str, ...],
    eta: datetime | None,
    countdown: float | None,
    *,
    as_json: bool,
    app: str | None,
) -> None:
    """Give messages that wait for their time another time.

    Exits with 1 if Redis does not know one of the ids.
    """
    with open_app(context, app) as opened:
        try:
            results = [opened.result(id) for id in dict.fromkeys(ids)]
            done = {one.id: one.reschedule(eta=eta, countdown=countdown) for one in results}
        except ValueError as error:
            fail(str(error))
    _tell(done, _MOVED, as_json=as_json)


def _tell(done: Mapping[str, str], words: Mapping[str, str], *, as_json: bool) -> None:
    """Say what became of each message; exit with 1 if Redis does not know one."""
    if as_json:
        click.echo(json.dumps(done, indent=2))
    else:
        for id, what in done.items():
            click.echo(f"{printable(id)}: {words[what]}")
    if "unknown" in done.values():
        raise SystemExit(1)


_MOVED: dict[str, str] = {
    Rescheduling.MOVED: "moved; it waits for its new time",
    Rescheduling.QUEUED: "its time had come: it is queued",
    Rescheduling.RUNNING: "it runs",
    Rescheduling.OVER: "it was over already",
    Rescheduling.UNKNOWN: "Redis does not know this id",
}
_SAID: dict[str, str] = {
    Cancellation.CANCELLED: "cancelled; it does not start",
    Cancellation.TOLD: "it runs; its worker was told",
    Cancellation.OVER: "it was over already",
    Cancellation.UNKNOWN: "Redis does not know this id",
}


def task_of(app: TaskQ, name: str) -> Task[..., Any]:
    """Return the task of that name, or the one whose name ends so; exit with 2 if there is none."""
    fitting = [
        task for known, task in app.tasks.items() if known == name or known.endswith("." + name)
    ]
    exact = [task for task in fitting if task.name == name]
    if len(exact or fitting) != 1:
        found = ", ".join(sorted(task.name for task in fitting) or sorted(app.tasks)) or "none"
        known = {short: "" for task in app.tasks for short in (task, task.rpartition(".")[2])}
        fail(f"no one task is named {name!r}; there is: {found}{nearest(name, known)}")
    return (exact or fitting)[0]


def keywords_of(text: str | None) -> dict[str, Any]:
    """Return keyword arguments given as a JSON object; exit with 2 if they are not."""
    try:
        kwargs = json.loads(text or "{}")
    except ValueError:
        kwargs = None
    if not isinstance(kwargs, dict):
        fail(f"--kwargs {text!r}: a JSON object is wanted, for example '{{\"x\": 1}}'")
    return {str(key): value for key, value in kwargs.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - JSON may hold anything


def value_of(text: str) -> Any:
    """Return an argument: JSON where it is that, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
