"""Load and faults at once, both drawn from one seed."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.cli.conftest import Running
from tests.eventually import until
from tests.failure.proxy import Act
from tests.failure.scene import LEASE, Scene

# Long enough that the reaper has taken the lease of who was frozen.
PAST_LEASE = (1.7 * LEASE, 2.6 * LEASE)


@dataclasses.dataclass(frozen=True)
class Crew:
    """How many workers there are, and of what size."""

    workers: int = 2
    words: tuple[str, ...] = ("-p", "2", "-t", "4")
    children: int = 2


class Load:
    """Producers in threads: calls of every kind, at a steady rate."""

    def __init__(
        self, scene: Scene, seed: int, *, rate: float, count: float = float("inf")
    ) -> None:
        self._scene, self._rate, self._left = scene, rate, count
        # Patient: what is sent during an outage is sent after it.
        self._app = scene.shell.app(enqueue_deadline=60)
        # Guards the two below.
        self._lock = threading.Lock()
        self.expected: dict[Any, Any] = {}
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._produce, args=(random.Random(seed + at),))
            for at in (1, 2)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stopped = True
        self.join(90)

    def join(self, seconds: float) -> None:
        for thread in self._threads:
            thread.join(seconds)
        assert not self.running, "a producer hangs"
        self._app.close()

    def _produce(self, chance: random.Random) -> None:
        while not self._stopped:
            many = chance.random() < 0.05
            with self._lock:
                size = int(min(self._left, 40 if many else 1))
                self._left -= size
            if not size:
                return
            drawn = [self._draw(chance) for _ in range(size)]
            calls = [
                self._app._unchecked(f"proj.{task}", args, None, how)
                for task, args, how, _ in drawn
            ]
            results = self._app.enqueue_many(calls) if many else [self._app.enqueue(calls[0])]
            with self._lock:
                self.expected |= {
                    self._scene.app.result(result.id): value
                    for result, (*_, value) in zip(results, drawn, strict=True)
                }
            # Two producers, and every batch counts for its size.
            time.sleep(chance.expovariate(self._rate / 2 / size))

    def _draw(self, chance: random.Random) -> tuple[str, tuple[Any, ...], Any, Any]:
        """Return a task, its arguments, the options of the call, and what must come of it."""
        value = chance.getrandbits(32)
        later = {"countdown": chance.uniform(0.1, 2)}
        named = {"id": f"n{chance.getrandbits(64):016x}"}
        kinds: list[tuple[float, str, tuple[Any, ...], dict[str, Any], Any]] = [
            (50, "note", (value,), {}, value),
            (15, "anote", (value,), {}, value),
            (10, "work", (value, chance.uniform(0.01, 0.3)), {}, value),
            (10, "awork", (value, chance.uniform(0.01, 0.5)), {}, value),
            (4, "flaky", (value,), {}, value),
            (2, "fail", ("word",), {}, KeyError),
            (5, "note", (value,), later, value),
            (2, "note", (value,), named, value),
            (2, "note", (value,), {"priority": chance.randrange(10)}, value),
        ]
        ((_, *drawn),) = chance.choices(kinds, weights=[one[0] for one in kinds])
        return tuple(drawn)  # type: ignore[return-value]


class Storm:
    """Does harm, one thing at a time, and notes it."""

    def __init__(self, scene: Scene, seed: int, crew: Crew | None = None) -> None:
        self._scene, self._chance = scene, random.Random(seed)
        self._crew = crew or Crew()
        self.done: Counter[str] = Counter()
        # Frozen processes: when they are to go on, since when they are frozen.
        self._frozen: dict[int, tuple[float, float]] = {}
        self._workers = [scene.worker(*self._crew.words) for _ in range(self._crew.workers)]

    def run(self, faults: Iterable[str], gap: tuple[float, float]) -> None:
        """Do these, with pauses between them, and undo what is not over in the end."""
        for fault in faults:
            getattr(self, fault)()
            self.done[fault] += 1
            self.rest(self._chance.uniform(*gap))
        while self._frozen:
            self.rest(0.1)  # as long as the others were
        self.calm()

    def rest(self, seconds: float) -> None:
        until_then = time.monotonic() + seconds
        while (now := time.monotonic()) < until_then:
            self._thaw(now)
            time.sleep(0.02)

    def calm(self) -> None:
        """Let all go on that was stopped."""
        self._thaw(float("inf"))
        for proxy in self._scene.topology.proxies:
            proxy.calm()

    # What happens to workers.

    def kill_child(self) -> None:
        self._strike(self._scene.kill)

    def freeze_child(self) -> None:
        """Stop a child for longer than its lease."""
        now = time.monotonic()
        pid = self._strike(lambda pid: os.kill(pid, signal.SIGSTOP))
        self._frozen[pid] = (now + self._chance.uniform(*PAST_LEASE), now)

    def kill_worker(self) -> None:
        """Lose a host: supervisor and children die; another takes its place."""
        worker = self._worker()
        children, began = worker.children(), time.monotonic()
        worker.send(signal.SIGKILL)
        worker.ends()
        self._scene.note("kill_worker", children, began)
        self._replace(worker)

    def stop_worker(self) -> None:
        """Deploy: a worker is told to stop, and another takes its place."""
        worker = self._worker()
        assert worker.stop() == 0, worker.log
        self._replace(worker)

    # What happens to Redis.

    def kill_redis(self) -> None:
        self._without_redis("kill", 0.2, 1.0)

    def kill_master(self) -> None:
        """Lose the master for good: another is chosen, and it comes back as a replica."""
        topology, began = self._scene.topology, time.monotonic()
        old = topology.primary
        topology.kill_primary()
        self._scene.note("kill master", began=began)
        self.rest(self._chance.uniform(0.2, 1.0))
        old.start()
        topology.fleet.settle()
        self._scene.note("kill master", began=began)

    def stop_redis(self) -> None:
        self._without_redis("stop", 0.2, 2.0)

    def freeze_redis(self) -> None:
        self._without_redis("pause", 0.2, 4.0)

    def flush_scripts(self) -> None:
        with self._scene.client() as client:
            client.script_flush()

    # What happens to the network.

    def kill_connections(self) -> None:
        """Cut the lines of clients; sentinels that lose theirs may depose a master that lives."""
        with self._scene.client() as client:
            for kind in ("normal", "pubsub"):
                for one in client.client_list(_type=kind):
                    if not one["name"].startswith("sentinel-"):
                        client.client_kill_filter(_id=one["id"], skipme=True)

    def reset_lines(self) -> None:
        self._proxy().reset()

    def cut_replies(self) -> None:
        """For a while, lose one call in five."""
        proxy, chance = self._proxy(), random.Random(self._chance.random())
        proxy.each(lambda _: chance.random() < 0.1, Act.CUT_REPLY)
        proxy.each(lambda _: chance.random() < 0.1, Act.LOSE_REQUEST)
        self.rest(self._chance.uniform(0.5, 2))
        proxy.calm()

    def slow_lines(self) -> None:
        proxy = self._proxy()
        proxy.delay = self._chance.uniform(0.01, 0.1)
        self.rest(self._chance.uniform(0.5, 2))
        proxy.calm()

    def swallow_all(self) -> None:
        """Hold every byte up, at times longer than clients have patience."""
        began = time.monotonic()
        proxy = self._proxy()
        proxy.flow.clear()
        self.rest(self._chance.choice([0.3, 1.0, 6.0]))
        proxy.calm()
        self._scene.note("swallow_all", began=began)

    def _without_redis(self, end: str, least: float, most: float) -> None:
        server, began = self._scene.topology.primary, time.monotonic()
        getattr(server, end)()
        self.rest(self._chance.uniform(least, most))
        if end == "pause":
            server.resume()
        else:
            server.start()
        self._scene.note(f"{end} redis", began=began)

    def _thaw(self, now: float) -> None:
        for pid, (until_then, _) in list(self._frozen.items()):
            if until_then <= now:
                self._signal(pid, signal.SIGCONT)
                self._forget_frozen(pid)

    def _forget_frozen(self, pid: int) -> None:
        _, began = self._frozen.pop(pid)
        self._scene.note("freeze_child", {pid}, began)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return  # it was replaced: it did not answer for too long

    def _worker(self) -> Running:
        return self._chance.choice(self._workers)

    def _child(self) -> int:
        """Return a child that serves and is not frozen."""

        def candidates() -> list[int]:
            return sorted(
                pid
                for worker in self._workers
                for pid in worker.children()
                if pid not in self._frozen
            )

        return self._chance.choice(until(candidates, 20))

    def _strike(self, harm: Callable[[int], object]) -> int:
        """Do harm to a child; to another one if that has just ended by itself."""
        while True:
            pid = self._child()
            try:
                harm(pid)
            except ProcessLookupError:
                continue
            return pid

    def _replace(self, worker: Running) -> None:
        at = self._workers.index(worker)
        for pid in [pid for pid in self._frozen if not _exists(pid)]:
            self._forget_frozen(pid)
        self._workers[at] = self._scene.worker(*self._crew.words)

    def _proxy(self) -> Any:
        return self._chance.choice(self._scene.topology.proxies)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def drawn(
    seed: int, weights: dict[str, int], on: Callable[[], bool], kill_seconds: float
) -> Iterator[str]:
    """Draw faults while `on()`, and a master's death as often as so many seconds go by."""
    chance = random.Random(seed)
    # The first comes sooner, so that a load of a minute meets three.
    next_kill = time.monotonic() + kill_seconds / 2
    while on():
        if time.monotonic() > next_kill:
            next_kill += kill_seconds
            yield "kill_master"
        else:
            yield from chance.choices(list(weights), list(weights.values()))


def shuffled(seed: int, counts: dict[str, int]) -> list[str]:
    """Return so many faults of each kind, in an order that follows from the seed."""
    faults = [fault for fault, count in counts.items() for _ in range(count)]
    random.Random(seed).shuffle(faults)
    return faults
