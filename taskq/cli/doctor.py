"""`taskq doctor` and `taskq acl`."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Iterator

import click

from taskq.broker import checkup, permissions, places
from taskq.broker.layout import Finding, Level
from taskq.cli.place import app_option, open_app, printable
from taskq.client.app import TaskQ
from taskq.config import replicas
from taskq.errors import BrokerError, ConfigError

_ROLES = permissions.ROLES | permissions.SENTINEL_ROLES | permissions.REPLICA_ROLES
_ROLE = click.Choice(list(_ROLES))


@click.command()
@app_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(context: click.Context, app: str | None, *, as_json: bool) -> None:
    """Look at the app's Redis and keys; say what is wrong, and how it is mended.

    Exits with 1 if a worker could not do its work there, with 0 on mere warnings.
    """
    opened = open_app(context, app)
    findings = _examine(opened)
    errors = sum(one.level is Level.ERROR for one in findings)
    warnings = sum(one.level is Level.WARNING for one in findings)
    if as_json:
        told = [dataclasses.asdict(one) for one in findings]
        data = {"app": opened.name, "errors": errors, "warnings": warnings, "findings": told}
        click.echo(json.dumps(data, indent=2))
    else:
        for one in findings:
            click.echo(f"{one.level:<8} {one.check:<12} {printable(one.text)}")
            if one.fix:
                click.echo(f"{'':<8} {'':<12} mend: {printable(one.fix)}")
        click.echo(f"{errors} errors, {warnings} warnings")
    opened.close()
    raise SystemExit(1 if errors else 0)


@click.command()
@click.argument("roles", nargs=-1, type=_ROLE, metavar="[ROLE]...")
@app_option
@click.pass_context
def acl(context: click.Context, roles: tuple[str, ...], app: str | None) -> None:
    """Print minimal users of Redis for the app, one ACL SETUSER line each.

    ROLE: producer, worker, watcher, admin; all of them if none is given. Each line has a new
    password; feed it to redis-cli, and put user and password into the URL. Of a cluster, each
    node is fed the same, and of sentinels each of their servers. Where there are sentinels:
    guide, fed to them, for sentinel_username= in the URL; and sentinel, by which they watch
    the servers. There and in a cluster: replica, by which replicas follow.
    """
    opened = open_app(context, app)
    url = opened.config.url
    place = None if url is None else places.read(url)
    clustered = place is not None and place.clustered
    there = permissions.ROLES
    if place is not None and place.guide is not None:
        more = {} if clustered else permissions.SENTINEL_ROLES
        there = there | more | permissions.REPLICA_ROLES
    for role in roles or there:
        password = secrets.token_hex(24)
        click.echo(permissions.rule(opened.name, role, password, clustered=clustered))


def _examine(app: TaskQ) -> list[Finding]:
    config = app.config
    try:
        access = app.access
    except (BrokerError, ConfigError) as error:
        text, _, fix = str(error).rpartition(": ")
        return [Finding(Level.ERROR, "access", text or fix, fix if text else "see above")]
    queue = app.queues[0]
    findings = checkup.examine(
        app.name,
        queue,
        access,
        allow_eviction=config.allow_eviction,
        replicas=replicas(config.durability),
    )
    if checkup.worst(findings) is not Level.ERROR:
        findings += _divided(app)
    return findings


def _divided(app: TaskQ) -> Iterator[Finding]:
    """Compare the number of partitions of each queue with what Redis knows."""
    for queue in app.queues:
        count = app.partitions.count(queue)
        try:
            known = len(app.partitions.known(queue))
        except BrokerError as error:
            yield Finding(Level.UNKNOWN, "partitions", f"of {queue} cannot be asked for: {error}")
            continue
        if known > count:
            text = f"the queue {queue} has {known} of them, and this app says {count}"
            fix = f"set TASKQ_QUEUES={queue}:{known}, or Queue({queue!r}, partitions={known})"
            yield Finding(Level.ERROR, "partitions", text, fix)
        elif count > 1:
            yield Finding(Level.OK, "partitions", f"{count} of the queue {queue}")
