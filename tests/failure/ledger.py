"""A ledger outside Redis: who ran what, and when, in the order of writing.

Tasks write to it, one line in one write, so that a death leaves whole lines. It imports
nothing of taskq: what it says must not depend on what it is to check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Run:
    """One execution of a message. Times are of the monotonic clock, which all processes share."""

    id: str
    attempt: int
    delivery: int
    fence: int
    pid: int
    started: float
    # None: it never came to its end.
    ended: float | None = None


class Ledger:
    """The file as a task sees it."""

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._file: int | None = None

    @contextlib.contextmanager
    def run(self, context: Any) -> Generator[None]:
        """Note that a message starts and, however that comes, that it ends."""
        self._write("start", context)
        try:
            yield
        finally:
            self._write("end", context)

    def _write(self, event: str, context: Any) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        fields = (
            event, context.id, context.attempt, context.delivery, context.fence,
            os.getpid(), time.monotonic(),
        )  # fmt: skip
        os.write(self._file, (" ".join(map(str, fields)) + "\n").encode())


def read(path: Path) -> dict[str, list[Run]]:
    """Return the executions of each message, in the order of their starts."""
    runs: dict[str, list[Run]] = defaultdict(list)
    text = path.read_text(encoding="ascii") if path.exists() else ""
    for line in text.splitlines():
        event, id, attempt, delivery, fence, pid, at = line.split(" ")
        if event == "start":
            runs[id].append(Run(id, int(attempt), int(delivery), int(fence), int(pid), float(at)))
            continue
        (run,) = [
            one for one in runs[id] if (one.delivery, one.fence) == (int(delivery), int(fence))
        ]
        run.ended = float(at)
    return dict(runs)
