"""`taskq reschedule`: messages that wait get another time."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from taskq import TaskQ


def test_it_says_what_it_did(shell: Any, app: TaskQ) -> None:
    later = app.send_task("proj.add", (1, 2), countdown=3600)
    queued = app.send_task("proj.add", (1, 2))
    over = app.send_task("proj.add", (1, 2))
    over.cancel()
    words = ("reschedule", "-A", "proj", later.id, queued.id, over.id, "nobody")
    done = shell.type(*words, "--eta", "2035-01-31T07:00+01:00")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{later.id}: moved; it waits for its new time",
        f"{queued.id}: its time had come: it is queued",
        f"{over.id}: it was over already",
        "nobody: Redis does not know this id",
    ]
    assert later.snapshot().due_at == dt.datetime(2035, 1, 31, 6, tzinfo=dt.UTC)
    told = json.loads(shell.type(*words, "--countdown", "60", "--json").stdout)
    assert told == {later.id: "moved", queued.id: "queued", over.id: "over", "nobody": "unknown"}
    left = later.snapshot().due_at - dt.datetime.now(dt.UTC)
    assert dt.timedelta(seconds=30) < left <= dt.timedelta(seconds=60)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["x"], "when"),
        (["--countdown", "1"], "ID"),
        (["x", "--countdown", "1", "--eta", "2030-01-01T00:00Z"], "do not go together"),
        (["x", "--countdown", "nan"], "number of seconds"),
        (["x", "--countdown", "9e9"], "ten years"),
        (["x", "--eta", "2030-01-01T00:00"], "says no offset"),
        (["x", "--eta", "tomorrow"], "no instant"),
        (["x", "--eta", "2099-01-01T00:00Z"], "ten years"),
        (["x@a b", "--countdown", "1"], "queue name"),
    ],
)
def test_bad_input_is_told_in_a_line(shell: Any, words: list[str], told: str) -> None:
    done = shell.type("reschedule", "-A", "proj", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
