"""What a server spent between two looks, by command."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks import servers

# What clients call; everything else is called inside scripts.
OUTSIDE = {"auth", "blpop", "client", "command", "config", "eval", "evalsha", "hello", "info"}
OUTSIDE |= {"ping", "script", "select"}


@dataclasses.dataclass(frozen=True)
class Spent:
    """Calls and microseconds by command, and processor time of the server, in microseconds."""

    calls: dict[str, float]
    usec: dict[str, float]
    processor: float

    @property
    def scripts(self) -> float:
        """All that scripts took, the commands inside them included."""
        return self.usec.get("evalsha", 0.0) + self.usec.get("eval", 0.0)

    @property
    def inside(self) -> dict[str, float]:
        """What the commands inside scripts took, the dearest first."""
        found = [(name, usec) for name, usec in self.usec.items() if name not in OUTSIDE]
        return dict(sorted(found, key=lambda pair: -pair[1]))

    @property
    def lua(self) -> float:
        """What the scripts took themselves."""
        return max(0.0, self.scripts - sum(self.inside.values()))

    def since(self, before: Spent, messages: int) -> Spent:
        """Return what was spent since another look, for one message."""

        def less(now: dict[str, float], then: dict[str, float]) -> dict[str, float]:
            pairs = ((name, value - then.get(name, 0.0)) for name, value in now.items())
            return {name: value / messages for name, value in pairs if value > 0}

        return Spent(
            less(self.calls, before.calls),
            less(self.usec, before.usec),
            (self.processor - before.processor) / messages,
        )


def look(client: Any) -> Spent:
    stats = client.info("commandstats")
    calls, usec = {}, {}
    for key, stat in stats.items():
        name = key.removeprefix("cmdstat_").partition("|")[0].lower()
        calls[name] = calls.get(name, 0.0) + stat["calls"]
        usec[name] = usec.get(name, 0.0) + stat["usec"]
    return Spent(calls, usec, 1e6 * servers.processor_seconds(client))
