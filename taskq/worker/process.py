"""One child as its parent sees it: the process, its board, and its last words."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile

from taskq.model import clock
from taskq.worker import blame, memory
from taskq.worker.blame import Cause, Death
from taskq.worker.board import CLAIMED, STARTED, BoardView, Entry
from taskq.worker.channel import Channel, Note

# Of what faulthandler wrote.
_MOST_DUMP = 64 << 10
_MOST_WORDS = 200
# When its time is over, a child that has not ended is killed.
_KILL_AFTER = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    """What `taskq worker` was told. None leaves it to the app's settings."""

    app: str
    modules: tuple[str, ...] = ()
    queues: tuple[str, ...] | None = None
    # How many partitions some queues have at least.
    partitions: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    processes: int | None = None
    threads: int | None = None
    coroutines: int | None = None
    name: str = ""
    loglevel: str = "info"
    log_format: str = "text"
    burst: bool = False
    reload: bool = False
    shutdown_timeout: float | None = None
    # After so many messages, or over so many bytes, a child is drained and replaced ...
    max_tasks: int | None = None
    max_memory: int | None = None
    # ... and over so many it is killed.
    memory_limit: int | None = None
    # One slot, for messages that are handed out alone.
    alone: bool = False
    # Whether children tell, every few seconds, that they are alive.
    health: bool = False
    # Whether this worker fires schedules.
    schedules: bool = True
    # The first child of all looks at Redis, and says what it finds.
    first: bool = False


class ChildProcess:
    """One child as its parent sees it."""

    def __init__(self, orders: Orders, number: int, name: str) -> None:
        self.number = number
        self.alone = orders.alone
        self.hello: Note | None = None
        # The child's id in each queue.
        self.members: dict[str, str] = {}
        self.retrying = 0
        self.failed: str | None = None
        # Stopped by a signal: it runs nothing, so its leases are not renewed.
        self.frozen = False
        # It serves another app, or another Redis, than the worker does.
        self.stray = False
        # Told to end, or to be replaced; by which child, and why.
        self.leaving = False
        self.successor: ChildProcess | None = None
        self.spent = ""
        self._handing_back = False
        # It said that it leaves, and has given back what it held.
        self.bye = False
        self.born = clock.monotonic()
        self.kill_at = float("inf")
        # When what runs past its hard limit is its death.
        self.condemned_at: float | None = None
        # When it was asked for a sign of life that it has not given.
        self.pinged_at: float | None = None
        self.answered_at = self.born
        self.board = BoardView()
        self._dump = tempfile.TemporaryFile(prefix="taskq-dump-")  # noqa: SIM115 - kept
        # Why we killed it.
        self._killed: tuple[Cause, str] | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            ends = [theirs.fileno(), self.board.fileno(), self._dump.fileno()]
            argv = [sys.executable, "-m", "taskq.worker.child", *map(str, ends)]
            # Out of reach of the terminal's Ctrl-C: the supervisor decides.
            self.process = subprocess.Popen(
                argv,
                pass_fds=ends,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        self.channel = Channel(ours)
        self.channel.send({**dataclasses.asdict(orders), "name": name})

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def serves(self) -> bool:
        """Whether it has loaded the app and told what it serves."""
        return self.hello is not None

    def hear(self, note: Note) -> None:
        """Keep what it tells of itself."""
        if note["kind"] == "failed":
            self.failed = note["reason"]
        elif note["kind"] == "members":
            self.members = note["members"]
        elif note["kind"] == "retrying":
            self.retrying = note["count"]
        elif note["kind"] == "pong":
            self.pinged_at, self.answered_at = None, clock.monotonic()
        elif note["kind"] == "bye":
            self.bye = True

    def drain(self, seconds: float) -> None:
        """Let what runs end, at most so long; then it leaves."""
        self.channel.send({"kind": "drain", "seconds": seconds})

    def retire(self, seconds: float) -> None:
        """Drain it while the others go on: nobody else looks whether it leaves in time."""
        self.leaving = True
        self.kill_at = clock.monotonic() + seconds + _KILL_AFTER
        self.drain(seconds)

    def hand_back(self) -> None:
        """Let it give back what has not ended, and leave; once is enough."""
        if not self._handing_back:
            self._handing_back = True
            self.kill_at = min(self.kill_at, clock.monotonic() + _KILL_AFTER)
            self.channel.send({"kind": "hand_back"})

    def kill(self, cause: Cause = Cause.OURS, why: str = "") -> None:
        """End it and its own children now; `why` is told where a message is charged."""
        self._killed = self._killed or (cause, why)
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.killpg(self.pid, signal.SIGKILL)

    def reaped(self) -> int | None:
        """Return its exit status once it has ended; note if it was stopped meanwhile."""
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if pid == 0:
            return None
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            self.frozen = os.WIFSTOPPED(status)
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.process.returncode

    def death(self, code: int, *, starved: bool) -> Death:
        """Return how it ended; `starved` if the system killed for want of memory."""
        dump, killed = self.dump(), code == -signal.SIGKILL
        if self._killed is not None and killed:
            cause, why = self._killed
        elif self.bye and code == 0:
            cause, why = Cause.OURS, ""
        elif killed and starved:
            cause, why = Cause.CRASH, "the system was out of memory"
        else:
            cause, why = Cause.CRASH, blame.title(dump)[:_MOST_WORDS]
        words = f"{ended(code)} ({why})" if why else ended(code)
        return Death(cause, words, clock.monotonic(), blame.named_thread(dump))

    def dump(self) -> str:
        """Return what faulthandler wrote when it died; mostly nothing."""
        return os.pread(self._dump.fileno(), _MOST_DUMP, 0).decode(errors="replace")

    def queue_of(self, entry: Entry) -> str:
        """Return the queue of a message on its board."""
        queues: list[str] = self.hello["queues"] if self.hello else []
        return queues[entry.queue] if entry.queue < len(queues) else ""

    def held(self, queue: str) -> set[bytes]:
        """Return the fields of a queue's messages that it has on its board, claimed or begun."""
        entries = self.board.entries(CLAIMED, STARTED)
        return {entry.field for entry in entries if self.queue_of(entry) == queue}

    def memory(self) -> int | None:
        """Return the bytes of memory it uses."""
        return memory.used(self.pid)

    def close(self) -> None:
        """Let go of the descriptors."""
        self.channel.close()
        self.board.close()
        self._dump.close()


def ended(code: int) -> str:
    """Return an exit status in words."""
    if code >= 0:
        return f"with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"by signal {-code}"
