"""`taskq redis` and `taskq secret`."""

from __future__ import annotations

import os

import click

from taskq.broker import embedded
from taskq.cli.place import app_option, fail, open_app
from taskq.model.signing import new_secret


@click.command()
@app_option
@click.pass_context
def redis(context: click.Context, app: str | None) -> None:
    """Run the app's embedded server in the foreground, and print its URL."""
    opened = open_app(context, app)
    config = opened.config
    if config.url and not config.url.startswith("embedded:"):
        fail("this app names a Redis of its own (url= or TASKQ_URL): nothing embedded to run")
    directory = embedded.state_dir(opened.name, config.state_dir, os.environ)
    binary = embedded.find_binary(config.redis_server, path=True)
    raise SystemExit(embedded.run_foreground(opened.name, directory, binary, _ready))


@click.command()
def secret() -> None:
    """Print a new signing key, for TASKQ_SECRET."""
    click.echo(new_secret())


def _ready(url: str, already_running: bool) -> None:  # noqa: FBT001 - the callback's shape
    click.echo(url)
    if already_running:
        click.echo("(it ran already; it will as long as somebody uses it)", err=True)
