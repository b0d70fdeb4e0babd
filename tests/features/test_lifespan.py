"""What an app opens before its worker claims, and closes after the last task ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from taskq import Context, State, TaskQ, current
from taskq.testing import running_worker
from tests.eventually import let_pass, until


class Story:
    """What happened, in order, and a lifespan of either kind that writes it down."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.loops: list[Any] = []

    @contextlib.contextmanager
    def blocking(self, app: TaskQ) -> Iterator[dict[str, str]]:
        self.lines.append(f"entered {app.name}")
        yield {"opened": "here"}
        self.lines.append("left")

    @contextlib.asynccontextmanager
    async def awaited(self, app: TaskQ) -> AsyncIterator[dict[str, str]]:
        self.loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        with self.blocking(app) as state:
            yield state
        self.loops.append(asyncio.get_running_loop())


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture(params=["blocking", "awaited"])
def app(request: pytest.FixtureRequest, new_app: Any, story: Story) -> TaskQ:
    made: TaskQ = new_app(lifespan=getattr(story, request.param))
    return made


def test_a_task_finds_what_the_lifespan_yielded(app: TaskQ, story: Story) -> None:
    @app.task(bind=True)
    def thread(ctx: Context) -> Any:
        return ctx.state

    @app.task
    async def coroutine() -> Any:
        story.loops.append(asyncio.get_running_loop())
        return current().state

    with running_worker(app):
        assert thread.delay().get(timeout=5) == {"opened": "here"}
        assert coroutine.delay().get(timeout=5) == {"opened": "here"}
    assert story.lines == [f"entered {app.name}", "left"]
    assert len(set(story.loops)) == 1, "its connections belong to the loop of the tasks"


def test_it_is_entered_before_the_first_claim(new_app: Any) -> None:
    gate = threading.Event()
    ran: list[bool] = []

    @contextlib.contextmanager
    def slow(_app: TaskQ) -> Iterator[None]:
        gate.wait(10)
        yield

    app: TaskQ = new_app(lifespan=slow)

    @app.task
    def work() -> bool:
        ran.append(gate.is_set())
        return gate.is_set()

    results = [work.delay() for _ in range(3)]

    def serve() -> None:
        with running_worker(app):
            until(lambda: all(result.ready() for result in results))

    worker = threading.Thread(target=serve)
    worker.start()
    let_pass(0.3)
    assert [result.status for result in results] == [State.QUEUED] * 3
    gate.set()
    worker.join(10)
    assert ran == [True] * 3


def test_it_is_left_after_the_drain(app: TaskQ, story: Story) -> None:
    """A running task may use what was opened to its end."""
    started: list[str] = []
    gate = threading.Event()

    @app.task
    def thread() -> None:
        started.append("thread")
        gate.wait(10)
        story.lines.append("ended")

    @app.task
    async def coroutine() -> None:
        started.append("coroutine")
        await asyncio.to_thread(gate.wait, 10)
        story.lines.append("ended")

    with running_worker(app):
        results = [thread.delay(), coroutine.delay()]
        until(lambda: len(started) == 2)
        threading.Timer(0.3, gate.set).start()
    assert story.lines == [f"entered {app.name}", "ended", "ended", "left"]
    assert [result.status for result in results] == [State.SUCCEEDED] * 2


def test_a_lifespan_may_use_the_app(new_app: Any) -> None:
    @contextlib.contextmanager
    def busy(app: TaskQ) -> Iterator[Any]:
        yield app.send_task("work", (1,))

    app: TaskQ = new_app(lifespan=busy)

    @app.task(name="work")
    def work(x: int) -> int:
        return x

    @app.task(bind=True)
    def id_of_the_first(ctx: Context) -> str:
        return str(ctx.state.id)

    with running_worker(app):
        first = id_of_the_first.delay().get(timeout=5)
        assert app.result(first).get(timeout=5) == 1


def test_each_worker_enters_one_of_its_own(app: TaskQ, story: Story) -> None:
    with running_worker(app), running_worker(app):
        assert story.lines == [f"entered {app.name}"] * 2
    assert story.lines[2:] == ["left"] * 2


@pytest.fixture(params=["blocking", "awaited"])
def doomed(request: pytest.FixtureRequest, new_app: Any) -> TaskQ:
    """An app whose lifespan fails at once."""

    @contextlib.contextmanager
    def blocking(_app: TaskQ) -> Iterator[None]:
        msg = "no database"
        raise RuntimeError(msg)
        yield

    @contextlib.asynccontextmanager
    async def awaited(app: TaskQ) -> AsyncIterator[None]:
        with blocking(app):
            yield

    kinds: dict[str, Any] = {"blocking": blocking, "awaited": awaited}
    made: TaskQ = new_app(lifespan=kinds[request.param])
    return made


def test_one_that_fails_claims_nothing(doomed: TaskQ) -> None:
    @doomed.task
    def work() -> None: ...

    result = work.delay()
    with pytest.raises(RuntimeError, match="no database"), running_worker(doomed):
        pytest.fail("the worker serves")
    assert result.status is State.QUEUED


def test_one_that_fails_leaves_no_thread_behind(doomed: TaskQ) -> None:
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="no database"), running_worker(doomed):
        pytest.fail("the worker serves")
    # One that hears of replaced masters is the app's, and lives as long.
    until(lambda: {one for one in threading.enumerate() if "sentinels" not in one.name} <= before)


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
def test_one_that_fails_on_its_way_out_is_logged(
    new_app: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.contextmanager
    def blocking(_app: TaskQ) -> Iterator[None]:
        yield
        msg = "cannot close"
        raise RuntimeError(msg)

    @contextlib.asynccontextmanager
    async def awaited(app: TaskQ) -> AsyncIterator[None]:
        with blocking(app):
            yield

    app: TaskQ = new_app(lifespan={"blocking": blocking, "awaited": awaited}[kind])

    @app.task
    def work() -> int:
        return 1

    with caplog.at_level(logging.ERROR, "taskq"), running_worker(app):
        assert work.delay().get(timeout=5) == 1
    assert "the lifespan failed on its way out" in caplog.text
    assert "cannot close" in caplog.text
