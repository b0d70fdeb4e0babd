"""S11, S12: names, ids and numbers that no one can mean, on their way in and out."""

from __future__ import annotations

import datetime as dt
import math
import re
from pathlib import Path
from typing import Any

import pytest

from taskq import RetryPolicy, TaskQ
from taskq.broker import keys
from tests.security.conftest import KEY
from tests.servers import Server

ESCAPES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]")
HOSTILE = [
    "\x1b[31m", "a\nb", "a\0b", "{}", "a{b}", "a:b", "a*", "a?", "a b", "", "\u202eevil", "ü",
    "x" * 129, "x" * 1_000_000, b"bytes", None, 5,
]  # fmt: skip


def short(value: object) -> str:
    return repr(value)[:20]


@pytest.fixture
def app() -> TaskQ:
    """Nothing may be sent, so nobody is there to receive it."""
    return TaskQ("shop", url="redis://127.0.0.1:1", secret=KEY, enqueue_deadline=0.1)


def is_told(caught: pytest.ExceptionInfo[BaseException]) -> None:
    text = str(caught.value)
    assert len(text) < 500
    assert not ESCAPES.search(text)


@pytest.mark.parametrize("name", HOSTILE, ids=short)
def test_no_name_can_break_out_of_a_key(app: TaskQ, name: Any) -> None:
    for use in (
        lambda: TaskQ(name),
        lambda: TaskQ("shop", queues=[name]),
        lambda: app.task(name=name or 5)(lambda: None),
        lambda: app.send_task(name),
        lambda: app.send_task("add", queue="" if name is None else name),
        lambda: TaskQ("shop", default_queue=name).config,
        lambda: app.result(f"id@{name}") if name else app.result("id@"),
    ):
        if name == 5 and use.__code__.co_names[-1:] == ("result",):
            continue  # "id@5" is one
        with pytest.raises((ValueError, TypeError)) as caught:
            use()
        is_told(caught)


@pytest.mark.parametrize(
    "id",
    ["\x1b[31m", "a\nb", "a\0b", "", "a@b", "x" * 129, "x" * 1_000_000, "\u202eevil", 5, b"x"],
    ids=short,
)
def test_no_id_can_break_out_of_a_line(app: TaskQ, id: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        app.send_task("add", id=id)
    is_told(caught)


def test_an_id_with_braces_is_only_hashed(new_app: Any) -> None:
    result = new_app().send_task("add", id="{other:queue}:*")
    assert re.fullmatch(r"[0-9a-f]{32}", result.wire_id)
    assert result.status == "QUEUED"


HUGE = [10**400, -(10**400), 1e308, math.inf, -math.inf, math.nan, 2**63]
NO_NUMBER = ["5", "1 day", b"5", [5], {}, object(), True, 1j]
SOMETIME = [
    dt.datetime(9999, 12, 31, tzinfo=dt.UTC),
    dt.datetime(2030, 1, 1),  # noqa: DTZ001 - naive on purpose
    dt.date(2030, 1, 1),
]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("countdown", one) for one in [*HUGE, *NO_NUMBER, -1, -1e-9, dt.timedelta.max]),
        *(("expires", one) for one in [*HUGE, *NO_NUMBER, *SOMETIME, -1, dt.timedelta.max]),
        *(("deadline", one) for one in [*HUGE, *NO_NUMBER, *SOMETIME, -1, dt.timedelta.max]),
        *(("eta", one) for one in [*SOMETIME, *NO_NUMBER, 5, 5.0, math.nan]),
        *(("result_ttl", one) for one in [*HUGE, *NO_NUMBER, -1, dt.timedelta.max]),
        *(("priority", one) for one in [*HUGE, *NO_NUMBER, -1, 10, 5.0]),
        *(("queue", one) for one in [5, b"x", True, ["x"]]),
        *(("headers", one) for one in [5, [1], {1: 2}, {"a": object()}, {"a": "x" * 70_000}]),
    ],
    ids=short,
)
def test_no_option_can_be_absurd(app: TaskQ, option: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        app.send_task("add", **{option: value})
    is_told(caught)


@pytest.mark.parametrize(
    "options",
    [
        *({"retry": one} for one in [-1, 1.5, "3", math.inf, 10**400, [3], RetryPolicy]),
        *({"max_retries": one} for one in [-1, 1.5, "3", math.nan]),
        *({"default_retry_delay": one} for one in [-1, "3", math.nan, math.inf, 10**400]),
        {"autoretry_for": 5},
        {"autoretry_for": [5]},
        {"retry_backoff": -1, "autoretry_for": [ValueError]},
        {"retry": 3, "max_retries": 3},
    ],
    ids=short,
)
def test_no_retry_policy_can_be_absurd(app: TaskQ, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        app.task(name="add", **options)(lambda: None)
    is_told(caught)


def test_names_that_a_stranger_wrote_cannot_move_the_reader_s_cursor(
    shell: Any, own_server: Server, tmp_path: Path
) -> None:
    """In `taskq status` and in the log of a worker, which warns of tasks it does not know."""
    evil = "\x1b[2J\rowned\u202e\n[bold]"
    base = keys.base(shell.name, "default")
    with own_server.client() as client:
        client.lpush(f"{base}ready:{evil}", b"\x1b[31mjunk")
        client.zadd(f"{base}lanes", {evil: 5})
        client.zadd(f"{base}pass:5", {evil: 0})
        client.hset(f"{base}counts", "\x1b[31mrefused", 5)
    worker = shell.worker("proj", "-p", "1", TASKQ_LEASE="1")
    worker.says("no live worker knows")
    said = [worker.log]
    for words in ([], ["--json"]):
        done = shell.type("status", "-A", "proj", *words)
        assert done.returncode == 0, done.stderr
        said += [done.stdout, done.stderr]
    assert worker.stop() == 0
    assert all("owned" in text for text in said[:2])
    for text in (*said, worker.log):
        assert not ESCAPES.search(text), repr(text)
