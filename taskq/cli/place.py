"""Which app a verb is about: `-A` before or after it, or `TASKQ_APP`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from taskq.client.app import TaskQ
from taskq.client.loader import load_app
from taskq.config import NAME, read_queues
from taskq.model.words import printable as printable  # noqa: PLC0414 - for all verbs

F = TypeVar("F", bound=Callable[..., Any])


class Place:
    """What was said before the verb."""

    def __init__(self, app: str | None) -> None:
        self.app = app


def app_option(function: F) -> F:
    """Give a verb `-A/--app`."""
    option = click.option(
        "-A", "--app", "app", help="The app: module or module:attribute. [$TASKQ_APP]"
    )
    return option(function)


def named_app(context: click.Context, after: str | None) -> str:
    """Return the app's name; exit with 2 and what to type if there is none."""
    name = after or context.obj.app or os.environ.get("TASKQ_APP")
    if not name:
        verb = context.command_path.partition(" ")[2]
        fail(f"which app? type: taskq {verb} -A module[:attribute], or set TASKQ_APP")
    return name


def open_app(context: click.Context, after: str | None) -> TaskQ:
    """Import the app."""
    return load_app(named_app(context, after))


def app_and_modules(
    context: click.Context, after: str | None, modules: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """Return the app's name, else the first of the modules, and the modules beside it."""
    if modules and not (after or context.obj.app):
        return modules[0], modules[1:]
    return named_app(context, after), modules


def process_name(given: str | None) -> str:
    """Return what a process is called in logs; exit with 2 where that cannot be a name."""
    name = given or f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
    if not NAME.fullmatch(name):
        fail(f"--name {name!r}: use 1 to 128 of A-Z a-z 0-9 _ . -")
    return name


def split_names(text: str) -> tuple[str, ...]:
    """Return the names of queues in `-Q a,b`, each once; exit with 2 where one cannot be a name."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names or not all(map(NAME.fullmatch, names)):
        fail(f"-Q {text[:140]!r}: queue names have 1 to 128 of A-Z a-z 0-9 _ . -")
    return names


def split_queues(text: str) -> dict[str, int | None]:
    """Return the queues in `-Q a,b:8`, and how many partitions each is said to have."""
    queues = read_queues("-Q", text)
    if not queues:
        fail(f"-Q {text[:140]!r}: it names no queue")
    return queues


def fail(reason: str, code: int = 2) -> NoReturn:
    """Say why in one line, and exit."""
    click.echo(f"taskq: {printable(reason)}", err=True)
    raise SystemExit(code)
