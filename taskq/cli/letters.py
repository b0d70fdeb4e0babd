"""`taskq dead`: messages that failed for the last time or were refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taskq.cli.place import app_option, fail, open_app, printable
from taskq.client.app import TaskQ
from taskq.client.dead import DeadLetter
from taskq.config import check_name
from taskq.errors import DeadLetterError

F = TypeVar("F", bound=Callable[..., Any])

# Where nobody's terminal says how wide a line may be.
_PIPE_WIDTH = 250
# More than any queue keeps.
_ALL = 100_000_000


def _which(function: F) -> F:
    """Give a verb what tells some letters from others."""
    for option in (
        click.option("--task", help="Only messages of this task."),
        click.option("-Q", "--queue", help="Only this queue; else all that the app declares."),
        app_option,
    ):
        function = option(function)
    return function


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def dead() -> None:
    """Show, retry and throw away messages that ended badly."""


@dead.command("list")
@_which
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@_as_json
@click.pass_context
def list_letters(context: click.Context, /, limit: int, *, as_json: bool, **options: Any) -> None:
    """List dead letters, the newest first."""
    with _opened(context, options) as app:
        letters = app.dead.list(options["queue"], options["task"], limit)
        if as_json:
            click.echo(_json([_as_data(one) for one in letters]))
        else:
            _print(letters)


@dead.command()
@click.argument("id")
@app_option
@_as_json
@click.pass_context
def show(context: click.Context, id: str, app: str | None, *, as_json: bool) -> None:
    """Show one dead letter, with the traceback."""
    with open_app(context, app) as opened:
        letter = opened.dead.get(id)
        if as_json:
            click.echo(_json(_as_data(letter)))
            return
        for name, value in _as_data(letter).items():
            if name == "errors":
                for error in value:
                    text = f"{error['type']}: {error['text']}"
                    click.echo(f"attempt {error['attempt']}: {printable(text)}")
            elif name == "traceback":
                for line in (value or "").splitlines():
                    click.echo(printable(line))
            elif value is not None:
                click.echo(f"{name}: {printable(value)}")


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_which
@click.option("--all", "every", is_flag=True, help="All of them, or all that the options name.")
@_yes
@_as_json
@click.pass_context
def retry(
    context: click.Context, /, ids: tuple[str, ...], *, every: bool, as_json: bool, **options: Any
) -> None:
    """Send messages again as new ones, and print the new ids.

    What cannot be sent again stays, and is told.
    """
    with _opened(context, options) as app:
        chosen = _chosen(app, ids, options, every=every, verb="retry")
        sent: dict[str, str] = {}
        kept: dict[str, str] = {}
        try:
            for id in chosen:
                _retry(app, id, sent, kept, quiet=as_json)
        finally:
            # If Redis goes away half way, what was done is told all the same.
            if as_json:
                click.echo(_json({"sent": sent, "kept": kept}))
    if kept:
        raise SystemExit(1)


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_which
@_yes
@_as_json
@click.pass_context
def purge(
    context: click.Context, /, ids: tuple[str, ...], *, as_json: bool, **options: Any
) -> None:
    """Throw away dead letters: those named, or all that the options name."""
    queue, task = options["queue"], options["task"]
    with _opened(context, options) as app:
        if ids and (queue or task):
            fail("give ids, or --queue and --task")
        if not options["yes"]:
            what = f"{len(ids)} dead letters" if ids else _described(options)
            click.confirm(f"Throw away {printable(what)} of the app {app.name}?", abort=True)
        count = app.dead.purge(*ids, queue=queue, task=task)
        click.echo(_json({"purged": count}) if as_json else f"purged {count} dead letters")


def _opened(context: click.Context, options: dict[str, Any]) -> TaskQ:
    app = open_app(context, options["app"])
    if options["queue"] is not None:
        app.check_queue(options["queue"])
    if options["task"] is not None:
        check_name("task", options["task"])
    return app


def _chosen(
    app: TaskQ, ids: tuple[str, ...], options: dict[str, Any], *, every: bool, verb: str
) -> Iterable[str]:
    """Return the ids that are meant; ask where they are many."""
    if bool(ids) == every or (ids and (options["queue"] or options["task"])):
        fail(f"give ids, or --all (and --queue, --task): taskq dead {verb} ID")
    if ids:
        return dict.fromkeys(ids)
    if not options["yes"]:
        what = _described(options)
        click.confirm(f"{verb.title()} {printable(what)} of the app {app.name}?", abort=True)
    return [one.id for one in app.dead.list(options["queue"], options["task"], _ALL)]


def _retry(app: TaskQ, id: str, sent: dict[str, str], kept: dict[str, str], *, quiet: bool) -> None:
    try:
        sent[id] = app.dead.retry(id).id
    except DeadLetterError as error:
        kept[id] = str(error)
        if not quiet:
            click.echo(f"taskq: {printable(error)}", err=True)
    else:
        if not quiet:
            click.echo(f"{printable(id)} → {printable(sent[id])}")


def _described(options: dict[str, Any]) -> str:
    task = f" of {options['task']}" if options["task"] else ""
    queue = f" on {options['queue']}" if options["queue"] else ""
    return f"all dead letters{task}{queue}"


def _as_data(letter: DeadLetter) -> dict[str, Any]:
    data = {name: getattr(letter, name) for name in letter.__struct_fields__}
    errors = [{name: getattr(one, name) for name in one.__struct_fields__} for one in letter.errors]
    return {
        **{
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in data.items()
        },
        "errors": errors,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)


def _print(letters: Sequence[DeadLetter]) -> None:
    table = Table("died", box=None, pad_edge=False)
    # An id that is cut could not be given to the other verbs.
    table.add_column("id", no_wrap=True, min_width=max((len(one.id) for one in letters), default=2))
    for name in ("task", "kind", "attempts", "reason"):
        table.add_column(name)
    for one in letters:
        reason = one.reason.splitlines()[0] if one.reason else ""
        cells = (one.died_at.isoformat(" ", "seconds"), one.id, one.task, one.kind)
        table.add_row(*map(_safe, (*cells, str(one.attempts), reason)))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table if table.row_count else "no dead letters")


def _safe(text: str) -> str:
    return escape(printable(text))
