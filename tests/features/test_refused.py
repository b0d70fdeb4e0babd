"""Bytes that are not ours: set aside unread, counted, told; and the worker lives on."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import MessageRefused, ResultTampered, State, TaskQ
from taskq.broker import keys, queries
from taskq.model import clock, message
from taskq.model.message import BODY_AT, HEADER_BYTES, Envelope, Message, new_id
from taskq.model.signing import Domain, Keyring, Seal
from taskq.testing import running_worker
from taskq.worker import handover
from taskq.worker.port import Port
from tests.eventually import let_pass, until

OLD, NEW, OTHER = (
    f"the {word} secret of these tests and long enough" for word in ("old", "new", "x")
)
ADD, WAIT = "shop.add", "shop.wait"


class Canary:
    """Whoever unpickles it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._trace,))


def with_tasks(app: TaskQ) -> TaskQ:
    @app.task(name=ADD)
    def add(x: Any, y: Any = 0) -> Any:
        return x if y is None else x + y

    @app.task(name=WAIT)
    async def wait(x: Any) -> Any:
        return x

    return app


@pytest.fixture(scope="module")
def app(new_app: Any) -> Iterator[TaskQ]:
    """An app with a worker, for all the tests here that take it."""
    made = with_tasks(new_app(queues=["mail"]))
    with running_worker(made):
        yield made


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "unpickled"


def written(seal: Seal, trace: Path, task: str = ADD) -> bytes:
    body = pickle.dumps(((Canary(trace), None), {}))
    return message.encode(
        Message(new_id(clock.now_ms()), 0, Envelope(task, 1, "pickle", body)), seal
    )


def smuggle(app: TaskQ, raw: bytes, task: str = ADD) -> None:
    """Put bytes into a task's list, past all that a client does."""
    base = keys.base(app.name, "default")
    app.broker.call("LPUSH", keys.ready(app.name, "default", task), raw)
    app.broker.call("ZADD", base + "lanes", 5, task)
    app.broker.call("ZADD", base + "pass:5", 0, task)


def counts(app: TaskQ) -> dict[str, int]:
    return app.broker.run(queries.survey(keys.base(app.name, "default"), "default")).counts


def set_aside(app: TaskQ) -> dict[bytes, bytes]:
    flat = app.broker.call("HGETALL", keys.base(app.name, "default") + "dead:m")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def changed(raw: bytes, at: int, to: bytes) -> bytes:
    assert raw[at : at + len(to)] != to
    return raw[:at] + to + raw[at + len(to) :]


# What is done to the bytes of a genuine message, and what is said of the outcome.
FORGERIES: dict[str, Any] = {
    "bare pickle": (lambda raw: raw[BODY_AT:], "not a taskq message"),
    "a header alone": (lambda raw: raw[:BODY_AT], "not a taskq message"),
    "magic": (lambda raw: changed(raw, 0, b"QT"), "not a taskq message"),
    "version": (lambda raw: changed(raw, 2, b"2"), "unknown message version b'2'"),
    "unsigned": (lambda raw: changed(raw, 3, b"u"), "unsigned"),
    "the other algorithm": (lambda raw: changed(raw, 3, b"h"), "bad signature"),
    "no algorithm": (lambda raw: changed(raw, 3, b"?"), "unknown algorithm b'?'"),
    "id": (lambda raw: changed(raw, 12, bytes(reversed(raw[12:44]))), "bad signature"),
    "expiry": (lambda raw: changed(raw, 44, b"9999999999999"), "bad signature"),
    "tag": (lambda raw: changed(raw, HEADER_BYTES, bytes(16)), "bad signature"),
    "first byte": (lambda raw: changed(raw, BODY_AT, bytes([raw[BODY_AT] ^ 1])), "bad signature"),
    "last byte": (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "bad signature"),
    "cut": (lambda raw: raw[:-1], "bad signature"),
    "longer": (lambda raw: raw + b"\0", "bad signature"),
}


def refuses(app: TaskQ, raw: bytes, reason: str, task: str = ADD) -> None:
    before = counts(app).get("refused", 0)
    smuggle(app, raw, task)
    # It rings; and it comes after, so the worker lives on.
    assert app.send_task(task, (20,)).get(timeout=5) == 20
    until(lambda: counts(app).get("refused", 0) == before + 1)
    kept = [value for value in set_aside(app).values() if value.endswith(raw)]
    assert len(kept) == 1
    assert reason.encode() in kept[0]


@pytest.mark.parametrize("kind", FORGERIES)
def test_forged_bytes_are_set_aside_unread(app: TaskQ, trace: Path, kind: str) -> None:
    forge, reason = FORGERIES[kind]
    raw = forge(written(app.seal(Domain.MESSAGE, "default"), trace))
    refuses(app, raw, reason)
    id = message.peek_id(raw)
    if id and len(raw) > BODY_AT:
        result = app.result(id)
        assert result.failed()
        with pytest.raises(MessageRefused, match=re.escape(reason)):
            result.get(timeout=5)
    assert not trace.exists()


def test_genuine_bytes_are_read(app: TaskQ, trace: Path) -> None:
    """Else an untouched canary would prove nothing."""
    smuggle(app, written(app.seal(Domain.MESSAGE, "default"), trace))
    app.send_task(ADD, (1,)).get(timeout=5)
    until(trace.exists)


@pytest.mark.parametrize("garbage", [b"x", b"\x00" * 500, b"TQ1", b"not a message at all " * 9])
def test_garbage_is_set_aside(app: TaskQ, garbage: bytes) -> None:
    refuses(app, garbage, "not a taskq message")


@pytest.mark.parametrize("task", [ADD, WAIT])
@pytest.mark.parametrize("place", ["another queue", "another app", "a result", "no key"])
def test_what_was_signed_for_another_place_is_refused(
    app: TaskQ, trace: Path, place: str, task: str
) -> None:
    ring = Keyring(app.config.secret)
    seal = {
        "another queue": ring.seal(Domain.MESSAGE, app.name, "mail"),
        "another app": ring.seal(Domain.MESSAGE, app.name + "x", "default"),
        "a result": ring.seal(Domain.RESULT, app.name, "default"),
        "no key": Keyring(()).seal(Domain.MESSAGE, app.name, "default"),
    }[place]
    raw = written(seal, trace, task)
    refuses(app, raw, "unsigned" if place == "no key" else "bad signature", task)
    assert isinstance(app.result(raw[12:44].decode()).exception(timeout=5), MessageRefused)
    assert not trace.exists()


@pytest.mark.parametrize(("lane", "task"), [(ADD, "shop.unknown"), (ADD, WAIT), (WAIT, ADD)])
def test_a_message_in_the_list_of_another_task_is_refused(
    app: TaskQ, trace: Path, lane: str, task: str
) -> None:
    """It is signed, so it would run: where nobody expected it."""
    raw = written(app.seal(Domain.MESSAGE, "default"), trace, task)
    refuses(app, raw, f"not of the task in whose list it was: {task}", lane)
    assert not trace.exists()


def test_a_tampered_outcome_is_not_read(app: TaskQ, trace: Path) -> None:
    # Not one by one: whoever waited at once for what he sent is told of the next as it ends.
    [result] = app.enqueue_many([app.tasks[ADD].s(1, 2)])
    until(result.ready)
    key = keys.record(app.name, "default", result.wire_id)
    record = app.broker.call("GET", key)
    app.broker.call("SET", key, record[:-20] + pickle.dumps(Canary(trace)))
    with pytest.raises(ResultTampered):
        app.result(result.id).get(timeout=5)
    assert not trace.exists()


def test_the_log_tells_of_many_in_one_line(
    new_app: Any, trace: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can forge can forge many: the log must not be theirs to fill."""
    monkeypatch.setattr("taskq.worker.maintenance._WARN_SECONDS", 0.1)
    app = with_tasks(new_app(lease=0.5))
    with caplog.at_level(logging.INFO, "taskq"), running_worker(app):
        app.send_task(ADD, (1,)).get(timeout=5)
        let_pass(0.7)
        for _ in range(300):
            smuggle(app, changed(written(app.seal(Domain.MESSAGE, "mail"), trace), 0, b"XX"))
        app.send_task(ADD, (1,)).get(timeout=5)
        until(lambda: counts(app).get("refused") == 300)
        until(lambda: "unread: not ours" in caplog.text, 8)
    told = [one for one in caplog.messages if "refused" in one]
    assert 1 <= len(told) <= 5
    assert not trace.exists()


def apps_of(new_app: Any, *secrets: str) -> list[TaskQ]:
    """Return apps of one name, each with keys of its own."""
    first = with_tasks(new_app(secret=secrets[0], enqueue_deadline=5))
    url = first.config.url
    rest = [with_tasks(TaskQ(first.name, url=url, secret=secret)) for secret in secrets[1:]]
    return [first, *rest]


def test_a_message_of_an_unknown_key_waits_for_a_worker_that_knows_it(
    new_app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy is under way, and some have the new key first: nothing is thrown away."""
    monkeypatch.setattr(handover, "UNKNOWN_KEY_SECONDS", 0.3)
    ahead, behind, ready = apps_of(new_app, NEW, OLD, f"{OLD},{NEW}")
    result = ahead.send_task(ADD, (1, 2))
    with running_worker(behind, threads=1, coroutines=0):
        until(lambda: "unknown key" in caplog.text)
        let_pass(1)
        assert result.status is State.QUEUED
    errors = [one for one in caplog.messages if "unknown key" in one]
    assert "TASKQ_SECRET" in errors[0]
    assert len(errors) <= 6, "the queue is asked again after a pause only"
    assert counts(ahead) == {}
    with running_worker(ready):
        until(result.ready)
        snapshot = result.snapshot()
    assert snapshot.status is State.SUCCEEDED
    assert snapshot.attempt == 1
    for one in (ahead, behind, ready):
        one.close()


def test_a_queue_that_is_paused_does_not_keep_its_worker_busy(
    new_app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bell rings for the workers that know the key: this one must not hear itself."""
    begun: list[str] = []
    begin = Port.begin

    def counted(port: Port, *arguments: Any) -> None:
        begun.append(port.queue)
        begin(port, *arguments)

    monkeypatch.setattr(Port, "begin", counted)
    ahead, behind = apps_of(new_app, NEW, OLD)
    ahead.send_task(ADD, (1, 2))
    with running_worker(behind, threads=1, coroutines=0):
        until(lambda: "unknown key" in caplog.text)
        until(lambda: len(begun) >= 2)
        begun.clear()
        let_pass(1)
        assert len(begun) < 20
    for one in (ahead, behind):
        one.close()


def test_a_key_that_became_known_is_used_by_the_same_queue(
    new_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other messages of the queue run again once the pause is over."""
    monkeypatch.setattr(handover, "UNKNOWN_KEY_SECONDS", 0.3)
    stranger, own = apps_of(new_app, OTHER, OLD)
    waits = stranger.send_task(ADD, (1, 2))
    with running_worker(own, threads=2):
        assert own.send_task(ADD, (1, 2)).get(timeout=5) == 3
        assert own.send_task(WAIT, (7,)).get(timeout=5) == 7
        # It is claimed and given back now and then.
        until(lambda: waits.status is State.QUEUED)
    own.close()


def test_keys_are_rotated_without_losing_a_message(new_app: Any) -> None:
    """Everybody learns the new key, then everybody signs with it, then the old one goes."""
    old, learned, signs, gone = apps_of(new_app, OLD, f"{OLD},{NEW}", f"{NEW},{OLD}", NEW)
    steps = [(old, old), (old, learned), (learned, old), (learned, signs)]
    steps += [(signs, learned), (signs, signs), (signs, gone), (gone, signs), (gone, gone)]
    for producer, consumer in steps:
        result = producer.send_task(ADD, (1, 2))
        with running_worker(consumer):
            assert result.get(timeout=5) == 3
    for one in (old, learned, signs, gone):
        one.close()


def test_the_first_key_signs(new_app: Any) -> None:
    signs, gone = apps_of(new_app, f"{NEW},{OLD}", NEW)
    result = signs.send_task(ADD, (1, 2))
    with running_worker(gone):
        assert result.get(timeout=5) == 3
    gone.close()
