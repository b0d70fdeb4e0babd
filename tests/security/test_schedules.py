"""Schedules that somebody with the run of Redis put there: nothing is signed for him."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from taskq import Context, State, TaskQ
from taskq.broker import keys
from taskq.model import schedule
from taskq.model.schedule import Definition, Rule
from taskq.model.signing import Domain, Keyring, Seal
from taskq.testing import running_worker
from tests.eventually import let_pass, until
from tests.features.test_refused import counts
from tests.security.conftest import KEY

NEW_KEY = "another secret of the security tests and long enough"
NAME = "nightly"
NEVER = "0 0 1 1 *"
ZEROS = b"0" * 32


class Shop:
    """An app with tasks that say that they ran; and a forger beside it."""

    def __init__(self, app: TaskQ) -> None:
        self.app = app
        self.base = keys.base(app.name, "default")
        self.ran: list[str] = []

        @app.task(name="note", bind=True)
        def note(ctx: Context, word: str = "") -> None:
            self.ran.append(word or ctx.headers["taskq-schedule"])

        @app.task(name="linger", bind=True)
        async def linger(ctx: Context) -> None:
            self.ran.append(ctx.id)
            await asyncio.Event().wait()

        self.note, self.linger = note, linger

    def seal(self, domain: Domain = Domain.SCHEDULE, queue: str = "default") -> Seal:
        return self.app.seal(domain, queue)

    def smuggle(
        self, definition: bytes, name: str | bytes = NAME, id: bytes = ZEROS, letter: bytes = b"-"
    ) -> None:
        """Put a schedule where genuine ones stand, due since long ago."""
        tick = b"%013d" % 1_700_000_000_000
        state = b"1" * 16 + tick + b"0" * 26 + id + b"0" * 30 + letter
        call = self.app.broker.call
        call("HSET", f"{self.base}schedules", name, definition)
        call("HSET", f"{self.base}fires", name, state)
        call("ZADD", f"{self.base}ticks", 1_700_000_000_000, name)
        call("PUBLISH", f"{self.base}agenda", name)

    def distrusted(self) -> int:
        return counts(self.app).get("distrusted", 0)


@pytest.fixture
def shop(new_app: Any) -> Iterator[Shop]:
    shop = Shop(new_app(queues=["mail"], lease=1.0))
    with running_worker(shop.app):
        yield shop


def signed(seal: Seal, name: str = NAME, *, word: str = "forged", **options: Any) -> bytes:
    body = b'[["%b"],{}]' % word.encode()
    return schedule.sign(
        Definition(Rule.of(every=3600), "note", "json", body, **options), name, seal
    )


def unsigned(shop: Shop) -> bytes:
    return signed(Keyring(()).seal(Domain.SCHEDULE, shop.app.name, "default"))


FORGERIES: dict[str, Callable[[Shop], bytes]] = {
    "nothing": lambda _: b"",
    "rubbish": lambda _: b"\x00\xff" * 50,
    "unsigned": unsigned,
    "a wrong tag": lambda shop: signed(shop.seal())[:9] + b"x" * 16 + signed(shop.seal())[25:],
    "other words": lambda shop: signed(shop.seal())[:-1] + b"x",
    "another name": lambda shop: signed(shop.seal(), "weekly"),
    "another queue": lambda shop: signed(shop.seal(queue="mail")),
    "a message's domain": lambda shop: signed(shop.seal(Domain.MESSAGE)),
    "an order's domain": lambda shop: signed(shop.seal(Domain.CONTROL)),
    "another app": lambda shop: signed(
        shop.app.access.keyring.seal(Domain.SCHEDULE, shop.app.name + "x", "default")
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_is_forged_or_moved_fires_nothing_and_is_counted_once(
    shop: Shop, forgery: str
) -> None:
    shop.smuggle(FORGERIES[forgery](shop))
    until(lambda: shop.distrusted() == 1)
    [one] = shop.app.schedules.list()
    assert one.obstacle is not None
    # Another one is fired all the same.
    shop.app.schedules.add("good", shop.note.s(), every=1)
    until(lambda: "good" in shop.ran)
    assert shop.distrusted() == 1
    assert "forged" not in shop.ran


def test_a_genuine_one_that_somebody_wrote_there_is_fired(shop: Shop) -> None:
    """Else the forgeries above could fail for another reason."""
    shop.smuggle(signed(shop.seal(), word="genuine"))
    until(lambda: "genuine" in shop.ran)
    assert shop.distrusted() == 0


def test_one_that_was_set_aside_can_be_removed_or_made_anew(shop: Shop) -> None:
    schedules = shop.app.schedules
    for mend in (
        lambda: schedules.remove(NAME),
        lambda: schedules.add(NAME, shop.note.s(), every=1),
    ):
        count = shop.distrusted()
        shop.smuggle(b"forged")
        until(lambda: shop.distrusted() > count)  # noqa: B023 - called in this round
        mend()
    until(lambda: NAME in shop.ran)
    assert schedules.get(NAME).obstacle is None


def test_an_unknown_key_is_left_to_others_and_told_once(
    new_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A rotation may be under way: who holds the key fires it."""
    old = Shop(new_app(lease=1.0))
    new = Shop(new_app(old.app.name, secret=f"{NEW_KEY},{KEY}", lease=1.0))
    with running_worker(old.app, threads=0), caplog.at_level(logging.ERROR):
        for word in ("first", "second"):
            old.smuggle(signed(new.seal(), word=word))
            let_pass(0.3)
        assert old.distrusted() == 0
        told = [line for line in caplog.messages if "is not fired here" in line]
        assert len(told) == 1
        assert "unknown key" in told[0]
        with running_worker(new.app):
            until(lambda: "second" in new.ran)


def test_a_rotation_of_keys_takes_those_made_at_run_time_along(new_app: Any) -> None:
    old = Shop(new_app(lease=1.0))
    both = Shop(new_app(old.app.name, secret=f"{NEW_KEY},{KEY}", lease=1.0))
    new = Shop(new_app(old.app.name, secret=NEW_KEY, lease=1.0))
    old.app.schedules.add(NAME, old.note.s(), cron=NEVER)
    old.app.schedules.add("paused", old.note.s(), every=3600)
    old.app.schedules.pause("paused", "on holiday")
    old.smuggle(unsigned(old), "forged")
    assert new.app.schedules.get(NAME).obstacle
    with running_worker(both.app):
        until(lambda: new.app.schedules.get(NAME).obstacle is None)
        until(lambda: new.app.schedules.get("paused").obstacle is None)
    one = new.app.schedules.get("paused")
    assert (one.paused, one.note, one.next_at) == (True, "on holiday", None)
    assert new.app.schedules.get(NAME) == both.app.schedules.get(NAME)
    assert new.app.schedules.get("forged").obstacle
    with running_worker(new.app):
        new.app.schedules.run_now(NAME).get(timeout=5)
    assert new.ran == [NAME]


def test_what_a_later_version_has_signed_is_left_to_it(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    body = msgspec.msgpack.encode(
        [["", 3600_000], "note", "json", b'[["later"],{}]', "some new word"]
    )
    shop.smuggle(shop.seal().stamp(NAME.encode(), body) + body)
    until(lambda: "unreadable schedule" in caplog.text)
    assert shop.distrusted() == 0
    assert shop.app.broker.call("ZSCORE", f"{shop.base}ticks", NAME) is not None
    assert shop.ran == []


def test_nobody_is_cancelled_by_what_was_written_beside_a_schedule(shop: Shop) -> None:
    """The order would be genuine: the one who signs it must know what he cancels."""
    victim = shop.linger.delay()
    until(lambda: victim.id in shop.ran)
    genuine = signed(shop.seal(), word="genuine", overlap=schedule.Overlap.CANCEL_RUNNING)
    shop.smuggle(genuine, id=victim.wire_id.encode())
    until(lambda: "genuine" in shop.ran)
    let_pass(0.5)
    assert victim.status is State.RUNNING
    assert victim.cancel() == "told"
    victim.exception(timeout=5)


def test_no_tick_is_fired_that_the_rule_does_not_name(shop: Shop) -> None:
    genuine = signed(shop.seal(), word="genuine", catch_up=schedule.CatchUp.NONE)
    shop.smuggle(genuine, letter=b"w")
    until(lambda: shop.app.schedules.get(NAME).missed)
    assert shop.ran == []


def test_a_key_that_is_wrong_in_redis_breaks_no_worker(shop: Shop, caplog: Any) -> None:
    shop.app.broker.call("SET", f"{shop.base}schedules", "x")
    shop.app.broker.call("ZADD", f"{shop.base}ticks", 1, "x")
    shop.app.broker.call("PUBLISH", f"{shop.base}agenda", "x")
    until(lambda: "WRONGTYPE" in caplog.text)
    shop.app.broker.call("DEL", f"{shop.base}schedules")
    shop.app.schedules.add("good", shop.note.s(), every=1)
    until(lambda: "good" in shop.ran, 8)


@pytest.mark.timeout(60)
def test_whatever_stands_there_the_others_are_fired(shop: Shop) -> None:
    draw = random.Random(7)
    genuine = signed(shop.seal())
    names = [draw.randbytes(draw.randrange(1, 40)) for _ in range(300)]
    for name in names:
        # Behind the id of the key: another one would be left to others.
        cut = draw.randrange(9, len(genuine))
        shop.smuggle(genuine[:cut] + draw.randbytes(20) + genuine[cut + 20 :], name)
        if draw.random() < 0.5:
            state = draw.choice([draw.randbytes(118), b"9" * 117 + b"w", b"9" * 117 + b"-", b""])
            shop.app.broker.call("HSET", f"{shop.base}fires", name, state)
    shop.app.schedules.add("good", shop.note.s(), every=1)
    until(lambda: "good" in shop.ran, 10)
    until(lambda: shop.app.broker.call("ZCARD", f"{shop.base}ticks") <= 1, 10)
    assert len(shop.app.schedules.list()) > 200
    assert "forged" not in shop.ran


def test_no_argument_of_a_schedule_is_shown(shop: Shop, caplog: Any) -> None:
    hidden = "hunter2-hunter2"
    shop.app.schedules.add(NAME, shop.note.s(hidden), cron=NEVER)
    one = shop.app.schedules.get(NAME)
    assert hidden not in repr(one)
    assert hidden not in repr(shop.app.schedules.list())
    shop.app.schedules.run_now(NAME)
    until(lambda: hidden in shop.ran)
    assert hidden not in caplog.text
