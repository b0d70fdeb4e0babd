"""What a running task knows of its own message, and who else does not see it."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading

import pytest

from taskq.errors import Retry
from taskq.model import context
from taskq.model.context import Context


def test_outside_a_task_there_is_none() -> None:
    with pytest.raises(LookupError, match="no task is running here"):
        context.current()
    assert context.running() is None


def test_inside_one_it_is_found() -> None:
    mine = Context("id", "t.x", "default")
    token = context.enter(mine)
    try:
        assert context.current() is mine
        assert context.running() is mine
    finally:
        context.leave(token)
    assert context.running() is None


def test_a_task_called_within_a_task_leaves_the_outer_one_as_it_was() -> None:
    outer, inner = Context("outer", "t.x", "q"), Context("inner", "t.x", "q")
    token = context.enter(outer)
    context.leave(context.enter(inner))
    assert context.current() is outer
    context.leave(token)


def test_each_thread_has_its_own() -> None:
    seen: list[Context | None] = []
    token = context.enter(Context("id", "t.x", "q"))
    thread = threading.Thread(target=lambda: seen.append(context.running()))
    thread.start()
    thread.join()
    context.leave(token)
    assert seen == [None]


def test_each_asyncio_task_has_its_own() -> None:
    async def run(id: str) -> str:
        context.enter(Context(id, "t.x", "q"))
        await asyncio.wait([asyncio.create_task(nothing())])
        return context.current().id

    async def nothing() -> None: ...

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*map(run, "abc")))

    assert asyncio.run(all_of_them()) == ["a", "b", "c"]


def test_headers_are_not_shared() -> None:
    first, second = Context("a", "t.x", "q"), Context("b", "t.x", "q")
    first.headers["x"] = 1
    assert second.headers == {}


class TestRetry:
    def test_is_a_request(self) -> None:
        cause = KeyError("k")
        with pytest.raises(Retry) as raised:
            Context("id", "t.x", "q").retry(cause, countdown=5)
        request = raised.value
        assert (request.delay, request.eta, request.exc) == (5.0, None, cause)

    def test_leaves_the_wait_to_the_policy(self) -> None:
        with pytest.raises(Retry) as raised:
            Context("id", "t.x", "q").retry()
        assert (raised.value.delay, raised.value.eta, raised.value.exc) == (None, None, None)

    def test_takes_a_timedelta_or_an_eta(self) -> None:
        eta = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
        with pytest.raises(Retry) as raised:
            Context("id", "t.x", "q").retry(countdown=dt.timedelta(minutes=1))
        assert raised.value.delay == 60.0
        with pytest.raises(Retry) as raised:
            Context("id", "t.x", "q").retry(eta=eta)
        assert raised.value.eta == eta

    @pytest.mark.parametrize("countdown", [-1, "5", float("nan")])
    def test_names_a_wrong_countdown(self, countdown: float) -> None:
        with pytest.raises((TypeError, ValueError), match="countdown"):
            Context("id", "t.x", "q").retry(countdown=countdown)

    def test_takes_one_of_both(self) -> None:
        with pytest.raises(ValueError, match="not both"):
            Context("id", "t.x", "q").retry(countdown=1, eta=dt.datetime.now(dt.UTC))
