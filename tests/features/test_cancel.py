"""`result.cancel()`: what waits does not start, what runs is told, the future says why."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from taskq import Cancellation, Cancelled, Context, State, TaskQ, as_completed
from taskq.broker import claims, keys
from taskq.testing import running_worker
from tests.eventually import let_pass, until

WHY = "nobody wants it"


def add_turn(app: TaskQ, started: list[str], ended: list[str]) -> Any:
    """Define a task that goes on in Python, for ever."""
    pause = threading.Event()

    @app.task(name="turn", bind=True)
    def turn(ctx: Context) -> None:
        started.append(ctx.id)
        try:
            while True:
                pause.wait(0.01)
        finally:
            ended.append(ctx.id)

    return turn


@pytest.fixture(scope="module")
def shop(new_app: Any) -> Iterator[Any]:
    """An app whose tasks say that they run, and end when the test says so."""
    app: TaskQ = new_app(queues=["mail"])
    started: list[str] = []
    ended: list[str] = []
    gates: dict[str, threading.Event] = {}

    @app.task(name="hold", bind=True)
    def hold(ctx: Context) -> str:
        started.append(ctx.id)
        assert gates.setdefault(ctx.id, threading.Event()).wait(20)
        return "done"

    @app.task(name="linger", bind=True)
    async def linger(ctx: Context, then: str = "") -> str:
        started.append(ctx.id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(ctx.id)
            if then == "return":
                return "done all the same"
            if then == "raise":
                msg = "it could not clean up"
                raise ValueError(msg) from None
            raise
        return "slept"

    @app.task(name="again", bind=True, max_retries=5)
    def again(ctx: Context) -> None:
        started.append(ctx.id)
        gates.setdefault(ctx.id, threading.Event()).wait(20)
        ctx.retry(countdown=0)

    @app.task(name="confused")
    async def confused() -> None:
        raise asyncio.CancelledError

    def begun(result: Any) -> Any:
        until(lambda: result.id.partition("@")[0] in started)
        return result

    turn = add_turn(app, started, ended)
    with running_worker(app, threads=2, coroutines=4):
        yield SimpleNamespace(
            app=app, hold=hold, turn=turn, linger=linger, again=again,
            confused=confused, started=started, ended=ended, begun=begun,
            go=lambda result: gates.setdefault(result.wire_id, threading.Event()).set(),
        )  # fmt: skip
        for gate in gates.values():
            gate.set()


class TestWaiting:
    def test_a_scheduled_message_never_starts(self, shop: Any) -> None:
        result = shop.hold.options(countdown=0.3).delay()
        assert result.cancel(WHY) is Cancellation.CANCELLED
        assert result.status is State.CANCELLED
        let_pass(0.5)
        assert result.id not in shop.started

    def test_a_queued_message_never_starts(self, new_app: Any) -> None:
        app: TaskQ = new_app()
        ran: list[int] = []

        @app.task(name="note")
        def note(number: int) -> None:
            ran.append(number)

        results = [note.delay(number) for number in range(5)]
        assert results[1].cancel() is results[3].cancel() is Cancellation.CANCELLED
        with running_worker(app):
            results[4].get(timeout=5)
        assert ran == [0, 2, 4]

    def test_whoever_waits_is_told_at_once_and_why(self, shop: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        heard: list[Any] = []
        waiting = threading.Thread(target=lambda: heard.append(result.exception(timeout=10)))
        waiting.start()
        until(lambda: result.app.waiter is not None)
        shop.app.result(result.id).cancel(WHY)
        waiting.join(5)
        [error] = heard
        assert type(error) is Cancelled
        assert (error.reason, str(error)) == (WHY, f"{result.id}: {WHY}")
        assert pickle.loads(pickle.dumps(error)).reason == WHY

    def test_without_a_reason(self, shop: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        result.cancel()
        error = result.exception(timeout=5)
        assert (error.reason, str(error)) == ("", f"{result.id}: cancelled")
        assert result.snapshot().note == "cancelled: no reason was given"

    def test_a_named_message_on_another_queue(self, shop: Any) -> None:
        result = shop.hold.options(countdown=100, queue="mail", id="order-42").delay()
        assert shop.app.result("order-42@mail").cancel(WHY) is Cancellation.CANCELLED
        assert result.snapshot().note == f"cancelled: {WHY}"


class TestRunning:
    def test_a_coroutine_is_stopped_and_its_cleanup_runs(self, shop: Any) -> None:
        result = shop.begun(shop.linger.delay())
        assert result.cancel(WHY) is Cancellation.TOLD
        with pytest.raises(Cancelled, match=WHY) as raised:
            result.get(timeout=5)
        assert raised.value.reason == WHY
        assert result.wire_id in shop.ended
        snapshot = result.snapshot()
        assert (snapshot.status, snapshot.attempt) == (State.CANCELLED, 1)
        assert shop.app.dead.list() == []

    def test_the_awaited_twin_does_the_same(self, shop: Any, awaited: Any) -> None:
        result = shop.begun(shop.linger.delay())

        async def twin() -> None:
            assert await result.acancel(WHY) is Cancellation.TOLD
            with pytest.raises(Cancelled):
                await result
            assert await result.acancel("too late") is Cancellation.OVER

        awaited(twin(), shop.app)

    def test_a_coroutine_that_returns_all_the_same_has_succeeded(self, shop: Any) -> None:
        result = shop.begun(shop.linger.delay("return"))
        result.cancel()
        assert result.get(timeout=5) == "done all the same"

    def test_a_coroutine_that_fails_meanwhile_has_failed(self, shop: Any) -> None:
        result = shop.begun(shop.linger.delay("raise"))
        result.cancel()
        with pytest.raises(ValueError, match="could not clean up"):
            result.get(timeout=5)

    def test_neighbours_go_on(self, shop: Any) -> None:
        results = [shop.begun(shop.linger.delay()) for _ in range(3)]
        results[1].cancel()
        assert results[1].exception(timeout=5)
        let_pass(0.2)
        assert [one.status for one in results[::2]] == [State.RUNNING] * 2
        for one in results[::2]:
            one.cancel()
        assert all(one.exception(timeout=5) for one in results[::2])

    def test_a_thread_is_stopped_where_it_runs_python_code(self, shop: Any) -> None:
        result = shop.begun(shop.turn.delay())
        assert result.cancel(WHY) is Cancellation.TOLD
        with pytest.raises(Cancelled, match=WHY):
            result.get(timeout=5)
        assert result.wire_id in shop.ended

    def test_a_thread_in_a_call_into_c_is_stopped_when_that_returns(self, shop: Any) -> None:
        result = shop.begun(shop.hold.delay())
        assert result.cancel(WHY) is Cancellation.TOLD
        let_pass(0.3)
        assert result.status is State.RUNNING
        shop.go(result)
        assert type(result.exception(timeout=5)) is Cancelled

    def test_the_slot_of_a_stopped_thread_runs_on(self, shop: Any) -> None:
        for _ in range(6):
            result = shop.begun(shop.turn.delay())
            result.cancel()
            assert type(result.exception(timeout=5)) is Cancelled
        result = shop.begun(shop.hold.delay())
        shop.go(result)
        assert result.get(timeout=5) == "done"

    def test_an_attempt_that_asks_for_another_gets_none(self, shop: Any) -> None:
        result = shop.begun(shop.again.delay())
        assert result.cancel(WHY) is Cancellation.TOLD
        shop.go(result)
        with pytest.raises(Cancelled, match=WHY):
            result.get(timeout=5)
        assert shop.started.count(result.wire_id) == 1

    def test_many_are_told_at_once(self, shop: Any) -> None:
        results = [shop.begun(shop.linger.delay()) for _ in range(4)]
        assert {one.cancel(WHY) for one in results} == {Cancellation.TOLD}
        assert all(one.failed() for one in as_completed(results, timeout=5))

    def test_what_nobody_cancelled_and_raises_so_has_failed(self, shop: Any) -> None:
        result = shop.confused.delay()
        until(result.ready)
        assert result.status is State.FAILED
        assert "CancelledError" in str(result.exception(timeout=5))

    def test_it_is_heard_with_every_slot_full(self, new_app: Any) -> None:
        """No bell rings for a full worker: it has an ear for this alone."""
        app: TaskQ = new_app()
        started: list[str] = []

        @app.task(name="linger", bind=True)
        async def linger(ctx: Context) -> None:
            started.append(ctx.id)
            await asyncio.Event().wait()

        with running_worker(app, threads=0, coroutines=1) as engine:
            result = linger.delay()
            until(lambda: started and engine._bell.listening == "")
            result.cancel()
            error = result.exception(timeout=1.5)
        assert type(error) is Cancelled

    def test_it_is_heard_while_the_worker_drains(self, new_app: Any) -> None:
        app: TaskQ = new_app()
        started: list[str] = []

        @app.task(name="linger", bind=True)
        async def linger(ctx: Context) -> None:
            started.append(ctx.id)
            await asyncio.Event().wait()

        with running_worker(app, drain=10) as engine:
            result = linger.delay()
            until(lambda: started)
            threading.Timer(0.2, result.cancel).start()
            assert engine.drain(10)
        assert type(result.exception(timeout=5)) is Cancelled

    def test_a_lost_wake_is_made_good_by_the_renewal_of_the_lease(
        self, new_app: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app: TaskQ = new_app(lease=1.5)
        started: list[str] = []

        @app.task(name="linger", bind=True)
        async def linger(ctx: Context) -> None:
            started.append(ctx.id)
            await asyncio.Event().wait()

        with running_worker(app, threads=0, coroutines=1) as engine:
            result = linger.delay()
            until(lambda: started and engine._bell.listening == "")
            # Nobody listens to that wake any more.
            listen = engine._bell.listen
            monkeypatch.setattr(
                engine._bell, "listen", lambda kinds, _members, paused: listen(kinds, {}, paused)
            )
            monkeypatch.setattr(engine._bell, "lacks", lambda _kinds, _members: False)
            engine._kick_bell()
            result.cancel(WHY)
            assert type(result.exception(timeout=5)) is Cancelled

    def test_a_worker_that_was_away_does_not_run_it_again(self, new_app: Any) -> None:
        """What it was told is remembered when its lease has run out: nobody takes it over."""
        app: TaskQ = new_app()
        runs: list[str] = []
        go = threading.Event()

        @app.task(name="hold", bind=True)
        def hold(ctx: Context) -> None:
            runs.append(ctx.id)
            go.wait(10)

        with running_worker(app, threads=1, drain=0.1) as engine:
            result = hold.delay()
            until(lambda: runs)
            worker = engine.exchange.members()["default"].encode()
            assert result.cancel(WHY) is Cancellation.TOLD
            app.broker.run(claims.reclaim(keys.base(app.name, "default"), 15_000, 5_000, worker))
            assert type(result.exception(timeout=1)) is Cancelled
            go.set()
            until(lambda: not engine.exchange.holding)
        assert result.status is State.CANCELLED
        assert len(runs) == 1


class TestOver:
    def test_an_outcome_stays(self, shop: Any) -> None:
        result = shop.begun(shop.hold.delay())
        shop.go(result)
        assert result.get(timeout=5) == "done"
        assert result.cancel(WHY) is Cancellation.OVER
        assert shop.app.result(result.id).get(timeout=5) == "done"

    def test_an_id_that_nobody_knows(self, shop: Any) -> None:
        assert shop.app.result("nobody").cancel() is Cancellation.UNKNOWN

    def test_twice_with_one_reason_says_the_same_twice(self, shop: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        assert [result.cancel(WHY), result.cancel(WHY)] == [Cancellation.CANCELLED] * 2
        assert result.cancel("another") is Cancellation.OVER


class TestReason:
    @pytest.mark.parametrize("reason", [5, b"bytes", ["x"]])
    def test_is_a_text(self, shop: Any, reason: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        with pytest.raises(TypeError, match="reason must be a str"):
            result.cancel(reason)
        assert result.status is State.SCHEDULED

    @pytest.mark.parametrize("terminate", ["yes", 1, None])
    def test_to_terminate_is_said_by_a_bool(self, shop: Any, terminate: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        with pytest.raises(TypeError, match="terminate must be a bool"):
            result.cancel(terminate=terminate)
        assert result.status is State.SCHEDULED

    def test_is_cut_at_500_characters(self, shop: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        result.cancel("ü" * 600)
        assert result.exception(timeout=5).reason == "ü" * 500

    def test_drives_no_terminal(self, shop: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        result.cancel("red\x1b[31m\r\n\x00\ud800")
        assert result.exception(timeout=5).reason == r"red\x1b[31m\r\n\x00\ud800"

    def test_what_somebody_wrote_into_redis_is_cut_and_escaped_too(self, shop: Any) -> None:
        result = shop.hold.options(countdown=100).delay()
        result.cancel()
        key = keys.record(shop.app.name, "default", result.wire_id)
        raw = shop.app.broker.call("GET", key)
        shop.app.broker.call("SET", key, raw + b"\x1b[2J" + b"\xff" * 5000, "KEEPTTL")
        reason = shop.app.result(result.id).exception(timeout=5).reason
        assert reason.startswith(r"\x1b[2J")
        assert reason.isprintable()
