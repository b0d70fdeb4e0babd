"""S2 to S5, S7, S8, S13: bytes that somebody with the run of Redis put there.

What such a person can change is told in SECURITY.md; that no code of theirs runs, here. More
of the kind is in tests/features/test_refused.py; the decoders alone are in test_fuzz.py.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import MessageRefused, ResultTampered, State, TaskQ
from taskq.broker import keys
from taskq.model import clock, message, outcome
from taskq.model.message import BODY_AT, HEADER_BYTES, Envelope, Message, new_id
from taskq.model.outcome import Report
from taskq.model.signing import Domain
from taskq.testing import running_worker
from tests.eventually import let_pass, until
from tests.features.test_refused import Canary, changed, counts, smuggle
from tests.security.conftest import KEY

NEW_KEY = "another secret of the security tests and long enough"


class Shop:
    """An app with a worker, and what its task was called with."""

    def __init__(self, app: TaskQ) -> None:
        self.app = app
        self.calls: list[Any] = []

        @app.task(name="buy")
        def buy(what: Any) -> Any:
            self.calls.append(what)
            return what

        @app.task(name="sell")
        def sell(what: Any) -> None:
            self.calls.append(("sold", what))

        self.buy = buy

    def written(self, *args: Any, **more: Any) -> bytes:
        """Return the bytes of a genuine call of `buy`."""
        envelope = Envelope("buy", clock.now_ms(), "pickle", pickle.dumps((args, {})))
        made = Message(new_id(clock.now_ms()), more.get("expires_ms", 0), envelope)
        return message.encode(made, self.app.seal(Domain.MESSAGE, more.get("queue", "default")))

    def record(self, id: str) -> str:
        return keys.record(self.app.name, "default", id)


@pytest.fixture
def shop(new_app: Any) -> Iterator[Shop]:
    shop = Shop(new_app())
    with running_worker(shop.app):
        yield shop


def is_refused(shop: Shop, raw: bytes, task: str = "buy") -> None:
    before, calls = counts(shop.app).get("refused", 0), list(shop.calls)
    smuggle(shop.app, raw, task)
    assert shop.buy.delay("honest").get(timeout=5) == "honest"
    until(lambda: counts(shop.app).get("refused", 0) == before + 1)
    assert shop.calls == [*calls, "honest"]


# S2


def test_parts_of_genuine_messages_make_no_genuine_one(shop: Shop) -> None:
    other = shop.written("a castle")
    for splice in (
        lambda one: one[:BODY_AT] + other[BODY_AT:],
        lambda one: one[:HEADER_BYTES] + other[HEADER_BYTES:],
        lambda one: other[:12] + one[12:BODY_AT] + other[BODY_AT:],
    ):
        is_refused(shop, splice(shop.written("bread")))
    one = shop.written("bread")
    is_refused(shop, one[:12] + other[12:44] + one[44:])
    is_refused(shop, msg_with(shop.written("bread"), b"sell"), "sell")


def msg_with(raw: bytes, task: bytes) -> bytes:
    at = raw.index(b"\xa3buy")
    return raw[:at] + bytes([0xA0 + len(task)]) + task + raw[at + 4 :]


def test_a_message_is_of_its_queue_and_its_app(shop: Shop, new_app: Any) -> None:
    is_refused(shop, shop.written("bread", queue="mail"))
    is_refused(shop, Shop(new_app()).written("bread"))


# S3


def test_a_result_is_no_message_and_a_message_no_result(shop: Shop, tmp_path: Path) -> None:
    trace = tmp_path / "unpickled"
    result = shop.buy.delay("bread")
    assert result.get(timeout=5) == "bread"
    record = shop.app.broker.call("GET", shop.record(result.id))
    is_refused(shop, record[98:])
    raw = shop.written("bread")
    is_refused(shop, raw[:HEADER_BYTES] + record[98 + 9 : 98 + 25] + record[98 + 25 :])
    # The other way round: a genuine message where the report stood.
    forged = shop.written(Canary(trace))
    shop.app.broker.call("SET", shop.record(result.id), record[:98] + forged)
    stamp = forged[3:12] + forged[HEADER_BYTES:]
    for tail in (forged, stamp):
        shop.app.broker.call("SET", shop.record(result.id), record[:98] + tail)
        with pytest.raises(ResultTampered):
            shop.app.result(result.id).get(timeout=5)
    assert not trace.exists()


def test_the_three_domains_have_three_tags() -> None:
    """The same bytes, under the same key, for the same place."""
    ring = TaskQ("a", url="memory://", secret=KEY).access.keyring
    for body in (b"x", b"x" * 20_000):
        tags = {ring.seal(domain, "a", "q").tag(b"header", body) for domain in Domain}
        assert len(tags) == len(Domain)
        places = {ring.seal(Domain.MESSAGE, *at).tag(b"", body) for at in (("a", "b"), ("ab", ""))}
        assert len(places) == 2


def test_an_outcome_is_of_its_message_and_its_claim(shop: Shop) -> None:
    one, other = shop.buy.delay("bread"), shop.buy.delay("a castle")
    assert [one.get(timeout=5), other.get(timeout=5)] == ["bread", "a castle"]
    records = [shop.app.broker.call("GET", shop.record(each.id)) for each in (one, other)]
    shop.app.broker.call("SET", shop.record(one.id), records[1])
    with pytest.raises(ResultTampered):
        shop.app.result(one.id).get(timeout=5)
    later = changed(records[0], 97, b"9")  # the number of the claim
    shop.app.broker.call("SET", shop.record(one.id), later)
    with pytest.raises(ResultTampered):
        shop.app.result(one.id).get(timeout=5)


# S4


def test_a_finished_message_put_back_does_not_run_again(shop: Shop) -> None:
    raw = shop.written("bread")
    smuggle(shop.app, raw, "buy")
    shop.buy.delay("first").get(timeout=5)
    until(lambda: "bread" in shop.calls)
    until(lambda: shop.app.result(raw[12:44].decode()).status is State.SUCCEEDED)
    smuggle(shop.app, raw, "buy")
    assert shop.buy.delay("second").get(timeout=5) == "second"
    assert shop.calls.count("bread") == 1


def test_nor_does_one_past_its_expiry_whose_outcome_is_forgotten(shop: Shop) -> None:
    """Without an expiry it would: SECURITY.md says so."""
    raw = shop.written("bread", expires_ms=clock.now_ms() + 700)
    smuggle(shop.app, raw, "buy")
    shop.buy.delay("first").get(timeout=5)
    result = shop.app.result(raw[12:44].decode())
    until(lambda: result.status is State.SUCCEEDED)
    result.forget()
    let_pass(0.8)
    smuggle(shop.app, raw, "buy")
    assert shop.buy.delay("second").get(timeout=5) == "second"
    assert shop.calls.count("bread") == 1


# S5


def test_keys_rotate_step_by_step_and_nothing_is_refused(new_app: Any) -> None:
    """Each step goes to workers and producers in turn, so neighbours of steps must agree."""
    steps = [KEY, f"{KEY},{NEW_KEY}", f"{NEW_KEY},{KEY}", NEW_KEY]
    name = new_app().name
    for one, next_one in itertools.pairwise(steps):
        for sends, runs in ((one, one), (one, next_one), (next_one, one), (next_one, next_one)):
            sender, shop = new_app(name, secret=sends), Shop(new_app(name, secret=runs))
            results = [sender.send_task("buy", (number,)) for number in range(10)]
            with running_worker(shop.app):
                assert taskq.gather(results, timeout=10) == list(range(10))
            assert counts(shop.app).get("refused", 0) == 0


def test_what_a_removed_key_signed_is_held_back_and_told(
    new_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Not refused: it may be the worker that has missed a rotation."""
    name = new_app().name
    gone = new_app(name, secret=KEY).send_task("buy", ("gone",))
    shop = Shop(new_app(name, secret=NEW_KEY))
    with running_worker(shop.app):
        until(lambda: "is TASKQ_SECRET the same everywhere?" in caplog.text)
    assert (gone.status, shop.calls) == (State.QUEUED, [])
    assert counts(shop.app).get("refused", 0) == 0
    shop = Shop(new_app(name, secret=f"{NEW_KEY},{KEY}"))
    with running_worker(shop.app):
        # The worker signs with the new key: its reader must have that.
        assert shop.app.result(gone.id).get(timeout=5) == "gone"


# S7


@pytest.mark.parametrize(
    "record",
    [
        {"exc_module": "os", "exc_type": "system", "exc_message": "touch {trace}"},
        {"status": "FAILURE", "result": {"exc_type": "os.system", "args": ["touch {trace}"]}},
    ],
)
def test_a_failure_that_names_a_function_calls_nothing(
    shop: Shop, tmp_path: Path, record: dict[str, Any]
) -> None:
    """CVE-2021-23727."""
    trace = tmp_path / "called"
    result = shop.buy.delay("bread")
    assert result.get(timeout=5) == "bread"
    head = shop.app.broker.call("GET", shop.record(result.id))[:98]
    text = json.dumps(record).replace("{trace}", str(trace)).encode()
    for forged in (text, b"f" + head[1:] + text, b"f" + head[1:] + b"u" + b"0" * 24 + text):
        shop.app.broker.call("SET", shop.record(result.id), forged)
        again = shop.app.result(result.id)
        with pytest.raises(taskq.TaskQError):
            again.get(timeout=5)
        assert again.snapshot().status in State
    assert not trace.exists()


# S8


def test_unsigned_results_are_not_read(shop: Shop, tmp_path: Path) -> None:
    """As unsigned messages are not: tests/features/test_secrets.py."""
    trace = tmp_path / "unpickled"
    result = shop.buy.delay("bread")
    assert result.get(timeout=5) == "bread"
    head = shop.app.broker.call("GET", shop.record(result.id))[:98]
    value = pickle.dumps(Canary(trace))
    bare = TaskQ(shop.app.name, url="memory://", insecure_unsigned=True)
    report = Report("buy", 1, 1, 1, "w", 1, 1, "pickle", value)
    seal = bare.access.keyring.seal(Domain.RESULT, shop.app.name, "default")
    body = outcome.sign(report, seal, b"")
    assert body[:1] == b"u" or seal.key_id != b"0" * 8
    shop.app.broker.call("SET", shop.record(result.id), head + b"u" + b"0" * 24 + body[25:])
    with pytest.raises(ResultTampered, match="unsigned"):
        shop.app.result(result.id).get(timeout=5)
    assert not trace.exists()


# S13: nothing in Redis commands a worker, but for what the state of a message says.


def test_a_record_of_a_stranger_is_words_and_no_more(shop: Shop) -> None:
    """Bare words end a wait, are cut short, and cannot move the reader's cursor."""
    result = shop.app.send_task("nobody")
    words = b"\x1b[2J\r\n" + b"x" * 100_000
    head = b"r" + b"-" * 8 + b"0" * 89
    shop.app.broker.call("SET", shop.record(result.id), head + words)
    with pytest.raises(MessageRefused) as caught:
        shop.app.result(result.id).get(timeout=5)
    text = str(caught.value)
    assert len(text) < 3000
    assert text.isprintable()
    note = shop.app.result(result.id).snapshot().note
    assert note is not None
    assert note.isprintable()


def test_whatever_lies_in_a_wake_list_only_wakes(shop: Shop) -> None:
    """It is the one key that is read by a worker and holds no record and no message."""
    base = keys.base(shop.app.name, "default")
    for text in (b"", b"shutdown", b'{"kind": "hand_back"}', pickle.dumps(print)):
        for kind in "tc":
            groups = shop.app.broker.call("ZRANGE", base + "groups", 0, -1)
            for digest in groups:
                shop.app.broker.call("LPUSH", f"{base}bell:{digest.decode()}:{kind}", text)
        assert shop.buy.delay("bread").get(timeout=5) == "bread"
