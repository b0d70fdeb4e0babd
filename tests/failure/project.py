"""The tasks that the failure tests run: each writes to the ledger. A worker imports it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

from tenacity import wait_fixed

from taskq import Context, Retry, RetryPolicy, TaskQ
from tests.failure.ledger import Ledger

app = TaskQ(os.environ["PROJECT"], queues=os.environ.get("QUEUES", "").split())
ledger = Ledger(os.environ["LEDGER"])
_pause = threading.Event()


@app.task(name="proj.note", bind=True)
def note(ctx: Context, value: Any = None) -> Any:
    """Return what it is given, at once."""
    with ledger.run(ctx):
        return value


@app.task(name="proj.anote", bind=True)
async def anote(ctx: Context, value: Any = None) -> Any:
    """Do the same on the event loop."""
    with ledger.run(ctx):
        return value


@app.task(name="proj.work", bind=True)
def work(ctx: Context, value: Any, seconds: float) -> Any:
    """Take some time."""
    with ledger.run(ctx):
        _pause.wait(seconds)
        return value


@app.task(name="proj.awork", bind=True)
async def awork(ctx: Context, value: Any, seconds: float) -> Any:
    """Take some time on the event loop."""
    with ledger.run(ctx):
        await asyncio.sleep(seconds)
        return value


@app.task(name="proj.hold", bind=True)
def hold(ctx: Context, folder: str, first: str = "succeed") -> list[int]:
    """End when the file `go` is there; `first`: in which way, where it is the first run."""
    with ledger.run(ctx):
        Path(folder, f"started-{ctx.id}-{ctx.delivery}").touch()
        while not Path(folder, "go").exists():
            _pause.wait(0.02)
        if ctx.delivery == 1 and first == "retry":
            raise Retry(delay=0)
        if ctx.delivery == 1 and first == "fail":
            msg = "the first run fails"
            raise ValueError(msg)
        return [ctx.attempt, ctx.delivery]


@app.task(name="proj.grip", bind=True)
def grip(ctx: Context, seconds: int) -> list[int]:
    """Sleep in C without letting go of the interpreter."""
    with ledger.run(ctx):
        ctypes.PyDLL(None).sleep(seconds)
        return [ctx.attempt, ctx.delivery]


@app.task(name="proj.flaky", bind=True, retry=RetryPolicy(wait=wait_fixed(0.2)))
def flaky(ctx: Context, value: Any) -> Any:
    """Fail the first time."""
    with ledger.run(ctx):
        if ctx.attempt == 1:
            msg = "the first time"
            raise ValueError(msg)
        return value


@app.task(name="proj.fail", bind=True)
def fail(ctx: Context, word: str) -> None:
    """Fail for good."""
    with ledger.run(ctx):
        raise KeyError(word)


@app.task(name="proj.parent", bind=True)
def parent(ctx: Context, value: Any) -> str:
    """Send a message of its own, under an id that follows from this one's."""
    with ledger.run(ctx):
        return note.options(id=f"{ctx.id}-child").delay(value).id


@app.task(name="proj.big", bind=True)
def big(ctx: Context, size: int) -> bytes:
    """Return an outcome that is not published whole."""
    with ledger.run(ctx):
        return b"x" * size


@app.task(name="proj.crash", bind=True)
def crash(ctx: Context) -> None:
    """Read where nothing is."""
    with ledger.run(ctx):
        ctypes.string_at(0)


@app.task(name="proj.bomb", bind=True, hard_timeout=1.0, max_crashes=1)
def bomb(ctx: Context, folder: str, count: int) -> None:
    """Start processes that do nothing, and wait for them."""
    with ledger.run(ctx):
        started = [subprocess.Popen(["sleep", "300"]) for _ in range(count)]
        pids = " ".join(str(one.pid) for one in started)
        Path(folder, "bomb").write_text(pids, encoding="ascii")
        for one in started:
            one.wait()


@app.task(name="proj.noop")
def noop() -> None:
    """Do nothing, and write nothing."""
