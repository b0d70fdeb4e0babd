"""`taskq worker`."""

from __future__ import annotations

from typing import Any

import click

from taskq.cli.durations import Duration
from taskq.cli.health import PORT, PORT_VARIABLE
from taskq.cli.place import app_and_modules, app_option, fail, process_name, split_queues
from taskq.worker import logs, memory
from taskq.worker.process import Orders
from taskq.worker.supervisor import Supervisor
from taskq.worker.vitals import HealthServer, Vitals

_COUNT = click.IntRange(0, 100_000)
LEVELS = click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False)


@click.command()
@click.argument("modules", nargs=-1)
@app_option
@click.option("-Q", "--queues", help="Serve only these: a,b; of b 8 partitions, at least: a,b:8.")
@click.option(
    "-p", "--processes", type=click.IntRange(1, 1024), help="Child processes. [usable CPUs]"
)
@click.option("-t", "--threads", type=_COUNT, help="Threads in each, for `def` tasks. [8]")
@click.option("--coroutines", type=_COUNT, help="Running `async def` tasks in each. [100]")
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 1024),
    help="N processes of one thread: -p N -t 1.",
)
@click.option("-n", "--name", help="The worker's name. [host-pid]")
@click.option("-l", "--loglevel", type=LEVELS, default="info", show_default=True)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("--no-schedules", is_flag=True, help="Take no part in firing schedules.")
@click.option("--burst", is_flag=True, help="Exit when nothing is queued, running or due.")
@click.option("--reload", is_flag=True, help="Restart the children when a source file changes.")
@click.option(
    "--shutdown-timeout",
    type=Duration(min=0),
    help="Seconds running tasks get at the end. [25]",
)
@click.option(
    "--health-port",
    type=PORT,
    envvar=PORT_VARIABLE,
    help=f"Tell over HTTP how the worker is. [${PORT_VARIABLE}]",
)
@click.option("--health-host", help="The address of that port. [127.0.0.1]")
@click.option(
    "--health-patience",
    type=Duration(min=5),
    help="Seconds of silence after which a part of the worker is ill. [30]",
)
@click.option(
    "--max-tasks-per-child",
    type=click.IntRange(min=1),
    help="Replace a child, without haste, when it has run so many.",
)
@click.option("--max-memory-per-child", help="The same when it uses so much memory: 512M, 2G.")
@click.option("--memory-limit", help="Kill a child that uses so much, and say why.")
@click.pass_context
def worker(context: click.Context, /, modules: tuple[str, ...], **options: Any) -> None:
    """Run the tasks of an app: taskq worker proj [MODULE...].

    The first MODULE is the app, unless -A names it; the others are imported as well.
    """
    app, modules = app_and_modules(context, options["app"], modules)
    name = process_name(options["name"])
    processes, threads = _slots(options)
    most, limit = _memory(options)
    queues = None if options["queues"] is None else split_queues(options["queues"])
    orders = Orders(
        app=app,
        modules=modules,
        queues=None if queues is None else tuple(queues),
        partitions={name: count for name, count in (queues or {}).items() if count},
        processes=processes,
        threads=threads,
        coroutines=options["coroutines"],
        name=name,
        loglevel=options["loglevel"],
        log_format=options["log_format"],
        burst=options["burst"],
        schedules=not options["no_schedules"],
        reload=options["reload"],
        shutdown_timeout=options["shutdown_timeout"],
        health=options["health_port"] is not None,
        max_tasks=options["max_tasks_per_child"],
        max_memory=most,
        memory_limit=limit,
    )
    vitals = _vitals(name, options)
    logs.configure(orders.loglevel, orders.log_format, name)
    raise SystemExit(Supervisor(orders, vitals).run())


def _vitals(name: str, options: dict[str, Any]) -> Vitals | None:
    """Open the port that tells how the worker is, if there is to be one."""
    port, host = options["health_port"], options["health_host"]
    if port is None:
        if host is not None or options["health_patience"] is not None:
            fail("--health-host and --health-patience are for --health-port N")
        return None
    vitals = Vitals(name, options["health_patience"] or 30.0)
    try:
        HealthServer(host or "127.0.0.1", port, vitals.report).start()
    except OSError as error:
        fail(f"--health-port {port}: {host or '127.0.0.1'}:{port} cannot be used: {error}")
    return vitals


def _slots(options: dict[str, Any]) -> tuple[int | None, int | None]:
    if options["threads"] == options["coroutines"] == 0:
        fail("-t 0 --coroutines 0 leaves no slot to run anything in")
    if options["concurrency"] is None:
        return options["processes"], options["threads"]
    if options["processes"] is not None or options["threads"] is not None:
        fail("-c N means -p N -t 1: give either -c, or -p and -t")
    return options["concurrency"], 1


def _memory(options: dict[str, Any]) -> tuple[int | None, int | None]:
    most = _size("--max-memory-per-child", options["max_memory_per_child"])
    limit = _size("--memory-limit", options["memory_limit"])
    if most is not None and limit is not None and limit <= most:
        fail("--memory-limit kills a child before --max-memory-per-child replaces it: give it more")
    return most, limit


def _size(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else memory.parse(text)
    except ValueError as error:
        fail(f"{option}: {error}")
