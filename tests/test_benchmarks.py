"""The benchmarks run and check what they count. Nothing is timed here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rich.console import Console

from benchmarks import report, servers
from benchmarks.__main__ import CASES
from benchmarks.prototype import Line, Place, Producer, Tampered, Wire, Worker
from benchmarks.report import Row

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place(redis_url: str, namespace: str) -> Iterator[Place]:
    base = f"bare:{{{namespace}}}:"
    yield Place(redis_url, base, "a secret of more than thirty-two characters")
    servers.remove(redis_url, base)


def calls(n: int) -> Iterator[object]:
    return (("add", (number, 1), {}) for number in range(n))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_all_cases_run_and_agree_on_what_was_done(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "rounds.json"
    tiny = ("--url", redis_url, "--rounds", "1", "--scale", "0.002", "--json", str(file))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *tiny],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == [name for case in CASES for name in case.rows]
    # NaN where so little was drained before the first look.
    assert all(len(row["ours"]) == 1 for row in rows)
    # What starts sooner than in a drain is late by less than nothing.
    wrong = [row for row in rows if row["ours"][0] <= 0 and "beyond a drain" not in row["name"]]
    assert wrong == []
    assert all(row["name"] in done.stdout for row in rows)
    with servers.connect(redis_url) as client:
        assert not list(client.scan_iter(match="*benchmarks-*"))


@pytest.mark.parametrize("threads", [1, 8])
def test_the_prototype_runs_everything_once(place: Place, threads: int) -> None:
    producer = Producer(place)
    ids = producer.enqueue(calls(700), per_push=300)
    Worker(place, threads).drain()
    with servers.connect(place.url) as client:
        assert client.exists(place.ready, place.running) == 0
    assert producer.outcomes(ids) == 700
    assert producer.outcomes([b"0" * 32]) == 0
    producer.line.close()


def test_the_prototype_runs_nothing_unsigned(place: Place) -> None:
    wire, other = Wire(place.secret), Wire("b" * 32)
    raw = wire.message(b"1" * 32, ("add", (1, 2), {}))
    assert wire.call(raw) == ("add", (1, 2), {})
    for forged in (b"2" * 32 + raw[32:], raw[:-1] + b"x", other.message(b"1" * 32, "x"), b""):
        with pytest.raises(Tampered):
            wire.call(forged)
    with pytest.raises(Tampered):
        wire.value(b"2" * 32, wire.result(b"1" * 32, 3))


def test_the_prototype_answers(place: Place) -> None:
    """Its round trip, with the worker's part played by the test."""
    producer, line = Producer(place), Line(place.url)
    ids = producer.enqueue(calls(1))
    _, raw = line.call("BLPOP", place.ready, 4)
    assert raw[:32] == ids[0]
    assert producer.wire.call(raw) == ("add", (0, 1), {})
    for one in (producer.line, line):
        one.close()


def test_ratios_are_taken_round_by_round() -> None:
    row = Row("drain", "tasks/s", ">= 0.4", [10.0, 30.0, 60.0], [100.0, 100.0, 300.0])
    assert row.ratios == pytest.approx([0.1, 0.3, 0.2])
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table([row, Row("memory", "MiB", "", [12.345])]))
    text = console.export_text()
    assert "0.10 .. 0.30" in text
    assert "12.3" in text


def test_its_own_server_ends_with_the_block() -> None:
    with servers.own_server() as url, servers.connect(url) as client:
        folder = Path(url.removeprefix("unix://")).parent
        assert client.ping()
        assert "valkey" in servers.describe(url) or "redis" in servers.describe(url)
        client.mset({f"mine:{number}": 1 for number in range(2500)} | {"other": 1})
        servers.remove(url, "mine:")
        assert client.keys() == [b"other"]
    assert not folder.exists()
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(url).ping()
