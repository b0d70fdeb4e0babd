"""One thing to measure: how, against what, and which bars its figures must meet."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Literal

from benchmarks import servers
from benchmarks.prototype import Place
from benchmarks.tasks import RUN, app
from taskq.broker import keys


@dataclasses.dataclass(frozen=True)
class Bench:
    """One run: where, and how much of everything."""

    url: str
    scale: float = 1.0

    def count(self, full: int, least: int = 20) -> int:
        return max(least, round(full * self.scale))

    def seconds(self, full: float, least: float) -> float:
        return max(least, full * self.scale)

    @property
    def place(self) -> Place:
        """Where the prototype works."""
        return Place(self.url, f"bare:{{{RUN}}}:", os.environ["TASKQ_SECRET"])

    def clean(self) -> None:
        """Delete what this run left on the server."""
        servers.remove(self.url, self.place.base)
        servers.remove(self.url, keys.base(app.name, "default"))


# In percent: with less of the processors idle, more processes have nothing to run on.
ROOM = 25.0


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a median must reach: that of the ratios, or that of taskq's own figures."""

    least: float | None = None
    most: float | None = None
    of: Literal["ratio", "value"] = "ratio"
    # The line whose bar, once met, makes up for this one.
    unless: str = ""
    # The line that tells how much of the processors was idle: without ROOM on the other side,
    # this one is not judged.
    room: str = ""

    def met(self, median: float) -> bool:
        """Return whether it is reached."""
        return (self.least is None or median >= self.least) and (
            self.most is None or median <= self.most
        )

    def __str__(self) -> str:
        word, limit = (">=", self.least) if self.most is None else ("<=", self.most)
        return f"{word} {limit:,g}" + (" of it" if self.of == "ratio" else "")


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    unit: str
    bar: Bar | None = None


# One figure for each line of the case.
Measure = Callable[[Bench], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure, and the lines of the table that it fills."""

    lines: Sequence[Line]
    ours: Measure
    # None: there is nothing to compare with.
    bare: Measure | None = None
    # What that is, in words.
    against: str = ""
    # Too long for every round.
    once: bool = False
    # Measured only where it is asked for.
    extra: bool = False
