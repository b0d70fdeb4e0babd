"""Orders to cancel that somebody with the run of Redis put there: nobody obeys them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import Cancellation, Cancelled, Context, Result, State, TaskQ
from taskq.broker import keys
from taskq.model import control
from taskq.model.signing import Domain, Seal
from taskq.testing import running_worker
from tests.cli.conftest import Shell
from tests.eventually import let_pass, until
from tests.features.test_refused import counts
from tests.security.conftest import KEY

NEW_KEY = "another secret of the security tests and long enough"
WHY = b"by nobody's will"


class Shop:
    """An app whose tasks run until they are told to end; and a forger beside it."""

    def __init__(self, app: TaskQ) -> None:
        self.app = app
        self.started: list[str] = []
        self._go = threading.Event()
        self._ends: list[Callable[[], object]] = []

        @app.task(name="hold", bind=True)
        def hold(ctx: Context) -> str:
            self.started.append(ctx.id)
            while not self._go.wait(0.01):
                pass
            return "done"

        @app.task(name="linger", bind=True)
        async def linger(ctx: Context) -> str:
            loop, over = asyncio.get_running_loop(), asyncio.Event()
            self._ends.append(lambda: loop.call_soon_threadsafe(over.set))
            self.started.append(ctx.id)
            await over.wait()
            return "done"

    def end(self) -> None:
        """Let all that runs return."""
        self._go.set()
        for end in self._ends:
            end()

    def run(self, task: str) -> Result[Any]:
        """Return a message that runs."""
        result = self.app.send_task(task)
        until(lambda: result.wire_id in self.started)
        return result

    def seal(self, domain: Domain = Domain.CONTROL, queue: str = "default") -> Seal:
        return self.app.seal(domain, queue)


@pytest.fixture
def shop(new_app: Any) -> Iterator[Shop]:
    shop = Shop(new_app(queues=["mail"], lease=1.5))
    with running_worker(shop.app):
        yield shop
        shop.end()


def given(result: Result[Any], seal: Seal, *, terminate: bool = False) -> bytes:
    return control.give(result.wire_id.encode(), WHY, seal, terminate=terminate)


def smuggle(app: TaskQ, result: Result[Any], order: bytes, *, wake: bool = True) -> None:
    """Put an order where genuine ones stand, and wake the worker; else a renewal tells it."""
    base = keys.base(app.name, "default")
    record = app.broker.call("GET", f"{base}m:{result.wire_id}")
    worker, seq = record[56:88].decode(), record[88:98]
    app.broker.call("HSET", f"{base}cancels:{worker}", result.wire_id, seq + order)
    if wake:
        app.broker.call("LPUSH", f"{base}wake:{worker}", "1")


def orders_left(app: TaskQ) -> int:
    return len(app.broker.call("KEYS", keys.base(app.name, "default") + "cancels:*"))


def disobeyed(app: TaskQ) -> int:
    return counts(app).get("disobeyed", 0)


FORGERIES: dict[str, Callable[[Shop, Result[Any]], bytes]] = {
    "as before they were signed": lambda _shop, _one: b"-" + WHY,
    "nothing": lambda _shop, _one: b"",
    "unsigned": lambda _shop, _one: b"-u" + b"0" * 8 + bytes(16) + WHY,
    "unsigned, to terminate": lambda _shop, _one: b"tu" + b"0" * 8 + bytes(16) + WHY,
    "a wrong tag": lambda shop, one: given(one, shop.seal())[:10] + b"x" * 16 + WHY,
    "another reason": lambda shop, one: given(one, shop.seal()) + b"!",
    "more than was asked": lambda shop, one: b"t" + given(one, shop.seal())[1:],
    "another letter": lambda shop, one: b"x" + given(one, shop.seal())[1:],
    "another message": lambda shop, _one: given(shop.app.result("f" * 32), shop.seal()),
    "another queue": lambda shop, one: given(one, shop.seal(queue="mail")),
    "a message's domain": lambda shop, one: given(one, shop.seal(Domain.MESSAGE)),
    "a result's domain": lambda shop, one: given(one, shop.seal(Domain.RESULT)),
    "another app": lambda shop, one: given(
        one, shop.app.access.keyring.seal(Domain.CONTROL, shop.app.name + "x", "default")
    ),
}


@pytest.mark.parametrize("task", ["hold", "linger"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_is_forged_or_moved_stops_nothing_and_is_dropped(
    shop: Shop, forgery: str, task: str
) -> None:
    result = shop.run(task)
    smuggle(shop.app, result, FORGERIES[forgery](shop, result))
    until(lambda: disobeyed(shop.app) == 1)
    assert orders_left(shop.app) == 0
    assert result.status is State.RUNNING
    shop.end()
    assert result.get(timeout=5) == "done"
    assert shop.started == [result.wire_id]


@pytest.mark.parametrize("task", ["hold", "linger"])
def test_a_genuine_one_that_somebody_wrote_there_is_obeyed(shop: Shop, task: str) -> None:
    """Else the forgeries above could fail for another reason."""
    result = shop.run(task)
    smuggle(shop.app, result, given(result, shop.seal()))
    error = result.exception(timeout=5)
    assert isinstance(error, Cancelled)
    assert error.reason == WHY.decode()
    assert disobeyed(shop.app) == 0


def test_a_forged_one_does_not_keep_a_genuine_one_from_being_obeyed(shop: Shop) -> None:
    one, other = shop.run("linger"), shop.run("linger")
    smuggle(shop.app, one, b"-" + WHY)
    assert other.cancel("enough") is Cancellation.TOLD
    assert isinstance(other.exception(timeout=5), Cancelled)
    until(lambda: disobeyed(shop.app) == 1)
    assert one.cancel("enough") is Cancellation.TOLD
    assert isinstance(one.exception(timeout=5), Cancelled)


def test_a_key_that_is_not_held_is_told_of_once(
    new_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The one who cancels, or the worker, has missed a rotation."""
    shop = Shop(new_app(lease=1.5))
    sender = new_app(shop.app.name, secret=NEW_KEY)
    with running_worker(shop.app), caplog.at_level(logging.ERROR):
        for number in (1, 2):
            result = shop.run("linger")
            assert sender.result(result.id).cancel() is Cancellation.TOLD
            until(lambda: disobeyed(shop.app) == number)  # noqa: B023 - called in this round
            assert result.status is State.RUNNING
        shop.end()
        assert result.get(timeout=5) == "done"
    told = [line for line in caplog.messages if "an order to cancel" in line]
    assert "signed with the unknown key" in told[0]
    assert NEW_KEY not in caplog.text
    # The child and its supervisor, each once a minute.
    assert len(told) <= 2


def test_keys_rotate_and_orders_are_obeyed_at_each_step(new_app: Any) -> None:
    shop = Shop(new_app(secret=f"{KEY},{NEW_KEY}"))
    with running_worker(shop.app):
        for secret in (KEY, NEW_KEY, f"{NEW_KEY},{KEY}"):
            result = shop.run("linger")
            sender = new_app(shop.app.name, secret=secret)
            assert sender.result(result.id).cancel() is Cancellation.TOLD
            assert isinstance(result.exception(timeout=5), Cancelled)


def test_without_keys_orders_are_obeyed_as_ever(new_app: Any) -> None:
    shop = Shop(new_app(secret=None, insecure_unsigned=True))
    with running_worker(shop.app):
        for task in ("hold", "linger"):
            result = shop.run(task)
            assert result.cancel("enough") is Cancellation.TOLD
            assert isinstance(result.exception(timeout=5), Cancelled)


def test_people_are_told_how_many(
    new_app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("taskq.worker.maintenance._WARN_SECONDS", 0.2)
    shop = Shop(new_app(lease=0.6))
    with running_worker(shop.app):
        result = shop.run("linger")
        let_pass(0.5)
        for number in (1, 2):
            smuggle(shop.app, result, b"-" + WHY)
            until(lambda: disobeyed(shop.app) == number)  # noqa: B023 - called in this round
        until(lambda: "orders to cancel on default: not ours" in caplog.text)
        shop.end()


@pytest.mark.slow
class TestProcesses:
    """A worker of the command line, whose supervisor kills by order."""

    @pytest.fixture
    def held(self, shell_of: Any, tmp_path: Path, redis_url: str) -> Any:
        shell: Shell = shell_of(tmp_path, redis_url)
        worker = shell.worker("proj", "-p", "1", "-l", "debug", TASKQ_LEASE="1.5")
        app = shell.app()
        result = app.send_task("proj.hold", (str(tmp_path),))
        until((tmp_path / f"started-{result.id}-1").exists)
        return shell, worker, app, result

    @pytest.mark.parametrize("wake", [True, False], ids=["child hears", "supervisor hears"])
    def test_none_is_killed_by_a_forged_order(
        self, held: Any, tmp_path: Path, *, wake: bool
    ) -> None:
        shell, worker, app, result = held
        [child] = worker.children()
        order = b"t" + given(result, app.seal(Domain.CONTROL, "default"))[1:]
        smuggle(app, result, order, wake=wake)
        until(lambda: disobeyed(app) == 1)
        assert worker.children() == [child]
        assert "1 disobeyed" in shell.type("status", "-A", "proj").stdout
        (tmp_path / "go").touch()
        assert result.get(timeout=5) == [1, 1]
        assert "terminated" not in worker.log
        assert worker.stop() == 0

    def test_none_is_killed_for_a_message_that_it_does_not_hold(
        self, held: Any, tmp_path: Path
    ) -> None:
        """A genuine order for another message, and its claim made up beside it."""
        _, worker, app, result = held
        [child] = worker.children()
        base = keys.base(app.name, "default")
        [name] = app.broker.call("ZRANGE", base + "workers", 0, -1)
        other = app.result("f" * 32)
        order = given(other, app.seal(Domain.CONTROL, "default"), terminate=True)
        app.broker.call(
            "HSET", f"{base}cancels:{name.decode()}", other.wire_id, b"0000000001" + order
        )
        app.broker.call("HSET", f"{base}running:{name.decode()}", "f" * 32 + "0000000001", "x")
        app.broker.call("LPUSH", f"{base}wake:{name.decode()}", "1")
        let_pass(1.5)  # three renewals
        assert worker.children() == [child]
        (tmp_path / "go").touch()
        assert result.get(timeout=5) == [1, 1]
        app.broker.call("DEL", f"{base}running:{name.decode()}")
        assert worker.stop() == 0

    def test_a_genuine_one_kills_and_no_key_is_printed(self, held: Any) -> None:
        shell, worker, app, result = held
        smuggle(app, result, b"t" + WHY)
        until(lambda: disobeyed(app) == 1)
        assert result.cancel(terminate=True) is Cancellation.TOLD
        worker.says("is to be terminated")
        assert isinstance(result.exception(timeout=5), Cancelled)
        assert shell.environment["TASKQ_SECRET"] not in worker.log
        assert worker.stop() == 0
