"""What the server has counted: commands, reads, its own time."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import servers

# Sent by us, or once for each connection.
APART = {
    "auth",
    "client",
    "config",
    "flushall",
    "function",
    "hello",
    "info",
    "ping",
    "script",
    "select",
}
GONE_SECONDS = 10.0
POLL_SECONDS = 0.01


class Server:
    """The server of a run, all of whose data is ours to delete."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: Any = servers.connect(url)

    def clear(self) -> None:
        """Wait until nobody else is connected, then delete everything."""
        deadline = time.monotonic() + GONE_SECONDS
        while self._client.info("clients")["connected_clients"] > 1:
            if time.monotonic() > deadline:
                msg = "a process of the measurement before is still connected"
                raise RuntimeError(msg)
            time.sleep(POLL_SECONDS)
        self._client.flushall()
        self._client.script_flush()
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        self._client.config_resetstat()

    def commands(self, tasks: int) -> dict[str, float]:
        """Return calls of each command for one task; those inside scripts count too."""
        found: dict[str, float] = {}
        for key, stat in self._client.info("commandstats").items():
            name = key.removeprefix("cmdstat_").partition("|")[0].lower()
            if name not in APART:
                found[name] = found.get(name, 0.0) + stat["calls"] / tasks
        return {name: round(calls, 3) for name, calls in sorted(found.items()) if calls >= 0.005}

    def reads(self, tasks: int) -> float:
        """Return how often the server read from a client, for one task: about its round trips."""
        return round(self._client.info("stats").get("total_reads_processed", 0) / tasks, 3)

    def processor_seconds(self) -> float:
        """Return the processors' time that the server has used."""
        return servers.processor_seconds(self._client)

    def close(self) -> None:
        self._client.close()
