"""The example runs as its README says, on a small tree."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from example_project.app import app, checksum, licences, longest, measure
from example_project.tree import find_command, python_files
from taskq.broker import keys

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with everything that makes counting hard: five files count."""
    root = tmp_path / "it's a tree"
    (root / ".hidden").mkdir(parents=True)
    (root / "folder.py").mkdir()
    (root / "a.py").write_text("class A:\n    def f(self):\n        pass\n\n\ndef g(): ...\n")
    (root / "bad.py").write_text("def (\n")
    (root / "zero.py").write_bytes(b"x = '\0'\n")
    (root / ".hidden" / ".py").write_text("# MIT License\nx = 1\n")
    (root / "folder.py" / "b.py").write_text("async def h():\n    return 1\n")
    (root / "notes.txt").write_text("def not_python(): ...\n")
    (root / "link.py").symlink_to("a.py")
    (root / "broken.py").symlink_to("nowhere")
    (root / "linked").symlink_to("folder.py")
    return root


@pytest.fixture
def example_url(redis_url: str) -> str:
    """A database of its own: the app has the same name in every test."""
    return redis_url.removesuffix("/0") + "/5"


def start(*arguments: object, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "example_project", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_count_is_that_of_the_printed_command(tree: Path, example_url: str) -> None:
    with start(tree, "--processes", 1, TASKQ_URL=example_url) as process:
        output, _ = process.communicate(timeout=50)
    assert process.returncode == 0, output
    command = re.search(r"^Count them yourself: (.*)$", output, re.MULTILINE)
    assert command, output
    counted = subprocess.run(command[1], shell=True, capture_output=True, text=True, check=True)
    assert f"\n{int(counted.stdout)} files in " in output
    assert int(counted.stdout) == 5
    assert "3 functions, 1 classes" in output
    problems = re.findall(r"(\d) of them could not be parsed", output)
    assert sum(map(int, problems)) == 2
    assert output.count("in attempt 2: ") == 3
    assert "MIT License 1" in output


def test_an_interrupt_ends_it_cleanly(tree: Path, example_url: str) -> None:
    ready = keys.ready(app.name, "default", measure.name)
    with (
        redis.Redis.from_url(example_url, protocol=2) as client,
        start(tree, "--no-worker", TASKQ_URL=example_url) as process,
    ):
        deadline = time.monotonic() + 30
        while client.llen(ready) < 5 and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        client.delete(ready)
    assert process.returncode == 130
    assert output.startswith("stopped; ")
    assert output.count("\n") == 1


def test_a_redis_that_is_away_is_told_in_a_line(tree: Path) -> None:
    away = {"TASKQ_URL": "redis://127.0.0.1:1", "TASKQ_ENQUEUE_DEADLINE": "0.2"}
    with start(tree, "--no-worker", **away) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert output.startswith("failed: redis://127.0.0.1:1: ")
    assert output.count("\n") == 1


def test_files_are_those_that_find_finds(tree: Path) -> None:
    listed = find_command(tree).removesuffix("| wc -l")
    found = subprocess.run(listed, shell=True, capture_output=True, text=True, check=True)
    assert python_files(tree) == sorted(found.stdout.splitlines())


def test_what_a_file_holds(tree: Path) -> None:
    report = measure(str(tree / "a.py"))
    assert (report.lines, report.functions, report.classes) == (6, 2, 1)
    assert [(one.name, one.line, one.lines) for one in report.longest] == [("f", 2, 2), ("g", 6, 1)]
    assert report.bytes == (tree / "a.py").stat().st_size
    assert report.problem is None


@pytest.mark.parametrize("name", ["bad.py", "zero.py", "gone.py"])
def test_a_bad_file_is_a_report(tree: Path, name: str) -> None:
    report = measure(str(tree / name))
    assert report.problem
    assert report.functions == 0


def test_of_the_longest_there_are_ten(tree: Path) -> None:
    (tree / "many.py").write_text("def f(): ...\n" * 30)
    assert len(measure(str(tree / "many.py")).longest) == len(longest([])) + 10


def test_the_slow_disk_fails_its_first_reader(tree: Path) -> None:
    with pytest.raises(TimeoutError, match="spinning up"):
        checksum(str(tree / "a.py"))


def test_licences_are_counted_by_file(tree: Path) -> None:
    named = asyncio.run(licences(python_files(tree)))
    assert named == {"MIT License": 1}
