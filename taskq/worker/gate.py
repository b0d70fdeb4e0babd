"""What a worker looks at before it serves: its Redis and keys, each finding a log line."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from taskq.broker import checkup
from taskq.broker.connection import Endpoint
from taskq.broker.layout import Finding, Level
from taskq.errors import ConfigError

log = logging.getLogger("taskq.worker")

_LEVELS = {
    Level.UNKNOWN: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
}
# Where these are wrong, messages would be lost or never run. Others may pass: a replica
# can become the primary.
_REFUSED = {"eviction", "server"}


def glance(endpoint: Endpoint, *, allow_eviction: bool) -> tuple[str | None, list[Finding]]:
    """Return why no worker may serve on this server, if so, and all else that is amiss.

    Raises:
        BrokerUnavailable: Redis is away: look again when it is back.

    """
    findings = checkup.glance(endpoint, allow_eviction=allow_eviction)
    grave = [one for one in findings if one.level is Level.ERROR and one.check in _REFUSED]
    return (str(grave[0]) if grave else None), [one for one in findings if one not in grave]


def check_place(endpoint: Endpoint) -> None:
    """Raise `ConfigError` for a place that no worker process can reach."""
    if endpoint.memory:
        msg = "memory:// lives in one process: use taskq.testing.running_worker, or a server"
        raise ConfigError(msg)


def examine(endpoint: Endpoint, *, allow_eviction: bool) -> list[Finding]:
    """Return what is amiss with this server.

    Raises:
        ConfigError: no worker may serve on it.
        BrokerUnavailable: Redis is away: look again when it is back.

    """
    reason, findings = glance(endpoint, allow_eviction=allow_eviction)
    if reason:
        raise ConfigError(reason)
    return findings


def tell(findings: Iterable[Finding]) -> None:
    """Log each finding that is not good."""
    for one in findings:
        if one.level is not Level.OK:
            log.log(_LEVELS[one.level], "%s", one)
