"""The tasks: what a worker can do with Python files."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import hashlib
import re
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tenacity import stop_after_attempt, wait_fixed

from taskq import Context, RetryPolicy, TaskQ

# Where Redis is comes from TASKQ_URL; without it taskq starts a private server.
app = TaskQ("example")

MOST_FUNCTIONS = 10
LICENCE = re.compile(r"Apache License|BSD|(?:A|L)?GPL|MIT License|Mozilla|\bPSF\b")
HEAD_BYTES = 4096

# What the parser thinks of odd escapes in other people's strings is not our concern.
warnings.filterwarnings("ignore", module="<unknown>")


@dataclasses.dataclass(frozen=True)
class Function:
    """A function or method, by the place where it begins."""

    name: str
    path: str
    line: int
    lines: int


@dataclasses.dataclass(frozen=True)
class FileReport:
    """What one file holds. An unparsable one has bytes and lines, and says why."""

    path: str
    bytes: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    # The longest first, ten at most.
    longest: tuple[Function, ...] = ()
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Checksum:
    """A file's digest, and the attempt that got it."""

    path: str
    sha256: str
    attempt: int


@app.task
def measure(path: str) -> FileReport:
    """Count what a file defines. What cannot be read or parsed is reported, not raised."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        return FileReport(path, problem=error.strerror)
    size, lines = len(source), len(source.splitlines())
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # MemoryError is how the parser says that brackets are nested too deeply.
        return FileReport(path, size, lines, problem=f"{type(error).__name__}: {error}")
    functions = [
        Function(node.name, path, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
    return FileReport(path, size, lines, len(functions), classes, longest(functions))


def longest(functions: Sequence[Function]) -> tuple[Function, ...]:
    """Return the ten longest; of equal ones those that come first by path and line."""
    ranked = sorted(functions, key=lambda one: (-one.lines, one.path, one.line))
    return tuple(ranked[:MOST_FUNCTIONS])


@app.task(
    bind=True,
    retry=RetryPolicy(on=TimeoutError, stop=stop_after_attempt(3), wait=wait_fixed(0.2)),
)
def checksum(ctx: Context, path: str) -> Checksum:
    """Read a file from a slow disk, which must spin up first.

    The wait between attempts is spent in Redis; no thread sleeps through it.
    """
    if ctx.attempt == 1:
        msg = f"the disk with {path} is spinning up"
        raise TimeoutError(msg)
    return Checksum(path, hashlib.sha256(Path(path).read_bytes()).hexdigest(), ctx.attempt)


@app.task
async def licences(paths: list[str]) -> dict[str, int]:
    """Count the licences named in the first lines of some files, reading them side by side."""
    heads = await asyncio.gather(*(asyncio.to_thread(_head, path) for path in paths))
    return dict(Counter(name for head in heads for name in set(LICENCE.findall(head))))


@app.periodic(every=1, overlap="skip", catch_up="none")
@app.task(expires=60)
def memory() -> int:
    """Return the most memory, in bytes, that the process of a worker used; called each second."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _head(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(HEAD_BYTES).decode(errors="replace")
    except OSError:
        return ""
