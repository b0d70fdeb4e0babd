"""`taskq beat`: fires schedules and runs no task, in one process, until it is told to stop."""

from __future__ import annotations

import logging
import selectors

from taskq.client.app import TaskQ
from taskq.errors import BrokerUnavailable
from taskq.worker import gate
from taskq.worker.declaring import Declared
from taskq.worker.signals import Signals
from taskq.worker.timekeeper import Timekeeper

log = logging.getLogger("taskq.worker")


def run(app: TaskQ, queues: tuple[str, ...], name: str) -> int:
    """Fire the schedules of these queues until SIGTERM or SIGINT; return the exit code.

    Raises:
        ConfigError: no worker may serve on this Redis.

    """
    access = app.access
    gate.check_place(access.endpoint)
    try:
        gate.tell(gate.examine(access.endpoint, allow_eviction=app.config.allow_eviction))
    except BrokerUnavailable as error:
        log.warning("%s", error)  # it is waited for
    declared = Declared.by(app, queues)
    timekeeper = Timekeeper(
        app.name,
        access.endpoint,
        queues,
        keyring=access.keyring,
        lease=app.config.lease,
        declared=declared,
    )
    with Signals() as signals, selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        timekeeper.start()
        log.info("%s: fires the schedules of app %s on %s, queues %s", name, app.name,
                 access.endpoint.place, ", ".join(queues))  # fmt: skip
        while not signals.stops:
            selector.select()
            signals.clear()
        timekeeper.stop()
    log.info("stopped")
    return 0
