"""One child's engine: its phases, and what it survives."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import redis

import taskq
from taskq import State, TaskQ
from taskq.testing import running_worker
from taskq.worker.engine import Engine, Phase, Plan
from taskq.worker.maintenance import Maintenance
from tests.eventually import let_pass, until
from tests.servers import Server


def engine_of(app: TaskQ, **slots: int) -> Engine:
    plan = {"threads": 2, "coroutines": 2} | slots
    return Engine(app, Plan(app.queues, plan["threads"], plan["coroutines"], "engine"))


def test_an_engine_only_moves_forward(new_app: Any) -> None:
    app = new_app()
    engine = engine_of(app)
    assert engine.phase is Phase.NEW
    engine.start()
    assert engine.phase is Phase.RUNNING
    engine.quiet()
    assert engine.phase is Phase.QUIET
    assert engine.drain(1)
    assert engine.phase is Phase.DRAINING
    assert engine.stop()
    assert engine.phase is Phase.STOPPED


def test_to_stop_twice_is_legal(new_app: Any) -> None:
    engine = engine_of(new_app())
    engine.start()
    assert engine.stop()
    assert engine.stop()
    engine.quiet()
    assert engine.drain(0)
    assert engine.phase is Phase.STOPPED


def test_a_quiet_engine_ends_what_runs_and_claims_no_more(new_app: Any) -> None:
    app = new_app()
    started, gate = threading.Event(), threading.Event()

    @app.task
    def hold() -> str:
        started.set()
        gate.wait(10)
        return "held"

    with running_worker(app, threads=1) as engine:
        first = hold.delay()
        assert started.wait(5)
        engine.quiet()
        second = hold.delay()
        gate.set()
        assert first.get(timeout=5) == "held"
        let_pass(0.1)
        assert second.status is State.QUEUED
    with running_worker(app):
        assert second.get(timeout=5) == "held"


def test_what_does_not_end_in_the_drain_is_handed_back_uncounted(new_app: Any) -> None:
    app = new_app()
    started, gate = threading.Event(), threading.Event()

    @app.task(bind=True)
    def hold(ctx: taskq.Context) -> tuple[int, int]:
        if ctx.delivery == 1:
            started.set()
            gate.wait(10)
        return ctx.attempt, ctx.delivery

    engine = engine_of(app, threads=1)
    engine.start()
    result = hold.delay()
    assert started.wait(5)
    assert not engine.drain(0.1)
    with running_worker(app):
        stopping = threading.Thread(target=engine.stop)
        stopping.start()
        assert result.get(timeout=5) == (1, 2)
        gate.set()
        stopping.join(10)


def test_an_outcome_that_is_ready_is_not_thrown_away_at_the_end(new_app: Any) -> None:
    """What ended while Redis was slow is sent, and not given back to run again."""
    app = new_app()
    runs = []
    started, gate = threading.Event(), threading.Event()

    @app.task
    def work() -> str:
        started.set()
        gate.wait(10)
        runs.append(1)
        return "done"

    engine = engine_of(app, threads=1, coroutines=0)
    engine.start()
    result = work.delay()
    assert started.wait(5)
    # A turn that is under way keeps the outcome waiting, as a slow Redis would.
    with engine.exchange._lock:
        gate.set()
        until(lambda: runs)
        stopping = threading.Thread(target=engine.stop)
        stopping.start()
        until(lambda: engine.phase is Phase.STOPPED)
        let_pass(0.05)
    stopping.join(10)
    assert result.get(timeout=1) == "done"
    assert runs == [1]


@pytest.mark.alone
def test_who_drains_does_not_take_the_ring_that_is_meant_for_others(
    new_app: Any, redis_url: str
) -> None:
    """In a rolling deploy the message would lie there until somebody looks by himself."""
    app = new_app(url=redis_url)

    @app.task
    def work() -> str:
        return "done"

    engines = [engine_of(app), engine_of(app)]
    for engine in engines:
        engine.start()
        until(lambda engine=engine: engine._bell.listening)
        let_pass(0.05)
    engines[0].quiet()
    started = time.monotonic()
    assert work.delay().get(timeout=5) == "done"
    took = time.monotonic() - started
    for engine in engines:
        engine.stop()
    assert took < 0.5


def test_a_worker_that_is_refused_for_a_while_goes_on_afterwards(new_app: Any) -> None:
    """A password that is changed under a running fleet is no reason to go deaf."""
    with Server(requirepass="first") as server:
        app = new_app(url=server.url)

        @app.task
        def work() -> str:
            return "done"

        with redis.Redis(port=server.port, password="first", protocol=2) as operator:
            operator.config_set("requirepass", "second")
            with running_worker(app, threads=2, drain=1):
                let_pass(1)
                operator.config_set("requirepass", "first")
                assert work.delay().get(timeout=8) == "done"
                operator.config_set("requirepass", "second")
                operator.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                let_pass(1)
                operator.config_set("requirepass", "first")
                assert work.delay().get(timeout=8) == "done"


def test_an_idle_worker_burns_nothing(new_app: Any, redis_url: str) -> None:
    app = new_app(url=redis_url)

    @app.task
    def work() -> None: ...

    with running_worker(app):
        work.delay().get(timeout=5)
        let_pass(0.3)
        burnt, since = time.process_time(), time.monotonic()
        let_pass(1)
        share = (time.process_time() - burnt) / (time.monotonic() - since)
    assert share < 0.05


def test_a_worker_closes_what_its_tasks_opened(new_app: Any, redis_url: str) -> None:
    """An `async def` task that calls another uses a connection of the worker's loop."""
    app = new_app(url=redis_url)

    @app.task
    async def inner() -> str:
        return "inner"

    @app.task
    async def outer() -> str:
        return await (await inner.adelay()).aget(timeout=5)

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with running_worker(app):
            assert outer.delay().get(timeout=5) == "inner"
        del outer
        gc.collect()
    assert [str(one.message) for one in caught] == []


@pytest.mark.alone
def test_an_app_closes_at_once(new_app: Any, redis_url: str) -> None:
    """Who leaves a `with app:` does not wait for a reader that waits for nothing."""
    app = new_app(url=redis_url)

    @app.task
    def work() -> str:
        return "done"

    with running_worker(app):
        work.delay().get(timeout=5)
        started = time.monotonic()
        app.close()
        asyncio.run(app.aclose())
        assert time.monotonic() - started < 0.8
        assert work.delay().get(timeout=5) == "done"


@pytest.mark.parametrize("slots", [{"threads": 0}, {"coroutines": 0}])
def test_a_worker_may_serve_one_kind_of_task_only(new_app: Any, slots: dict[str, int]) -> None:
    app = new_app()

    @app.task
    def thread() -> str:
        return "thread"

    @app.task
    async def coroutine() -> str:
        return "coroutine"

    with running_worker(app, **slots):
        both = {"threads": thread.delay(), "coroutines": coroutine.delay()}
        (kind,) = slots
        assert both.pop("threads" if kind == "coroutines" else "coroutines").get(timeout=5)
        (other,) = both.values()
        let_pass(0.1)
        assert other.status is State.QUEUED


def test_a_defect_after_a_turn_ends_no_thread(new_app: Any) -> None:
    app = new_app()

    @app.task
    def work() -> str:
        return "done"

    def fail() -> None:
        msg = "a defect"
        raise RuntimeError(msg)

    with running_worker(app, threads=1, coroutines=1) as engine:
        before = engine.exchange.after_turn
        engine.exchange.after_turn = fail
        for _ in range(3):
            assert work.delay().get(timeout=5) == "done"
        engine.exchange.after_turn = before


def test_an_app_that_is_used_by_many_loops_keeps_nothing_of_those_that_ended(
    new_app: Any, redis_url: str
) -> None:
    app = new_app(url=redis_url)

    @app.task
    async def work() -> None: ...

    async def call() -> None:
        await work.adelay()

    asyncio.run(call())
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(10):
        asyncio.run(call())
    gc.collect()
    assert len(list(Path("/dev/fd").iterdir())) - before < 5


def test_a_defect_in_maintenance_costs_no_lease(
    new_app: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app: TaskQ = new_app(url=redis_url, lease=0.5)

    @app.task
    def rest() -> None:
        let_pass(1.5)

    def fails(_: Maintenance) -> None:
        msg = "a defect"
        raise RuntimeError(msg)

    monkeypatch.setattr(Maintenance, "_warn", fails)
    with running_worker(app):
        assert rest.delay().get(timeout=10) is None
    assert "a defect" in caplog.text
    assert "lost" not in caplog.text
