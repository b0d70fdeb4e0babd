"""For the tests of your own project: a real worker, in a thread of this process."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from taskq.worker.declaring import Declared
from taskq.worker.engine import Engine, Plan
from taskq.worker.maintenance import Maintenance
from taskq.worker.timekeeper import Timekeeper

if TYPE_CHECKING:
    from taskq.client.app import TaskQ


@contextlib.contextmanager
def running_worker(
    app: TaskQ,
    *,
    url: str | None = None,
    queues: Iterable[str] | None = None,
    threads: int = 2,
    coroutines: int = 10,
    drain: float = 5.0,
) -> Generator[Engine]:
    """Run a worker for `app` until the block ends, then drain it for `drain` seconds.

    With `url` the app is pointed there for the length of the block: `memory://` needs
    no server and the `test` extra.
    """
    with _pointed_at(app, url):
        plan = Plan(tuple(queues or app.queues), threads, coroutines, "test-worker")
        engine = Engine(app, plan)
        maintenance = Maintenance(
            app.name,
            app.access.endpoint,
            plan.queues,
            keyring=app.access.keyring,
            lease=app.config.lease,
            digest=engine.digest,
            kept=engine.kept,
            members=lambda: engine.exchange.members().items(),
            orders=lambda _member, _orders: engine.hear(),
        )
        timekeeper = Timekeeper(
            app.name,
            app.access.endpoint,
            plan.queues,
            keyring=app.access.keyring,
            lease=app.config.lease,
            declared=Declared.by(app, plan.queues),
        )
        engine.start()
        maintenance.start()
        timekeeper.start()
        try:
            yield engine
        finally:
            timekeeper.stop()
            engine.drain(drain)
            maintenance.stop()
            engine.stop()


@contextlib.contextmanager
def _pointed_at(app: TaskQ, url: str | None) -> Generator[None]:
    if url is None:
        yield
        return
    earlier: Any = app.point_at(url)
    try:
        yield
    finally:
        app.point_at(earlier)
