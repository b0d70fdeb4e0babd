"""What a slip of the hand gets: the producer is told, in words that name it.

Where other files tell a row of it: `test_serializers`, `test_errors`, `test_refused`,
`test_imports`, `test_options`, and `cli/test_app_errors`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
import traceback
from typing import Any

import pytest

import taskq
from taskq import BrokerUnavailable, Context, MessageTooLarge, State, TaskQ
from taskq.broker import keys, queries
from taskq.testing import running_worker
from taskq.worker import maintenance
from tests.eventually import until

NOWHERE = "redis://user:hunter2@127.0.0.1:1/0"
NAIVE = dt.datetime(2030, 1, 1)  # noqa: DTZ001 - naive on purpose


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app(queues=["mail"])
    return made


@pytest.fixture
def add(app: TaskQ) -> Any:
    @app.task(name="shop.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def is_empty(app: TaskQ) -> bool:
    return not app.broker.run(queries.survey(keys.base(app.name, "default"), "default")).tasks


WRONG_ARGUMENTS: dict[str, Any] = {
    "too few": lambda add: add.delay(),
    "too many": lambda add: add.delay(1, 2, 3),
    "unknown name": lambda add: add.delay(1, z=2),
    "given twice": lambda add: add.delay(1, x=2),
    "signed": lambda add: add.s(1, 2, 3),
    "mapped": lambda add: add.starmap([(1, 2), (1, 2, 3)]),
    "applied": lambda add: add.apply_async((1,), {"z": 2}),
    "awaited": lambda add: asyncio.run(add.adelay(1, 2, 3)),
    "mapped and awaited": lambda add: asyncio.run(add.astarmap([(1, 2), ()])),
}


@pytest.mark.parametrize("how", WRONG_ARGUMENTS)
def test_wrong_arguments_are_told_to_the_caller(app: TaskQ, add: Any, how: str) -> None:
    with pytest.raises(TypeError, match=r"^shop\.add: "):
        WRONG_ARGUMENTS[how](add)
    assert is_empty(app)


def test_a_bound_task_counts_without_its_context(app: TaskQ) -> None:
    @app.task(name="bound", bind=True)
    def bound(ctx: Context, x: int, *, y: int) -> None: ...

    for call in (lambda: bound.delay(1), lambda: bound.delay(1, 2, y=3), lambda: bound.s(ctx=1)):
        with pytest.raises(TypeError, match=r"^bound: "):
            call()
    assert bound.s(1, y=2).args == (1,)


def test_a_message_may_be_too_large(new_app: Any) -> None:
    app: TaskQ = new_app(max_message_bytes=10_000)

    @app.task(name="take")
    def take(data: bytes) -> int:
        return len(data)

    with pytest.raises(MessageTooLarge, match=r"take: the message has 10,\d\d\d bytes.*10,000"):
        take.delay(b"x" * 10_000)
    with pytest.raises(MessageTooLarge):
        take.map([b"", b"x" * 10_000])
    assert is_empty(app)
    with running_worker(app):
        assert take.delay(b"x" * 9000).get(timeout=5) == 9000


def test_a_mebibyte_is_the_most_unless_told(app: TaskQ) -> None:
    with pytest.raises(MessageTooLarge, match="1,048,576"):
        app.send_task("take", (b"x" * (1 << 20),))
    assert app.send_task("take", (b"x" * 1_000_000,)).status is State.QUEUED


def test_a_task_that_no_worker_knows_waits_for_one_that_does(
    new_app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says so, with the likely cause, and does the rest of its work."""
    app: TaskQ = new_app(lease=0.5)
    add = add_of(app)
    monkeypatch.setattr(maintenance, "_WARN_SECONDS", 0.1)
    result: Any = app.send_task("shop.unknown", (1,))
    with caplog.at_level(logging.WARNING, "taskq.worker"), running_worker(app):
        assert add.delay(1, 2).get(timeout=5) == 3
        until(lambda: "shop.unknown" in caplog.text and "include=" in caplog.text, 8)
        assert result.status is State.QUEUED
        assert result.snapshot().note == "no live worker knows this task"

    @app.task(name="shop.unknown")
    def late(x: int) -> int:
        return x

    with running_worker(app):
        assert result.get(timeout=5) == 1


@pytest.mark.parametrize("how", ["delay", "adelay", "map", "amap", "get", "aget", "status"])
def test_no_server_is_told_in_time_with_its_place_and_no_password(how: str) -> None:
    app = TaskQ("nowhere", url=NOWHERE, secret="s" * 32, enqueue_deadline=0.3)

    @app.task
    def work(x: int) -> None: ...

    calls: dict[str, Any] = {
        "delay": lambda: work.delay(1),
        "adelay": lambda: asyncio.run(work.adelay(1)),
        "map": lambda: work.map([1, 2]),
        "amap": lambda: asyncio.run(work.amap([1, 2])),
        "get": lambda: app.result("0" * 32).get(timeout=1),
        "aget": lambda: asyncio.run(app.result("0" * 32).aget(timeout=1)),
        "status": lambda: app.result("0" * 32).status,
    }
    started = time.monotonic()
    with pytest.raises((BrokerUnavailable, taskq.ResultTimeout)) as caught:
        calls[how]()
    assert time.monotonic() - started < 4
    app.close()
    if isinstance(caught.value, BrokerUnavailable):
        assert "127.0.0.1:1" in str(caught.value)
        assert "onnect" in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert how in ("get", "aget") or isinstance(caught.value, BrokerUnavailable)
    # Whoever walks along the causes arrives.
    assert caught.value.__cause__ is not caught.value


def test_what_could_not_be_sent_can_be_sent_later(app: TaskQ, add: Any) -> None:
    app_away = TaskQ(app.name, url=NOWHERE, secret="s" * 32, enqueue_deadline=0.2)
    with pytest.raises(BrokerUnavailable) as caught:
        app_away.enqueue_many([add_of(app_away).s(x) for x in range(3)])
    assert caught.value.sent == []
    assert len(caught.value.unsent) == 3
    app_away.point_at(app.config.url)
    results = app_away.enqueue_many(caught.value.unsent)
    assert [result.status for result in results] == [State.QUEUED] * 3
    app_away.close()


@pytest.mark.parametrize("how", ["map", "starmap"])
def test_what_a_map_could_not_send_is_given_back_call_by_call(app: TaskQ, how: str) -> None:
    app_away = TaskQ(app.name, url=NOWHERE, secret="s" * 32, enqueue_deadline=0.2)
    add = add_of(app_away)
    with pytest.raises(BrokerUnavailable) as caught:
        add.map(range(3)) if how == "map" else add.starmap((x, x) for x in range(3))
    calls = [(x,) if how == "map" else (x, x) for x in range(3)]
    assert [(one.task, one.args, one.kwargs) for one in caught.value.unsent] == [
        ("shop.add", args, {}) for args in calls
    ]
    # Each under the id with which it was to be sent.
    assert len({one.options.id for one in caught.value.unsent} - {None}) == 3
    app_away.close()


def test_nothing_is_sent_of_a_map_of_which_one_call_is_wrong(app: TaskQ, add: Any) -> None:
    with pytest.raises(TypeError, match="too many positional"):
        add.starmap([(1,), (1, 2), (1, 2, 3)])
    assert is_empty(app)


def add_of(app: TaskQ) -> Any:
    @app.task(name="shop.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("eta", NAIVE),
        ("expires", NAIVE),
        ("eta", "tomorrow"),
        ("eta", 5),
        ("countdown", -1),
        ("countdown", dt.timedelta(seconds=-1)),
        ("countdown", float("nan")),
        ("countdown", float("inf")),
        ("countdown", "5"),
        ("countdown", True),
        ("countdown", 1e10),
        ("expires", -1),
        ("expires", float("nan")),
        ("result_ttl", -1),
        ("result_ttl", float("nan")),
        ("priority", 10),
        ("priority", -1),
        ("priority", 5.0),
        ("priority", True),
        ("serializer", "yaml"),
        ("durability", 1),
        ("durability", ""),
        ("durability", "replicas:many"),
        ("durability", "replica:1"),
        ("queue", "no such"),
        ("queue", 5),
        ("headers", {1: 2}),
        ("headers", {"a": object()}),
        ("headers", {"a": "x" * 70_000}),
        ("coutdown", 5),
    ],
)
def test_an_option_that_cannot_be_meant_is_named(
    app: TaskQ, add: Any, option: str, value: Any
) -> None:
    for call in (
        lambda: add.options(**{option: value}),
        lambda: add.apply_async((1,), **{option: value}),
        lambda: app.send_task("shop.add", (1,), **{option: value}),
    ):
        with pytest.raises((ValueError, TypeError), match=option):
            call()
    assert is_empty(app)


def test_what_excludes_each_other_is_told(add: Any) -> None:
    soon = dt.datetime.now(dt.UTC)
    with pytest.raises(ValueError, match=r"countdown and eta"):
        add.options(countdown=1, eta=soon)
    with pytest.raises(ValueError, match=r"countdown and eta"):
        add.options(countdown=1).options(eta=soon)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a{b}", "x" * 129, "ü"])
def test_a_name_that_is_no_name(app: TaskQ, name: str) -> None:
    for call in (
        lambda: TaskQ(name),
        lambda: TaskQ("shop", queues=[name]),
        lambda: app.send_task(name),
        lambda: app.send_task("shop.add", queue=name),
    ):
        with pytest.raises(taskq.ConfigError, match="name"):
            call()
