"""Deaths at a chosen instruction: a process kills itself around a call of a script.

And clocks that are wrong, of one process at a time.

No line of taskq knows of it. A test writes a `sitecustomize.py` that calls `install`, in a
folder on PYTHONPATH; it wraps the one seam through which every script call goes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections import deque
from enum import StrEnum
from pathlib import Path
from typing import Any

VARIABLE = "FAILPOINTS"
SKEW = "CLOCK_SKEW"
SITECUSTOMIZE = """\
from tests.failure import failpoints
failpoints.install()
"""
# Where an exchange says how many lots of ends of attempts it carries.
ENDS_AT = 13


class When(StrEnum):
    """Where in a call the process dies."""

    UNSENT = "unsent"
    SENT = "sent"
    REPLIED = "replied"


class Who(StrEnum):
    """Which kind of process dies."""

    CHILD = "child"
    SUPERVISOR = "supervisor"
    PRODUCER = "producer"


@dataclasses.dataclass(frozen=True)
class Point:
    """One death. The first process that comes there dies, and no other."""

    who: Who
    # The name of a script; `ends` is an exchange that carries ends of attempts.
    call: str
    when: When
    # A file that stands for it: who makes it, writes who and when, and dies. Until its folder
    # is there, nobody can.
    mark: str
    # So many calls pass before.
    skip: int = 0


def environment(points: list[Point]) -> dict[str, str]:
    """Return the variables of a process that shall obey these points."""
    return {VARIABLE: json.dumps([dataclasses.asdict(point) for point in points])}


def prepare(folder: Path) -> Path:
    """Write the hook, in a folder that is to stand first on PYTHONPATH."""
    place = folder / "hook"
    place.mkdir(exist_ok=True)
    hook = place / "sitecustomize.py"
    if not hook.exists():  # once: a process that starts at this moment reads it
        hook.write_text(SITECUSTOMIZE, encoding="ascii")
    return place


def install() -> None:
    """Wrap the seam in this process, if it is told of points for its kind."""
    if skew := float(os.environ.get(SKEW, "0")):
        right, right_ns = time.time, time.time_ns
        time.time = lambda: right() + skew
        time.time_ns = lambda: right_ns() + round(skew * 1e9)
    me = _who()
    given = [Point(**one) for one in json.loads(os.environ.get(VARIABLE, "[]"))]
    points = [point for point in given if point.who == me]
    if points:
        _Seam(points).wrap()


def _who() -> Who:
    words = sys.orig_argv
    if "taskq.worker.child" in words:
        return Who.CHILD
    return Who.SUPERVISOR if "worker" in words else Who.PRODUCER


class _Seam:
    """`Line.send` and `Line.receive`: nothing else speaks to Redis in a script's name."""

    def __init__(self, points: list[Point]) -> None:
        self._points = points
        self._passed: dict[Point, int] = dict.fromkeys(points, 0)

    def wrap(self) -> None:
        from taskq.broker import scripts
        from taskq.broker.line import Line

        names = {scripts.load(name).sha: name for name in scripts.names()}
        texts = {scripts.load(name).text: name for name in scripts.names()}
        send, receive = Line.send, Line.receive
        sent: dict[int, deque[list[str]]] = {}

        def calls(arguments: Any) -> list[str]:
            word = arguments[0]
            if word not in ("EVALSHA", "EVAL"):
                return []
            name = names.get(arguments[1]) or texts.get(arguments[1], "")
            ends = name == "exchange" and int(arguments[ENDS_AT]) > 0
            return [name, "ends"] if ends else [name]

        def wrapped_send(line: Any, *arguments: Any, ahead: Any = ()) -> None:
            made = calls(arguments)
            if line._connection is None:
                sent.pop(id(line), None)  # no reply comes to what went by an earlier one
            self._die(made, When.UNSENT)
            send(line, *arguments, ahead=ahead)
            waiting = sent.setdefault(id(line), deque())
            waiting += [calls(ahead), made] if ahead else [made]
            self._die(made, When.SENT)

        def wrapped_receive(line: Any) -> Any:
            waiting = sent.get(id(line)) or deque([[]])
            made = waiting.popleft()
            reply = receive(line)
            self._die(made, When.REPLIED)
            return reply

        Line.send = wrapped_send  # type: ignore[method-assign]
        Line.receive = wrapped_receive  # type: ignore[method-assign]

    def _die(self, made: list[str], when: When) -> None:
        for point in self._points:
            if point.when != when or point.call not in made:
                continue
            self._passed[point] += 1
            if self._passed[point] > point.skip and _claim(point.mark):
                os.kill(os.getpid(), signal.SIGKILL)


def _claim(mark: str) -> bool:
    try:
        file = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except (FileExistsError, FileNotFoundError):
        return False
    os.write(file, f"{os.getpid()} {time.monotonic()}".encode())
    return True
