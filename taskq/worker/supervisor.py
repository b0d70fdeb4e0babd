"""The parent process: it starts children, renews their leases and replaces the dead.

It imports no user code. What it must know of the app it learns from its first child.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import selectors
import sys
from collections import deque

from taskq.broker.commands import Kept, Order
from taskq.broker.connection import Endpoint
from taskq.model import clock
from taskq.model.signing import Keyring
from taskq.worker import gate, memory, zombies
from taskq.worker.blame import MOST_ALONE, Cause, charges
from taskq.worker.board import CLAIMED, STARTED
from taskq.worker.burst import BurstWatch
from taskq.worker.channel import Note
from taskq.worker.guard import Guard
from taskq.worker.maintenance import Maintenance, Member
from taskq.worker.process import ChildProcess, Orders, ended
from taskq.worker.reload import FileWatch
from taskq.worker.roll import Roll
from taskq.worker.signals import Signals
from taskq.worker.vitals import Vitals

log = logging.getLogger("taskq.worker")

_RESTART_MOST = 2.0
_RESTART_RESET = 10.0
_TICK = 0.25


class Supervisor:
    """Runs children until told to stop."""

    def __init__(self, orders: Orders, vitals: Vitals | None = None) -> None:
        self._orders = orders
        self._vitals = vitals
        self._children: list[ChildProcess] = []
        self._maintenance: Maintenance | None = None
        self._burst: BurstWatch | None = None
        self._files = FileWatch()
        self._failed: str | None = None
        # Why no worker may serve on this Redis, found when it was reached at last.
        self._refused: str | None = None
        # The app and the URL that the children serve.
        self._served: tuple[str, str] | None = None
        # Seconds; what the settings say until the first child tells the app's.
        self._patience = 25.0 if orders.shutdown_timeout is None else orders.shutdown_timeout
        # When to start a child again, by its number.
        self._restarts: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._signals = Signals()
        # When each child was last known to be alive, by its number.
        self._alive: dict[int, float] = {}
        self._roll = Roll(self._start_child, self._drain)
        # Whether what tasks leave behind is ours to reap.
        self._init = zombies.is_init()
        # How many children there should be.
        self._wanted = orders.processes or 1
        self._stopping = False
        self._hand_back_at = float("inf")
        # Members that Redis did not know, once: the child may know already.
        self._suspects: set[Member] = set()
        self._guard: Guard | None = None
        # When the next hard limit passes.
        self._look_at = float("inf")
        # How many processes the system had killed for want of memory, at the last look.
        self._starved = memory.kills()
        self._max_crashes = 3
        # What maintenance heard that is to be cancelled.
        self._told: deque[tuple[Member, list[Order]]] = deque()
        self._alone = 0

    def run(self) -> int:
        """Work until stopped; return the exit code: 0, or 2 if the app cannot be served."""
        with self._signals:
            self._start_child(1)
            while self._children or not self._stopping:
                self._wait()
                self._reap()
                self._obey_signals()
                self._obey_orders()
                self._look_around()
        for part in (self._burst, self._maintenance):
            if part is not None:
                part.stop()
        if self._failed:
            sys.stderr.write(f"taskq worker: {self._failed}\n")
            return 2
        log.info("stopped")
        return 0

    def _start_child(self, number: int) -> ChildProcess:
        self._restarts.pop(number, None)
        name = self._orders.name if number == 1 else f"{self._orders.name}.{number}"
        orders = dataclasses.replace(self._orders, first=self._maintenance is None)
        child = ChildProcess(orders, number, name)
        self._children.append(child)
        self._alive.setdefault(number, child.born)
        return child

    def _start_alone(self) -> None:
        """Start a child with one slot for each suspect that waits, up to a few."""
        if self._maintenance is None:
            return
        running = sum(child.alone for child in self._children)
        suspects = self._maintenance.suspects
        for queue in [queue for queue, count in suspects.items() if count > 0]:
            while suspects[queue] > 0 and running < MOST_ALONE:
                # Each is started for one of them; the next look at Redis tells what is left.
                suspects[queue] -= 1
                running += 1
                self._alone += 1
                orders = dataclasses.replace(self._orders, threads=1, coroutines=1, alone=True)
                name = f"{self._orders.name}.alone{self._alone}"
                self._children.append(ChildProcess(orders, 0, name))

    def _wait(self) -> None:
        """Block until a child speaks, a signal comes, or a tick has passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            for child in self._children:
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
                self._welcome(child, note)
                self._relieve(child)
            elif note["kind"] == "terminate":
                self._terminate(child, note["id"])
            elif note["kind"] == "spent":
                self._recycle(child, note["why"])
            elif note["kind"] == "alive":
                self._alive[child.number] = clock.monotonic() - note["ago"]
            else:
                child.hear(note)
        return notes is not None

    def _welcome(self, child: ChildProcess, hello: Note) -> None:
        """Take a child into service; the first has told what the app is."""
        # Taken out of the note, which is kept.
        keyring = Keyring(hello.pop("keys"))
        if self._served is not None and self._served != (hello["app"], hello["url"]):
            log.error("the app or its Redis is another one now: start a new worker for it")
            child.channel.send({"kind": "hand_back"})
            return
        child.hello, self._served = hello, (hello["app"], hello["url"])
        self._alive[child.number] = clock.monotonic()
        if self._orders.shutdown_timeout is None:
            self._patience = hello["shutdown_timeout"]
        self._wanted = self._orders.processes or hello["processes"]
        self._max_crashes = hello["max_crashes"]
        if self._maintenance is None:
            self._begin(hello, keyring)
        elif not child.alone:  # its tasks have other names, so another digest
            self._maintenance.refresh(hello["queues"], hello["lease"], hello["digest"], keyring)
            if self._burst is not None:
                self._burst.refresh(hello["queues"], hello["tasks"])
        self._fill()

    def _begin(self, hello: Note, keyring: Keyring) -> None:
        endpoint = Endpoint(hello["url"])
        log.info(
            "%s: app %s on %s, queues %s, %s each; tasks: %s",
            self._orders.name, hello["app"], hello["place"], ", ".join(hello["queues"]),
            hello["slots"], ", ".join(hello["tasks"]) or "none",
        )  # fmt: skip
        self._maintenance = Maintenance(
            hello["app"], endpoint, hello["queues"],
            keyring=keyring, lease=hello["lease"], digest=hello["digest"],
            kept=Kept(*hello["kept"]), members=self._members, lost=self._lost,
            orders=self._ordered,
            first=None if hello["examined"] else functools.partial(self._examine, endpoint, hello),
        )  # fmt: skip
        self._maintenance.start()
        self._guard = Guard(self._orders, self._maintenance.release, self._recycle)
        if self._orders.burst:
            self._burst = BurstWatch(
                hello["app"], endpoint, hello["queues"], hello["tasks"], self._retries
            )
            self._burst.start()

    def _fill(self) -> None:
        """Start the children that are missing."""
        there = {child.number for child in self._children} | self._restarts.keys()
        for number in range(1, self._wanted + 1):
            if number not in there:
                self._start_child(number)

    def _examine(self, endpoint: Endpoint, hello: Note) -> None:
        """Look at a Redis that was away when the first child came up."""
        allowed = hello["allow_eviction"]
        self._refused, findings = gate.glance(endpoint, allow_eviction=allowed)
        gate.tell(findings)
        self._signals.wake()

    def _reap(self) -> None:
        for child in list(self._children):
            if (code := child.reaped()) is None:
                continue
            while self._hear(child):
                # It may have said something in the end.
                pass
            self._children.remove(child)
            self._bury(child, code)
            self._relieve(child)
            if self._stopping:
                continue
            if self._maintenance is None:
                # No child has ever served the app: another would not either.
                unsaid = f"the first child ended {ended(code)} before the app was loaded"
                self._failed, self._stopping = child.failed or unsaid, True
            elif child.alone:
                if child.failed:
                    log.error("a child for suspects cannot start: %s", child.failed)
            elif child.successor is None:
                self._replace(child)
        if self._init:
            zombies.reap([child.pid for child in self._children])

    def _bury(self, child: ChildProcess, code: int) -> None:
        """Say what it died of, and take back what it held."""
        starved, self._starved = self._starved, memory.kills()
        death = child.death(code, starved=self._starved > starved)
        found = charges(child.board.entries(STARTED), death)
        if death.cause is not Cause.OURS and not child.failed:
            log.error("child %d ended %s", child.pid, death.words)
            if dump := child.dump():
                log.error("its last words:\n%s", dump)
        for member in child.members.items():
            blames = [
                charge.blame(death, self._max_crashes)
                for charge in found
                if child.queue_of(charge.entry) == member[0]
            ]
            if self._maintenance is not None:
                self._maintenance.reclaim(member, blames)
        if self._guard is not None:
            self._guard.forget(child)
        child.close()

    def _replace(self, child: ChildProcess) -> None:
        """Start another in its place: at once, then with growing pauses."""
        lived = clock.monotonic() - child.born
        pause = self._pauses.get(child.number, 0.0) if lived < _RESTART_RESET else 0.0
        self._pauses[child.number] = min(_RESTART_MOST, max(0.1, 2 * pause))
        if child.failed:
            log.error("a child cannot start: %s", child.failed)
            pause = float("inf") if self._orders.reload else max(pause, 1.0)
        stays = {one.number for one in self._children if not one.leaving}
        if child.number in stays or child.number > self._wanted:
            return  # a rolling restart has put another in its place, or needs none there
        self._restarts[child.number] = clock.monotonic() + pause

    def _obey_signals(self) -> None:
        if self._maintenance is not None and not self._stopping and self._signals.take_restart():
            self._restart()
        if self._signals.stops and not self._stopping:
            log.info("stopping: waiting for running tasks, %g s at most", self._patience)
            self._stop(self._patience)
        if self._signals.stops > 1 and self._hand_back_at > 0:
            log.info("stopping now: unfinished messages go back to their queues")
            self._hand_back_at = 0.0
            self._hand_back()

    def _restart(self) -> None:
        regular = [child for child in self._children if not child.alone]
        log.info("restarting %d children, one by one", len(regular))
        self._roll.begin(regular)
        self._restarts = dict.fromkeys(self._restarts, 0.0)
        for child in self._children:
            if child.alone:
                self._drain(child)

    def _stop(self, seconds: float) -> None:
        self._stopping = True
        self._hand_back_at = clock.monotonic() + seconds
        for child in self._children:
            if child.serves:
                child.drain(seconds)
            else:
                child.kill()

    def _hand_back(self) -> None:
        for child in self._children:
            child.hand_back()

    def _look_around(self) -> None:
        """Do what its time has come for."""
        now = clock.monotonic()
        if self._vitals is not None:
            self._tell(self._vitals, now)
        if self._stopping:
            if now > self._hand_back_at + 0.5:
                self._hand_back()
        else:
            self._go_on(now)
        for child in self._children:
            if child.kill_at <= now:
                child.kill()
        if self._guard is not None:
            self._look_at = self._guard.look(list(self._children))

    def _go_on(self, now: float) -> None:
        """Start what is to be started, and see whether it is time to stop."""
        for number in [number for number, at in self._restarts.items() if at <= now]:
            self._start_child(number)
        self._roll.step(self._children, self._wanted)
        self._start_alone()
        if self._refused:
            self._failed = self._refused
            self._stop(0.0)
        if self._burst is not None and self._burst.idle:
            log.info("nothing is left to do")
            self._stop(self._patience)
        if self._orders.reload and (changed := self._files.changed()):
            self._reload(changed)

    def _recycle(self, child: ChildProcess, why: str) -> None:
        """Replace a child that works: another is started first, then this one ends its work."""
        if child.leaving or self._stopping:
            return
        log.info("child %d is replaced: %s", child.pid, why)
        child.leaving = True
        if child.alone:
            self._drain(child)
        else:
            child.successor = self._start_child(child.number)

    def _relieve(self, child: ChildProcess) -> None:
        """Let the child go whose place this one has taken, or should have."""
        for earlier in self._children:
            if earlier.successor is child:
                self._drain(earlier)

    def _drain(self, child: ChildProcess) -> None:
        child.retire(self._patience)

    def _reload(self, changed: str) -> None:
        log.info("%s changed; restarting", changed)
        for child in self._children:
            self._drain(child)
        self._restarts = dict.fromkeys(self._restarts, 0.0)

    def _tell(self, vitals: Vitals, now: float) -> None:
        """Pass on the signs of life."""
        vitals.loop_at = now
        vitals.children = {n: at for n, at in self._alive.items() if 1 <= n <= self._wanted}
        vitals.frozen = [child.pid for child in self._children if child.frozen]
        if self._maintenance is not None:
            vitals.state = "stopping" if self._stopping else "serving"
            vitals.redis_at, vitals.redis_pause = self._maintenance.reached

    def _members(self) -> list[Member]:
        return [
            member
            for child in list(self._children)
            if not child.frozen
            for member in child.members.items()
        ]

    def _lost(self, member: Member) -> None:
        """Redis does not know a child's lease: replace the child, unless it has seen it."""
        if member not in self._suspects:
            self._suspects.add(member)
            return
        self._suspects.discard(member)
        for child in list(self._children):
            if member in child.members.items():
                log.error("child %d lost its lease and does not answer; replacing it", child.pid)
                child.kill()

    def _ordered(self, member: Member, orders: list[Order]) -> None:
        """Take down what is to be cancelled, as maintenance heard it."""
        self._told.append((member, orders))
        self._signals.wake()

    def _obey_orders(self) -> None:
        """See to what is to be cancelled: a child that is kept busy in C hears nothing."""
        while self._told:
            member, orders = self._told.popleft()
            for child in self._children:
                if member not in child.members.items():
                    continue
                child.channel.send({"kind": "cancel"})
                # Redis alone does not say what it holds: an order may have been moved there.
                held = {
                    entry.field
                    for entry in child.board.entries(CLAIMED, STARTED)
                    if child.queue_of(entry) == member[0]
                }
                for order in orders:
                    if order.terminate and order.field in held:
                        self._terminate(child, order.id.decode())

    def _terminate(self, child: ChildProcess, id: str) -> None:
        """End a child for the sake of one message; the others that it holds go back."""
        log.warning("%s is to be terminated: killing child %d, which holds it", id, child.pid)
        child.kill()

    def _retries(self) -> int:
        return sum(child.retrying for child in self._children) + (not self._children)
