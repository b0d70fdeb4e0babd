"""For the tests of your own project: a real worker in a thread, and a clock to put forward."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Generator, Iterable
from datetime import datetime
from typing import TYPE_CHECKING
from unittest import mock

from taskq.broker import claims, keys, queries, scripts
from taskq.config import Seconds, check_name, seconds
from taskq.errors import BrokerError
from taskq.model import clock as clocks
from taskq.worker.declaring import Declared
from taskq.worker.engine import Engine, Plan
from taskq.worker.maintenance import Maintenance
from taskq.worker.timekeeper import Timekeeper

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|[smhdw])")
_LOOK_SECONDS = 0.005
_OPEN_SECONDS = 2.0
# How long each instant is waited for once the patience is over.
_IMPATIENCE_SECONDS = 0.05
_one_at_a_time = threading.Lock()


class VirtualClock:
    """The time of taskq in a test: it goes as always, and can be put forward.

        clock = VirtualClock()
        with running_worker(app, url="memory://", clock=clock):
            remind.options(countdown=7200).delay()
            clock.advance("2h")

    In force while `running_worker` runs, for that app, in this process and in no other:
    Redis's clock in all scripts, and the producer's and the worker's own. How long code
    takes, time limits and `time.time()` are not touched; nor are the lifetimes of keys.
    """

    def __init__(self) -> None:
        self._ahead_ms = 0
        # Where scripts find how far it is ahead.
        self._keys: list[str] = []
        # The worker that goes by it.
        self.worker: _Worker | None = None

    def now(self) -> datetime:
        """Return the time it shows: the machine's where it is not in force."""
        return clocks.instant(clocks.now_ms())

    def advance(self, by: str | Seconds, *, patience: Seconds = 10.0) -> None:
        """Put it forward by "2h", "1h30m", "90s", seconds or a `timedelta`.

        What falls due on the way runs at its time and in order: the clock stops there
        until the worker has nothing left to do. Where it has after `patience` seconds, time
        goes on over what still runs, and stops only for a moment from then on.
        """
        worker = self.worker
        if worker is None:
            msg = "no worker runs by this clock: running_worker(app, clock=clock)"
            raise RuntimeError(msg)
        ahead_ms = self._ahead_ms + milliseconds(by)
        wait = seconds("patience", patience)
        while True:
            if not worker.run_what_is_due(wait):
                wait = min(wait, _IMPATIENCE_SECONDS)
            if self._ahead_ms == ahead_ms:
                return
            due_ms = worker.next_due()
            left_ms = ahead_ms - self._ahead_ms
            if due_ms is not None:
                left_ms = min(left_ms, max(0, due_ms - clocks.now_ms()) + 1)
            self._put(worker.app, self._ahead_ms + left_ms)

    @contextlib.contextmanager
    def in_force(self, app: TaskQ, queues: Iterable[str]) -> Generator[None]:
        """Let an app's queues, and all of taskq in this process, go by it until the block ends."""
        if not _one_at_a_time.acquire(blocking=False):
            msg = "another virtual clock is in use in this process"
            raise RuntimeError(msg)
        # Nothing in production asks whether there is such a clock: these are put in the
        # place of what it calls.
        own_now = clocks.now_ms
        places = {place for queue in app.queues for place in app.partitions.places(queue)}
        self._keys = [keys.ahead(app.name, place) for place in {*places, *queues}]

        def now_ms() -> int:
            return own_now() + self._ahead_ms

        def now() -> float:
            return now_ms() / 1000

        try:
            with (
                mock.patch.object(scripts, "load", scripts.load_ahead),
                mock.patch.object(clocks, "now_ms", now_ms),
                mock.patch.object(clocks, "now", now),
            ):
                # What a test left that was killed.
                self._put(app, 0)
                yield
        finally:
            self.worker = None
            with contextlib.suppress(BrokerError):
                self._put(app, 0)
            _one_at_a_time.release()

    def _put(self, app: TaskQ, ahead_ms: int) -> None:
        """Let it be so far ahead of Redis's clock in all scripts, and of the machine's."""
        self._ahead_ms = ahead_ms
        for key in self._keys:
            if ahead_ms:
                app.broker.call("SET", key, ahead_ms * 1000, "EX", 86_400)
            else:
                app.broker.call("DEL", key)


def milliseconds(span: str | Seconds) -> int:
    """Return "2h", "1h30m", "90s", seconds or a `timedelta` as whole milliseconds."""
    if not isinstance(span, str):
        return round(seconds("by", span) * 1000)
    parts = list(_SPAN.finditer(span))
    if not parts or "".join(part[0] for part in parts) != span.rstrip():
        msg = f"a span of time is written as '2h', '1h30m' or '90s', not {span!r:.80}"
        raise ValueError(msg)
    return round(sum(float(part[1]) * _UNITS[part[2]] for part in parts))


class _Worker:
    """What a clock that is put forward asks of a worker."""

    def __init__(self, engine: Engine, timekeeper: Timekeeper) -> None:
        self._engine, self._timekeeper = engine, timekeeper
        self.app, self._queues = engine.app, engine.plan.queues

    def next_due(self) -> int | None:
        """Return when the next message or tick is due; what is due already is not meant."""
        after = f"({clocks.now_ms()}"
        found = [
            self.app.broker.call(
                "ZRANGEBYSCORE", key(self.app.name, queue), after, "+inf",
                "WITHSCORES", "LIMIT", 0, 1,
            )
            for queue in self._queues
            for key in (keys.scheduled, keys.ticks)
        ]  # fmt: skip
        return min((int(float(one[1])) for one in found if one), default=None)

    def run_what_is_due(self, wait: float) -> bool:
        """Let it run, for so many seconds; return whether nothing is left to do."""
        app, lease_ms = self.app, round(self.app.config.lease * 1000)
        # As one that lived through the time that was left out would have done.
        for queue, member in self._engine.exchange.members().items():
            renew = claims.renew(
                keys.base(app.name, queue), member.encode(), lease_ms, self._engine.digest
            )
            app.broker.run(renew)
        self._engine.look()
        until = clocks.monotonic() + wait
        while self._is_busy():
            if clocks.monotonic() > until:
                return False
            self._timekeeper.look()
            clocks.sleep(_LOOK_SECONDS)
        return True

    def _is_busy(self) -> bool:
        """Whether something runs, or waits for this worker."""
        app, now = self.app, clocks.now_ms()
        # Twice: one queue may hand something to another that was looked at before it.
        for queue in (*self._queues, *self._queues):
            if app.broker.call("ZCOUNT", keys.ticks(app.name, queue), "-inf", now):
                return True
            survey = app.broker.run(queries.survey(keys.base(app.name, queue), queue))
            ours = [task for name, task in survey.tasks.items() if name in app.tasks]
            if survey.due or any(task.queued or task.running for task in ours):
                return True
        return False


@contextlib.contextmanager
def running_worker(
    app: TaskQ,
    *,
    url: str | None = None,
    queues: Iterable[str] | None = None,
    threads: int = 2,
    coroutines: int = 10,
    drain: float = 5.0,
    clock: VirtualClock | None = None,
) -> Generator[Engine]:
    """Run a worker for `app` until the block ends, then drain it for `drain` seconds.

    With `url` the app is pointed there for the length of the block: `memory://` needs
    no server and the `test` extra. With `clock` it goes by that.
    """
    served = tuple(check_name("queue", queue) for queue in queues or app.queues)
    places = tuple(place for queue in served for place in app.partitions.places(queue))
    timed = clock.in_force(app, places) if clock else contextlib.nullcontext()
    with _pointed_at(app, url), timed:
        for queue in served:
            # As the worker itself, it may be there before Redis is.
            with contextlib.suppress(BrokerError):
                app.partitions.open(queue, within=_OPEN_SECONDS)
        plan = Plan(places, threads, coroutines, "test-worker")
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
            forgotten=lambda member: engine.doubt(member[0]),
        )
        timekeeper = Timekeeper(
            app.name,
            app.access.endpoint,
            served,
            keyring=app.access.keyring,
            lease=app.config.lease,
            declared=Declared.by(app, served),
        )
        engine.start()
        maintenance.start()
        timekeeper.start()
        if clock:
            # What is declared in code is to be there when time is put forward.
            timekeeper.ready.wait(app.config.enqueue_deadline)
            clock.worker = _Worker(engine, timekeeper)
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
    earlier = app.point_at(url)
    try:
        yield
    finally:
        app.point_at(*earlier)
