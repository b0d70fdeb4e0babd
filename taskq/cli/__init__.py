"""The command line: parse, call, print."""

from __future__ import annotations

import click

from taskq.cli.look import purge, status
from taskq.cli.place import Place
from taskq.cli.send import call
from taskq.cli.server import redis, secret
from taskq.cli.work import worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-A", "--app", "app", help="The app: module or module:attribute. [$TASKQ_APP]")
@click.version_option(package_name="taskq-redis", prog_name="taskq")
@click.pass_context
def main(context: click.Context, app: str | None) -> None:
    """Run workers, and look into their queues."""
    context.obj = Place(app)


for command in (worker, redis, status, purge, call, secret):
    main.add_command(command)
