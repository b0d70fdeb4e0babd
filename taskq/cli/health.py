"""`taskq health`."""

from __future__ import annotations

import http.client
import json
from typing import Any

import click

from taskq.cli.durations import Duration
from taskq.cli.place import fail, printable

PORT = click.IntRange(1, 65_535)
PORT_VARIABLE = "TASKQ_HEALTH_PORT"


@click.command()
@click.option("--port", type=PORT, envvar=PORT_VARIABLE, help=f"[${PORT_VARIABLE}]")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--timeout", type=Duration(0.1, 60), default=5.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print what the worker answers.")
def health(port: int | None, host: str, timeout: float, *, as_json: bool) -> None:
    """Ask a worker that runs with --health-port how it is; exit with 0 if it is well, else 1."""
    if port is None:
        fail(f"which port? type: taskq health --port N, or set {PORT_VARIABLE}")
    try:
        told = _ask(host, port, timeout)
    except (OSError, ValueError, http.client.HTTPException) as error:
        fail(f"no worker answers on {host}:{port}: {type(error).__name__}: {error}", 1)
    if as_json:
        click.echo(json.dumps(told))
    elif told["healthy"]:
        click.echo("healthy")
    else:
        click.echo("unhealthy: " + printable("; ".join(told["problems"])))
    raise SystemExit(0 if told["healthy"] else 1)


def _ask(host: str, port: int, timeout: float) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/")
        told = json.loads(connection.getresponse().read(1 << 20))
    finally:
        connection.close()
    if not isinstance(told, dict) or not {"healthy", "problems"} <= told.keys():
        msg = "this is not the health port of a worker"
        raise ValueError(msg)
    return told  # pyright: ignore[reportUnknownVariableType] - JSON may hold anything
