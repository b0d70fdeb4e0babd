"""The parent process: it starts children, renews their leases and replaces the dead.

It imports no user code. What it must know of the app it learns from its first child.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import selectors
import signal
import sys
from collections.abc import Generator

from taskq.broker.commands import Blame
from taskq.broker.connection import Endpoint
from taskq.model import clock
from taskq.worker import memory
from taskq.worker.blame import Death, charges
from taskq.worker.board import STARTED, Entry
from taskq.worker.burst import BurstWatch
from taskq.worker.channel import Note
from taskq.worker.guard import Guard
from taskq.worker.maintenance import Maintenance, Member
from taskq.worker.process import ChildProcess, Orders, ended
from taskq.worker.reload import FileWatch

log = logging.getLogger("taskq.worker")

_RESTART_MOST = 2.0
_RESTART_RESET = 10.0
# After `hand_back`, a child that has not ended is killed.
_KILL_AFTER = 5.0
_TICK = 0.25
# So many children with one slot run at a time, each for a message that may kill it.
_MOST_ALONE = 4


class Supervisor:
    """Runs children until told to stop."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._children: list[ChildProcess] = []
        self._maintenance: Maintenance | None = None
        self._burst: BurstWatch | None = None
        self._files = FileWatch()
        self._failed: str | None = None
        # Seconds; what the settings say until the first child tells the app's.
        self._patience = 25.0 if orders.shutdown_timeout is None else orders.shutdown_timeout
        # When to start a child again, by its number.
        self._restarts: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._stop_signals = 0
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
        self._alone = 0
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)

    def run(self) -> int:
        """Work until stopped; return the exit code: 0, or 2 if the app cannot be served."""
        with self._signals():
            self._start_child(1)
            while self._children or not self._stopping:
                self._wait()
                self._reap()
                self._obey_signals()
                self._look_around()
        for part in (self._burst, self._maintenance):
            if part is not None:
                part.stop()
        if self._failed:
            sys.stderr.write(f"taskq worker: {self._failed}\n")
            return 2
        log.info("stopped")
        return 0

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        """Let signals wake the loop; the handlers set flags and nothing else."""

        def note(number: int, _frame: object) -> None:
            self._stop_signals += number != signal.SIGCHLD

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        earlier = {number: signal.signal(number, note) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _start_child(self, number: int) -> ChildProcess:
        self._restarts.pop(number, None)
        name = self._orders.name if number == 1 else f"{self._orders.name}.{number}"
        child = ChildProcess(self._orders, number, name)
        self._children.append(child)
        return child

    def _start_alone(self) -> None:
        """Start a child with one slot for each suspect that waits, up to a few."""
        if self._maintenance is None:
            return
        running = sum(child.alone for child in self._children)
        suspects = self._maintenance.suspects
        for queue in [queue for queue, count in suspects.items() if count > 0]:
            while suspects[queue] > 0 and running < _MOST_ALONE:
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
            selector.register(self._wake_out, selectors.EVENT_READ)
            for child in self._children:
                selector.register(child.channel, selectors.EVENT_READ, child)
            left = self._look_at - clock.monotonic()
            for key, _ in selector.select(max(0.0, min(_TICK, left))):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
                else:
                    self._hear(key.data)

    def _hear(self, child: ChildProcess) -> bool:
        """Take what a child says; return whether it may say more."""
        notes = child.channel.receive()
        for note in notes or ():
            if note["kind"] == "hello":
                child.hello = note
                self._files.watch(note["files"])
                self._welcome(note)
                self._relieve(child)
            elif note["kind"] == "failed":
                child.failed = note["reason"]
            elif note["kind"] == "members":
                child.members = note["members"]
            elif note["kind"] == "retrying":
                child.retrying = note["count"]
            elif note["kind"] == "pong":
                child.pinged_at, child.answered_at = None, clock.monotonic()
            elif note["kind"] == "spent":
                self._recycle(child, note["why"])
            elif note["kind"] == "bye":
                child.bye = True
        return notes is not None

    def _welcome(self, hello: Note) -> None:
        """Begin in earnest: the first child has told what the app is."""
        if self._maintenance is not None:
            return
        endpoint = Endpoint(hello["url"])
        if self._orders.shutdown_timeout is None:
            self._patience = hello["shutdown_timeout"]
        log.info(
            "%s: app %s on %s, queues %s, %s each; tasks: %s",
            self._orders.name, hello["app"], hello["place"], ", ".join(hello["queues"]),
            hello["slots"], ", ".join(hello["tasks"]) or "none",
        )  # fmt: skip
        self._maintenance = Maintenance(
            hello["app"], endpoint, hello["queues"],
            lease=hello["lease"], digest=hello["digest"], members=self._members, lost=self._lost,
        )  # fmt: skip
        self._maintenance.start()
        self._max_crashes = hello["max_crashes"]
        self._guard = Guard(self._orders, self._maintenance.release, self._recycle)
        for number in range(2, (self._orders.processes or hello["processes"]) + 1):
            self._start_child(number)
        if self._orders.burst:
            self._burst = BurstWatch(
                hello["app"], endpoint, hello["queues"], hello["tasks"], self._retries
            )
            self._burst.start()

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

    def _bury(self, child: ChildProcess, code: int) -> None:
        """Say what it died of, and take back what it held."""
        starved, self._starved = self._starved, memory.kills()
        death = child.death(code, starved=self._starved > starved)
        found = charges(child.board.entries(STARTED), death)
        if not child.leaving and not self._stopping and not child.failed and not child.bye:
            log.error("child %d ended %s", child.pid, death.words)
            if dump := child.dump():
                log.error("its last words:\n%s", dump)
        for member in child.members.items():
            blames = [
                Blame(
                    charge.letter,
                    charge.entry.field,
                    charge.entry.budget or self._max_crashes,
                    self._reason(charge.letter, charge.entry, death),
                )
                for charge in found
                if child.queue_of(charge.entry) == member[0]
            ]
            if self._maintenance is not None:
                self._maintenance.reclaim(member, blames)
        if self._guard is not None:
            self._guard.forget(child)
        child.close()

    def _reason(self, letter: str, entry: Entry, death: Death) -> str:
        """Return what the future of a message raises, if it ends by this death."""
        if letter == "t":
            limit = entry.deadline - entry.started
            return f"ran past its hard_timeout of {limit:g} s; its process was killed"
        times = entry.budget or self._max_crashes
        often = "once" if times == 1 else f"{times} times"
        return f"killed its process {often}; the last one ended {death.words}"

    def _replace(self, child: ChildProcess) -> None:
        """Start another in its place: at once, then with growing pauses."""
        lived = clock.monotonic() - child.born
        pause = self._pauses.get(child.number, 0.0) if lived < _RESTART_RESET else 0.0
        self._pauses[child.number] = min(_RESTART_MOST, max(0.1, 2 * pause))
        if child.failed:
            log.error("a child cannot start: %s", child.failed)
            pause = float("inf") if self._orders.reload else max(pause, 1.0)
        self._restarts[child.number] = clock.monotonic() + pause

    def _obey_signals(self) -> None:
        if self._stop_signals and not self._stopping:
            log.info("stopping: waiting for running tasks, %g s at most", self._patience)
            self._stop(self._patience)
        elif self._stop_signals > 1 and self._hand_back_at > 0:
            log.info("stopping now: unfinished messages go back to their queues")
            self._hand_back_at = 0.0
            self._hand_back()

    def _stop(self, seconds: float) -> None:
        self._stopping = True
        self._hand_back_at = clock.monotonic() + seconds
        for child in self._children:
            if child.hello is None:
                child.kill()
            else:
                child.channel.send({"kind": "drain", "seconds": seconds})

    def _hand_back(self) -> None:
        for child in self._children:
            if child.kill_at == float("inf"):
                child.kill_at = clock.monotonic() + _KILL_AFTER
                child.channel.send({"kind": "hand_back"})

    def _look_around(self) -> None:
        """Do what its time has come for."""
        now = clock.monotonic()
        if self._stopping:
            if now > self._hand_back_at + 0.5:
                self._hand_back()
        else:
            for number in [number for number, at in self._restarts.items() if at <= now]:
                self._start_child(number)
            self._start_alone()
            if self._burst is not None and self._burst.idle:
                log.info("nothing is left to do")
                self._stop(self._patience)
            if self._orders.reload and (changed := self._files.changed()):
                self._reload(changed)
        for child in self._children:
            if child.kill_at <= now:
                child.kill()
        if self._guard is not None:
            self._look_at = self._guard.look(list(self._children))

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
        child.kill_at = clock.monotonic() + self._patience + _KILL_AFTER
        child.channel.send({"kind": "drain", "seconds": self._patience})

    def _reload(self, changed: str) -> None:
        log.info("%s changed; restarting", changed)
        for child in self._children:
            child.leaving = True
            self._drain(child)
        for number in self._restarts:
            self._restarts[number] = 0.0

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

    def _retries(self) -> int:
        return sum(child.retrying for child in self._children) + (not self._children)
