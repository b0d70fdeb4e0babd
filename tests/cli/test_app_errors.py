"""An app that cannot be had: one line that says what was found and what to type, exit 2."""

from __future__ import annotations

from typing import Any

import pytest

NO_APP = "x = 1\n"
TWO_APPS = "from taskq import TaskQ\none = TaskQ('one')\ntwo = TaskQ('two')\n"
BROKEN = "from taskq import TaskQ\napp = TaskQ('a')\nimport no_such_thing\n"
RAISES = "from taskq import TaskQ\napp = TaskQ('a')\n1 / 0\n"
SYNTAX = "def (:\n"
LEAVES = "import sys\nfrom taskq import TaskQ\napp = TaskQ('a')\nsys.exit(3)\n"
MISUSED = "from taskq import TaskQ\napp = TaskQ('a')\n@app.task(prioritty=3)\ndef f(): ...\n"
MISSING_PART = "from taskq import TaskQ\napp = TaskQ('a', include=['proj', 'proj.nothing'])\n"
BAD_LIFESPAN = """
from contextlib import contextmanager
from taskq import TaskQ

@contextmanager
def lifespan(app):
    raise RuntimeError("no database")
    yield

app = TaskQ("a", lifespan=lifespan)
"""
ANYWHERE = ["worker", "status"]


def typed(shell: Any, verb: str) -> Any:
    """Return what carries a verb out; only a worker needs a process of its own."""
    return shell.type if verb == "worker" else shell.say


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("verb", ANYWHERE)
@pytest.mark.parametrize(
    ("module", "code", "app", "words"),
    [
        ("nomodule", None, "nomodule", ["no module named 'nomodule'"]),
        ("noapp", NO_APP, "noapp", ["no TaskQ in 'noapp'", "module:attribute"]),
        ("two", TWO_APPS, "two", ["two:one", "two:two"]),
        ("two", TWO_APPS, "two:three", ["two:three", "two:one"]),
        ("noapp", NO_APP, "noapp:x", ["noapp:x", "int"]),
        ("broken", BROKEN, "broken", ["no_such_thing", "broken.py:3"]),
        ("raises", RAISES, "raises", ["ZeroDivisionError", "raises.py:3"]),
        ("syntax", SYNTAX, "syntax", ["SyntaxError"]),
        ("leaves", LEAVES, "leaves", ["leaves", "SystemExit"]),
        ("misused", MISUSED, "misused", ["prioritty", "priority"]),
        ("partial", MISSING_PART, "partial", ["proj.nothing"]),
        ("proj", None, "proj.py", ["path", "proj"]),
        ("proj", None, "./proj.py", ["path", "proj"]),
    ],
)
def test_an_app_that_cannot_be_loaded(
    shell: Any, verb: str, module: str, code: str | None, app: str, words: list[str]
) -> None:
    if code is not None:
        shell.write(f"{module}.py", code)
    done = typed(shell, verb)(verb, "-A", app)
    line = one_line(done.stderr)
    assert [word for word in words if word not in line] == []
    assert done.returncode == 2


def test_no_app_at_all(shell: Any) -> None:
    for verb in (["worker"], ["status"], ["call", "add"], ["purge", "-Q", "mail", "--yes"]):
        done = shell.say(*verb)
        assert "TASKQ_APP" in one_line(done.stderr)
        assert done.returncode == 2


def test_a_lifespan_that_fails_ends_the_worker(shell: Any) -> None:
    shell.write("bad.py", BAD_LIFESPAN)
    done = shell.type("worker", "bad", seconds=8)
    assert "no database" in one_line(done.stderr)
    assert done.returncode == 2


def test_memory_is_no_place_for_a_worker(shell: Any) -> None:
    done = shell.type("worker", "proj", TASKQ_URL="memory://")
    assert "memory://" in one_line(done.stderr)
    assert "running_worker" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("verb", ["worker", "status", "redis"])
@pytest.mark.parametrize(
    "variables",
    [{"TASKQ_THREADS": "many"}, {"TASKQ_SECRET": "short"}, {"TASKQ_LEASE": "-1"}],
    ids=lambda one: next(iter(one)),
)
def test_a_wrong_setting_is_one_line(shell: Any, verb: str, variables: dict[str, str]) -> None:
    done = typed(shell, verb)(verb, "-A", "proj", **variables)
    line = one_line(done.stderr)
    assert next(iter(variables)) in line
    assert "short" not in line.replace("shorter", "")
    assert done.returncode == 2


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@localhost/0",
        "redis://:hunter2#x@localhost/0",
        ":hunter2@localhost",
        "redis://[::1",
        "http://:hunter2@localhost",
    ],
)
def test_a_wrong_url_is_one_line_without_its_password(shell: Any, url: str) -> None:
    done = shell.say("status", "-A", "proj", TASKQ_URL=url)
    line = one_line(done.stderr)
    assert "url" in line
    assert "hunter2" not in line
    assert done.returncode in (1, 2)


def test_a_misspelt_variable_is_named_with_the_nearest(shell: Any) -> None:
    done = shell.type("status", "-A", "proj", TASKQ_TREADS="3", PYTHONWARNINGS="default")
    assert "TASKQ_TREADS" in done.stderr
    assert "TASKQ_THREADS" in done.stderr
    assert done.returncode == 0
