"""What is measured: each workload, on one peer, once."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.peers import processes, work
from benchmarks.peers.counters import Server
from benchmarks.peers.peer import SLEEPERS, Peer, Place
from benchmarks.peers.probe import Reader
from benchmarks.peers.processes import FailedError, Workers
from benchmarks.peers.producer import AT_ONCE
from benchmarks.processors import Left

START_SECONDS = 30.0
STALL_SECONDS = 10.0
POLL_SECONDS = 0.01
SETTLE_SECONDS = 0.2
MOST = 200_000
SHORTEST = 0.3
# As many are gathered by whoever can do that in about so many seconds.
TOGETHER, TOGETHER_SECONDS = 50_000, 13.0


@dataclasses.dataclass
class Measured:
    """Figures by metric, and what one task cost the server."""

    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    # Where it was counted: enqueue, drain. Commands by name, and `reads`.
    commands: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Bench:
    """One run: the server, how long a measurement should take, and what was learnt so far."""

    server: Server
    seconds: float
    scale: float
    secrets: Mapping[str, str]
    rates: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)

    def count(self, peer: Peer, what: str, guess: float) -> int:
        """Return how many tasks take about as long as wanted, from the round before."""
        rate = self.rates.get((peer.name, what), guess)
        return max(40, min(MOST, round(rate * self.seconds * self.scale)))

    def learn(self, peer: Peer, what: str, rate: float) -> None:
        if math.isfinite(rate):
            self.rates[peer.name, what] = rate

    def fit(self, took: float, allowed: float) -> None:
        """Let the next round be as long as it may, after one that took so many seconds."""
        # What starts and ends processes cannot be shortened: the rest, by more.
        self.seconds *= min(1.0, max(SHORTEST, (allowed / took) ** 2)) if took else 1.0

    def fixed(self, full: int) -> int:
        return max(40, round(full * self.scale))

    def place(self, peer: Peer, task: str = "add", *, results: bool = True) -> Place:
        return Place(peer.name, self.server.url, results, peer.slots(task))

    def produce(self, peer: Peer, place: Place, action: str, **order: Any) -> dict[str, float]:
        return processes.produce(peer, place, action, self.secrets, **order)


Workload = Callable[[Bench, Peer], Measured]


def enqueue(bench: Bench, peer: Peer) -> Measured:
    """W1: calls without a worker."""
    done, several = Measured(), "gather" if peer.kind == "async def" else "threads"
    place = bench.place(peer)
    for mode in ("one", several, *(["bulk"] if peer.bulk else [])):
        n = bench.count(peer, mode, {"one": 1000, "bulk": 10_000}.get(mode, 2000))
        bench.server.clear()
        rate = bench.produce(peer, place, "enqueue", n=n, mode=mode)["rate"]
        bench.learn(peer, mode, rate)
        done.figures[f"enqueue {mode}"] = rate
        if mode == "one":
            done.commands["enqueue"] = _cost(bench, n + AT_ONCE)  # those that warm up count
    return done


def drain(bench: Bench, peer: Peer) -> Measured:
    """W2: tasks that do nothing, one process, results kept."""
    run = _drain(bench, peer, bench.count(peer, "drain", peer.pace))
    bench.learn(peer, "drain", run.rate)
    return Measured({"drain": run.rate}, {"drain": run.commands})


def drain_off(bench: Bench, peer: Peer) -> Measured:
    """W2 without results."""
    run = _drain(bench, peer, bench.count(peer, "drain_off", peer.pace), results=False)
    bench.learn(peer, "drain_off", run.rate)
    return Measured({"drain_off": run.rate}, {"drain, no results": run.commands})


def drain_two(bench: Bench, peer: Peer) -> Measured:
    """W2 on two processes."""
    run = _drain(bench, peer, bench.count(peer, "drain_two", 1.5 * peer.pace), count=2)
    bench.learn(peer, "drain_two", run.rate)
    return Measured({"drain_two": run.rate, "drain_two left": run.left})


def round_trip(bench: Bench, peer: Peer) -> Measured:
    """W3: call and wait, one at a time, a worker with nothing else to do."""
    limit = 1.5 * bench.seconds * max(bench.scale, 0.05)
    done = _beside_worker(bench, peer, "trips", n=bench.fixed(1000), limit=limit)
    return Measured({f"round_trip {name}": value for name, value in done.items()})


def together(bench: Bench, peer: Peer) -> Measured:
    """W4: one program calls as it can best, and gathers all results, while a worker runs."""
    n = many(bench, peer)
    rate = _beside_worker(bench, peer, "together", n=n, mode="best")["rate"]
    bench.learn(peer, "together", rate)
    return Measured({"together": rate})


def many(bench: Bench, peer: Peer) -> int:
    """Return how many this peer is to gather: all of them, where that does not take long."""
    n = bench.count(peer, "together", peer.pace / 2)
    quick = n * TOGETHER_SECONDS >= TOGETHER * bench.seconds * bench.scale
    return bench.fixed(TOGETHER) if quick else n


def sleeps(bench: Bench, peer: Peer) -> Measured:
    """W5: tasks that sleep, 100 at a time; the time taken, of the least that it can take."""
    n = bench.fixed(2000) // SLEEPERS * SLEEPERS or SLEEPERS
    run = _drain(bench, peer, n, task="nap")
    ideal = n / SLEEPERS * work.NAP_SECONDS
    return Measured({"sleeps": (run.elapsed + work.NAP_SECONDS) / ideal})


def cpu(bench: Bench, peer: Peer) -> Measured:
    """W6: tasks that compute, two processes; in percent of what two processors can do."""
    run = _drain(bench, peer, bench.fixed(600), task="burn", count=2)
    return Measured({"cpu": 100 * run.rate * work.BURN_SECONDS / 2})


WORKLOADS: Mapping[str, Workload] = {
    "enqueue": enqueue,
    "drain": drain,
    "drain_off": drain_off,
    "drain_two": drain_two,
    "round_trip": round_trip,
    "together": together,
    "sleeps": sleeps,
    "cpu": cpu,
}


def _cost(bench: Bench, n: int) -> dict[str, float]:
    return {**bench.server.commands(n), "reads": bench.server.reads(n)}


@dataclasses.dataclass(frozen=True)
class _Run:
    """A drain as it was seen."""

    rate: float
    elapsed: float
    # What the run left of the processors, in percent.
    left: float
    commands: dict[str, float]


def _drain(
    bench: Bench,
    peer: Peer,
    n: int,
    *,
    task: str = "add",
    count: int = 1,
    results: bool = True,
) -> _Run:
    """Queue `n`, then start the workers; the time runs from the first task to the last."""
    bench.server.clear()
    place = bench.place(peer, task, results=results)
    bench.produce(peer, place, "enqueue", n=n, mode="best", task=task, warm=False)
    bench.server.reset()
    with Reader(n) as probe:
        variables = {**bench.secrets, **probe.variables()}
        with processes.workers(peer, place, count, task, variables) as started:
            _wait(probe, 1, started)
            left = Left(started.pids(), bench.server.processor_seconds)
            _wait(probe, n, started)
            percent = left.percent()
            # The last acknowledgements belong to the cost.
            time.sleep(SETTLE_SECONDS)
            commands = _cost(bench, n)
        return _Run(probe.rate(count), probe.elapsed(), percent, commands)


def _wait(probe: Reader, n: int, started: Workers) -> None:
    """Wait until so many tasks have run."""
    seen, patience = 0, START_SECONDS
    moved = time.monotonic()
    while seen < n:
        time.sleep(POLL_SECONDS)
        now = probe.count()
        if now > seen:
            seen, moved, patience = now, time.monotonic(), STALL_SECONDS
        started.check()
        if time.monotonic() - moved > patience:
            msg = f"{seen} of {n} tasks ran, then none for {patience:.0f} s: {started.said()}"
            raise FailedError(msg)


def _beside_worker(bench: Bench, peer: Peer, action: str, **order: Any) -> dict[str, float]:
    """Run a producer while one worker process runs."""
    bench.server.clear()
    place = bench.place(peer)
    with processes.workers(peer, place, 1, "add", bench.secrets) as started:
        done = bench.produce(peer, place, action, **order)
        started.check()
    return done
