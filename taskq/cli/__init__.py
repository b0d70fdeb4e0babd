"""The command line: parse, call, print."""

from __future__ import annotations

from typing import Any

import click

from taskq.cli.doctor import acl, doctor
from taskq.cli.health import health
from taskq.cli.letters import dead
from taskq.cli.look import purge, status
from taskq.cli.periods import beat, schedule
from taskq.cli.place import Place, fail
from taskq.cli.send import call, cancel, reschedule
from taskq.cli.server import redis, secret
from taskq.cli.work import worker
from taskq.errors import BrokerError, TaskQError


class Verbs(click.Group):
    """Says what went wrong in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except TaskQError as error:
            fail(str(error), 1 if isinstance(error, BrokerError) else 2)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-A", "--app", "app", help="The app: module or module:attribute. [$TASKQ_APP]")
@click.version_option(package_name="taskq-redis", prog_name="taskq")
@click.pass_context
def main(context: click.Context, app: str | None) -> None:
    """Run workers, and look into their queues."""
    context.obj = Place(app)


for command in (
    worker, beat, redis, status, purge, dead, schedule, call, cancel, reschedule, doctor, health,
    acl, secret,
):  # fmt: skip
    main.add_command(command)
