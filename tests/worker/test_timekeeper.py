"""How much a timekeeper asks of Redis: little while it waits, little in a crowd."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq import TaskQ
from taskq.broker.line import Line
from taskq.worker.declaring import Declared
from taskq.worker.timekeeper import Timekeeper
from tests.eventually import let_pass, until

SECRET = "a secret of the tests of timekeepers and long enough"


@pytest.fixture
def app(redis_url: str, namespace: str) -> Iterator[TaskQ]:
    app = TaskQ(namespace, url=redis_url, secret=SECRET)

    @app.task(name="noop")
    def noop() -> None: ...

    yield app
    app.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each script was called by a timekeeper."""
    counted: Counter[str] = Counter()
    run: Any = Line.run

    def counting(line: Line, command: Any) -> Any:
        if threading.current_thread().name == "taskq-schedules":
            counted[command.script.name] += 1
        return run(line, command)

    monkeypatch.setattr(Line, "run", counting)
    return counted


@pytest.fixture
def timekeepers(app: TaskQ) -> Iterator[Callable[[int], list[Timekeeper]]]:
    with contextlib.ExitStack() as stack:

        def start(count: int) -> list[Timekeeper]:
            made = [
                Timekeeper(
                    app.name,
                    app.access.endpoint,
                    ["default"],
                    keyring=app.access.keyring,
                    lease=15,
                    declared=Declared.by(app, ["default"]),
                )
                for _ in range(count)
            ]
            for one in made:
                one.start()
                stack.callback(one.stop)
            return made

        yield start


def agendas_settle(calls: Counter[str], least: int) -> None:
    """Wait until all have looked, and heard that they are subscribed."""
    until(lambda: calls["agenda"] >= least)
    let_pass(0.3)


def test_while_nothing_is_due_nothing_is_asked(
    app: TaskQ, timekeepers: Any, calls: Counter[str]
) -> None:
    app.schedules.add("yearly", app.tasks["noop"].s(), cron="0 0 1 1 *")
    timekeepers(1)
    agendas_settle(calls, 1)
    before = calls["agenda"]
    let_pass(3)
    assert calls["agenda"] == before
    assert set(calls) == {"agenda"}


def test_in_a_crowd_each_asks_once_a_tick(
    app: TaskQ, timekeepers: Any, calls: Counter[str]
) -> None:
    timekeepers(5)
    agendas_settle(calls, 5)
    app.schedules.add("often", app.tasks["noop"].s(), every=1)
    until(lambda: app.schedules.get("often").fired == 1)
    let_pass(0.3)
    calls.clear()
    until(lambda: app.schedules.get("often").fired == 3)
    let_pass(0.3)
    # It looks; then it fires, or another one has; and now and then it wakes too early.
    assert calls["agenda"] <= 2 * 5 * 2
    assert calls["fire"] <= 2 * 5


def test_a_timekeeper_ends_at_once(timekeepers: Any, calls: Counter[str]) -> None:
    [one] = timekeepers(1)
    agendas_settle(calls, 1)
    one.stop()
    assert not one._thread.is_alive()


def test_a_change_that_others_get_in_the_way_of_is_told_once_they_rest(
    app: TaskQ, redis_url: str, timekeepers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.periodic(cron="0 0 1 1 *", name="yearly")(app.tasks["noop"])
    [one] = timekeepers(1)
    until(app.schedules.list)
    asked, run = 0, Line.run

    def meddled_with(line: Line, command: Any) -> Any:
        nonlocal asked
        if command.script.name == "plan":
            asked += 1
            if asked <= 5:
                return "stale"
        return run(line, command)

    monkeypatch.setattr(Line, "run", meddled_with)
    later = TaskQ(app.name, url=redis_url, secret=SECRET)
    task = later.task(name="noop")(lambda: None)
    later.periodic(cron="0 0 2 2 *", name="yearly")(task)
    one.refresh(["default"], app.access.keyring, Declared.by(later, ["default"]))
    until(lambda: asked >= 5)
    one.look()
    until(lambda: app.schedules.get("yearly").rule == "0 0 2 2 *")
