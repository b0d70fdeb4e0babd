"""`taskq dead`: list, show, retry, purge."""

from __future__ import annotations

import json
import operator
import re
from typing import Any

import pytest

from taskq import State, TaskQ
from taskq.broker import keys
from taskq.testing import running_worker
from tests.eventually import until

WHY = "told you so"
ESCAPES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]")


def fail() -> None:
    """Do as in the project."""
    raise KeyError(WHY)


@pytest.fixture
def failed(shell: Any, app: TaskQ) -> list[Any]:
    """Three messages that failed: of two tasks, on two queues."""
    app.task(name="proj.fail")(fail)
    app.task(name="proj.add")(operator.add)
    results = [
        app.send_task("proj.fail"),
        app.send_task("proj.add", (1,)),
        app.send_task("proj.fail", queue="mail", id="order-42"),
    ]
    with running_worker(app):
        assert all(isinstance(one.exception(timeout=14), Exception) for one in results)
    return results


def listed(shell: Any, *words: str) -> list[dict[str, Any]]:
    done = shell.say("dead", "list", "-A", "proj", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_list_shows_what_failed_and_why(shell: Any, failed: list[Any]) -> None:
    text = shell.say("dead", "list", "-A", "proj").stdout
    for result in failed:
        assert result.id in text
    assert "KeyError: 'told you so'" in text
    assert {one["id"] for one in listed(shell)} == {one.id for one in failed}
    assert [one["id"] for one in listed(shell, "-Q", "mail")] == ["order-42@mail"]
    assert [one["task"] for one in listed(shell, "--task", "proj.add")] == ["proj.add"]
    assert len(listed(shell, "--limit", "1")) == 1


def test_list_never_cuts_an_id(
    shell: Any, failed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = shell.say("dead", "list", "-A", "proj").stdout
    assert all(result.id in text for result in failed)


def test_list_of_nothing(shell: Any) -> None:
    assert shell.say("dead", "list", "-A", "proj").stdout == "no dead letters\n"
    assert listed(shell) == []


def test_show_tells_all(shell: Any, failed: list[Any]) -> None:
    text = shell.say("dead", "show", "-A", "proj", "order-42@mail").stdout
    assert "reason: KeyError: 'told you so'" in text
    assert "Traceback (most recent call last):" in text
    assert "attempt 1: KeyError" in text
    told = json.loads(shell.say("dead", "show", "-A", "proj", failed[0].id, "--json").stdout)
    assert (told["id"], told["kind"], told["attempts"]) == (failed[0].id, "failed", 1)


def test_show_of_an_id_without_a_letter(shell: Any) -> None:
    done = shell.say("dead", "show", "-A", "proj", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "taskq: there is no dead letter 'nobody'\n"


def test_retry_sends_again(shell: Any, app: TaskQ, failed: list[Any]) -> None:
    done = shell.say("dead", "retry", "-A", "proj", failed[0].id)
    assert done.returncode == 0
    old, new = done.stdout.split(" → ")
    assert old == failed[0].id
    assert app.result(new.strip()).status is State.QUEUED
    assert failed[0].id not in {one["id"] for one in listed(shell)}


def test_retry_of_all_of_a_task_asks_first(shell: Any, failed: list[Any]) -> None:
    words = ("dead", "retry", "-A", "proj", "--all", "--task", "proj.fail")
    done = shell.say(*words)
    assert done.returncode == 1
    assert f"all dead letters of proj.fail of the app {shell.name}?" in done.stdout
    assert len(listed(shell)) == 3
    told = json.loads(shell.say(*words, "--yes", "--json").stdout)
    assert set(told["sent"]) == {failed[0].id, failed[2].id}
    assert [one["id"] for one in listed(shell)] == [failed[1].id]


def test_retry_keeps_what_it_cannot_send_and_sends_the_rest(
    shell: Any, app: TaskQ, failed: list[Any]
) -> None:
    base = keys.base(app.name, "default")
    app.broker.call("LPUSH", base + "ready:proj.add", "garbage")
    app.broker.call("ZADD", base + "lanes", 5, "proj.add")
    with running_worker(app):
        until(lambda: len(app.dead.list()) == 4)
    done = shell.say("dead", "retry", "-A", "proj", "--all", "--yes")
    assert done.returncode == 1
    assert "cannot be sent again: not a taskq message" in done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert [one["kind"] for one in listed(shell)] == ["refused"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["retry"], "give ids, or --all"),
        (["retry", "x", "--all"], "give ids, or --all"),
        (["retry", "x", "--task", "proj.add"], "give ids, or --all"),
        (["retry", "nobody"], "there is no dead letter 'nobody'"),
        (["purge", "x", "-Q", "mail"], "give ids, or --queue and --task"),
        (["list", "-Q", "mial"], "did you mean 'mail'"),
        (["retry", "--all", "--task", "bad task"], "task name 'bad task'"),
        (["list", "--limit", "0"], "limit"),
        (["show", "x@a b"], "queue name"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_bad_input_is_told_in_a_line(shell: Any, words: list[str], told: str) -> None:
    verb, *rest = words
    done = shell.say("dead", verb, "-A", "proj", *rest)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_purge_of_some_and_of_all(shell: Any, failed: list[Any]) -> None:
    done = shell.say("dead", "purge", "-A", "proj", failed[0].id, "--yes")
    assert done.stdout == "purged 1 dead letters\n"
    assert shell.say("dead", "purge", "-A", "proj").returncode == 1
    assert len(listed(shell)) == 2
    told = shell.say("dead", "purge", "-A", "proj", "--task", "proj.add", "--yes", "--json")
    assert json.loads(told.stdout) == {"purged": 1}
    done = shell.say("dead", "purge", "-A", "proj", "-Q", "mail", "--yes")
    assert done.stdout == "purged 1 dead letters\n"
    assert listed(shell) == []


def test_nothing_from_redis_drives_the_terminal(shell: Any, app: TaskQ) -> None:
    """Whoever can write to Redis must not get to drive the terminal of an operator."""
    base, evil = keys.base(app.name, "default"), "evil\x1b[31m[red]\r\n\x9b2J"
    letter = b"%03d%b%08d" % (len(evil.encode()), evil.encode(), 98 + len(evil.encode()))
    letter += b"r" + b"0" * 97 + evil.encode() + b"bytes"
    for name in (f"id{evil}", "raw-1-2"):
        app.broker.call("ZADD", base + "dead", 4_000_000_000_000, name)
        app.broker.call("HSET", base + "dead:m", name, letter)
    for words in (["list"], ["list", "--json"], ["show", "raw-1-2"], ["retry", "--all", "--yes"]):
        done = shell.say("dead", words[0], "-A", "proj", *words[1:])
        assert not ESCAPES.search(done.stdout + done.stderr), words
        assert "Traceback" not in done.stderr
    assert r"evil\x1b[31m[red]\r\n" in shell.say("dead", "list", "-A", "proj").stdout
