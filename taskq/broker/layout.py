"""What stands behind a URL that names sentinels or a cluster, told as findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeAlias

from taskq.broker.connection import Endpoint
from taskq.broker.guides import Address, pairs, slots_of, spelt

SLOTS = 16_384
# What each of those who were asked answered, or the error.
Inquiry: TypeAlias = Sequence[tuple[Address, Any]]


class Level(StrEnum):
    """How bad it is. Only an ERROR keeps a worker from starting."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    ERROR = "error"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    check: str
    text: str
    # What to do about it; empty where nothing is wrong.
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.text}" + (f"; {self.fix}" if self.fix else "")


def nodes(endpoint: Endpoint, inquiry: Inquiry) -> list[Endpoint]:
    """Return the servers that take writes: the masters of a cluster, else the one there is."""
    ranges = _ranges(inquiry) if endpoint.clustered else []
    masters = dict.fromkeys(some[0] for _, _, some in ranges)
    return [endpoint.only(one) for one in masters] or [endpoint]


def look(endpoint: Endpoint, inquiry: Inquiry) -> list[Finding]:
    """Look at sentinels, nodes and replicas; a single server has none."""
    if not inquiry:
        return []
    away = [spelt(one) for one, reply in inquiry if isinstance(reply, Exception)]
    if len(away) == len(inquiry):
        return []  # what is said of the server tells why
    found = _cluster(inquiry) if endpoint.clustered else _sentinels(inquiry)
    if away:
        kind = "nodes" if endpoint.clustered else "sentinels"
        text = f"{len(away)} of {len(inquiry)} {kind} do not answer: {', '.join(away)}"
        found.append(Finding(Level.WARNING, "topology", text, "start them, or mend the URL"))
    return found


def _sentinels(inquiry: Inquiry) -> list[Finding]:
    states = [pairs(reply) for _, reply in inquiry if not isinstance(reply, Exception)]
    masters = {(one[b"ip"].decode(), int(one[b"port"])) for one in states}
    if len(masters) > 1:
        text = f"sentinels name several masters: {', '.join(sorted(map(spelt, masters)))}"
        return [Finding(Level.ERROR, "topology", text, "wait for a failover to end, or mend them")]
    (master,), replicas = masters, max(int(one[b"num-slaves"]) for one in states)
    text = f"{len(states)} sentinels name {spelt(master)}, which has {replicas} replicas"
    if not replicas:
        fix = "start a replica: without one a failover is not possible"
        return [Finding(Level.WARNING, "topology", text, fix)]
    return [Finding(Level.OK, "topology", text)]


def _cluster(inquiry: Inquiry) -> list[Finding]:
    ranges = _ranges(inquiry)
    missing = SLOTS - sum(high - low + 1 for low, high, _ in ranges)
    if missing:
        text = f"{missing} of {SLOTS:,} slots are served by no node: queues there stand still"
        return [Finding(Level.ERROR, "topology", text, "redis-cli --cluster fix")]
    masters = {some[0] for _, _, some in ranges}
    alone = {some[0] for _, _, some in ranges if len(some) == 1}
    text = f"a cluster of {len(masters)} masters"
    if alone:
        text += f", without a replica: {', '.join(sorted(map(spelt, alone)))}"
        fix = "add replicas: what such a master has stands still while it is away"
        return [Finding(Level.WARNING, "topology", text, fix)]
    return [Finding(Level.OK, "topology", f"{text}, each with a replica")]


def _ranges(inquiry: Inquiry) -> list[tuple[int, int, list[Address]]]:
    for address, reply in inquiry:
        if not isinstance(reply, Exception):
            return slots_of(reply, address)
    return []
