"""The benchmarks run and check what they count. Nothing is timed here."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from rich.console import Console

from benchmarks import __main__ as program
from benchmarks import processors, prototype, report, servers
from benchmarks.__main__ import measure
from benchmarks.case import Bar, Bench, Case, Line
from benchmarks.cases import CASES, ENQUEUEING
from benchmarks.lookout import Traffic
from benchmarks.processors import Left
from benchmarks.prototype import Place, Producer, Tampered, Wire, Worker
from benchmarks.report import Row
from benchmarks.tasks import app
from tests.eventually import until

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place(redis_url: str, namespace: str) -> Iterator[Place]:
    base = f"bare:{{{namespace}}}:"
    yield Place(redis_url, base, "a secret of more than thirty-two characters")
    servers.remove(redis_url, base)


def calls(n: int) -> Iterator[object]:
    return (("add", (number, 1), {}) for number in range(n))


@pytest.fixture
def bench(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TASKQ_URL", redis_url)
    monkeypatch.setenv("TASKQ_SECRET", "a secret of more than thirty-two characters")
    yield Bench(redis_url, 0.002)
    app.close()


def parameter(case: Case) -> Any:
    # All but these start workers.
    marks = () if case in ENQUEUEING else pytest.mark.slow
    return pytest.param(case, id=case.lines[0].name, marks=marks)


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_every_case_runs_and_agrees_on_what_was_done(bench: Bench, case: Case) -> None:
    rows = report.rows_of(case)
    for ours in (True, False):
        measure(bench, case, rows, ours=ours)
    for row in rows:
        # NaN where so little was drained before the first look.
        assert len(row.ours) == 1
        assert not row.ours[0] < 0 or row.line.unit in {"ms", "%"}
        assert len(row.bare) == (case.bare is not None)
    bench.clean()
    with servers.connect(bench.url) as client:
        assert not list(client.scan_iter(match="*benchmarks-*"))


def test_a_run_prints_ratios_bars_and_verdicts_and_leaves_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "rounds.json"
    tiny = ("--url", redis_url, "--rounds", "2", "--scale", "0.002", "--json", str(file))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *tiny, "--only", "one by one"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads(file.read_text(encoding="utf-8"))
    assert (row["name"], row["bar"]) == ("enqueue, one by one", ">= 0.625 of it")
    assert len(row["ours"]) == len(row["bare"]) == len(row["ratios"]) == 2
    assert all(text in done.stdout for text in ("one by one", ">= 0.625 of it", "of 1 bars met"))
    with servers.connect(redis_url) as client:
        assert not list(client.scan_iter(match="*benchmarks-*"))


def test_lines_have_names_of_their_own_and_long_cases_are_asked_for() -> None:
    names = [line.name for case in CASES for line in case.lines]
    assert len(names) == len(set(names))
    listed = CliRunner().invoke(program.main, ["--list"]).output
    everything = CliRunner().invoke(program.main, ["--list", "--all"]).output
    assert "100 idle workers" not in listed
    assert all(name in everything for name in names)
    assert CliRunner().invoke(program.main, ["--only", "no such case"]).exit_code == 2
    # A trial does not replace the page of a whole run.
    assert CliRunner().invoke(program.main, ["--write", "--quick"]).exit_code == 2


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
    producer, line = Producer(place), prototype.Line(place.url)
    ids = producer.enqueue(calls(1))
    _, raw = line.call("BLPOP", place.ready, 4)
    assert raw[:32] == ids[0]
    assert producer.wire.call(raw) == ("add", (0, 1), {})
    for one in (producer.line, line):
        one.close()


def text_of(rows: list[Row]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table(rows))
    return console.export_text()


def test_ratios_are_taken_round_by_round_and_judged_by_their_median() -> None:
    row = Row(Line("drain", "tasks/s", Bar(least=0.25)), "it", [10, 30, 60], [100, 100, 300])
    assert row.ratios == pytest.approx([0.1, 0.3, 0.2])
    assert report.verdicts([row]) == {"drain": "missed"}
    plain = Row(Line("memory", "MB"), ours=[12.345])
    text = text_of([row, plain])
    assert all(word in text for word in ("0.10 .. 0.30", "0.20", ">= 0.25 of it", "missed", "12.3"))
    assert report.tally([row, plain]) == "0 of 1 bars met"
    page = report.markdown([row, plain], "here", "0 of 1")
    line = (
        "| drain | 0.20 | 0.10 .. 0.30 | >= 0.25 of it | missed | 30 tasks/s | 100 tasks/s | it |"
    )
    assert f"\n{line}\n" in page


def test_a_bar_may_be_on_the_figure_itself_and_made_up_for_by_another() -> None:
    share = Row(Line("idle", "%", Bar(most=5, of="value")), "", [4, 90, 3], [1, 1, 1])
    rate = Row(Line("two", "tasks/s", Bar(least=1.3, unless="idle")), "", [1], [1])
    assert report.verdicts([rate, share]) == {"two": "met, or", "idle": "met"}
    share.ours = [6.0]
    assert report.verdicts([rate, share]) == {"two": "missed", "idle": "missed"}


def test_two_processes_are_judged_only_where_one_left_a_processor() -> None:
    rate = Row(Line("two", "tasks/s", Bar(least=1.5, room="idle")), "one", [140], [100])
    idle = Row(Line("idle", "%"), "one", [3.0], [11.0])
    assert report.verdicts([rate, idle]) == {"two": "no processor left: 11 % idle"}
    assert report.tally([rate, idle]) == "0 of 1 bars met, 1 no processor left"
    idle.bare = [25.0]
    assert report.verdicts([rate, idle]) == {"two": "missed"}
    rate.ours = [150]
    assert report.verdicts([rate, idle]) == {"two": "met"}
    idle.bare = [math.nan]
    assert report.verdicts([rate, idle]) == {"two": "not measured"}


def test_what_could_not_be_measured_is_not_met() -> None:
    row = Row(Line("drain", "tasks/s", Bar(most=2)), "it", [math.nan], [1.0])
    assert report.verdicts([row]) == {"drain": "not measured"}
    assert report.tally([row]) == "0 of 1 bars met, 1 not measured"
    assert "? tasks/s" in text_of([row])


def test_a_process_is_counted_with_those_below_it() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        until(lambda: len(processors.family(parent.pid)) == 2)
        sizes = processors.family(parent.pid)
        assert all(size > 1_000_000 for size in sizes.values())
        if sys.platform == "linux":
            assert 0 < processors.seconds(sizes) < 60
        assert parent.stdin
        parent.stdin.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only there is it known what threads used")
def test_what_is_left_of_the_processors_is_what_the_run_did_not_use() -> None:
    used = iter((0.0, -1e6, 1e6))
    left = Left([], lambda: next(used))
    assert left.percent() > 100
    assert left.percent() < 0
    assert math.isnan(Left([], lambda: math.nan).percent())


@pytest.mark.skipif(sys.platform != "linux", reason="only there is it known what was idle")
def test_what_was_idle_is_a_share_of_the_time_that_went_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = processors.Idle()
    assert 0 <= until(lambda: None if math.isnan(told := idle.percent()) else told + 1) <= 101
    read = iter([(100, 400), (100, 400), (150, 600)])
    monkeypatch.setattr(processors, "_ticks", lambda: next(read))
    idle = processors.Idle()
    assert math.isnan(idle.percent())
    assert idle.percent() == 25


def test_what_is_counted_is_what_clients_send(redis_url: str) -> None:
    with servers.connect(redis_url) as client, servers.connect(redis_url) as other:
        other.ping()
        traffic = Traffic(client)
        other.eval("for _ = 1, 10 do redis.call('GET', KEYS[1]) end", 1, "none")
        assert traffic.scripts() == 1
    with servers.own_server() as url, servers.connect(url) as client, servers.connect(url) as one:
        one.ping()
        traffic = Traffic(client)
        for _ in range(5):
            one.eval("return redis.call('GET', KEYS[1])", 1, "none")
        assert traffic.reads() == 5


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
