"""What failovers cost: calls that returned, and those of them that nobody knows afterwards.

    python -m tests.failure.losses --runs 3

One master, two replicas, three sentinels, each a process of this machine; four threads send
one message of 4 KiB after the other, with no worker. A line for each failover and durability.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from taskq import TaskQ
from taskq.broker import keys
from tests.eventually import let_pass, until
from tests.fleets import SentinelSet

SENDERS = 4
# More than sockets hold goes by while nobody reads.
PAYLOAD = "x" * 4096
BEFORE, UNHEARD, AFTER = 2.0, 3.0, 3.0
ASKED = ("replicas:0", "replicas:1", "replicas:2")


class Senders:
    """Threads that send until they are told to end."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app
        # When each of those that were acknowledged was: monotonic seconds, wire id.
        self.acknowledged: list[tuple[float, str]] = []
        self.errors: list[BaseException] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._send_on) for _ in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    @property
    def longest_gap(self) -> float:
        """For how long no call returned, at most."""
        instants = sorted(at for at, _ in self.acknowledged)
        return max(later - at for at, later in itertools.pairwise(instants))

    def _send_on(self) -> None:
        while not self._stopped.is_set():
            try:
                sent = self._app.send_task("note", (PAYLOAD,))
            except BaseException as error:  # noqa: BLE001 - counted
                self.errors.append(error)
            else:
                self.acknowledged.append((time.monotonic(), sent.wire_id))


def kill(fleet: SentinelSet) -> None:
    """Kill the master; it comes back as a replica."""
    old = fleet.primary
    old.kill()
    fleet.wait_for_another(old)
    old.start()


def kill_unheard(fleet: SentinelSet) -> None:
    """Kill the master when no replica has heard of it for 3 s."""
    old = fleet.primary
    replicas = [one for one in fleet.servers if one is not old]
    for one in replicas:
        one.pause()
    let_pass(UNHEARD)
    old.kill()
    for one in replicas:
        one.resume()
    fleet.wait_for_another(old)
    old.start()


def move(fleet: SentinelSet) -> None:
    """Have the sentinels choose another master, as an operator does."""
    fleet.fail_over()


EVENTS: dict[str, Callable[[SentinelSet], None]] = {
    "killed": kill,
    "killed, unheard for 3 s": kill_unheard,
    "moved": move,
}


def measure(event: str, asked: str) -> tuple[int, int, float, int]:
    """Return how many calls returned, how many were lost, the longest gap, and the errors."""
    name = f"t{secrets.token_hex(6)}"
    with (
        SentinelSet(down_after_ms=1_000) as fleet,
        TaskQ(name, url=fleet.url, durability=asked, enqueue_deadline=60) as app,
    ):
        senders = Senders(app)
        let_pass(BEFORE)
        EVENTS[event](fleet)
        until(lambda: fleet.replicas(fleet.primary) == 2, 60)
        let_pass(AFTER)
        senders.stop()
        known = _known(fleet, name, [id for _, id in senders.acknowledged])
        lost = len(senders.acknowledged) - known
        return len(senders.acknowledged), lost, senders.longest_gap, len(senders.errors)


def _known(fleet: SentinelSet, name: str, ids: Sequence[str]) -> int:
    base = keys.base(name, "default")
    with fleet.primary.client() as client:
        return sum(
            int(client.exists(*(f"{base}m:{id}" for id in ids[at : at + 1000])))
            for at in range(0, len(ids), 1000)
        )


def main() -> None:
    """Measure each, so many times."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--event", choices=list(EVENTS), action="append")
    parser.add_argument("--asked", choices=ASKED, action="append")
    options: Any = parser.parse_args()
    print("| master | durability | returned | lost | longest gap |\n|---|---|---|---|---|")
    for event in options.event or EVENTS:
        for asked in options.asked or ASKED:
            told = [measure(event, asked) for _ in range(options.runs)]
            returned, lost, gaps, errors = zip(*told, strict=True)
            print(
                f"| {event} | `{asked}` | {_spelt(returned)} | {_spelt(lost)} | "
                f"{min(gaps):.1f}–{max(gaps):.1f} s |"  # noqa: RUF001
                + (f" errors: {errors}" if any(errors) else ""),
                flush=True,
            )


def _spelt(numbers: Sequence[int]) -> str:
    return " / ".join(f"{one:,}" for one in numbers)


if __name__ == "__main__":
    main()
