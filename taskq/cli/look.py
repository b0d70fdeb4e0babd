"""`taskq status` and `taskq purge`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taskq.broker import commands, keys, queries
from taskq.broker.queries import Survey
from taskq.cli.place import app_option, open_app, printable, split_names
from taskq.client.app import TaskQ
from taskq.config import check_name


@click.command()
@app_option
@click.option("-Q", "--queues", help="Only these, comma-separated.")
@click.option("--partitions", "apart", is_flag=True, help="Show each partition by itself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(
    context: click.Context, app: str | None, queues: str | None, *, apart: bool, as_json: bool
) -> None:
    """Show what is queued, scheduled and running, and the live workers."""
    opened = open_app(context, app)
    names = opened.queues if queues is None else map(opened.check_queue, split_names(queues))
    parts = {name: _surveys(opened, name) for name in names}
    if apart:
        surveys = [survey for some in parts.values() for survey in some]
    else:
        surveys = [queries.joined(name, some) for name, some in parts.items()]
    if as_json:
        click.echo(json.dumps(_as_data(opened, surveys), indent=2))
    else:
        _print(Console(), surveys)
    opened.close()


@click.command()
@app_option
@click.option("-Q", "--queue", required=True, help="The queue to empty.")
@click.option("--task", default="", help="Only the messages of this task.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def purge(context: click.Context, app: str | None, queue: str, task: str, *, yes: bool) -> None:
    """Throw away queued and scheduled messages; whoever waits for them gets Cancelled."""
    opened = open_app(context, app)
    opened.check_queue(queue)
    if task:
        check_name("task", task)
    what = f"all messages of {task} on {queue}" if task else f"all messages on {queue}"
    if not yes:
        click.confirm(f"Throw away {printable(what)} of the app {opened.name}?", abort=True)
    total = 0
    for place in opened.partitions.known(queue):
        base, left = keys.base(opened.name, place), True
        while left:
            count, left = opened.broker.run(commands.purge(base, "purged", task))
            total += count
    click.echo(f"purged {total} messages")
    opened.close()


def _surveys(app: TaskQ, queue: str) -> list[Survey]:
    """Return what is in each partition of a queue."""
    places = app.partitions.known(queue)
    return [app.broker.run(queries.survey(keys.base(app.name, one), one)) for one in places]


def _as_data(app: TaskQ, surveys: Iterable[Survey]) -> dict[str, Any]:
    return {
        "app": app.name,
        "queues": {
            one.queue: {
                "tasks": {
                    name: {
                        "queued": task.queued,
                        "scheduled": task.scheduled,
                        "running": task.running,
                        "known": task.known,
                    }
                    for name, task in one.tasks.items()
                },
                "workers": [
                    {
                        "name": worker.name,
                        "running": worker.running,
                        "lease_left": worker.lease_left,
                    }
                    for worker in one.workers
                ],
                "counts": one.counts,
            }
            for one in surveys
        },
    }


def _print(console: Console, surveys: Iterable[Survey]) -> None:
    tasks = Table("queue", "task", box=None, pad_edge=False)
    for column in ("queued", "scheduled", "running"):
        tasks.add_column(column, justify="right")
    tasks.add_column("")
    workers = Table("worker", "queue", box=None, pad_edge=False)
    workers.add_column("running", justify="right")
    for survey in surveys:
        for name, task in survey.tasks.items():
            note = "" if task.known or not task.queued else "no live worker knows this task"
            counts = (str(task.queued), str(task.scheduled), str(task.running))
            tasks.add_row(survey.queue, _safe(name), *counts, note)
        if not survey.tasks:
            tasks.add_row(survey.queue, "(empty)", "0", "0", "0", "")
        for what, count in survey.counts.items():
            console.print(f"{survey.queue}: {count} {_safe(what)} in the last 90 days")
        for worker in survey.workers:
            workers.add_row(_safe(worker.name), survey.queue, str(worker.running))
    console.print(tasks)
    console.print(workers if workers.row_count else "no live worker")


def _safe(text: str) -> str:
    return escape(printable(text))
