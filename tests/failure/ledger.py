"""A ledger outside Redis: who ran what, and when, in the order of writing.

Tasks write to it, one line in one write, so that a death leaves whole lines. It imports
nothing of taskq: what it says must not depend on what it is to check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
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


class Reader:
    """The file as the checks see it; it reads what is new each time it is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._runs: dict[str, list[Run]] = {}

    def runs(self) -> dict[str, list[Run]]:
        """Return the executions of each message, in the order of their starts."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in whole.decode("ascii").splitlines():
                self._take(*line.split(" "))
        return self._runs

    def forget(self) -> None:
        """Forget the runs that have ended."""
        self._runs = {
            id: runs for id, runs in self._runs.items() if any(one.ended is None for one in runs)
        }

    def _take(
        self, event: str, id: str, attempt: str, delivery: str, fence: str, *who: str
    ) -> None:
        pid, at = int(who[0]), float(who[1])
        if event == "start":
            run = Run(id, int(attempt), int(delivery), int(fence), pid, at)
            self._runs.setdefault(id, []).append(run)
            return
        claim = (int(delivery), int(fence), pid)
        for run in self._runs[id]:
            if (run.delivery, run.fence, run.pid) == claim:
                run.ended = at
