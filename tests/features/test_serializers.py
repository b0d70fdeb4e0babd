"""What travels, in each of the three languages, and what is said where something cannot."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import taskq
from taskq import RemoteError, SerializationError, TaskQ
from taskq.broker import keys, queries
from taskq.testing import running_worker

ROOT = Path(taskq.__file__).parent.parent
PLAIN = {"a": [1, 2.5, "ü", None, True], "deep": {"er": [[]]}}
SCRIPT = """
import sys
from taskq import TaskQ

class Order:
    def __init__(self, number):
        self.number = number
    def doubled(self):
        return Order(twice(self.number))

class Refusal(Exception):
    pass

def twice(number):
    return number * 2

def adder(step):
    def add(x):
        return x + step
    return add

def refuse(order):
    raise Refusal(order.number)

name, url, secret = sys.argv[1:]
with TaskQ(name, url=url, secret=secret) as app:
    def call(*args):
        return app.send_task("call", args)
    print(call(lambda x: x + 1, 1).get(timeout=10))
    print(call(adder(10), 1).get(timeout=10))
    order = call(Order.doubled, Order(21)).get(timeout=10)
    print(type(order) is Order, order.number)
    error = call(refuse, order).exception(timeout=10)
    print(type(error) is Refusal, error.args)
    print(call(Order, 7).get(timeout=10).doubled().number)
"""


@pytest.fixture
def shop(new_app: Any) -> Any:
    app: TaskQ = new_app()

    @app.task(name="echo")
    def echo(x: Any = None, *rest: Any, **named: Any) -> Any:
        return x

    @app.task(name="packed", serializer="msgpack")
    def packed(x: Any) -> Any:
        return x

    return SimpleNamespace(app=app, echo=echo, packed=packed)


def queued(app: TaskQ) -> dict[str, int]:
    survey = app.broker.run(queries.survey(keys.base(app.name, "default"), "default"))
    return {name: task.queued for name, task in survey.tasks.items()}


def test_what_a_script_defines_travels_by_value(new_redis_app: Any) -> None:
    """The worker is another program: of the script's `__main__` it knows nothing."""
    app: TaskQ = new_redis_app()

    @app.task(name="call")
    def call(fn: Any, *args: Any) -> Any:
        return fn(*args)

    arguments = [app.name, app.config.url, app.config.secret[0]]
    with running_worker(app):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["2", "11", "True 42", "True (42,)", "14"]


def test_pickle_keeps_every_type(shop: Any) -> None:
    def local(x: int) -> int:
        return x + 1

    values: list[Any] = [PLAIN, (1, (2,)), {1, 2}, b"\x00", Decimal("1.10"), dt.date(2026, 1, 2)]
    with running_worker(shop.app):
        assert taskq.gather(shop.echo.map(values), timeout=5) == values
        assert shop.echo.delay(local).get(timeout=5)(1) == 2


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_an_app_may_speak_a_plain_language(new_app: Any, serializer: str) -> None:
    app: TaskQ = new_app(serializer=serializer)

    @app.task
    def echo(x: Any) -> Any:
        return x

    @app.task
    async def aecho(x: Any) -> Any:
        return {"again": x}

    with running_worker(app):
        assert echo.delay(PLAIN).get(timeout=5) == PLAIN
        assert aecho.delay(PLAIN).get(timeout=5) == {"again": PLAIN}
        assert echo.delay((1, 2)).get(timeout=5) == [1, 2]
        with pytest.raises(SerializationError, match=f"cannot be written as {serializer}"):
            echo.delay(lambda: 1)


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_a_result_that_a_plain_language_lacks_fails_the_message(
    new_app: Any, serializer: str
) -> None:
    app: TaskQ = new_app(serializer=serializer)

    @app.task
    def gives() -> Any:
        return lambda: 1

    with running_worker(app):
        error = gives.delay().exception(timeout=5)
    assert isinstance(error, (SerializationError, RemoteError))
    assert f"the result: function cannot be written as {serializer}" in str(error)


def test_a_task_may_have_a_language_of_its_own(shop: Any) -> None:
    with running_worker(shop.app):
        assert shop.packed.delay({"k": (b"\x00", 1)}).get(timeout=5) == {"k": [b"\x00", 1]}
        assert shop.echo.delay({"k": (b"\x00", 1)}).get(timeout=5) == {"k": (b"\x00", 1)}
    with pytest.raises(SerializationError, match="msgpack"):
        shop.packed.delay(lambda: 1)


def test_a_call_may_have_one_too(shop: Any) -> None:
    """It is for the arguments: the result is written as the task's own says."""
    with running_worker(shop.app):
        assert shop.echo.options(serializer="json").delay((1,)).get(timeout=5) == [1]
        assert shop.packed.options(serializer="pickle").delay({1}).get(timeout=5) == [1]
        assert shop.app.send_task("echo", ((1,),), serializer="json").get(timeout=5) == [1]


def test_json_on_the_wire_is_json(shop: Any) -> None:
    """Whoever looks into the list, in whatever language, can read the call."""
    shop.echo.options(serializer="json").delay(1, "two", k=None)
    ready = keys.ready(shop.app.name, "default", "echo")
    assert b'[[1,"two"],{"k":null}]' in shop.app.broker.call("LINDEX", ready, 0)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((threading.Lock(),), {}, "echo: argument 'x': lock cannot be written as pickle"),
        ((1, threading.Lock()), {}, "echo: argument number 2: lock"),
        ((), {"y": threading.Lock()}, "echo: argument 'y': lock"),
        (([threading.Lock()],), {}, "echo: argument 'x': list .*lock"),
        ((x for x in ()), {"y": (x for x in ())}, "echo: argument 'y': generator"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_sent(
    shop: Any, args: Any, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(SerializationError, match=words):
        shop.echo.delay(*args, **kwargs)
    with pytest.raises(SerializationError, match=words):
        asyncio.run(shop.echo.adelay(*args, **kwargs))
    assert queued(shop.app) == {}


def test_all_of_many_are_written_before_the_first_is_sent(shop: Any) -> None:
    with pytest.raises(SerializationError, match="'x': lock"):
        shop.echo.map([*range(3000), threading.Lock()])
    assert queued(shop.app) == {}


def test_a_language_that_nobody_speaks(shop: Any, new_app: Any) -> None:
    for wrong in (
        lambda: shop.echo.options(serializer="yaml"),
        lambda: shop.app.task(serializer="yaml")(print),
        lambda: new_app(serializer="yaml").config,
    ):
        with pytest.raises(ValueError, match=r"pickle, json, msgpack, not 'yaml'"):
            wrong()
