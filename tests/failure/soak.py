"""The soak: every fault there is, at random, for as long as one likes.

    make soak                                  half an hour
    python -m tests.failure.soak --seconds 60 --seed 7
    python -m tests.failure.soak --topology cluster

Where there are several servers, their master is killed every twenty seconds.
It goes in rounds of load and faults. After each the nine invariants are checked on all
messages of the round; the first that does not hold ends it, with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.failure.books import Books, check_after
from tests.failure.producer import MOST_LOST, survivors
from tests.failure.scene import Scene
from tests.failure.slope import MEBIBYTE, resident
from tests.failure.storm import Load, Storm
from tests.failure.topology import TOPOLOGIES

# How often each fault comes, compared to the others.
FAULTS = {
    "kill_child": 10,
    "freeze_child": 6,
    "kill_worker": 2,
    "stop_worker": 2,
    "kill_redis": 2,
    "stop_redis": 1,
    "freeze_redis": 2,
    "flush_scripts": 3,
    "kill_connections": 4,
    "reset_lines": 4,
    "cut_replies": 4,
    "slow_lines": 2,
    "swallow_all": 2,
}
# Where there are several servers: they name each other, so no line can be put between.
FLEET_FAULTS = {
    "kill_child": 10,
    "freeze_child": 6,
    "kill_worker": 2,
    "stop_worker": 2,
    "flush_scripts": 3,
    "kill_connections": 4,
}
KILL_SECONDS = 20.0
ROUND_FAULTS = 12
RATE = 100.0
# Outcomes must outlive their round, and be gone some rounds later.
RESULT_SECONDS = 240


class Soak:
    """Rounds on one stage, whose workers and server live through all of them."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene, self._seed, self._chance = scene, seed, random.Random(seed)
        scene.shell.environment |= {
            "TASKQ_RESULT_TTL": str(RESULT_SECONDS), "TASKQ_FAILURE_TTL": str(RESULT_SECONDS),
        }  # fmt: skip
        self._storm = Storm(scene, seed)
        self._fleet = scene.topology.fleet is not None
        self._next_kill = time.monotonic() + (KILL_SECONDS if self._fleet else float("inf"))
        self.rounds = self.messages = self.runs = self.lost = 0
        self.ends: Counter[str] = Counter()
        self.slowest = 0.0

    def round(self, until_then: float = float("inf")) -> None:
        """Raise a storm, let it settle, check the books."""
        self.rounds += 1
        load = Load(self._scene, self._seed + 10 * self.rounds, rate=RATE)
        load.start()
        kinds, kills = FLEET_FAULTS if self._fleet else FAULTS, 0
        for fault in self._chance.choices(list(kinds), list(kinds.values()), k=ROUND_FAULTS):
            self._storm.run([fault], gap=(0.3, 1.5))
            if time.monotonic() > self._next_kill:
                self._storm.run(["kill_master"], gap=(0.3, 1.5))
                self._next_kill = time.monotonic() + KILL_SECONDS
                kills += 1
            if time.monotonic() > until_then:
                break
        load.stop()
        calm = time.monotonic()
        expected = load.expected
        if kills:
            expected = survivors(self._scene, expected, kills * MOST_LOST, seconds=60)
            self.lost += len(load.expected) - len(expected)
        books = Books(self._scene, expected)
        books.settle(60)
        self.slowest = max(self.slowest, time.monotonic() - calm)
        books.check()
        self._count(books)
        self._scene.forget()

    def finish(self) -> None:
        """Stop the workers; nothing may be left but what ends by itself."""
        last = self._scene.send("note", "last")
        self._count(check_after(self._scene, {last: "last"}))

    def report(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self._storm.done.items()))
        with self._scene.client() as client:
            used = int(client.info("memory")["used_memory"]) / MEBIBYTE
            keys = client.dbsize()
        workers: list[float] = []
        for pid in [pid for one in self._scene.living() for pid in one.children()]:
            with suppress(subprocess.CalledProcessError):  # it ended meanwhile
                workers.append(resident(pid) / MEBIBYTE)
        return (
            f"round {self.rounds}: {self.messages} messages, {self.runs} runs "
            f"({dict(self.ends)}), {self.lost} lost; "
            f"{sum(self._storm.done.values())} faults: {faults}; "
            f"settled in {self.slowest:.1f} s at most; Redis {keys} keys, {used:.1f} MiB; "
            f"children {', '.join(f'{one:.0f}' for one in workers)} MiB"
        )

    def _count(self, books: Books) -> None:
        self.messages += len(books.accounts)
        self.runs += sum(len(one.runs) for one in books.accounts)
        self.ends.update(one.record.state.name for one in books.accounts)


def main() -> int:
    """Soak for so many seconds; exit with 1 at the first invariant that does not hold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, help="instead of --minutes")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--topology", choices=list(TOPOLOGIES), default="single")
    options = parser.parse_args()
    print(f"FAILURE_SEED={options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave nothing behind
    with tempfile.TemporaryDirectory() as folder:
        topology = TOPOLOGIES[options.topology](proxied=options.topology == "single")
        scene = Scene(Path(folder), topology)
        held = False
        try:
            soak = Soak(scene, options.seed)
            until_then = time.monotonic() + (options.seconds or 60 * options.minutes)
            while time.monotonic() < until_then:
                soak.round(until_then)
                print(soak.report(), flush=True)
            soak.finish()
            held = True
        finally:
            if not held:
                scene.tell()
                print(f"it did not hold; FAILURE_SEED={options.seed}", flush=True)
            scene.close()
            topology.close()
    print("all nine invariants held in every round")
    return 0


if __name__ == "__main__":
    sys.exit(main())
