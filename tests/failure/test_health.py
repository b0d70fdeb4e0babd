"""Health is told by the loops: processes that exist and do nothing are ill."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tests.cli.test_health import ask
from tests.eventually import let_pass, until
from tests.servers import Server, free_port

PATIENT = ("--health-patience", "5", "--health-port")
HOG = """

@app.task
def hog():
    import re
    re.match("(a+)+$", "a" * 60 + "b")
"""


def test_a_redis_that_is_away_makes_it_ill_until_it_is_back(shell: Any, own_server: Server) -> None:
    port = free_port()
    worker = shell.worker("proj", "-p", "1", *PATIENT, str(port), TASKQ_LEASE="1")
    until(lambda: ask(port)[0] == 200)
    own_server.stop()
    until(lambda: ask(port)[0] == 503, 12)
    # Child and supervisor see it, each for itself.
    until(lambda: len(ask(port)[1]["problems"]) == 2)
    assert any("Redis was not reached" in one for one in ask(port)[1]["problems"])
    own_server.start()
    until(lambda: ask(port)[0] == 200, 12)
    assert worker.stop() == 0


def test_idleness_is_no_illness(shell: Any) -> None:
    port = free_port()
    worker = shell.worker("proj", "-p", "2", *PATIENT, str(port))
    until(lambda: ask(port)[0] == 200)
    let_pass(8)
    assert ask(port)[1]["problems"] == []
    assert worker.stop() == 0


def test_full_slots_are_no_illness(shell: Any, app: Any, tmp_path: Path) -> None:
    port = free_port()
    worker = shell.worker("proj", "-p", "1", "-t", "1", "--coroutines", "0", *PATIENT, str(port))
    held = app.send_task("proj.hold", (str(tmp_path),))
    until(lambda: list(tmp_path.glob("started-*")))
    let_pass(7)
    assert ask(port)[0] == 200
    (tmp_path / "go").touch()
    assert held.get(timeout=30) == [1, 1]
    assert worker.stop() == 0


def test_a_child_that_holds_its_interpreter_is_silent(shell: Any, app: Any) -> None:
    port = free_port()
    shell.write("proj.py", (shell.folder / "proj.py").read_text() + HOG)
    worker = shell.worker("proj", "-p", "2", *PATIENT, str(port))
    until(lambda: ask(port)[0] == 200)
    app.send_task("proj.hog")
    until(lambda: ask(port)[0] == 503, 12)
    (problem,) = ask(port)[1]["problems"]
    assert "gave no sign of life" in problem
    worker.send(signal.SIGKILL)


def test_a_child_that_does_not_come_up_again_is_silent(shell: Any) -> None:
    port = free_port()
    worker = shell.worker("proj", "-p", "1", *PATIENT, str(port))
    until(lambda: ask(port)[0] == 200)
    shell.write("proj.py", "this is no python\n")
    os.kill(worker.children()[0], signal.SIGKILL)
    worker.says("cannot start")
    until(lambda: ask(port)[0] == 503, 12)
    assert worker.stop() == 0
