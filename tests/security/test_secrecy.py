"""S9, S14: what is told to logs, reprs and terminals, and who unpickles."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import Context, TaskQ
from taskq.broker import commands, queries, records
from taskq.broker.claims import Exchanged, Finish
from taskq.broker.commands import Outgoing
from taskq.model import message
from taskq.model.message import Envelope, Message
from taskq.model.outcome import AttemptError, Failure, History, Report
from taskq.model.signing import Domain, Keyring
from taskq.testing import running_worker
from taskq.worker.delivery import Claim, Delivery
from tests.cli.conftest import SECRET, Shell
from tests.eventually import until
from tests.security.conftest import KEY
from tests.servers import Server

PASSWORD = "hunter2-and-more"
ARGUMENT, OPTION, RESULT, ERROR = (f"canary-{one}" for one in ("arg", "kwarg", "value", "raised"))

TASKS = """

@app.task
def keep(text, *, token=None):
    return text.replace("arg", "value")


@app.task
async def akeep(text, *, token=None):
    return text.replace("arg", "value")


@app.task
def leak(text, *, token=None):
    raise ValueError(text.replace("arg", "raised"))


@app.task
async def aleak(text, *, token=None):
    raise ValueError(text.replace("arg", "raised"))


@app.task(retry=RetryPolicy(on=ValueError, wait=wait_fixed(0.1)))
def again(text, *, token=None):
    raise ValueError(text.replace("arg", "raised"))


@app.task
def odd(text, *, token=None):
    return (text for _ in text)  # cannot be pickled


@app.task
def huge(text, *, token=None):
    return text * 2_000_000
"""
NAMES = ("keep", "akeep", "leak", "aleak", "again", "odd", "huge")


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Shell]:
    """A project on a server with a password, and with tasks that hold secrets."""
    with Server(requirepass=PASSWORD) as server, Shell(tmp_path, server.url) as shell:
        shell.write("proj.py", (shell.folder / "proj.py").read_text() + TASKS)
        yield shell


def run_all(shell: Shell, *words: str, **variables: str) -> str:
    """Run every kind of end and every verb; return all that was printed."""
    worker = shell.worker("proj", "-p", "1", "-l", "debug", *words, **variables)
    with shell.app() as app:
        sent = [
            app.send_task(f"proj.{name}", (ARGUMENT,), {"token": OPTION}, headers={"h": OPTION})
            for name in NAMES
        ]
        ends = [one.exception(timeout=15) for one in sent]
        assert [type(one).__name__ for one in ends[:2]] == ["NoneType"] * 2
        assert sum(one is not None for one in ends) == 5
        # Arguments that do not fit; a message that is refused, and one that is purged.
        assert app.send_task("proj.keep", (ARGUMENT, 1, 2)).exception(timeout=5) is not None
        with TaskQ(app.name, url=app.config.url, secret="x" * 40) as stranger:
            stranger.send_task("proj.keep", (ARGUMENT,))
        app.send_task("proj.nobody", (ARGUMENT,), {"token": OPTION})
        app.send_task("proj.keep", (ARGUMENT,), countdown=100)
        said = [repr(sent), repr(sent[2].snapshot()), str(sent[2].snapshot())]
    for verb in (["status"], ["status", "--json"], ["doctor"], ["doctor", "--json"],
                 ["purge", "-Q", "default", "--yes"]):  # fmt: skip
        done: subprocess.CompletedProcess[str] = shell.type(verb[0], "-A", "proj", *verb[1:])
        assert done.returncode == 0, done.stderr
        said += [done.stdout, done.stderr]
    done = shell.type(
        "call", "-A", "proj", "keep", ARGUMENT, "--kwargs", f'{{"token": "{OPTION}"}}'
    )
    assert done.returncode == 0, done.stderr
    said += [done.stdout, done.stderr]
    assert worker.stop() == 0
    until(lambda: "stopped" in worker.log)
    return "\n".join([*said, worker.log])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_in_anything_that_a_debug_run_prints(locked: Shell, form: str) -> None:
    text = run_all(locked, "--log-format", form, TASKQ_LOG_ERRORS="type")
    assert text.count("failed in attempt") >= 6
    assert "attempt 1 failed (ValueError)" in text
    found = [word for word in (ARGUMENT, OPTION, RESULT, ERROR, PASSWORD, SECRET) if word in text]
    assert found == []
    assert "Traceback" not in text


@pytest.mark.slow
def test_the_words_of_an_exception_are_logged_unless_told_otherwise(locked: Shell) -> None:
    """They are the task's own; arguments and results are in no log in any case."""
    text = run_all(locked)
    assert "Traceback" in text
    assert f"ValueError: {ERROR}" in text
    assert [word for word in (OPTION, RESULT, PASSWORD, SECRET) if word in text] == []
    text = run_all(locked, TASKQ_LOG_ERRORS="text")
    assert f"ValueError: {ERROR}" in text
    assert "Traceback" not in text


def test_no_repr_shows_what_is_carried() -> None:
    canary = "canary"
    raw = canary.encode()
    envelope = Envelope("t", 1, "pickle", raw, headers={"h": canary})
    carried = Message("0" * 32, 0, envelope)
    outgoing = Outgoing(carried, raw, "t")
    failure = Failure("x.Y", canary, canary, "pickle", raw, "KeyError", raw)
    past = AttemptError(1, 1, "x.Y", canary)
    claim = Claim("q", b"w" * 32, b"0" * 10, 1, 1.0)
    app = TaskQ("shop", url=f"redis://:{canary}@127.0.0.1:1", secret=canary * 10)

    @app.task(bind=True)
    def add(ctx: Context, x: object, *, y: object = 0) -> object:
        return x

    ring = Keyring([canary * 10])
    shown = [
        envelope, carried, outgoing, Finish("s", b"f", raw), failure, past, claim,
        Exchanged("ok", 1, None, "", "", [(b"", raw)]), commands.enqueue("b", [outgoing]),
        Report("t", 1, 1, 1, "w", 1, 1, "pickle", raw, failure, (past,)), History(1, 1.0, (past,)),
        Delivery(claim, "t", b"", raw), records.Record(b"s", tail=raw),
        queries.Look(records.Record(b"Q"), raw, None, ""), app, app.config, app.access,
        add, add.s(canary, y=canary), add.options(headers={"h": canary}), ring,
        add.options(headers={"h": canary}).s(1), ring.seal(Domain.MESSAGE, "a", "q"),
        Context("i", "t", "q", headers={"h": canary}, state=canary),
    ]  # fmt: skip
    assert [type(one) for one in shown if canary in repr(one) + str(one)] == []


def test_no_error_about_arguments_shows_them(tmp_path: Path) -> None:
    app = TaskQ("shop", url="redis://127.0.0.1:1", secret=KEY, max_message_bytes=1024)

    @app.task
    def add(x: object, y: object = 0) -> object:
        return x

    class Stubborn:
        def __reduce__(self) -> Any:
            raise ValueError

        def __repr__(self) -> str:
            return "canary"

    for arguments in (("canary",) * 3, (Stubborn(),), ("canary" * 1000,)):
        with pytest.raises((TypeError, ValueError)) as caught:
            add.delay(*arguments)
        assert "canary" not in str(caught.value)
    with pytest.raises(TypeError) as bad:
        add.options(headers={"h": Stubborn()})
    assert "canary" not in str(bad.value)


# S14

TRAP = """
import sys

if "taskq.worker.child" not in sys.orig_argv:
    import pickle
    from pathlib import Path

    def trap(*args, **kwargs):
        Path("{trace}").touch()
        raise RuntimeError("unpickled")

    pickle.loads = pickle.load = trap
    pickle.Unpickler = trap
"""


@pytest.mark.slow
def test_only_children_unpickle(locked: Shell) -> None:
    """Not the supervisor, nor any verb of the command line that waits for nothing."""
    trace = locked.folder / "unpickled"
    locked.write("site/sitecustomize.py", TRAP.format(trace=trace))
    locked.environment["PYTHONPATH"] += f":{locked.folder}/site"
    caught = subprocess.run(
        [sys.executable, "-c", "import pickle; pickle.loads(b'')"],
        env=locked.environment, capture_output=True, check=False,
    )  # fmt: skip
    assert b"unpickled" in caught.stderr
    trace.unlink()
    run_all(locked)
    assert not trace.exists()


def test_a_snapshot_unpickles_nothing(new_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app()

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError(ERROR)

    with running_worker(app):
        result = fail.delay()
        assert isinstance(result.exception(timeout=5), ValueError)
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    told = app.result(result.id).snapshot()
    assert told.errors[0].text == ERROR
    assert json.dumps(told.traceback)
    assert message.peek_id(b"") is None
