"""Queues with partitions, from a shell: what workers serve, what is shown, how they grow."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import Cancelled, Queue, TaskQ
from taskq.broker import keys
from tests.cli.conftest import SECRET, Shell
from tests.eventually import until

COUNT = 4


def twin_of(shell: Shell, count: int) -> TaskQ:
    """Return a producer that says how many partitions `mail` has."""
    url = shell.environment["TASKQ_URL"]
    return TaskQ(shell.name, url=url, secret=SECRET, queues=[Queue("mail", partitions=count)])


@pytest.fixture
def divided(shell: Shell) -> Iterator[TaskQ]:
    shell.environment["TASKQ_QUEUES"] = f"mail:{COUNT}"
    with twin_of(shell, COUNT) as made:
        yield made


def send(app: TaskQ, name: str, *args: Any, **options: Any) -> taskq.Result[Any]:
    return app.send_task(f"proj.{name}", args, queue="mail", **options)


def status_of(shell: Shell, *words: str) -> Any:
    done = shell.say("status", "-A", "proj", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)["queues"]


class TestVerbs:
    def test_status_shows_the_sums_or_each_by_itself(self, shell: Shell, divided: TaskQ) -> None:
        for number in range(2 * COUNT + 1):
            send(divided, "add", number, 1)
        send(divided, "add", 1, 1, countdown=60)
        whole = status_of(shell)["mail"]["tasks"]["proj.add"]
        assert (whole["queued"], whole["scheduled"]) == (2 * COUNT + 1, 1)
        parts = status_of(shell, "--partitions", "-Q", "mail")
        assert list(parts) == list(keys.places("mail", COUNT))
        counts = [one["tasks"]["proj.add"]["queued"] for one in parts.values()]
        assert sorted(counts) == [2, 2, 2, 3]
        shown = shell.say("status", "-A", "proj", "--partitions").stdout
        assert f"mail/{COUNT - 1}" in shown

    def test_what_only_redis_knows_of_is_shown_and_purged(self, shell: Shell) -> None:
        with twin_of(shell, COUNT) as app:
            sent = [send(app, "add", 1, number) for number in range(2 * COUNT)]
            assert status_of(shell)["mail"]["tasks"]["proj.add"]["queued"] == 2 * COUNT
            done = shell.say("purge", "-A", "proj", "-Q", "mail", "--yes")
            assert (done.returncode, done.stdout) == (0, f"purged {2 * COUNT} messages\n")
            for one in sent:
                assert isinstance(one.exception(timeout=5), Cancelled)

    def test_messages_are_cancelled_and_moved_by_their_addresses(
        self, shell: Shell, divided: TaskQ
    ) -> None:
        ids = [send(divided, "add", 1, number, countdown=600).id for number in range(COUNT)]
        moved = shell.say("reschedule", *ids, "-A", "proj", "--countdown", "900")
        assert (moved.returncode, moved.stdout.count("moved")) == (0, COUNT)
        done = shell.say("cancel", *ids, "-A", "proj")
        assert (done.returncode, done.stdout.count("cancelled")) == (0, COUNT)

    def test_doctor_compares_the_numbers(self, shell: Shell, divided: TaskQ) -> None:
        send(divided, "add", 1, 1)
        good = shell.say("doctor", "-A", "proj")
        assert good.returncode == 0
        assert f"ok       partitions   {COUNT} of the queue mail" in good.stdout
        bad = shell.say("doctor", "-A", "proj", TASKQ_QUEUES="mail:2")
        assert bad.returncode == 1
        assert f"has {COUNT} of them, and this app says 2" in bad.stdout
        assert f"set TASKQ_QUEUES=mail:{COUNT}" in bad.stdout

    def test_a_call_is_sent_to_any_of_them(self, shell: Shell, divided: TaskQ) -> None:
        done = shell.say("call", "proj.add", "2", "3", "-A", "proj", "-Q", "mail")
        assert done.returncode == 0, done.stderr
        assert divided.result(done.stdout.strip()).queue == "mail"

    @pytest.mark.parametrize("queues", ["mail:", "mail:x", "mail:0", "mail:257", ":4"])
    def test_a_number_that_cannot_be_is_told(self, shell: Shell, queues: str) -> None:
        done = shell.say("worker", "proj", "-Q", queues)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("taskq: ")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
class TestWorker:
    def test_it_serves_as_many_as_it_is_told(self, shell: Shell) -> None:
        worker = shell.worker("proj", "-p", "1", "-Q", f"mail:{COUNT}")
        assert f"queues mail ({COUNT} partitions)" in worker.log
        with twin_of(shell, COUNT) as app:
            sent = [send(app, "add", number, 1) for number in range(3 * COUNT)]
            assert taskq.gather(sent, timeout=20) == [number + 1 for number in range(3 * COUNT)]
        (told,) = status_of(shell, "-Q", "mail")["mail"]["workers"]
        assert told["running"] == 0
        assert worker.stop() == 0

    def test_one_that_says_less_than_redis_knows_does_not_start(
        self, shell: Shell, divided: TaskQ
    ) -> None:
        send(divided, "add", 1, 1)
        done = shell.type("worker", "proj", "-p", "1", TASKQ_QUEUES="mail:2")
        assert done.returncode == 2
        assert (
            f"has {COUNT} partitions, not 2: say Queue('mail', partitions={COUNT})" in done.stderr
        )
        assert len(done.stderr.splitlines()) == 1

    def test_dead_letters_of_all_are_listed(self, shell: Shell, divided: TaskQ) -> None:
        sent = [send(divided, "fail") for _ in range(COUNT)]
        assert shell.type("worker", "proj", "-p", "1", "--burst", seconds=40).returncode == 0
        listed = shell.say("dead", "list", "-A", "proj", "-Q", "mail", "--json")
        assert {one["id"] for one in json.loads(listed.stdout)} == {one.id for one in sent}
        purged = shell.say("dead", "purge", "-A", "proj", "-Q", "mail", "--yes")
        assert purged.stdout == f"purged {COUNT} dead letters\n"

    def test_what_a_killed_child_held_is_taken_back_in_each(
        self, shell: Shell, divided: TaskQ, tmp_path: Path
    ) -> None:
        worker = shell.worker("proj", "-p", "1", "-t", str(COUNT))
        held = [send(divided, "hold", str(tmp_path)) for _ in range(COUNT)]
        until(lambda: len(list(tmp_path.glob("started-*"))) == COUNT, 20)
        (child,) = worker.children()
        os.kill(child, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert taskq.gather(held, timeout=30) == [[1, 2]] * COUNT
        assert worker.stop() == 0

    def test_what_a_lost_host_held_is_taken_back_in_each(
        self, shell: Shell, divided: TaskQ, tmp_path: Path
    ) -> None:
        first = shell.worker("proj", "-p", "1", "-t", str(COUNT), TASKQ_LEASE="1")
        held = [send(divided, "hold", str(tmp_path)) for _ in range(COUNT)]
        until(lambda: len(list(tmp_path.glob("started-*"))) == COUNT, 20)
        shell.worker("proj", "-p", "1", "-t", str(COUNT), TASKQ_LEASE="1")
        family = [first.process.pid, *first.children()]
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert taskq.gather(held, timeout=40) == [[1, 2]] * COUNT


@pytest.mark.slow
class TestGrowth:
    """A lease of a second: so long it takes a worker to learn."""

    def test_a_running_worker_serves_more_when_there_are_more(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        with twin_of(shell, 2) as before, twin_of(shell, COUNT) as after:
            worker = shell.worker("proj", "-p", "1", "-t", "4", "-Q", "mail:2", TASKQ_LEASE="1")
            held = [send(before, "hold", str(tmp_path)) for _ in range(2)]
            until(lambda: len(list(tmp_path.glob("started-*"))) == 2, 20)
            early = [send(before, "add", number, 0, countdown=3) for number in range(10)]
            late = [send(after, "add", number, 0) for number in range(100)]
            assert {one.place for one in late} == set(keys.places("mail", COUNT))
            assert taskq.gather(late, timeout=60) == list(range(100))
            (tmp_path / "go").touch()
            assert taskq.gather(held, timeout=30) == [[1, 1]] * 2
            assert taskq.gather(early, timeout=30) == list(range(10))
            # Who began with less goes on with what it knows.
            still = [send(before, "add", number, 0) for number in range(10)]
            assert taskq.gather(still, timeout=20) == list(range(10))
            assert f"by now mail has {COUNT} partitions" in worker.log
            worker.says("restarted 1 children", 30)
            assert worker.stop() == 0

    def test_a_number_that_redis_forgot_is_said_again(self, shell: Shell) -> None:
        worker = shell.worker("proj", "-p", "1", "-Q", f"mail:{COUNT}", TASKQ_LEASE="1")
        with twin_of(shell, COUNT) as app:
            key = keys.partitions(shell.name, "mail")
            until(lambda: app.broker.call("GET", key) == b"%d" % COUNT)
            app.broker.call("DEL", key)
            until(lambda: app.broker.call("GET", key) == b"%d" % COUNT, 20)
        assert worker.stop() == 0
