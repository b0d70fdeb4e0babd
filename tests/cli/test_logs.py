"""What a worker says, and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

HANDLER = 'import logging\nlogging.basicConfig(level="INFO", format="MINE %(message)s")\n'


def test_a_worker_says_what_it_serves(shell: Any) -> None:
    log = shell.worker("proj", "-p", "1", "-n", "tom").log
    for word in ("tom", shell.name, "default", "mail", "proj.add", "redis://"):
        assert word in log


def test_every_line_can_be_json(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "--log-format", "json")
    app.send_task("proj.fail").exception(timeout=14)
    app.send_task("proj.flaky").get(timeout=14)
    assert worker.stop() == 0
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assert {"time", "level", "logger", "worker", "message"} <= set(lines[0])
    failed = [line for line in lines if line["level"] == "ERROR"]
    assert len(failed) == 1
    assert failed[0]["task"] == "proj.fail"
    assert "told you so" in failed[0]["exception"]
    retried = [line for line in lines if line.get("task") == "proj.flaky"]
    assert [line["level"] for line in retried] == ["INFO"]


def test_a_root_logger_that_has_a_handler_is_left_alone(shell: Any, app: Any) -> None:
    """A project that sets up its own logging gets its own format, not ours on top."""
    path = shell.folder / "proj.py"
    shell.write("proj.py", HANDLER + path.read_text())
    worker = shell.worker("proj", "-p", "1", "-l", "debug")
    app.send_task("proj.fail").exception(timeout=14)
    line = next(line for line in worker.says("proj.fail[").splitlines() if "proj.fail[" in line)
    assert line.startswith("MINE ")


@pytest.mark.parametrize("level", ["error", "ERROR"])
def test_a_level_is_a_threshold(shell: Any, app: Any, level: str) -> None:
    worker = shell.start("worker", "proj", "-p", "1", "-l", level)
    app.send_task("proj.fail").exception(timeout=14)
    assert app.send_task("proj.flaky").get(timeout=14) == 2
    assert worker.stop() == 0
    assert worker.log.count("ERROR") == 1
    assert "INFO" not in worker.log


def test_arguments_are_not_logged(shell: Any, app: Any) -> None:
    worker = shell.worker("proj", "-p", "1", "-l", "debug")
    app.send_task("proj.add", ("hunter2", 5)).exception(timeout=14)
    assert worker.stop() == 0
    assert "('hunter2'" not in worker.log
