"""A scenario's stage: Redis, workers as users start them, an app, the ledger, the books."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from taskq.broker import keys, scripts
from tests.broker.drivers import Blocking
from tests.broker.queues import Queue
from tests.cli.conftest import Running, Shell
from tests.eventually import until
from tests.failure import failpoints
from tests.failure.failpoints import Point
from tests.failure.ledger import Reader, Run
from tests.failure.topology import Topology
from tests.servers import ServerError

MODULE = "tests.failure.project"
# Short, so that scenarios are; every bound is counted in it.
LEASE = 1.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """What was done, to which processes (none: to all), and while when."""

    what: str
    pids: frozenset[int]
    began: float
    ended: float

    def hit(self, run: Run, slack: float = 1.0) -> bool:
        """Tell whether it may have cost this execution."""
        if self.pids and run.pid not in self.pids:
            return False
        # A little longer: its outcome may have been on the way; and a process that is to die
        # may start one more before it does.
        ended = float("inf") if run.ended is None else run.ended + slack
        return run.started <= self.ended + 0.2 and ended >= self.began


class Scene:
    """All that one scenario has. Nothing in it outlives the test."""

    def __init__(self, folder: Path, topology: Topology) -> None:
        self.folder = folder
        self.topology = topology
        self.shell = Shell(folder, topology.url)
        topology.key = self.base()
        ledger = folder / "ledger"
        self.ledger = Reader(ledger)
        self.marks = folder / "marks"
        self.shell.environment |= {"PROJECT": self.shell.name, "LEDGER": str(ledger)}
        self.shell.environment |= {"TASKQ_LEASE": str(LEASE)}
        self.app: Any = self.shell.app(lease=LEASE)
        self.faults: list[Fault] = []
        self.workers: list[Running] = []
        self.witness = Witness(self)

    @property
    def proxy(self) -> Any:
        return self.topology.proxies[0]

    def worker(self, *words: str, **variables: str) -> Running:
        """Start a worker of the failure project, and wait until it serves."""
        running = self.shell.worker(MODULE, *(words or ("-p", "1")), **variables)
        self.workers.append(running)
        return running

    def doomed(self, *points: Point, words: Sequence[str] = ("-p", "1")) -> Running:
        """Start a worker that serves, and dies at these points once they are armed."""
        return self.worker(*words, **self.doom(*points))

    def doom(self, *points: Point) -> dict[str, str]:
        """Return the variables of a process that is to die at these points."""
        return self._hooked() | failpoints.environment(list(points))

    def skewed(self, seconds: float) -> dict[str, str]:
        """Return the variables of a process whose clock is wrong by so much."""
        return self._hooked() | {failpoints.SKEW: str(seconds)}

    def _hooked(self) -> dict[str, str]:
        hook = failpoints.prepare(self.folder)
        return {"PYTHONPATH": f"{hook}{os.pathsep}{self.shell.environment['PYTHONPATH']}"}

    def points(self, who: str, call: str) -> list[Point]:
        """Return a death at each place around a call."""
        return [
            Point(failpoints.Who(who), call, when, str(self.marks / f"{who}-{call}-{when}"))
            for when in failpoints.When
        ]

    def arm(self) -> None:
        """Let the points count from now on. Redis knows the scripts: a call is the script."""
        with self.client() as client:
            for name in scripts.names():
                client.script_load(scripts.load(name).text)
        self.marks.mkdir()

    @property
    def deaths(self) -> int:
        """How many points were met."""
        return len(list(self.marks.glob("*")))

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(f"proj.{task}", args, **options)

    def send_many(self, task: str, values: Iterable[Sequence[Any]], **options: Any) -> list[Any]:
        """Send many in few round trips."""
        chosen: Any = options
        calls = [self.app._unchecked(f"proj.{task}", args, None, chosen) for args in values]
        return list(self.app.enqueue_many(calls))

    def started(self) -> list[str]:
        """Return the marks of the tasks that hold."""
        return sorted(path.name for path in self.folder.glob("started-*"))

    def go(self) -> None:
        """Let the tasks end that hold."""
        (self.folder / "go").touch()

    def runs(self) -> dict[str, list[Run]]:
        return self.ledger.runs()

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL, what: str = "") -> None:
        """Send a signal to a process, and note it as a fault."""
        now = time.monotonic()
        os.kill(pid, number)
        self.note(what or number.name, {pid}, now)

    def all_faults(self) -> list[Fault]:
        """Return what was done, and the deaths at points."""
        deaths: list[Fault] = []
        for path in self.marks.glob("*"):
            pid, at = path.read_text().split()
            # A supervisor's death is that of its children too, whoever they were.
            pids = frozenset({int(pid)} if path.name.startswith("child") else ())
            deaths.append(Fault(path.name, pids, float(at), float(at)))
        return self.faults + deaths

    def note(self, what: str, pids: Iterable[int] = (), began: float | None = None) -> None:
        now = time.monotonic()
        self.faults.append(Fault(what, frozenset(pids), now if began is None else began, now))

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Note what is done meanwhile as a fault that may cost every message a run."""
        began = time.monotonic()
        yield
        self.note(what, began=began)

    def client(self) -> redis.Redis:
        """Return a client that goes past the proxies."""
        return self.topology.primary.client()

    def queue(self, name: str = "default") -> Queue:
        """Return a queue as the tests of the scripts see it, past the proxies."""
        driver = Blocking(f"redis://127.0.0.1:{self.topology.primary.port}")
        return Queue(driver, self.topology.primary.url, self.shell.name, name)

    def base(self, queue: str = "default") -> str:
        return keys.base(self.shell.name, queue)

    def living(self) -> list[Running]:
        """Return the workers that have not ended."""
        return [worker for worker in self.workers if worker.process.poll() is None]

    def forget(self) -> None:
        """Forget what is over, before another round on the same stage."""
        self.ledger.forget()
        self.faults.clear()
        self.witness.heard.clear()
        self.workers = self.living()

    def tell(self) -> None:
        """Print what happened; pytest shows it where the test fails."""
        for worker in self.workers:
            print(f"--- worker {worker.process.pid}\n{worker.log}")
        print("--- faults", *self.all_faults(), sep="\n")

    def close(self) -> None:
        self.witness.close()
        self.shell.close()
        self.app.close()


class Witness:
    """Listens past the proxies to every outcome that is published, and counts them.

    A cluster publishes to those alone who name the channel: there it hears nothing.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        # Wire id, and under which master in turn → what was published. Two masters may tell two
        # ends: what the first did not pass on before it was replaced is done again.
        self.heard: dict[tuple[str, int], list[bytes]] = {}
        self._master, self._masters = 0, 0
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped = True
        self._thread.join(5)

    def _listen(self) -> None:
        while not self._stopped:
            try:
                self._hear()
            except (redis.RedisError, OSError, ServerError):
                time.sleep(0.02)

    def _hear(self) -> None:
        server = self._scene.topology.primary
        self._masters += server.port != self._master
        self._master = server.port
        with server.client() as client, client.pubsub() as pubsub:
            pubsub.psubscribe(f"{self._scene.base('*')}done:*".replace("{", "[{]"))
            while not self._stopped:
                told = pubsub.get_message(timeout=0.2)
                if told and told["type"] == "pmessage":
                    id = told["channel"].decode().rpartition(":")[2]
                    self.heard.setdefault((id, self._masters), []).append(told["data"])


def wait_for_children(worker: Running, count: int) -> list[int]:
    """Return the pids of a worker's children once there are so many."""
    return until(lambda: pids if len(pids := worker.children()) == count else None, 10) or []
