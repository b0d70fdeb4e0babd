"""`app.dead`: what failed for the last time, kept, read, sent again and thrown away."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taskq import (
    ConfigError,
    DeadLetter,
    DeadLetterError,
    EnqueueUncertain,
    Interrupted,
    State,
    TaskQ,
)
from taskq.broker import keys
from taskq.model import clock, message
from taskq.model.message import Envelope, Message, new_id
from taskq.model.signing import Domain, Keyring
from taskq.testing import running_worker
from tests.eventually import until


class Canary:
    """Whoever unpickles it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._trace,))


@pytest.fixture(scope="module")
def shop(new_app: Any) -> Iterator[Any]:
    """An app whose tasks fail until the test says otherwise."""
    app: TaskQ = new_app(queues=["mail"])
    works: set[str] = set()
    seen: list[Any] = []

    @app.task(name="charge", max_retries=1, default_retry_delay=0, autoretry_for=(OSError,))
    def charge(order: str, *, amount: int = 1) -> str:
        if order not in works:
            msg = f"the bank refused {order}"
            raise OSError(msg)
        return f"{order}: {amount}"

    @app.task(name="silent", ignore_result=True)
    def silent() -> None:
        msg = "nobody waits for it"
        raise ValueError(msg)

    @app.task(name="shout")
    async def shout(text: str) -> None:
        raise RuntimeError(text)

    @app.task(name="ring")
    def ring() -> None:
        """Do nothing: a call of it wakes the worker."""

    @app.task(name="tell", bind=True)
    def tell(ctx: Any, order: str) -> None:
        seen.append((ctx.id, ctx.headers, ctx.attempt))
        if order not in works:
            raise KeyError(order)

    with running_worker(app):
        yield SimpleNamespace(
            app=app, charge=charge, silent=silent, shout=shout, tell=tell, works=works, seen=seen
        )


@pytest.fixture
def order() -> str:
    return secrets.token_hex(4)


def dies(task: Any, *args: Any, **options: Any) -> DeadLetter:
    """Let a call fail for the last time; return its letter."""
    result = task.options(**options).delay(*args) if options else task.delay(*args)
    until(result.ready)
    letter: DeadLetter = result.app.dead.get(result.id)
    return letter


class TestReading:
    def test_a_letter_tells_what_happened(self, shop: Any, order: str) -> None:
        letter = dies(shop.charge, order)
        assert (letter.task, letter.queue, letter.kind) == ("charge", "default", "failed")
        assert letter.reason == f"OSError: the bank refused {order}"
        assert (letter.attempts, letter.deliveries, letter.crashes) == (2, 2, 0)
        assert [one.attempt for one in letter.errors] == [2, 1]
        assert "Traceback" in str(letter.traceback)
        assert letter.worker == "test-worker"
        assert letter.enqueued_at <= letter.started_at <= letter.died_at
        assert letter.obstacle is None

    def test_its_error_is_readable_when_the_record_is_gone(self, shop: Any, order: str) -> None:
        letter = dies(shop.charge, order)
        assert shop.app.result(letter.id).forget()
        assert shop.app.result(letter.id).status is State.UNKNOWN
        assert shop.app.dead.get(letter.id) == letter

    def test_what_stores_no_result_leaves_a_letter_too(self, shop: Any) -> None:
        letter = dies(shop.silent)
        assert letter.reason == "ValueError: nobody waits for it"

    def test_coroutines_leave_letters(self, shop: Any, order: str) -> None:
        assert dies(shop.shout, order).reason == f"RuntimeError: {order}"

    def test_a_given_id_is_its_address(self, shop: Any, order: str) -> None:
        letter = dies(shop.charge, order, id=f"order {order}", queue="mail")
        assert letter.id == f"order {order}@mail"

    def test_the_newest_come_first_from_all_queues(self, shop: Any, order: str) -> None:
        made = [dies(shop.charge, order, queue=one) for one in ("default", "mail", "default")]
        assert shop.app.dead.list()[:3] == made[::-1]
        assert shop.app.dead.list(limit=2) == made[:0:-1]
        assert shop.app.dead.list(queue="mail", limit=1) == [made[1]]

    def test_of_one_task(self, shop: Any, order: str) -> None:
        letter = dies(shop.shout, order)
        dies(shop.charge, order)
        found = shop.app.dead.list(task="shout")
        assert found[0] == letter
        assert {one.task for one in found} == {"shout"}

    def test_an_id_without_a_letter_is_an_error(self, shop: Any) -> None:
        for ask in (shop.app.dead.get, shop.app.dead.retry):
            with pytest.raises(DeadLetterError, match="no dead letter 'nobody'"):
                ask("nobody")

    def test_a_report_that_was_changed_is_not_believed(self, shop: Any, order: str) -> None:
        letter = dies(shop.charge, order)
        key = keys.base(shop.app.name, "default") + "dead:m"
        raw = shop.app.broker.call("HGET", key, letter.id)
        forged = raw.replace(b"the bank refused", b"all your money is")
        assert forged != raw
        shop.app.broker.call("HSET", key, letter.id, forged)
        told = shop.app.dead.get(letter.id)
        assert "not to be trusted: bad signature" in told.reason
        assert (told.traceback, told.errors) == (None, ())

    def test_reading_unpickles_nothing(self, shop: Any, tmp_path: Path) -> None:
        trace = tmp_path / "unpickled"
        body = pickle.dumps(((), {"x": Canary(trace)}))
        one = Message(new_id(clock.now_ms()), 0, Envelope("charge", 1, "pickle", body))
        raw = message.encode(one, shop.app.seal(Domain.MESSAGE, "mail"))
        smuggle(shop.app, raw, "default")
        until(lambda: shop.app.dead.list(limit=1)[0].id == one.id)
        assert shop.app.dead.get(one.id).kind == "refused"
        assert not trace.exists()


def smuggle(app: TaskQ, raw: bytes, queue: str) -> None:
    """Put bytes into a task's list, past all that a client does."""
    base = keys.base(app.name, queue)
    app.broker.call("LPUSH", base + "ready:charge", raw)
    app.broker.call("ZADD", base + "lanes", 5, "charge")
    app.broker.call("ZADD", base + "pass:5", 0, "charge")
    app.send_task("ring", queue=queue)


class TestRetry:
    def test_the_message_runs_again_under_a_new_id(self, shop: Any, order: str) -> None:
        letter = dies(shop.charge, order)
        shop.works.add(order)
        result = shop.app.dead.retry(letter.id)
        assert result.id != letter.id
        assert result.get(timeout=5) == f"{order}: 1"
        assert shop.app.result(letter.id).status is State.FAILED
        with pytest.raises(DeadLetterError, match="there is no"):
            shop.app.dead.get(letter.id)

    def test_queue_arguments_and_headers_stay(self, shop: Any, order: str) -> None:
        letter = dies(shop.tell, order, queue="mail", priority=9, headers={"by": order}, id=order)
        shop.works.add(order)
        result = shop.app.dead.retry(letter.id)
        assert result.id.endswith("@mail")
        until(result.successful)
        assert shop.seen[-1] == (result.wire_id, {"by": order}, 1)

    def test_an_expiry_that_passed_is_left_out(self, shop: Any, order: str) -> None:
        letter = dies(shop.charge, order, expires=0.3)
        shop.works.add(order)
        until(lambda: clock.now() > letter.enqueued_at.timestamp() + 0.3)
        assert shop.app.dead.retry(letter.id).get(timeout=5) == f"{order}: 1"

    def test_what_fails_again_dies_again(self, shop: Any, order: str) -> None:
        letter = dies(shop.charge, order)
        result = shop.app.dead.retry(letter.id)
        until(result.failed)
        again = shop.app.dead.get(result.id)
        assert again.reason == letter.reason
        assert result.snapshot().enqueued_at >= letter.died_at

    def test_what_ignores_its_result_has_none_the_second_time(self, shop: Any) -> None:
        letter = dies(shop.silent)
        again = shop.app.dead.retry(letter.id)
        until(again.ready)
        assert shop.app.dead.get(again.id).task == "silent"

    @pytest.mark.parametrize("forger", ["stranger", "nobody", "another queue"])
    def test_what_is_not_ours_is_kept_and_not_sent(self, shop: Any, forger: str) -> None:
        app = shop.app
        seal = {
            "stranger": Keyring(["x" * 32]).seal(Domain.MESSAGE, app.name, "default"),
            "nobody": Keyring(()).seal(Domain.MESSAGE, app.name, "default"),
            "another queue": app.seal(Domain.MESSAGE, "mail"),
        }[forger]
        raw = message.encode(
            Message(new_id(clock.now_ms()), 0, Envelope("charge", 1, "json", b"[[],{}]")), seal
        )
        if forger == "stranger":  # workers give those back; somebody wrote it there
            raw = raw[:4] + app.seal(Domain.MESSAGE, "default").key_id + raw[12:]
        smuggle(app, raw, "default")
        id = raw[12:44].decode()
        until(lambda: app.dead.list(limit=1)[0].id == id)
        letter = app.dead.get(id)
        assert (letter.kind, letter.reason) == ("refused", letter.obstacle)
        with pytest.raises(
            DeadLetterError, match=r"cannot be sent again: (unsigned|bad signature)"
        ):
            app.dead.retry(id)
        assert app.dead.get(id) == letter

    def test_garbage_is_kept_under_a_name_and_not_sent(self, shop: Any) -> None:
        garbage = b"garbage " + secrets.token_bytes(8)
        smuggle(shop.app, garbage, "mail")
        until(lambda: shop.app.dead.list(limit=1)[0].size == len(garbage))
        [letter] = shop.app.dead.list(limit=1)
        assert shop.app.dead.get(letter.id) == letter
        assert letter.id.startswith("raw-")
        with pytest.raises(DeadLetterError, match="not a taskq message"):
            shop.app.dead.retry(letter.id)
        assert shop.app.dead.purge(letter.id) == 1

    def test_a_message_in_the_list_of_another_task_is_not_sent(self, shop: Any) -> None:
        one = Message(new_id(clock.now_ms()), 0, Envelope("shout", 1, "json", b'[["x"],{}]'))
        smuggle(shop.app, message.encode(one, shop.app.seal(Domain.MESSAGE, "mail")), "mail")
        until(lambda: shop.app.dead.list(limit=1)[0].id == f"{one.id}@mail")
        with pytest.raises(DeadLetterError, match="not of the task in whose list it was: shout"):
            shop.app.dead.retry(f"{one.id}@mail")


class TestPurge:
    def test_by_ids_task_queue_and_all(self, shop: Any, order: str) -> None:
        dead = shop.app.dead
        first, second = dies(shop.charge, order), dies(shop.charge, order, queue="mail")
        assert dead.purge(first.id, second.id, "nobody") == 2
        dies(shop.shout, order)
        dies(shop.charge, order, queue="mail")
        assert dead.purge(task="shout") >= 1
        assert dead.list(task="shout") == []
        assert dead.purge(queue="mail") >= 1
        assert dead.list(queue="mail") == []
        dies(shop.charge, order)
        assert dead.purge() >= 1
        assert dead.list() == []


def test_the_awaited_twins_do_the_same(shop: Any, order: str, awaited: Any) -> None:
    app = shop.app
    first, second = dies(shop.charge, order), dies(shop.charge, order)
    shop.works.add(order)

    async def twins() -> None:
        assert await app.dead.alist(limit=2) == [second, first]
        assert (await app.dead.alist("default", "charge", 1)) == [second]
        assert await app.dead.aget(first.id) == first
        again = await app.dead.aretry(first.id)
        assert await again.aget(timeout=5) == f"{order}: 1"
        assert await app.dead.apurge(second.id) == 1
        assert await app.dead.apurge(queue="mail", task="charge") >= 0
        with pytest.raises(DeadLetterError):
            await app.dead.aget(second.id)

    awaited(twins(), app)


@pytest.mark.parametrize("limit", [-1, 1.5, "5", True])
def test_a_limit_is_a_number(shop: Any, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be an int"):
        shop.app.dead.list(limit=limit)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"queue": "mial"}, "nobody declared the queue 'mial'.* did you mean 'mail'"),
        ({"queue": "a b"}, "queue name 'a b'"),
        ({"task": "a b"}, "task name 'a b'"),
    ],
    ids=lambda one: str(one) if isinstance(one, dict) else "",
)
def test_a_slip_of_the_hand_is_not_an_empty_list(
    shop: Any, awaited: Any, chosen: dict[str, str], told: str
) -> None:
    dead = shop.app.dead
    with pytest.raises(ConfigError, match=told):
        dead.list(**chosen)
    with pytest.raises(ConfigError, match=told):
        dead.purge(**chosen)
    with pytest.raises(ConfigError, match=told):
        awaited(dead.alist(**chosen), shop.app)
    with pytest.raises(ConfigError, match=told):
        awaited(dead.apurge(**chosen), shop.app)


def test_a_retry_whose_reply_was_lost_says_under_which_id_it_was_sent(
    shop: Any, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = dies(shop.charge, order)
    shop.works.add(order)
    run = shop.app.broker.run

    def lose(command: Any) -> Any:
        reply = run(command)
        if command.script.name == "revive":
            msg = "the line broke"
            raise Interrupted(msg)
        return reply

    monkeypatch.setattr(shop.app.broker, "run", lose)
    with pytest.raises(EnqueueUncertain, match="sent again as") as raised:
        shop.app.dead.retry(letter.id)
    assert shop.app.result(raised.value.id).get(timeout=5) == f"{order}: 1"


def test_settings_say_how_many_are_kept(new_app: Any) -> None:
    app: TaskQ = new_app(dead_letters=2)

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError

    with running_worker(app):
        letters = [dies(fail) for _ in range(4)]
        assert app.dead.list() == letters[:1:-1]
