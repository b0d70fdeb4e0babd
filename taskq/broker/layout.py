"""What stands behind a URL that names sentinels or a cluster, told as findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

from taskq.broker.connection import Endpoint
from taskq.broker.faults import told
from taskq.broker.guides import Address, pairs, slots_of, spelt

SLOTS = 16_384
# What each of those who were asked answered, or the error.
Inquiry: TypeAlias = Sequence[tuple[Address, Any]]
_NOBODY: tuple[Address, Any] = (("", 0), [])


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
    whom, reply = _believed(inquiry) if endpoint.clustered else _NOBODY
    masters = dict.fromkeys(some[0] for _, _, some in slots_of(reply, whom))
    return [endpoint.only(one) for one in masters] or [endpoint]


def look(endpoint: Endpoint, inquiry: Inquiry, online: int | None = None) -> list[Finding]:
    """Look at sentinels, nodes and replicas; a single server has none.

    `online`: so many replicas follow the master of sentinels, where that is known.
    """
    answers = [(one, reply) for one, reply in inquiry if not isinstance(reply, Exception)]
    if not answers:
        return []  # what is said of the server tells why
    found = list(_cluster(answers)) if endpoint.clustered else [_sentinels(answers, online)]
    if len(answers) < len(inquiry):
        kind = "nodes" if endpoint.clustered else "sentinels"
        away = [(one, reply) for one, reply in inquiry if isinstance(reply, Exception)]
        why = ", ".join(f"{spelt(one)} ({told(error)})" for one, error in away)
        text = f"{len(away)} of {len(inquiry)} {kind} do not answer: {why}"
        found.append(Finding(Level.WARNING, "topology", text, "start them, or mend the URL"))
    return found


def _sentinels(answers: Inquiry, online: int | None) -> Finding:
    states = [pairs(reply) for _, reply in answers]
    masters = {(one[b"ip"].decode(), int(one[b"port"])) for one in states}
    if len(masters) > 1:
        text = f"sentinels name several masters: {', '.join(sorted(map(spelt, masters)))}"
        return Finding(Level.ERROR, "topology", text, "wait for a failover to end, or mend them")
    # They go on to count those that are away.
    (master,), known = masters, max(int(one[b"num-slaves"]) for one in states)
    replicas = known if online is None else online
    text = f"{len(states)} sentinels name {spelt(master)}, which has {replicas} replicas"
    if replicas < known:
        text += f", and {known - replicas} that do not follow it"
    if not replicas:
        fix = "start a replica: without one a failover is not possible"
        return Finding(Level.WARNING, "topology", text, fix)
    return Finding(Level.OK, "topology", text)


def _cluster(answers: Inquiry) -> Iterator[Finding]:
    whom, believed = _believed(answers)
    ranges, missing = slots_of(believed, whom), SLOTS - _count(believed)
    masters = {some[0] for _, _, some in ranges}
    alone = {some[0] for _, _, some in ranges if len(some) == 1}
    text = f"a cluster of {len(masters)} masters"
    if missing:
        text = f"{missing} of {SLOTS:,} slots are served by no node: queues there stand still"
        yield Finding(Level.ERROR, "topology", text, "redis-cli --cluster fix")
    elif alone:
        text += f", without a replica: {', '.join(sorted(map(spelt, alone)))}"
        fix = "add replicas: what such a master has stands still while it is away"
        yield Finding(Level.WARNING, "topology", text, fix)
    else:
        yield Finding(Level.OK, "topology", f"{text}, each with a replica")
    strangers = [spelt(one) for one, reply in answers if not reply]
    if strangers and believed:
        text = f"no members of the cluster: {', '.join(strangers)}"
        yield Finding(Level.WARNING, "topology", text, "take them out of the URL")
    others = [spelt(one) for one, reply in answers if reply and _owners(reply) != _owners(believed)]
    if others:
        text = f"{', '.join(others)} and {spelt(whom)} disagree about who serves which slots"
        fix = "wait for a failover or a move to end; redis-cli --cluster check"
        yield Finding(Level.WARNING, "topology", text, fix)


def _believed(inquiry: Inquiry) -> tuple[Address, Any]:
    """Return the first who knows of most slots, and what he said.

    One that was taken out of the cluster answers, and knows of none.
    """
    answers = [(one, reply) for one, reply in inquiry if not isinstance(reply, Exception)]
    return max(answers, key=lambda answer: _count(answer[1]), default=_NOBODY)


def _count(reply: Sequence[Any]) -> int:
    return sum(high - low + 1 for low, high, *_ in reply)


def _owners(reply: Sequence[Any]) -> set[tuple[Any, ...]]:
    # By their ids: of its own address each has an idea of its own.
    return {(low, high, *master[2:3]) for low, high, master, *_ in reply}
