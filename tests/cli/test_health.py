"""`taskq worker --health-port` and `taskq health`."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.model import clock
from taskq.worker.vitals import Vitals
from tests.cli.test_deaths import started
from tests.eventually import until
from tests.servers import free_port


@pytest.fixture
def port() -> int:
    return free_port()


def ask(port: int, method: str = "GET") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, "/any/path")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, json.loads(body) if body else {}


def test_a_worker_that_serves_is_healthy(shell: Any, port: int) -> None:
    worker = shell.worker("proj", "-p", "2", "-n", "tom", "--health-port", str(port))
    until(lambda: ask(port)[0] == 200)
    status, told = ask(port)
    assert (status, told["healthy"], told["worker"]) == (200, True, "tom")
    assert (told["state"], told["problems"]) == ("serving", [])
    assert set(told["children"]) == {"1", "2"}
    assert ask(port, "HEAD") == (200, {})
    done = shell.type("health", "--port", str(port))
    assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")
    done = shell.type("health", "--json", TASKQ_HEALTH_PORT=str(port))
    assert (done.returncode, json.loads(done.stdout)["healthy"]) == (0, True)
    with socket.socket() as other, pytest.raises(ConnectionError):
        other.connect(("127.0.0.2", port))
    assert worker.stop() == 0
    assert shell.type("health", "--port", str(port)).returncode == 1


def test_the_port_may_come_from_the_environment(shell: Any, port: int) -> None:
    worker = shell.worker("proj", "-p", "1", "--health-host", "127.0.0.2",
                          TASKQ_HEALTH_PORT=str(port))  # fmt: skip
    words = ("health", "--host", "127.0.0.2")
    until(lambda: shell.type(*words, TASKQ_HEALTH_PORT=str(port)).returncode == 0, 10)
    assert "unknown variable" not in worker.log
    assert worker.stop() == 0


def test_a_worker_is_ill_before_the_app_is_loaded(shell: Any, port: int) -> None:
    waiting = "from pathlib import Path\nimport threading\nwhile not Path('go').exists():"
    source = (shell.folder / "proj.py").read_text()
    shell.write("proj.py", f"{waiting}\n    threading.Event().wait(0.05)\n{source}")
    worker = shell.start("worker", "proj", "-p", "1", "--health-port", str(port))
    until(worker.children)
    status, told = ask(port)
    assert (status, told["state"]) == (503, "starting")
    done = shell.type("health", "--port", str(port))
    assert done.returncode == 1
    assert "unhealthy: the app is not loaded yet" in done.stdout
    (shell.folder / "go").touch()
    until(lambda: ask(port)[0] == 200, 10)
    assert worker.stop() == 0


def test_a_frozen_child_makes_it_ill_at_once(shell: Any, port: int) -> None:
    worker = shell.worker("proj", "-p", "1", "--health-port", str(port))
    until(lambda: ask(port)[0] == 200)
    (child,) = worker.children()
    os.kill(child, signal.SIGSTOP)
    until(lambda: ask(port)[0] == 503)
    assert f"the child process {child} is stopped by a signal" in ask(port)[1]["problems"]
    os.kill(child, signal.SIGCONT)
    until(lambda: ask(port)[0] == 200)
    assert worker.stop() == 0


def test_a_frozen_supervisor_does_not_answer(shell: Any, port: int) -> None:
    worker = shell.worker("proj", "-p", "1", "--health-port", str(port))
    until(lambda: ask(port)[0] == 200)
    worker.send(signal.SIGSTOP)
    done = shell.type("health", "--port", str(port), "--timeout", "0.5")
    worker.send(signal.SIGCONT)
    assert done.returncode == 1
    assert "no worker answers" in done.stderr
    assert worker.stop() == 0


def test_a_worker_that_drains_is_healthy(shell: Any, app: Any, tmp_path: Path, port: int) -> None:
    worker = shell.worker("proj", "-p", "1", "--health-port", str(port))
    app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: started(tmp_path))
    worker.send(signal.SIGTERM)
    until(lambda: ask(port)[1]["state"] == "stopping")
    until(lambda: ask(port)[0] == 200)
    (tmp_path / "go").touch()
    assert worker.ends() == 0


# What silence means, without waiting for it.


class Times:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    times = Times()
    monkeypatch.setattr(clock, "monotonic", lambda: times.now)
    return times


@pytest.fixture
def vitals(times: Times) -> Vitals:
    vitals = Vitals("tom", 30.0)
    vitals.state, vitals.redis_at, vitals.redis_pause = "serving", times.now, 5.0
    vitals.children = {1: times.now, 2: times.now}
    return vitals


def test_silence_is_borne_for_a_while(vitals: Vitals, times: Times) -> None:
    times.now += 30
    assert vitals.report()["healthy"]
    times.now += 1
    problems = vitals.report()["problems"]
    assert problems == [
        "the supervisor's loop is stuck",
        "child 1 gave no sign of life for 31 s",
        "child 2 gave no sign of life for 31 s",
    ]
    times.now += 5
    assert "Redis was not reached for 36 s" in vitals.report()["problems"]


def test_one_silent_child_is_named(vitals: Vitals, times: Times) -> None:
    times.now += 31
    vitals.loop_at = vitals.redis_at = vitals.children[2] = times.now
    assert vitals.report()["problems"] == ["child 1 gave no sign of life for 31 s"]
    vitals.state = "stopping"
    assert vitals.report()["healthy"]


def test_a_redis_never_reached_is_told(vitals: Vitals) -> None:
    vitals.redis_at = None
    assert vitals.report()["problems"] == ["Redis was not reached yet"]


# Bad input.


@pytest.mark.parametrize(
    "words",
    [
        ["--health-port", "0"],
        ["--health-port", "70000"],
        ["--health-port", "http"],
        ["--health-host", "127.0.0.1"],
        ["--health-patience", "10"],
        ["--health-port", "{port}", "--health-patience", "1"],
        ["--health-port", "{port}", "--health-host", "no.such.invalid"],
        ["--health-port", "{port}", "--health-host", "192.0.2.1"],
    ],
    ids=" ".join,
)
def test_a_port_that_cannot_be_is_told(shell: Any, port: int, words: list[str]) -> None:
    done = shell.say("worker", "proj", *(word.format(port=port) for word in words))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--health-" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told(shell: Any, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        done = shell.say("worker", "proj", "--health-port", str(port))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"--health-port {port}: 127.0.0.1:{port} cannot be used" in line


@pytest.mark.parametrize("words", [[], ["--port", "0"], ["--port", "x"], ["--timeout", "0"]])
def test_health_without_a_port_exits_with_2(shell: Any, words: list[str]) -> None:
    done = shell.type("health", *words)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port on which somebody else answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(request.param)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize(
    "stranger",
    [b"", b"\x1b[31mno http\r\n", b"HTTP/1.0 200 OK\r\n\r\nhello", b"HTTP/1.0 200 OK\r\n\r\n[1]"],
    indirect=True,
)
def test_a_stranger_on_the_port_is_no_worker(shell: Any, stranger: int) -> None:
    done = shell.type("health", "--port", str(stranger))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "no worker answers" in line
    assert "\x1b" not in line
