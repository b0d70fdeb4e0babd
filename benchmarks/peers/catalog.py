"""Which rows are measured, in the order of the tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.adapters import (
    ardiq,
    arq,
    blitzq,
    celery,
    docket,
    dramatiq,
    huey,
    ours,
    rq,
    saq,
    streaq,
    taskiq,
)
from benchmarks.peers.peer import Peer

PEERS: Sequence[Peer] = (
    ours.TaskQ(),
    ours.OneThread(),
    ours.Coroutines(),
    celery.Prefork(),
    celery.Threads(),
    rq.RQ(),
    dramatiq.Dramatiq(),
    huey.Huey(),
    arq.Arq(),
    taskiq.List(),
    taskiq.Stream(),
    saq.SAQ(),
    streaq.Streaq(),
    docket.Docket(),
    ardiq.Ardiq(),
    blitzq.Reliable(),
    blitzq.Fast(),
)
OURS = "taskq"  # their project


def named(name: str) -> Peer:
    """Return the row of this name."""
    return next(peer for peer in PEERS if peer.name == name)
