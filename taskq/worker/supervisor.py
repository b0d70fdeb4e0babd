"""The parent process: it starts children, renews their leases and replaces the dead.

It imports no user code. What it must know of the app it learns from its first child.
"""

from __future__ import annotations

import functools
import logging
import selectors
import sys
from collections import deque

from taskq.broker import keys
from taskq.broker.claims import Kept, Order
from taskq.broker.connection import Endpoint
from taskq.broker.credentials import Provider
from taskq.model import clock
from taskq.model.signing import Keyring
from taskq.worker import gate, zombies
from taskq.worker.burst import BurstWatch
from taskq.worker.channel import Note
from taskq.worker.courier import Courier
from taskq.worker.declaring import Declared
from taskq.worker.guard import Guard
from taskq.worker.inquest import Inquest
from taskq.worker.maintenance import Maintenance, Member
from taskq.worker.process import ChildProcess, Orders, ended
from taskq.worker.reload import FileWatch
from taskq.worker.roll import Roll
from taskq.worker.signals import Signals
from taskq.worker.staff import Staff
from taskq.worker.stopping import Stopping
from taskq.worker.timekeeper import Timekeeper
from taskq.worker.vitals import Vitals

log = logging.getLogger("taskq.worker")

_TICK = 0.25


class Supervisor:
    """Runs children until told to stop."""

    def __init__(self, orders: Orders, vitals: Vitals | None = None) -> None:
        self._orders = orders
        self._vitals = vitals
        self._signals = Signals()
        self._staff = Staff(orders)
        self._courier = Courier(self._staff)
        self._roll = Roll(self._staff.start, self._staff.retire)
        self._stopping = Stopping(self._staff)
        self._inquest = Inquest()
        self._files = FileWatch()
        # Whether what tasks leave behind is ours to reap.
        self._init = zombies.is_init()
        # The app and the URL that the children serve, and what begins once they are known.
        self._served: tuple[str, str] | None = None
        self._max_crashes = 3
        self._maintenance: Maintenance | None = None
        self._guard: Guard | None = None
        self._burst: BurstWatch | None = None
        self._timekeeper: Timekeeper | None = None
        # When the next hard limit passes.
        self._look_at = float("inf")
        # What maintenance heard that is to be cancelled.
        self._told: deque[tuple[Member, list[Order]]] = deque()
        # Queues that maintenance found to have more partitions, and how many.
        self._grown: dict[str, int] = {}
        # Why no worker may serve on this Redis, found when it was reached at last.
        self._refused: str | None = None
        # Why this one gave up.
        self._failed: str | None = None

    def run(self) -> int:
        """Work until stopped; return the exit code: 0, or 2 if the app cannot be served."""
        with self._signals:
            self._staff.start(1)
            while self._staff or not self._stopping.begun:
                self._wait()
                self._reap()
                self._obey_signals()
                self._obey_orders()
                self._look_around()
        for part in (self._timekeeper, self._burst, self._maintenance):
            if part is not None:
                part.stop()
        if self._failed:
            sys.stderr.write(f"taskq worker: {self._failed}\n")
            return 2
        log.info("stopped")
        return 0

    def _wait(self) -> None:
        """Block until a child speaks, a signal comes, or a tick has passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            for child in self._staff:
                selector.register(child.channel, selectors.EVENT_READ, child)
            left = self._look_at - clock.monotonic()
            for key, _ in selector.select(max(0.0, min(_TICK, left))):
                if key.data is None:
                    self._signals.clear()
                else:
                    self._hear(key.data)

    def _hear(self, child: ChildProcess) -> bool:
        """Take what a child says; return whether it may say more."""
        notes = child.channel.receive()
        for note in notes or ():
            if note["kind"] == "hello":
                self._files.watch(note["files"])
                # One that says it after the end has begun has been killed meanwhile.
                if not self._stopping.begun:
                    self._welcome(child, note)
                    if child.serves:
                        self._staff.relieve(child)
            elif note["kind"] == "terminate":
                self._terminate(child, note["id"])
            elif note["kind"] == "credentials":
                self._courier.hear(note)
            elif note["kind"] == "spent":
                self._recycle(child, note["why"])
            elif note["kind"] == "alive":
                self._staff.alive[child.number] = clock.monotonic() - note["ago"]
            else:
                child.hear(note)
        return notes is not None

    def _welcome(self, child: ChildProcess, hello: Note) -> None:
        """Take a child into service; the first has told what the app is."""
        # Taken out of the note, which is kept.
        keyring = Keyring(hello.pop("keys"))
        if self._served is not None and self._served != (hello["app"], hello["url"]):
            name, url = self._served
            child.stray = True
            child.failed = (
                f"the code now names the app {hello['app']} on {hello['place']}, and this "
                f"worker serves {name} on {Endpoint(url).place}: start a new worker for it"
            )
            child.channel.send({"kind": "hand_back"})
            return
        child.hello, self._served = hello, (hello["app"], hello["url"])
        self._staff.alive[child.number] = clock.monotonic()
        if not child.alone:
            self._staff.learn(hello)
            self._max_crashes = hello["max_crashes"]
        if self._maintenance is None:
            self._begin(hello, keyring)
        elif not child.alone:  # its tasks have other names, so another digest
            self._maintenance.refresh(hello["queues"], hello["lease"], hello["digest"], keyring)
            if self._burst is not None:
                self._burst.refresh(hello["queues"], hello["tasks"])
            if self._timekeeper is not None:
                declared = Declared.of(hello["schedules"])
                self._timekeeper.refresh(keys.queues_of(hello["queues"]), keyring, declared)
        self._staff.fill()

    def _begin(self, hello: Note, keyring: Keyring) -> None:
        provider = Provider(self._courier.fetch) if hello["provider"] else None
        endpoint = Endpoint(hello["url"], provider)
        log.info(
            "%s: app %s on %s, queues %s, %s each; tasks: %s",
            self._orders.name, hello["app"], hello["place"], keys.told(hello["queues"]),
            hello["slots"], ", ".join(hello["tasks"]) or "none",
        )  # fmt: skip
        self._maintenance = Maintenance(
            hello["app"], endpoint, hello["queues"],
            keyring=keyring, lease=hello["lease"], digest=hello["digest"],
            kept=Kept(*hello["kept"]), members=self._staff.members, holds=self._staff.holds,
            lost=self._staff.lost, forgotten=self._staff.forgotten,
            orders=self._ordered, grown=self._heard_of_growth,
            first=None if hello["examined"] else functools.partial(self._examine, endpoint, hello),
        )  # fmt: skip
        self._maintenance.start()
        self._guard = Guard(self._orders, self._maintenance.release, self._recycle)
        if self._orders.burst:
            self._burst = BurstWatch(
                hello["app"], endpoint, hello["queues"], hello["tasks"], self._staff.retries
            )
            self._burst.start()
        elif self._orders.schedules:
            self._timekeeper = Timekeeper(
                hello["app"], endpoint, keys.queues_of(hello["queues"]),
                keyring=keyring, lease=hello["lease"], declared=Declared.of(hello["schedules"]),
            )  # fmt: skip
            self._timekeeper.start()

    def _examine(self, endpoint: Endpoint, hello: Note) -> None:
        """Look at a Redis that was away when the first child came up."""
        allowed = hello["allow_eviction"]
        self._refused, findings = gate.glance(endpoint, allow_eviction=allowed)
        gate.tell(findings)
        self._signals.wake()

    def _reap(self) -> None:
        for child in self._staff:
            if (code := child.reaped()) is None:
                continue
            while self._hear(child):
                # It may have said something in the end.
                pass
            self._staff.remove(child)
            self._bury(child, code)
            if not self._stopping.begun:
                self._make_up_for(child, code)
        if self._init:
            zombies.reap([child.pid for child in self._staff])

    def _bury(self, child: ChildProcess, code: int) -> None:
        """Charge its death, and take back what it held."""
        for member, blames in self._inquest.hold(child, code, self._max_crashes).items():
            if self._maintenance is not None:
                self._maintenance.reclaim(member, blames)
                if not self._stopping.begun:
                    # They will wait for a process of their own: it may as well start now.
                    self._staff.start_alone({member[0]: sum(one.isolates for one in blames)})
        if self._guard is not None:
            self._guard.forget(child)
        child.close()

    def _make_up_for(self, child: ChildProcess, code: int) -> None:
        """Have another take its place, if that is any use."""
        if self._maintenance is None:
            # No child has ever served the app: another would not either.
            unsaid = f"the first child ended {ended(code)} before the app was loaded"
            self._give_up(child.failed or unsaid)
        elif child.alone:
            if child.failed:
                log.error("a child for suspects cannot start: %s", child.failed)
        elif child.stray and child.failed and not self._staff.fills(child.number):
            self._give_up(child.failed, self._staff.patience)
        elif child.successor is None:
            self._staff.replace(child)

    def _give_up(self, why: str, patience: float = 0.0) -> None:
        self._failed = why
        self._stopping.begin(patience)

    def _obey_signals(self) -> None:
        serving = self._maintenance is not None and not self._stopping.begun
        if serving and self._signals.take_restart():
            self._restart()
        if self._signals.stops and not self._stopping.begun:
            log.info("stopping: waiting for running tasks, %g s at most", self._staff.patience)
            self._stopping.begin(self._staff.patience)
        if self._signals.stops > 1:
            self._stopping.hurry()

    def _heard_of_growth(self, counts: dict[str, int]) -> None:
        """Take down which queues have more partitions than are served."""
        self._grown = counts
        self._signals.wake()

    def _follow_growth(self) -> None:
        """Let new children, one by one, serve all partitions; the old ones go on meanwhile."""
        counts, self._grown = self._grown, {}
        if counts and not self._roll.active:
            told = ", ".join(f"{queue} has {count} partitions" for queue, count in counts.items())
            log.info("by now %s", told)
            self._staff.divide(counts)
            self._restart()

    def _restart(self) -> None:
        regular = [child for child in self._staff if not child.alone]
        log.info("restarting %d children, one by one", len(regular))
        self._roll.begin(regular)
        self._staff.hurry()
        for child in self._staff:
            if child.alone:
                self._staff.retire(child)

    def _reload(self, changed: str) -> None:
        log.info("%s changed; restarting", changed)
        for child in self._staff:
            self._staff.retire(child)
        self._staff.hurry()

    def _look_around(self) -> None:
        """Do that whose time has come."""
        now = clock.monotonic()
        if self._vitals is not None:
            self._tell(self._vitals, now)
        if self._stopping.begun:
            self._stopping.step(now)
        else:
            self._go_on(now)
        for child in self._staff:
            if child.kill_at <= now:
                child.kill()
        if self._guard is not None:
            self._look_at = self._guard.look(self._staff)

    def _go_on(self, now: float) -> None:
        """Start what is to be started, and see whether it is time to stop."""
        self._follow_growth()
        self._staff.restart(now)
        self._roll.step(self._staff, self._staff.places)
        if self._maintenance is not None:
            self._staff.start_alone(self._maintenance.suspects)
        if self._refused:
            self._give_up(self._refused)
        if self._burst is not None and self._burst.idle:
            log.info("nothing is left to do")
            self._stopping.begin(self._staff.patience)
        if self._orders.reload and (changed := self._files.changed()):
            self._reload(changed)

    def _recycle(self, child: ChildProcess, why: str) -> None:
        """Replace a child that works, unless all are to end."""
        if not self._stopping.begun:
            self._staff.recycle(child, why)

    def _tell(self, vitals: Vitals, now: float) -> None:
        """Pass on the signs of life."""
        vitals.loop_at = now
        vitals.children = {
            n: at for n, at in self._staff.alive.items() if 1 <= n <= self._staff.places
        }
        vitals.frozen = [child.pid for child in self._staff if child.frozen]
        if self._maintenance is not None:
            vitals.state = "stopping" if self._stopping.begun else "serving"
            vitals.redis_at, vitals.redis_pause = self._maintenance.reached

    def _ordered(self, member: Member, orders: list[Order]) -> None:
        """Take down what is to be cancelled, as maintenance heard it."""
        self._told.append((member, orders))
        self._signals.wake()

    def _obey_orders(self) -> None:
        """See to what is to be cancelled: a child that is kept busy in C hears nothing."""
        while self._told:
            member, orders = self._told.popleft()
            for child in self._staff:
                if member not in child.members.items():
                    continue
                child.channel.send({"kind": "cancel"})
                # Redis alone does not say what it holds: an order may have been moved there.
                held = child.held(member[0])
                for order in orders:
                    if order.terminate and order.field in held:
                        self._terminate(child, order.id.decode())

    def _terminate(self, child: ChildProcess, id: str) -> None:
        """End a child for the sake of one message; the others that it holds go back."""
        log.warning("%s is to be terminated: killing child %d, which holds it", id, child.pid)
        child.kill()
