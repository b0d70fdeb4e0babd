"""What people ask and do from a shell: status, purge, call, secret, redis."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import Cancelled, State, TaskQ
from taskq.broker import embedded, keys
from tests.cli.conftest import Shell
from tests.eventually import until

ECHO = """

@app.task
def echo(*args, **kwargs):
    return [list(args), kwargs]
"""
ESCAPES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]")


def status_of(shell: Any, *words: str) -> Any:
    done = shell.say("status", "-A", "proj", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def row_of(text: str, task: str) -> list[str]:
    return next(line.split(maxsplit=5) for line in text.splitlines() if task in line)


class TestStatus:
    def test_of_nothing(self, shell: Any) -> None:
        done = shell.say("status", "-A", "proj")
        assert done.returncode == 0
        assert "(empty)" in done.stdout
        assert "no live worker" in done.stdout
        told = status_of(shell)
        assert told["app"] == shell.name
        empty = {"tasks": {}, "workers": [], "counts": {}}
        assert told["queues"] == {"default": empty, "mail": empty}

    def test_of_what_waits_and_what_runs(self, shell: Any, app: TaskQ, tmp_path: Path) -> None:
        worker = shell.worker("proj", "-p", "1", "-t", "1", "-n", "tom")
        held = app.send_task("proj.hold", (str(tmp_path),))
        until(lambda: list(tmp_path.glob("started-*")))
        for _ in range(3):
            app.send_task("proj.add", (1, 2))
        app.send_task("proj.add", (1, 2), countdown=100)
        app.send_task("proj.add", (1, 2), queue="mail", priority=9, countdown=100)
        app.send_task("shop.unknown", queue="mail")
        text = shell.say("status", "-A", "proj").stdout
        assert row_of(text, "proj.hold") == ["default", "proj.hold", "0", "0", "1"]
        assert row_of(text, "proj.add") == ["default", "proj.add", "3", "1", "0"]
        unknown = row_of(text, "shop.unknown")
        assert unknown == ["mail", "shop.unknown", "1", "0", "0", "no live worker knows this task"]
        assert "tom" in text
        told = status_of(shell)["queues"]
        assert told["default"]["tasks"] == {
            "proj.add": {"queued": 3, "scheduled": 1, "running": 0, "known": True},
            "proj.hold": {"queued": 0, "scheduled": 0, "running": 1, "known": True},
        }
        assert told["mail"]["tasks"]["proj.add"]["scheduled"] == 1
        assert told["mail"]["tasks"]["shop.unknown"]["known"] is False
        (one,) = told["default"]["workers"]
        assert (one["name"], one["running"]) == ("tom", 1)
        assert 0 < one["lease_left"] <= 15
        (tmp_path / "go").touch()
        assert held.get(timeout=14) == [1, 1]
        assert worker.stop() == 0
        assert status_of(shell)["queues"]["default"]["workers"] == []

    def test_of_some_queues(self, shell: Any, app: TaskQ) -> None:
        app.send_task("proj.add", (1, 2), queue="mail")
        assert list(status_of(shell, "-Q", "mail")["queues"]) == ["mail"]
        assert "default" not in shell.say("status", "-A", "proj", "-Q", "mail").stdout

    @pytest.mark.parametrize(
        ("queues", "told"),
        [
            ("mail,mial", "did you mean 'mail'"),
            ("a b", "queue names have"),
            (",", "queue names have"),
        ],
    )
    def test_of_what_is_no_queue(self, shell: Any, queues: str, told: str) -> None:
        done = shell.say("status", "-A", "proj", "-Q", queues)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr

    def test_shows_no_control_characters(self, shell: Any, app: TaskQ) -> None:
        """Whoever can write to Redis must not get to drive the terminal of an operator."""
        base, evil = keys.base(app.name, "default"), "evil\x1b[31m[red]\r\n\x9b2J"
        app.broker.call("LPUSH", f"{base}ready:{evil}", "garbage")
        app.broker.call("ZADD", base + "lanes", 5, evil)
        done = shell.say("status", "-A", "proj")
        assert done.returncode == 0, done.stderr
        assert not ESCAPES.search(done.stdout)
        assert r"evil\x1b[31m[red]\r\n" in done.stdout
        as_json = shell.say("status", "-A", "proj", "--json").stdout
        assert not ESCAPES.search(as_json)
        assert evil in json.loads(as_json)["queues"]["default"]["tasks"]

    def test_counts_what_was_set_aside(self, shell: Any, app: TaskQ) -> None:
        base = keys.base(app.name, "default")
        app.broker.call("LPUSH", base + "ready:proj.add", "garbage")
        app.broker.call("ZADD", base + "lanes", 5, "proj.add")
        assert shell.type("worker", "proj", "-p", "1", "--burst").returncode == 0
        assert "default: 1 refused" in shell.say("status", "-A", "proj").stdout
        assert status_of(shell)["queues"]["default"]["counts"] == {"refused": 1}

    def test_without_a_server(self, shell: Any) -> None:
        url = "redis://:hunter2@127.0.0.1:1"
        done = shell.say("status", "-A", "proj", TASKQ_URL=url, TASKQ_ENQUEUE_DEADLINE="0.2")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "127.0.0.1:1" in done.stderr
        assert "hunter2" not in done.stderr


class TestPurge:
    def test_throws_away_what_waits_and_tells_who_waits_for_it(
        self, shell: Any, app: TaskQ
    ) -> None:
        results = [app.send_task("proj.add", (1, 2)) for _ in range(3)]
        results.append(app.send_task("proj.add", (1, 2), countdown=100))
        other = app.send_task("proj.add", (1, 2), queue="mail")
        errors: list[Any] = []
        waiting = threading.Thread(target=lambda: errors.append(results[0].exception(timeout=20)))
        waiting.start()
        done = shell.say("purge", "-A", "proj", "-Q", "default", "--yes")
        assert (done.returncode, done.stdout) == (0, "purged 4 messages\n")
        waiting.join(10)
        errors += [result.exception(timeout=14) for result in results]
        assert [type(error) for error in errors] == [Cancelled] * 5
        assert "purged" in str(errors[0])
        assert other.status is State.QUEUED

    def test_of_one_task(self, shell: Any, app: TaskQ) -> None:
        gone = [app.send_task("proj.pid", priority=one) for one in (5, 9)]
        stays = app.send_task("proj.add", (1, 2))
        done = shell.say("purge", "-A", "proj", "-Q", "default", "--task", "proj.pid", "--yes")
        assert done.stdout == "purged 2 messages\n"
        assert [one.status for one in (*gone, stays)] == [State.CANCELLED] * 2 + [State.QUEUED]

    def test_asks_first(self, shell: Any, app: TaskQ) -> None:
        """Nobody answers here: nothing is thrown away."""
        result = app.send_task("proj.add", (1, 2))
        done = shell.say("purge", "-A", "proj", "-Q", "default")
        assert done.returncode == 1
        assert f"all messages on default of the app {shell.name}?" in done.stdout
        assert result.status is State.QUEUED

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["-Q", "mial"], "did you mean 'mail'"),
            (["-Q", "mail", "--task", "bad task"], "task name 'bad task'"),
        ],
        ids=" ".join,
    )
    def test_of_what_nobody_declared_does_not_even_ask(
        self, shell: Any, words: list[str], told: str
    ) -> None:
        done = shell.say("purge", "-A", "proj", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Shell]:
    """A project whose worker runs, for all the tests of `taskq call`."""
    with Shell(tmp_path_factory.mktemp("call"), redis_url) as made:
        made.write("proj.py", (made.folder / "proj.py").read_text() + ECHO)
        made.write("more.py", "from proj import app\n\n@app.task\ndef add(): ...\n")
        made.worker("proj", "-p", "1")
        yield made


class TestCall:
    def test_enqueues_and_prints_the_id(self, serving: Shell) -> None:
        done = serving.type("call", "-A", "proj", "proj.add", "2", "3")
        assert done.returncode == 0
        with serving.app() as app:
            assert app.result(done.stdout.strip()).get(timeout=14) == 5

    def test_waits_and_prints_the_value(self, serving: Shell) -> None:
        words = ["1", "2.5", "true", "null", '"3"', "[1,{}]", "text", "-1", "it's"]
        done = serving.type("call", "-A", "proj", "proj.echo", "--wait", "--", *words)
        assert done.stderr == ""
        given = [1, 2.5, True, None, "3", [1, {}], "text", -1, "it's"]
        assert done.stdout == f"{[given, {}]!r}\n"

    def test_takes_keyword_arguments_as_json(self, serving: Shell) -> None:
        done = serving.type(
            "call", "-A", "proj", "add", "1", "--kwargs", '{"y": 2}', "-Q", "mail",
            "--wait", "--timeout", "10", "--countdown", "0.1",
        )  # fmt: skip
        assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)

    def test_needs_no_more_of_the_name_than_tells_it_apart(self, serving: Shell) -> None:
        assert serving.type("call", "-A", "proj", "add", "1", "2", "--wait").stdout == "3\n"
        done = serving.type("call", "-A", "more:app", "add", "1", "2", "--wait")
        assert done.returncode == 2
        assert "more.add, proj.add" in done.stderr
        assert (
            serving.type("call", "-A", "more:app", "proj.add", "1", "2", "--wait").stdout == "3\n"
        )

    @pytest.mark.parametrize(
        ("words", "code", "text"),
        [
            (["fail", "--wait"], 1, "proj.fail raised KeyError: 'told you so'"),
            (["proj.ad", "1"], 2, "did you mean 'proj.add'"),
            (["nothing.like.it"], 2, "proj.add"),
            (["add", "1"], 1, "TypeError: proj.add: missing a required argument: 'y'"),
            (["add", "1", "2", "-Q", "mial"], 1, "did you mean 'mail'"),
            (["add", "1", "2", "--countdown", "-1"], 2, "countdown"),
            (["add", "1", "2", "--countdown", "9", "--wait", "--timeout", "0.1"], 1, "Timeout"),
        ],
        ids=lambda one: " ".join(one) if isinstance(one, list) else "",
    )
    def test_says_what_is_wrong(
        self, serving: Shell, words: list[str], code: int, text: str
    ) -> None:
        done = serving.type("call", "-A", "proj", *words)
        assert text in done.stderr
        assert done.returncode == code
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kwargs", ["{", "[1]", "5", '"text"'])
def test_keyword_arguments_that_are_none_are_told_by_their_option(shell: Any, kwargs: str) -> None:
    done = shell.say("call", "-A", "proj", "add", "--kwargs", kwargs)
    assert "--kwargs" in done.stderr
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_a_secret_is_new_each_time(shell: Any) -> None:
    first, second = (shell.type("secret", TASKQ_APP="no.such").stdout for _ in range(2))
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{64}\n", first)


class TestRedis:
    @pytest.fixture
    def at_home(self, shell: Any, tmp_path: Path) -> Any:
        """A project that names no Redis."""
        home = {"TASKQ_URL": "", "TASKQ_SECRET": "", "TASKQ_STATE_DIR": str(tmp_path / "st")}
        shell.environment |= home
        return shell

    @pytest.mark.skipif(not embedded.is_available(None), reason="needs the extra `embedded`")
    def test_runs_in_the_foreground_until_told_to_stop(self, at_home: Any) -> None:
        server = at_home.start("redis", "-A", "proj")
        url = server.says("\n").split()[0]
        assert url.startswith("unix://")
        worker = at_home.start("worker", "proj", "-p", "1")
        done = at_home.type("call", "-A", "proj", "add", "1", "2", "--wait", "--timeout", "15")
        assert (done.stdout, done.stderr) == ("3\n", "")
        assert worker.stop() == 0
        server.send(signal.SIGINT)
        assert server.ends() == 0

    def test_is_not_for_an_app_that_names_a_redis(self, shell: Any) -> None:
        done = shell.type("redis", "-A", "proj")
        assert done.returncode == 2
        assert "nothing embedded to run" in done.stderr
