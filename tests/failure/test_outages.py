"""Redis goes away and comes back; workers, producers and futures recover by themselves."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import MessageLost, State
from tests.eventually import let_pass, until
from tests.servers import Server


def started(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("started-*"))


def produce(app: Any, results: list[Any], stop: threading.Event) -> threading.Thread:
    def run() -> None:
        number = 0
        while not stop.is_set():
            results.append((number, app.send_task("proj.add", (number, 1))))
            number += 1
            let_pass(0.002)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_restart_while_tasks_finish(
    shell: Any, app: Any, own_server: Server, tmp_path: Path, end: str
) -> None:
    worker = shell.worker("proj", "-p", "2", "-t", "2", TASKQ_LEASE="2")
    held = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    results: list[Any] = []
    stop = threading.Event()
    producer = produce(app, results, stop)
    got: list[Any] = []
    future = threading.Thread(target=lambda: got.append(held.get(timeout=40)))
    future.start()
    until(lambda: len(results) > 100)
    getattr(own_server, end)()
    let_pass(1)
    # It ends while nobody can be told.
    (tmp_path / "go").touch()
    let_pass(0.5)
    own_server.start()
    back = time.monotonic()
    future.join(15)
    assert got == [[1, 1]]
    until(lambda: len(results) > 300, 15)
    stop.set()
    producer.join(15)
    numbers, handles = zip(*results, strict=True)
    assert taskq.gather(handles, timeout=20) == [number + 1 for number in numbers]
    assert time.monotonic() - back < 20
    assert worker.stop() == 0
    with own_server.client() as client:
        assert client.keys("*running:*") == []


def test_a_server_that_forgot_everything(shell: Any, app: Any, own_server: Server) -> None:
    """The futures of what is lost raise; the worker serves what comes afterwards."""
    worker = shell.worker("proj", "-p", "1")
    app.send_task("proj.add", (1, 1)).get(timeout=5)
    lost = app.send_task("proj.nobody")
    errors: list[Any] = []
    future = threading.Thread(target=lambda: errors.append(lost.exception(timeout=20)))
    future.start()
    let_pass(0.3)
    with own_server.client() as client:
        client.flushall()
    own_server.kill()
    own_server.start()
    future.join(20)
    assert isinstance(errors[0], MessageLost)
    assert app.send_task("proj.add", (2, 2)).get(timeout=10) == 4
    assert worker.stop() == 0


def test_a_worker_waits_for_a_server_that_is_not_there_yet(
    shell: Any, app: Any, own_server: Server
) -> None:
    own_server.stop()
    worker = shell.start("worker", "proj", "-p", "1")
    worker.says("Redis cannot be reached")
    assert "hunter2" not in worker.log
    own_server.start()
    assert app.send_task("proj.add", (2, 2)).get(timeout=10) == 4
    assert worker.stop() == 0


def test_an_outage_costs_no_processor(shell: Any, app: Any, own_server: Server) -> None:
    worker = shell.worker("proj", "-p", "1")
    app.send_task("proj.add", (2, 2)).get(timeout=10)
    own_server.stop()
    let_pass(1)
    (child,) = worker.children()

    def burnt() -> int:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    if not Path("/proc").exists():
        pytest.skip("reads /proc")
    before = burnt()
    let_pass(2)
    assert burnt() - before < 0.2 * 2 * os.sysconf("SC_CLK_TCK")
    own_server.start()


def test_scripts_that_vanish_under_load(shell: Any, app: Any, own_server: Server) -> None:
    worker = shell.worker("proj", "-p", "2")
    results: list[Any] = []
    stop = threading.Event()
    producer = produce(app, results, stop)
    with own_server.client() as client:
        for _ in range(40):
            client.script_flush()
            let_pass(0.02)
    stop.set()
    producer.join(10)
    numbers, handles = zip(*results, strict=True)
    assert taskq.gather(handles, timeout=20) == [number + 1 for number in numbers]
    assert worker.stop() == 0
    assert "refused" not in worker.log


def test_connections_that_are_killed_under_load(
    shell: Any, app: Any, own_server: Server, tmp_path: Path
) -> None:
    worker = shell.worker("proj", "-p", "2", "-t", "2")
    held = app.send_task("proj.hold", (str(tmp_path),))
    got: list[Any] = []
    future = threading.Thread(target=lambda: got.append(held.get(timeout=30)))
    future.start()
    results: list[Any] = []
    stop = threading.Event()
    producer = produce(app, results, stop)
    with own_server.client() as client:
        for kind in ("normal", "pubsub") * 15:
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            let_pass(0.05)
        (tmp_path / "go").touch()
        future.join(10)
        stop.set()
        producer.join(10)
        numbers, handles = zip(*results, strict=True)
        assert taskq.gather(handles, timeout=20) == [number + 1 for number in numbers]
        assert got == [[1, 1]]
        assert worker.stop() == 0
        assert client.keys("*running:*") == []


def test_a_frozen_child_loses_its_message_and_its_late_outcome_is_refused(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    """G2: one recorded outcome, by whoever holds the message last."""
    first = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1")
    result = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    second = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1")
    (child,) = first.children()
    os.kill(child, signal.SIGSTOP)
    until(lambda: len(started(tmp_path)) == 2, 6)
    (tmp_path / "go").touch()
    assert result.get(timeout=5) == [1, 2]
    os.kill(child, signal.SIGCONT)
    let_pass(1.5)
    again = app.result(result.id)
    assert again.get(timeout=5) == [1, 2]
    assert again.snapshot().delivery == 2
    assert again.snapshot().status is State.SUCCEEDED
    assert app.send_task("proj.add", (1, 1)).get(timeout=5) == 2
    assert first.stop() == 0
    assert second.stop() == 0
