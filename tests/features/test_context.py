"""What a running task may know of its own message."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import taskq
from taskq import Context, State, TaskQ, current
from taskq.testing import running_worker
from tests.eventually import until


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app(queues=["mail"])
    return made


def facts(ctx: Context) -> tuple[Any, ...]:
    return ctx.id, ctx.task, ctx.queue, ctx.attempt, ctx.delivery, ctx.headers


def deep_inside() -> str:
    return current().id


def test_a_bound_task_is_given_its_context(app: TaskQ) -> None:
    @app.task(name="thread", bind=True)
    def thread(ctx: Context, x: int) -> Any:
        return facts(ctx), x

    @app.task(name="coroutine", bind=True)
    async def coroutine(ctx: Context, x: int) -> Any:
        return facts(ctx), x

    with running_worker(app):
        for task in (thread, coroutine):
            first = task.delay(1)
            assert first.get(timeout=5) == ((first.id, task.name, "default", 1, 1, {}), 1)
            name = f"order-{task.name}"
            named = task.options(id=name, queue="mail", headers={"k": 1})
            told = (name, task.name, "mail", 1, 1, {"k": 1})
            assert named.delay(2).get(timeout=5) == (told, 2)


def test_any_code_of_a_task_finds_the_context(app: TaskQ) -> None:
    @app.task
    def thread() -> str:
        return deep_inside()

    @app.task
    async def coroutine() -> list[str]:
        await asyncio.sleep(0)
        inner = await asyncio.create_task(asyncio.to_thread(deep_inside))
        return [deep_inside(), inner]

    with running_worker(app):
        one, other = thread.delay(), coroutine.delay()
        assert one.get(timeout=5) == one.id
        assert other.get(timeout=5) == [other.id, other.id]


def test_coroutines_side_by_side_have_one_each(app: TaskQ) -> None:
    arrived: list[str] = []
    all_here = threading.Event()

    @app.task
    async def meet() -> str:
        arrived.append(deep_inside())
        if len(arrived) == 8:
            all_here.set()
        await asyncio.to_thread(all_here.wait, 5)
        return deep_inside()

    with running_worker(app, coroutines=8):
        results = app.enqueue_many(meet.s() for _ in range(8))
        assert taskq.gather(results, timeout=8) == [result.id for result in results]


def test_outside_a_task_there_is_none(app: TaskQ) -> None:
    @app.task
    def other_thread() -> bool:
        """A thread of the task's own is no longer inside."""
        found: list[Any] = []

        def look() -> None:
            try:
                found.append(current())
            except LookupError as error:
                found.append(str(error))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found == ["no task is running here"]

    with pytest.raises(LookupError, match="no task is running here"):
        current()
    with running_worker(app, threads=1):
        assert other_thread.delay().get(timeout=5)
    with pytest.raises(LookupError):
        current()


def test_a_slot_forgets_the_last_context(app: TaskQ) -> None:
    seen: list[Any] = []

    @app.task(bind=True)
    def quick(ctx: Context, wrong: bool) -> None:  # noqa: FBT001 - one argument will do
        seen.append((current().id, ctx.id))
        if wrong:
            raise ValueError

    with running_worker(app, threads=1):
        results = quick.map([True, False, True])
        taskq.gather(results, timeout=5, return_exceptions=True)
    assert seen == [(result.id, result.id) for result in results]


def test_attempt_delivery_and_fence_grow(app: TaskQ) -> None:
    @app.task(bind=True, max_retries=3)
    def again(ctx: Context) -> Any:
        run = (ctx.attempt, ctx.delivery, ctx.fence)
        if ctx.attempt < 3:
            story.append(run)
            ctx.retry(countdown=0)
        return [*story, run]

    story: list[tuple[int, int, int]] = []
    with running_worker(app):
        runs = again.delay().get(timeout=5)
    assert [(attempt, delivery) for attempt, delivery, _ in runs] == [(1, 1), (2, 2), (3, 3)]
    fences = [fence for _, _, fence in runs]
    assert 0 < fences[0] < fences[1] < fences[2]


def test_the_next_message_has_the_larger_fence(app: TaskQ) -> None:
    """Also under a new worker: whoever writes it beside the data can refuse what is old."""

    @app.task(bind=True)
    def fence(ctx: Context) -> int:
        return ctx.fence

    fences = []
    for _ in range(3):
        with running_worker(app):
            fences.append(fence.delay().get(timeout=5))
    assert fences == sorted(set(fences))


def test_a_delivery_that_did_not_count_grows_the_fence_only(app: TaskQ) -> None:
    started, gate = threading.Event(), threading.Event()
    runs: list[tuple[int, int, int]] = []

    @app.task(bind=True)
    def hold(ctx: Context) -> None:
        runs.append((ctx.attempt, ctx.delivery, ctx.fence))
        started.set()
        if ctx.delivery == 1:
            gate.wait(5)

    def end_when_it_is_back() -> None:
        until(lambda: result.status is State.QUEUED)
        gate.set()

    with running_worker(app, threads=1, drain=0):
        result = hold.delay()
        assert started.wait(5)
        threading.Thread(target=end_when_it_is_back).start()
    with running_worker(app, threads=1):
        result.get(timeout=5)
    (first, second) = runs
    assert (first[:2], second[:2]) == ((1, 1), (1, 2))
    assert first[2] < second[2]


def test_headers_are_the_tasks_own_copy(app: TaskQ) -> None:
    @app.task(bind=True)
    def change(ctx: Context) -> dict[str, Any]:
        before = dict(ctx.headers)
        ctx.headers["mine"] = 1
        return before

    given = {"trace": "abc"}
    with running_worker(app, threads=1):
        for _ in range(2):
            assert change.options(headers=given).delay().get(timeout=5) == {"trace": "abc"}
        assert change.delay().get(timeout=5) == {}
    assert given == {"trace": "abc"}


def test_a_plain_call_gets_a_local_one(app: TaskQ) -> None:
    @app.task(name="thread", bind=True, queue="mail")
    def thread(ctx: Context, x: int) -> Any:
        return facts(ctx), ctx.state, x

    @app.task(name="coroutine", bind=True)
    async def coroutine(ctx: Context, x: int) -> Any:
        return facts(ctx), ctx.state, x

    assert thread(5) == (("local", "thread", "mail", 1, 1, {}), None, 5)
    told = (("local", "coroutine", "default", 1, 1, {}), None, 5)
    assert asyncio.run(coroutine(5)) == told


def test_a_bound_task_needs_a_place_for_it(app: TaskQ) -> None:
    with pytest.raises(taskq.ConfigError, match="first parameter"):

        @app.task(bind=True)
        def nothing() -> None: ...
