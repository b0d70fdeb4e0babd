"""kill -9 at every point of the protocol: before a call, between call and reply, after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import taskq
from taskq import Result
from tests.cli.conftest import Running
from tests.eventually import until
from tests.failure.books import check_after
from tests.failure.failpoints import When
from tests.failure.scene import Scene

PRODUCER = """
import os, sys
from taskq import TaskQ

app = TaskQ(os.environ["PROJECT"])
how, *ids = sys.argv[1:]
if how == "many":
    app.enqueue_many(app._unchecked("proj.note", (id,), None, {"id": id}) for id in ids)
for id in ids if how != "many" else ():
    app.send_task("proj.note", (id,), id=id, countdown=0.2 if how == "later" else None)
"""


def send_some(scene: Scene) -> dict[Any, Any]:
    expected = {scene.send("note", at): at for at in range(10)}
    expected |= {scene.send("anote", at): at for at in range(10)}
    expected |= {scene.send("flaky", at, countdown=0.1): at for at in range(3)}
    return expected


def let_die(scene: Scene, worker: Running, deaths: int) -> dict[Any, Any]:
    """Send until so many deaths were died."""
    expected: dict[Any, Any] = {}
    for count in range(1, deaths + 1):
        expected |= send_some(scene)
        until(lambda count=count: scene.deaths >= count, 20)
    return expected


@pytest.mark.parametrize("call", ["exchange", "ends"])
def test_a_child_that_dies_around_an_exchange_loses_nothing(scene: Scene, call: str) -> None:
    worker = scene.doomed(*scene.points("child", call))
    scene.arm()
    expected = let_die(scene, worker, 3)
    check_after(scene, expected)
    assert worker.log.count("SIGKILL") == 3


def test_a_child_that_dies_while_it_enrols_is_replaced(scene: Scene) -> None:
    worker = scene.doomed(*scene.points("child", "enrol"))
    scene.arm()
    scene.kill(*worker.children())
    expected = let_die(scene, worker, 3)
    check_after(scene, expected)


def test_a_child_that_dies_while_its_task_enqueues_sends_once(scene: Scene) -> None:
    scene.doomed(*scene.points("child", "enqueue"))
    scene.arm()
    parents = [scene.send("parent", at) for at in range(3)]
    until(lambda: scene.deaths == 3, 20)
    expected: dict[Any, Any] = {one: f"{one.id}-child" for one in parents}
    taskq.gather(parents, timeout=30)  # from now on their children are known
    expected |= {scene.app.result(f"{one.id}-child"): at for at, one in enumerate(parents)}
    check_after(scene, expected)


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("call", ["renew", "reclaim"])
def test_a_supervisor_that_dies_around_a_call_is_survived(
    scene: Scene, call: str, when: When
) -> None:
    """Its children die with it; another worker takes over what they held."""
    (point,) = [one for one in scene.points("supervisor", call) if one.when is when]
    doomed = scene.doomed(point, words=("-p", "1", "-t", "2"))
    expected = {scene.send("hold", str(scene.folder)): [1, 2] for _ in range(2)}
    until(lambda: len(scene.started()) == 2)
    scene.worker("-p", "1", "-t", "2")
    scene.arm()
    assert doomed.ends() == -signal.SIGKILL
    until(lambda: len(scene.started()) == 4, 20)
    scene.go()
    check_after(scene, expected)


def test_a_supervisor_that_dies_while_it_takes_back_from_a_dead_child_is_survived(
    scene: Scene,
) -> None:
    points = [one for one in scene.points("supervisor", "reclaim") if one.when is When.SENT]
    doomed = scene.doomed(*points, words=("-p", "1", "-t", "2"))
    expected = {scene.send("hold", str(scene.folder)): [1, 2] for _ in range(2)}
    until(lambda: len(scene.started()) == 2)
    scene.worker("-p", "1", "-t", "2")
    (child,) = doomed.children()
    os.kill(child, signal.SIGSTOP)  # so that the kill is the next thing that is seen
    scene.arm()
    scene.kill(child)
    assert doomed.ends() == -signal.SIGKILL
    until(lambda: len(scene.started()) == 4, 20)
    scene.go()
    check_after(scene, expected)


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize(
    ("how", "call"), [("now", "enqueue"), ("later", "schedule"), ("many", "enqueue")]
)
def test_a_producer_that_dies_has_sent_all_or_nothing(
    scene: Scene, how: str, call: str, when: When
) -> None:
    """F24. What it had not heard of may be sent again under the same ids."""
    (point,) = [one for one in scene.points("producer", call) if one.when is when]
    ids = [f"order-{at}" for at in range(3)]
    scene.arm()
    died = subprocess.run(
        [sys.executable, "-c", PRODUCER, how, *ids],
        env=scene.shell.environment | scene.doom(point),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    queue = scene.queue()
    until(lambda: queue.records() or when is When.UNSENT)
    queue.audit()
    known = len(queue.records())
    assert known == (0 if when is When.UNSENT else len(ids) if how == "many" else 1)
    scene.worker()
    again: dict[Result[Any], Any] = {scene.send("note", id, id=id): id for id in ids}
    books = check_after(scene, again)
    assert [len(one.runs) for one in books.accounts] == [1, 1, 1]
