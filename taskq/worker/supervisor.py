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
import socket
import subprocess
import sys
from collections.abc import Generator

from taskq.broker.connection import Endpoint
from taskq.model import clock
from taskq.worker.burst import BurstWatch
from taskq.worker.channel import Channel, Note
from taskq.worker.maintenance import Maintenance, Member
from taskq.worker.reload import FileWatch

log = logging.getLogger("taskq.worker")

_RESTART_MOST = 2.0
_RESTART_RESET = 10.0
# After `hand_back`, a child that has not ended is killed.
_KILL_AFTER = 5.0
_TICK = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    """What `taskq worker` was told. None leaves it to the app's settings."""

    app: str
    modules: tuple[str, ...] = ()
    queues: tuple[str, ...] | None = None
    processes: int | None = None
    threads: int | None = None
    coroutines: int | None = None
    name: str = ""
    loglevel: str = "info"
    log_format: str = "text"
    burst: bool = False
    reload: bool = False
    shutdown_timeout: float | None = None


class ChildProcess:
    """One child as its parent sees it."""

    def __init__(self, orders: Orders, number: int) -> None:
        self.number = number
        self.hello: Note | None = None
        # The child's id in each queue.
        self.members: dict[str, str] = {}
        self.retrying = 0
        self.failed: str | None = None
        # Stopped by a signal: it runs nothing, so its leases are not renewed.
        self.frozen = False
        self.leaving = False
        self.born = clock.monotonic()
        self.kill_at = float("inf")
        name = orders.name if number == 1 else f"{orders.name}.{number}"
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-m", "taskq.worker.child", str(theirs.fileno())]
            # Out of reach of the terminal's Ctrl-C: the supervisor decides.
            self.process = subprocess.Popen(
                argv,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        self.channel = Channel(ours)
        self.channel.send({**dataclasses.asdict(orders), "name": name})

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(self.pid, signal.SIGKILL)

    def reaped(self) -> int | None:
        """Return its exit status once it has ended; note if it was stopped meanwhile."""
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if pid == 0:
            return None
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            self.frozen = os.WIFSTOPPED(status)
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.channel.close()
        return self.process.returncode


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

    def _start_child(self, number: int) -> None:
        self._restarts.pop(number, None)
        self._children.append(ChildProcess(self._orders, number))

    def _wait(self) -> None:
        """Block until a child speaks, a signal comes, or a tick has passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_out, selectors.EVENT_READ)
            for child in self._children:
                selector.register(child.channel, selectors.EVENT_READ, child)
            for key, _ in selector.select(_TICK):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
                else:
                    self._hear(key.data)

    def _hear(self, child: ChildProcess) -> None:
        for note in child.channel.receive() or ():
            if note["kind"] == "hello":
                child.hello = note
                self._files.watch(note["files"])
                self._welcome(note)
            elif note["kind"] == "failed":
                child.failed = note["reason"]
            elif note["kind"] == "members":
                child.members = note["members"]
            elif note["kind"] == "retrying":
                child.retrying = note["count"]

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
            self._children.remove(child)
            if self._maintenance is not None and child.members:
                for member in child.members.items():
                    self._maintenance.reclaim(member)
            if self._stopping:
                continue
            if self._maintenance is None:
                # No child has ever served the app: another would not either.
                unsaid = f"the first child ended {_told(code)} before the app was loaded"
                self._failed, self._stopping = child.failed or unsaid, True
            else:
                self._replace(child, code)

    def _replace(self, child: ChildProcess, code: int) -> None:
        """Start another in its place: at once, then with growing pauses."""
        lived = clock.monotonic() - child.born
        pause = self._pauses.get(child.number, 0.0) if lived < _RESTART_RESET else 0.0
        self._pauses[child.number] = min(_RESTART_MOST, max(0.1, 2 * pause))
        if child.failed:
            log.error("a child cannot start: %s", child.failed)
            pause = float("inf") if self._orders.reload else max(pause, 1.0)
        elif not child.leaving:
            log.error("child %d ended %s; starting another", child.pid, _told(code))
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
            if self._burst is not None and self._burst.idle:
                log.info("nothing is left to do")
                self._stop(self._patience)
            if self._orders.reload and (changed := self._files.changed()):
                self._reload(changed)
        for child in self._children:
            if child.kill_at <= now:
                child.kill()

    def _reload(self, changed: str) -> None:
        log.info("%s changed; restarting", changed)
        for child in self._children:
            child.leaving = True
            child.kill_at = clock.monotonic() + self._patience + _KILL_AFTER
            child.channel.send({"kind": "drain", "seconds": self._patience})
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


def _told(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"by signal {-code}"
