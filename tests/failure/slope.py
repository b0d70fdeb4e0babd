"""Whether a worker's memory grows with the messages it has run, and Redis's with outcomes.

python -m tests.failure.slope --messages 1000000
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import taskq
from tests.eventually import until
from tests.failure.scene import Scene
from tests.failure.topology import Single

MEBIBYTE = 1 << 20
# A process grows until its pools and caches are full; only what comes then is a leak.
WARM_UP = 2
# What a queue keeps besides records.
FEW_KEYS = 100


class Slope:
    """No-op messages through one worker, its memory measured after each batch."""

    def __init__(self, scene: Scene, batch: int) -> None:
        self._scene, self._batch = scene, batch
        self._worker = scene.worker("-p", "1", "-t", "4")
        (self._child,) = until(self._worker.children)
        # Messages so far, and the resident bytes of the child and of the supervisor.
        self.points: list[tuple[int, int, int]] = []

    def step(self) -> None:
        done = self.points[-1][0] if self.points else 0
        # Not the app's setting: that of the worker would count.
        call = self._scene.app._unchecked("proj.noop", (), None, {"result_ttl": 1})
        results = self._scene.app.enqueue_many([call] * self._batch)
        taskq.gather(results, timeout=120)
        assert self._worker.children() == [self._child], "the child was replaced"
        supervisor = self._worker.process.pid
        self.points.append((done + self._batch, resident(self._child), resident(supervisor)))

    def per_million(self) -> float:
        """Return the growth in bytes per million messages, by least squares, once warm."""
        points = self.points[min(WARM_UP, len(self.points) - 2) :]
        return (
            max(_slope([(n, one[at]) for n, one in ((p[0], p) for p in points)]) for at in (1, 2))
            * 1e6
        )

    def lines(self) -> list[str]:
        return [
            f"{count:>9} messages: child {child / MEBIBYTE:6.1f} MiB, "
            f"supervisor {supervisor / MEBIBYTE:6.1f} MiB"
            for count, child, supervisor in self.points
        ]

    def report(self) -> str:
        growth = f"{self.per_million() / MEBIBYTE:.1f} MiB a million messages"
        return "\n".join([*self.lines(), growth])


def resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    told = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return int(told.stdout) * 1024


def _slope(points: list[tuple[int, int]]) -> float:
    count = len(points)
    x, y = (sum(one[at] for one in points) / count for at in (0, 1))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def main() -> None:
    """Run so many messages; say how memory went, and whether Redis's came back."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=25_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        topology = Single(proxied=False, appendfsync="no")
        scene = Scene(Path(folder), topology)
        with scene.client() as client:
            base = int(client.info("memory")["used_memory"])
            slope = Slope(scene, options.batch)
            since = time.monotonic()
            while not slope.points or slope.points[-1][0] < options.messages:
                slope.step()
                print(slope.lines()[-1], flush=True)
            print(slope.report().splitlines()[-1], f"in {time.monotonic() - since:.0f} s")
            # Outcomes live for a minute at least.
            until(lambda: client.dbsize() < FEW_KEYS, 180)
            left = int(client.info("memory")["used_memory"]) - base
            print(f"Redis: {left / MEBIBYTE:.1f} MiB above its base once all outcomes are gone")
        scene.close()
        topology.close()


if __name__ == "__main__":
    main()
