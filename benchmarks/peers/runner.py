"""Rounds: all peers take turns at each workload, so a slow spell of the machine hits all."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peers.environments import anonymous
from benchmarks.peers.peer import Peer
from benchmarks.peers.workloads import Bench, Workload


@dataclasses.dataclass
class Measurement:
    """One peer, one workload, one round; an error is a result as well."""

    round: int
    workload: str
    peer: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    commands: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run, and when to stop beginning more."""

    peers: Sequence[Peer]
    workloads: Mapping[str, Workload]
    rounds: int
    # Of `time.monotonic`.
    end: float = math.inf

    def turns(self) -> Iterator[tuple[int, str, Peer]]:
        """Yield the measurements in order; who goes first changes with the round."""
        for number in range(self.rounds):
            at = number * len(self.peers) // self.rounds
            order = (*self.peers[at:], *self.peers[:at])
            for workload in self.workloads:
                for peer in order:
                    if workload not in peer.omits:
                        yield number, workload, peer


def run(plan: Plan, bench: Bench, note: Callable[[Measurement], Any]) -> list[Measurement]:
    """Carry the plan out, and tell each measurement as it ends."""
    done: list[Measurement] = []
    begun, current = time.monotonic(), 0
    for number, workload, peer in plan.turns():
        now = time.monotonic()
        if now > plan.end:
            break
        if number > current:
            # All rounds are to fit: a third that half of them miss is worth less than a short one.
            bench.fit(now - begun, (plan.end - now) / (plan.rounds - number))
            begun, current = now, number
        done.append(_measure(bench, number, peer, workload, plan.workloads[workload]))
        note(done[-1])
    return done


def _measure(bench: Bench, number: int, peer: Peer, name: str, workload: Workload) -> Measurement:
    result = Measurement(number, name, peer.name)
    try:
        measured = workload(bench, peer)
    except Exception as error:  # noqa: BLE001  # one peer's failure must not end the others' run
        text = " ".join(str(error).split()) or "no text"
        result.error = anonymous(f"{type(error).__name__}: {text}")[:300]
    else:
        # NaN: it was over at the first look.
        figures = measured.figures.items()
        result.figures = {metric: value for metric, value in figures if math.isfinite(value)}
        result.commands = measured.commands
    return result
