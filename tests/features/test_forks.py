"""A process that forks: parent and child each go on with connections of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import TaskQ
from taskq.testing import running_worker

ROOT = Path(taskq.__file__).parent.parent
SCRIPT = """
import asyncio, os, sys, threading
from taskq import TaskQ, gather

name, url, secret, how = sys.argv[1:]
app = TaskQ(name, url=url, secret=secret)

def blocking(start):
    results = [app.send_task("add", (start, x)) for x in range(20)]
    assert gather(results, timeout=20) == [start + x for x in range(20)]

def awaited(start):
    async def story():
        results = [await app.asend_task("add", (start, x)) for x in range(20)]
        assert [await result.aget(timeout=20) for result in results] == [
            start + x for x in range(20)
        ]
        await app.leave_loop()
    asyncio.run(story())

work = {"blocking": blocking, "awaited": awaited}[how]
work(0)
# A thread of the parent waits, and another sends, at the very moment of the fork.
slow = app.send_task("hold")
waiting = threading.Thread(target=lambda: slow.get(timeout=30))
sending = threading.Thread(target=lambda: [blocking(7000) for _ in range(5)])
waiting.start()
sending.start()
children = []
for number in range(1, 4):
    pid = os.fork()
    if not pid:
        try:
            for _ in range(3):
                work(1000 * number)
            app.close()
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    children.append(pid)
for _ in range(3):
    work(9000)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
app.send_task("go")
waiting.join()
sending.join()
work(5)
app.close()
print("codes:", codes, "value:", slow.get())
"""


@pytest.mark.parametrize("how", ["blocking", "awaited"])
def test_children_enqueue_and_wait_while_the_parent_does(new_redis_app: Any, how: str) -> None:
    app: TaskQ = new_redis_app()
    go = threading.Event()

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="hold")
    def hold() -> str:
        go.wait(30)
        return "held"

    @app.task(name="go")
    def let_go() -> None:
        go.set()

    arguments = [app.name, app.config.url, app.config.secret[0], how]
    with running_worker(app, threads=4):
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT, *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
    assert (done.stdout, done.stderr) == ("codes: [0, 0, 0] value: held\n", "")
