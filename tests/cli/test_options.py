"""Where the app is named, and the flags of `taskq worker`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.eventually import until

VERBS = ["worker", "redis", "status", "purge", "call", "doctor", "health", "acl", "secret"]
MORE = "from proj import app\n\n@app.task\ndef more(): return '{name}'\n"


def test_the_version_is_told(shell: Any) -> None:
    """It is that of the distribution, `taskq-redis`, here one of 9.9."""
    metadata = "Metadata-Version: 2.1\nName: taskq-redis\nVersion: 9.9\n"
    shell.write("taskq_redis-9.9.dist-info/METADATA", metadata)
    done = shell.type("--version")
    assert (done.returncode, done.stdout.split()[-1]) == (0, "9.9")


@pytest.mark.parametrize(
    "words", [["-h"], ["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join
)
def test_every_verb_explains_itself(shell: Any, words: list[str]) -> None:
    done = shell.say(*words, TASKQ_APP="no.such")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: " in done.stdout


@pytest.mark.parametrize(
    "words", [["nonsense"], ["worker", "--nonsense"], ["purge", "-A", "proj"], ["call"]]
)
def test_what_is_no_command_exits_with_2(shell: Any, words: list[str]) -> None:
    done = shell.say(*words)
    assert done.returncode == 2
    assert "Usage: " in done.stderr


def test_the_installed_command_is_the_same_program(shell: Any) -> None:
    script = Path(sys.executable).with_name("taskq")
    entry = "import sys; from taskq.cli import main; sys.argv[0] = 'taskq'; main()"
    command = [str(script)] if script.exists() else [sys.executable, "-c", entry]
    done = subprocess.run(
        [*command, "worker", "--help"],
        cwd=shell.folder, env=shell.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    same = shell.type("worker", "--help")
    assert done.stdout.split()[2:] == same.stdout.replace("python -m taskq", "taskq").split()[2:]


@pytest.mark.parametrize(
    "words",
    [
        ["-A", "proj", "status"],
        ["--app", "proj:app", "status"],
        ["status", "-A", "proj"],
        ["status", "--app", "proj:app"],
        ["-A", "no.such", "status", "-A", "proj"],
    ],
    ids=" ".join,
)
def test_the_app_is_named_before_or_after_the_verb(shell: Any, words: list[str]) -> None:
    done = shell.say(*words, TASKQ_APP="no.such.either")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mail" in done.stdout


@pytest.mark.parametrize(
    "verb",
    [
        ["status", "--json"],
        ["purge", "-Q", "mail", "--yes"],
        ["call", "add", "1", "2"],
        ["worker", "-p", "1", "--burst"],
    ],
    ids=lambda verb: verb[0],
)
def test_every_verb_takes_it_from_all_three_places(shell: Any, verb: list[str]) -> None:
    name, *rest = verb
    for words, app in (([*verb], "proj"), (["-A", "proj", *verb], ""), ([name, "-A", "proj"], "")):
        done = shell.type(*words, *(rest if len(words) == 3 and not app else []), TASKQ_APP=app)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["worker", "proj"],
        ["worker", "proj:app", "extra", "pack.*"],
        ["worker", "-A", "proj", "extra", "pack.*"],
        ["-A", "proj", "worker", "extra"],
    ],
    ids=" ".join,
)
def test_a_worker_imports_the_modules_it_is_told(shell: Any, app: Any, words: list[str]) -> None:
    shell.write("extra.py", MORE.format(name="extra"))
    shell.write("pack/__init__.py", "")
    shell.write("pack/one.py", MORE.format(name="one"))
    shell.write("pack/two.py", MORE.format(name="two"))
    expected = {"proj.add": 3}
    if "extra" in words:
        expected["extra.more"] = "extra"
    if "pack.*" in words:
        expected |= {"pack.one.more": "one", "pack.two.more": "two"}
    results = {name: app.send_task(name, (1, 2) if "add" in name else ()) for name in expected}
    worker = shell.start(*words, "-p", "1")
    got = {name: result.get(timeout=14) for name, result in results.items()}
    assert got == expected
    assert worker.stop() == 0


def test_a_worker_may_get_its_app_from_the_environment(shell: Any, app: Any) -> None:
    worker = shell.worker("-p", "1", TASKQ_APP="proj")
    assert app.send_task("proj.add", (1, 2)).get(timeout=14) == 3
    assert worker.stop() == 0


@pytest.mark.parametrize("flags", [["-p", "2"], ["-t", "2"], ["-p", "2", "-t", "1"]], ids=" ".join)
def test_one_form_of_concurrency_excludes_the_other(shell: Any, flags: list[str]) -> None:
    done = shell.say("worker", "proj", "-c", "2", *flags)
    assert done.returncode == 2
    assert "either -c, or -p and -t" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_concurrency_is_processes_of_one_thread(shell: Any, app: Any, tmp_path: Path) -> None:
    worker = shell.worker("proj", "-c", "2")
    until(lambda: len(worker.children()) == 2)
    results = [app.send_task("proj.hold", (str(tmp_path),)) for _ in range(3)]
    until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
    assert "1 threads" in worker.log
    (tmp_path / "go").touch()
    assert [result.get(timeout=14)[0] for result in results] == [1, 1, 1]
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "0"],
        ["-c", "0"],
        ["-p", "x"],
        ["-t", "-1"],
        ["-l", "loud"],
        ["--log-format", "xml"],
        ["--shutdown-timeout", "-1"],
        ["--shutdown-timeout", "nan"],
        ["--health-port", "0", "--health-patience", "nan"],
        ["-t", "0", "--coroutines", "0"],
        ["-n", "no spaces"],
        ["-Q", "no spaces"],
        ["-Q", ","],
        ["--memory-limit", "100M", "--max-memory-per-child", "200M"],
    ],
    ids=" ".join,
)
def test_a_flag_that_cannot_be_meant_exits_with_2(shell: Any, words: list[str]) -> None:
    done = shell.say("worker", "proj", "-p", "1", "--burst", *words)
    assert done.returncode == 2, done.stderr
    assert words[0].strip("-") in done.stderr


def test_only_the_queues_named_are_served(shell: Any, app: Any) -> None:
    mail = app.send_task("proj.add", (1, 2), queue="mail")
    default = app.send_task("proj.add", (3, 4))
    worker = shell.worker("proj", "-p", "1", "-Q", " mail , mail ", "-n", "post.man-1")
    assert mail.get(timeout=14) == 3
    assert mail.snapshot().worker == "post.man-1"
    assert not default.ready()
    assert "post.man-1" in worker.log
    assert worker.stop() == 0


def test_a_queue_that_nobody_declared_is_not_served(shell: Any) -> None:
    done = shell.type("worker", "proj", "-p", "2", "-Q", "default,mial")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "nobody declared the queue 'mial'" in done.stderr
    assert "did you mean 'mail'" in done.stderr


@pytest.mark.parametrize("size", ["lots", "512", "-1M", "0M", "5T"])
@pytest.mark.parametrize("option", ["--max-memory-per-child", "--memory-limit"])
def test_a_size_that_is_none_is_told(shell: Any, option: str, size: str) -> None:
    done = shell.say("worker", "proj", option, size)
    assert done.returncode == 2
    assert option in done.stderr
    assert "512M" in done.stderr
