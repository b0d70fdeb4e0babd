"""`taskq schedule`, `taskq beat`, and workers that fire schedules, as users start them."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from taskq import TaskQ
from tests.cli.conftest import Shell
from tests.eventually import let_pass, until

pytestmark = pytest.mark.slow

DECLARED = """

@app.periodic(every=1, name="often", args=(1, 2))
@app.task
def sum_up(x, y):
    return x + y
"""
NEVER = "0 0 1 1 *"


def ok(shell: Shell, *words: str) -> str:
    done = shell.say("schedule", *words, "-A", "proj")
    assert (done.returncode, done.stderr) == (0, ""), words
    return done.stdout


def refused(shell: Shell, *words: str) -> str:
    done = shell.say("schedule", *words, "-A", "proj")
    assert (done.returncode, done.stdout) in ((1, ""), (2, "")), (words, done.stdout)
    assert "Traceback" not in done.stderr
    return done.stderr


def declare(shell: Shell) -> None:
    project = (shell.folder / "proj.py").read_text(encoding="utf-8")
    shell.write("proj.py", project + DECLARED)


def fired(app: TaskQ, name: str = "often") -> int:
    return sum(one.fired for one in app.schedules.list() if one.name == name)


def test_a_worker_fires_and_runs_what_its_code_declares(shell: Shell, app: TaskQ) -> None:
    declare(shell)
    worker = shell.worker()
    assert "the schedule often on default: every 1 s, proj.sum_up" in worker.says("often")
    until(lambda: fired(app) >= 2)
    one = app.schedules.get("often")
    assert one.declared_by == "proj"
    assert app.result(one.last_id or "").get(timeout=14) == 3
    assert worker.stop() == 0


def test_one_that_takes_no_part_fires_nothing(shell: Shell, app: TaskQ) -> None:
    declare(shell)
    worker = shell.worker("proj", "-p", "1", "--no-schedules")
    app.schedules.add("mine", app_call(app), every=1)
    let_pass(1.5)
    assert [one.name for one in app.schedules.list()] == ["mine"]
    assert fired(app, "mine") == 0
    assert worker.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_beat_fires_and_runs_nothing_until_it_is_told_to_stop(
    shell: Shell, app: TaskQ, number: signal.Signals
) -> None:
    declare(shell)
    beat = shell.start("beat", "proj")
    beat.says("fires the schedules of app")
    until(lambda: fired(app) >= 2)
    assert beat.children() == []
    assert app.result(app.schedules.get("often").last_id or "").status == "QUEUED"
    beat.send(number)
    assert beat.ends() == 0
    assert beat.log.rstrip().endswith("stopped")


def test_beat_says_in_a_line_why_it_cannot_begin(shell: Shell) -> None:
    assert "which app?" in shell.say("beat").stderr
    for words, text in (
        (("beat", "nothing"), "no module named 'nothing'"),
        (("beat", "proj", "-Q", "a b"), "queue names"),
        (("beat", "proj", "-Q", "nope"), "nobody declared the queue 'nope'"),
        (("beat", "proj", "-n", "a b"), "--name"),
    ):
        done = shell.say(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert text in done.stderr
    done = shell.say("beat", "proj", TASKQ_URL="memory://")
    assert "memory:// lives in one process" in done.stderr


def test_the_verbs(shell: Shell, app: TaskQ) -> None:
    assert ok(shell, "list") == "no schedules\n"
    made = ok(
        shell, "add", "report-42", "add", "2", "3", "--cron", "0 7 * * mon",
        "--timezone", "Europe/Berlin", "--overlap", "skip", "--catch-up", "last", "--jitter", "30s",
    )  # fmt: skip
    assert made.startswith("report-42: 20")
    one = app.schedules.get("report-42")
    assert (one.task, one.rule, one.overlap) == ("proj.add", "0 7 * * mon Europe/Berlin", "skip")
    listed = ok(shell, "list")
    for cell in ("report-42", "proj.add", "0 7 * * mon Europe/Berlin", "07:00:00"):
        assert cell in listed
    ticks = ok(shell, "next", "report-42", "-n", "3").splitlines()
    assert ticks == [tick.isoformat() for tick in app.schedules.next("report-42", 3)]
    assert ok(shell, "pause", "report-42", "--note", "holidays") == "report-42: paused\n"
    assert "paused: holidays" in ok(shell, "list")
    assert ok(shell, "resume", "report-42") == "report-42: resumed\n"
    assert not app.schedules.get("report-42").paused
    id = ok(shell, "run", "report-42").removeprefix("report-42: ").rstrip()
    assert app.result(id).status == "QUEUED"
    span = ("2026-01-01T00:00:00+01:00", "2026-02-01T00:00:00+01:00")
    assert ok(shell, "backfill", "report-42", *span) == "report-42: 4 ticks\n"
    assert ok(shell, "remove", "report-42") == "report-42: removed\n"
    assert app.schedules.list() == []


def test_the_verbs_for_programs(shell: Shell, app: TaskQ) -> None:
    def said(*words: str) -> Any:
        return json.loads(ok(shell, *words, "--json"))

    made = said("add", "daily", "proj.add", "2", "--kwargs", '{"y": 3}', "--every", "1d")
    assert (made["name"], made["rule"], made["paused"]) == ("daily", "every 86400 s", False)
    assert said("list") == [made]
    assert said("list", "-Q", "mail") == []
    assert said("next", "daily", "-n", "1") == [made["next_at"]]
    assert said("pause", "daily") == {"done": {"daily": "paused"}, "failed": {}}
    assert said("resume", "daily")["done"] == {"daily": "resumed"}
    id = said("run", "daily")["done"]["daily"]
    assert app.result(id).status == "QUEUED"
    ids = said("backfill", "daily", "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z")
    assert ids == ["daily:2026-01-01T00:00:00Z", "daily:2026-01-02T00:00:00Z"]
    done = shell.say("schedule", "remove", "daily", "dayly", "--json", "-A", "proj")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["done"] == {"daily": "removed"}
    assert list(answer["failed"]) == ["dayly"]


WRONG = [
    (("add", "x", "add", "1", "2"), "a schedule needs cron= or every="),
    (("add", "x", "add", "1", "2", "--cron", NEVER, "--timezone", "Europe/Berln"), "Europe/Berlin"),
    (("add", "x", "add", "1", "2", "--every", "5 days"), "is no duration"),
    (("add", "x", "add", "1", "2", "--every", "5", "--start", "2026-01-01T00:00"), "with its zone"),
    (("add", "x", "add", "1", "2", "--every", "5", "--overlap", "skp"), "did you mean 'skip'"),
    (("add", "x", "add", "1", "--every", "5"), "missing a required argument: 'y'"),
    (("add", "a b", "add", "1", "2", "--every", "5"), "schedule name 'a b'"),
    (("add", "x", "add", "1", "2", "--every", "5", "-Q", "nope"), "nobody declared the queue"),
    (("pause", "x"), "there is no schedule 'x'"),
    (("remove", "x@nope"), "nobody declared the queue"),
    (("backfill", "x", "2026-01-02T00:00Z", "2026-01-01T00:00Z"), "must be after start"),
    (("list", "-Q", "nope"), "nobody declared the queue"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_said_in_a_line(shell: Shell, words: Any, text: str) -> None:
    assert text in refused(shell, *words)


def test_what_code_declares_is_not_removed_by_hand(shell: Shell, app: TaskQ) -> None:
    declare(shell)
    worker = shell.worker()
    until(lambda: fired(app))
    assert "declared in proj, by workers that live" in refused(shell, "remove", "often")
    assert ok(shell, "pause", "often", "--note", "x") == "often: paused\n"
    assert worker.stop() == 0


@pytest.mark.slow
def test_what_code_declares_no_more_goes_and_what_it_changes_keeps_its_counts(
    shell: Shell, app: TaskQ
) -> None:
    plain = (shell.folder / "proj.py").read_text(encoding="utf-8")
    declare(shell)
    worker = shell.worker("proj", "-p", "1", TASKQ_LEASE="0.5")
    count = until(lambda: fired(app))
    shell.write("proj.py", plain + DECLARED.replace("every=1", 'cron="0 0 1 1 *"'))
    worker.send(signal.SIGHUP)
    until(lambda: app.schedules.get("often").rule == NEVER, 15)
    assert fired(app) >= count
    shell.write("proj.py", plain)
    worker.send(signal.SIGHUP)
    worker.says("removed the schedule often on default: proj does not declare it any more")
    assert app.schedules.list() == []
    assert worker.stop() == 0


def app_call(app: TaskQ) -> Any:
    """Return a call of a task whose code is not here."""
    from taskq import Signature

    return Signature(app, "proj.add", (1, 2), {})
