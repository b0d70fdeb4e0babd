"""Keys and passwords: where they are needed, and that nobody gets to see them."""

from __future__ import annotations

import logging
import pickle
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import BrokerUnavailable, ConfigError, MessageRefused, TaskQ
from taskq.model.signing import Domain
from taskq.testing import running_worker
from tests.eventually import until
from tests.servers import Server

KEY = "0123456789abcdef" * 4
PASSWORD = "hunter2-and-more"


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server with a password."""
    with Server(requirepass=PASSWORD) as server:
        yield server


def with_task(app: TaskQ) -> Any:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return add


@pytest.mark.parametrize(
    "elsewhere", ["redis://10.255.255.1/0", "rediss://user:hunter2-and-more@redis.example.com:6380"]
)
def test_a_server_elsewhere_wants_a_secret(elsewhere: str) -> None:
    """Told at the first use, before anything is sent."""
    app = TaskQ("shop", url=elsewhere)
    with pytest.raises(ConfigError) as caught:
        with_task(app).delay(1, 2)
    text = str(caught.value)
    for word in (
        elsewhere.rpartition("@")[2].removeprefix("redis://"),
        "taskq secret",
        "TASKQ_SECRET",
    ):
        assert word in text
    assert PASSWORD not in text


def test_a_secret_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, namespace: str
) -> None:
    monkeypatch.setenv("TASKQ_SECRET", KEY)
    monkeypatch.setenv("TASKQ_URL", redis_url)
    with TaskQ(namespace) as app, TaskQ(namespace, secret=KEY, url=redis_url) as other:
        add = with_task(app)
        with_task(other)
        with running_worker(other):
            assert add.delay(1, 2).get(timeout=5) == 3


@pytest.mark.parametrize("secret", ["short", "x" * 31, f"{KEY},short", f"{KEY},"])
def test_a_weak_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigError, match="32 characters") as caught:
        _ = TaskQ("shop", secret=secret).config
    assert "taskq secret" in str(caught.value)
    assert "short" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_on_this_machine_a_key_is_made_that_only_we_can_read(
    tmp_path: Path, redis_url: str, namespace: str
) -> None:
    folder = tmp_path / "state"
    with TaskQ(namespace, url=redis_url, state_dir=str(folder)) as app:
        add = with_task(app)
        with running_worker(app):
            assert add.delay(1, 2).get(timeout=5) == 3
        assert app.seal(Domain.MESSAGE, "default").key_id != b"0" * 8
    files = [path for path in folder.rglob("*") if path.is_file() and "key" in path.name]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with TaskQ(namespace, url=redis_url, state_dir=str(folder)) as again:
        assert again.access.keyring.__repr__() == app.access.keyring.__repr__()


def test_apps_on_this_machine_have_different_keys(redis_url: str) -> None:
    one, other = (TaskQ(name, url=redis_url) for name in ("secrets-one", "secrets-other"))
    assert repr(one.access.keyring) != repr(other.access.keyring)


class TestUnsigned:
    @pytest.fixture
    def both(self, new_app: Any) -> Iterator[tuple[TaskQ, TaskQ]]:
        """An app that signs nothing, and one of the same name that signs."""
        signed: TaskQ = new_app(secret=KEY)
        bare = TaskQ(signed.name, url=signed.config.url, insecure_unsigned=True)
        yield bare, signed
        bare.close()

    def test_it_works_where_it_is_asked_for(self, both: tuple[TaskQ, TaskQ]) -> None:
        bare, _ = both
        add = with_task(bare)
        with running_worker(bare):
            assert add.delay(1, 2).get(timeout=5) == 3

    def test_a_worker_with_a_key_refuses_what_is_unsigned(self, both: tuple[TaskQ, TaskQ]) -> None:
        bare, signed = both
        with_task(signed)
        result = bare.send_task("add", (1, 2))
        with running_worker(signed):
            error = result.exception(timeout=5)
        assert isinstance(error, MessageRefused)
        assert "unsigned" in str(error)

    def test_a_worker_without_one_refuses_what_is_signed(self, both: tuple[TaskQ, TaskQ]) -> None:
        """It cannot tell: someone may have forged it."""
        bare, signed = both
        with_task(bare)
        result = signed.send_task("add", (1, 2))
        with running_worker(bare):
            error = result.exception(timeout=5)
        assert isinstance(error, MessageRefused)
        assert "no key is set here" in str(error)

    def test_elsewhere_it_must_be_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TASKQ_INSECURE_UNSIGNED", "1")
        assert TaskQ("shop", url="redis://10.255.255.1").access.keyring is not None
        monkeypatch.setenv("TASKQ_INSECURE_UNSIGNED", "0")
        with pytest.raises(ConfigError, match="TASKQ_SECRET"):
            _ = TaskQ("shop", url="redis://10.255.255.1").access


def hides(text: str) -> bool:
    return KEY not in text and PASSWORD not in text


def test_nothing_of_ours_shows_them(locked: Server, namespace: str) -> None:
    with TaskQ(namespace, url=locked.url, secret=KEY) as app:
        add = with_task(app)
        with running_worker(app) as engine:
            result = add.delay(1, 2)
            assert result.get(timeout=5) == 3
            shown = [
                app, app.config, app.access, app.access.endpoint, app.access.keyring, app.broker,
                app.waiter, app.seal(Domain.MESSAGE, "default"), add, add.s(1, 2), add.call_options,
                result, result.snapshot(), engine, engine.exchange, engine.exchange.ports[0],
            ]  # fmt: skip
        for one in shown:
            assert hides(repr(one)), type(one)
            assert hides(str(one)), type(one)
        for one in (app, add, result):
            assert hides(pickle.dumps(one).decode("latin-1"))


def test_no_log_line_shows_them(
    locked: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with TaskQ(namespace, url=locked.url, secret=KEY, enqueue_deadline=2) as app:
        add = with_task(app)
        with running_worker(app):
            assert add.delay(1, 2).get(timeout=5) == 3
            assert isinstance(add.delay(1, "x").exception(timeout=5), TypeError)
            with locked.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert add.delay(1, 2).get(timeout=5) == 3
    assert "add" in caplog.text
    assert hides(caplog.text)


def test_no_error_shows_them(locked: Server, namespace: str) -> None:
    wrong = locked.url.replace(PASSWORD, PASSWORD + "-wrong")
    places = [wrong, f"redis://:{PASSWORD}@127.0.0.1:1", f"redis://{PASSWORD}@no.such.invalid"]
    for url in places:
        app = TaskQ(namespace, url=url, secret=KEY, enqueue_deadline=0.2)
        with pytest.raises(taskq.BrokerError) as caught:
            with_task(app).delay(1, 2)
        text = "".join(traceback.format_exception(caught.value))
        assert hides(text), text
        assert isinstance(caught.value, BrokerUnavailable) or "password" in str(caught.value)


def test_the_commands_do_not_show_them(locked: Server, tmp_path: Path, shell_of: Any) -> None:
    shell = shell_of(tmp_path, locked.url)
    worker = shell.worker("proj", "-p", "1", "-l", "debug", TASKQ_SECRET=KEY)
    said = [worker.log]
    for words in (["status"], ["status", "--json"], ["call", "add", "2", "3", "--wait"]):
        done = shell.type(words[0], "-A", "proj", *words[1:], TASKQ_SECRET=KEY)
        assert done.returncode == 0, done.stderr
        said += [done.stdout, done.stderr]
    assert worker.stop() == 0
    until(lambda: worker.process.poll() is not None)
    said.append(worker.log)
    assert [text for text in said if not hides(text)] == []
