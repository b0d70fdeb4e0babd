"""The harness beside the peers: what it counts, what it says. No peer is installed here."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from benchmarks import servers
from benchmarks.peers import __main__ as program
from benchmarks.peers import bars, environments, plots, processes, report, runner, workloads
from benchmarks.peers.catalog import OURS, PEERS, named
from benchmarks.peers.counters import Server
from benchmarks.peers.peer import Peer, Place, WrongError
from benchmarks.peers.probe import Reader
from benchmarks.peers.producer import BlockingProducer, Order
from benchmarks.peers.runner import Measurement, Plan
from benchmarks.peers.summary import METRICS, Summary
from benchmarks.peers.workloads import WORKLOADS, Bench, Measured

ROOT = Path(__file__).parent.parent
SECRET = {"TASKQ_SECRET": "a secret of more than thirty-two characters"}


class Echo:
    """A client that does at once what a worker would do."""

    app = None

    def __init__(self, wrong: int = 0) -> None:
        self.lots: list[int] = []
        self._wrong = wrong

    def call(self, task: str, x: int, y: int) -> int:
        assert task == "add"
        return x + y + self._wrong

    def many(self, task: str, calls: Any) -> list[int]:
        self.lots.append(len(calls))
        return [self.call(task, x, y) for x, y in calls]

    def values(self, handles: Any) -> Any:
        return handles

    def close(self) -> None:
        self.app = None


class Fake(Peer):
    name = "fake"
    project = "fake"
    distribution = "fake"
    kind = "def"
    settings = "none"
    safe = False
    safety = "lost"
    omits: ClassVar[Mapping[str, str]] = {"left out": "it is not for it"}


class Other(Fake):
    name = "other"


def made(peer: str, number: int, workload: str, **figures: float) -> dict[str, Any]:
    named_figures = {name.replace("__", " "): value for name, value in figures.items()}
    return vars(Measurement(number, workload, peer, named_figures))


def canned() -> dict[str, Any]:
    """Return a run in which blitzq fast drains faster, and celery cannot be measured at all."""
    measurements = []
    for number, drift in enumerate((1.0, 2.0, 4.0)):
        for peer, rate, p50 in (
            ("taskq", 1000, 2.0),
            ("taskq async", 900, 2.5),
            ("blitzq", 250, 4.0),
            ("blitzq fast", 1250, 1.0 if number else 3.0),
            ("rq", 10, 100.0),
        ):
            measurements += [
                made(peer, number, "drain", drain=rate * drift),
                made(peer, number, "round_trip", round_trip__p50=p50),
            ]
    measurements[0]["commands"] = {"drain": {"evalsha": 0.01, "reads": 0.02}}
    measurements.append(made("rq", 0, "cpu") | {"error": "FailedError: a|b ](x) ``` ~~~"})
    return {
        "machine": {"processors": "2, of some kind", "Python": "3.13.0"},
        "versions": {peer.name: {peer.distribution: "1.2.3"} for peer in PEERS},
        "absent": {"celery": "no wheel for this Python", "celery threads": "the same"},
        "rounds": 3,
        "scale": 1.0,
        "minutes": 21.5,
        "stopped": False,
        "measurements": measurements,
    }


def section(text: str, heading: str) -> str:
    return text.partition(f"\n## {heading}")[2].partition("\n## ")[0]


@pytest.fixture
def server() -> Iterator[Server]:
    with servers.own_server(loopback=True) as url:
        yield Server(url)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs of every environment be those beside this interpreter."""
    folder = Path(sys.executable).parent
    monkeypatch.setattr(environments, "program", lambda _, name="python": folder / name)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_names_its_settings_safety_versions_and_commands(peer: Peer) -> None:
    assert peer.settings
    assert peer.safety
    assert isinstance(peer.safe, bool)
    assert peer.kind in {"def", "async def"}
    assert set(peer.omits) <= set(WORKLOADS)
    pinned = (environments.REQUIREMENTS / f"{peer.project}.txt").read_text(encoding="utf-8")
    assert peer.project == OURS or f"\n{peer.distribution}" in f"\n{pinned}"
    assert "==" in pinned
    for task in ("add", "nap", "burn"):
        assert all(peer.commands(2, task))
        assert peer.slots(task) >= 1
    # The harness itself has no peer: each is imported where it is installed.
    assert peer.project == OURS or not {peer.project, peer.distribution} & set(sys.modules)


def test_the_peers_asked_for_are_there_each_in_its_own_environment() -> None:
    projects = {peer.project for peer in PEERS}
    wanted = "celery rq dramatiq huey arq taskiq saq streaq docket blitzq ardiq"
    assert projects == {OURS, *wanted.split()}
    files = {path.stem for path in environments.REQUIREMENTS.iterdir()}
    assert files == projects | {"plots"}
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_ratios_come_first_and_are_taken_inside_each_round() -> None:
    text = report.markdown(canned(), ["ratios.svg"])
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## How many times as fast as its peers taskq was"
    ratios = section(text, "How many times")
    # 1,000 against 1,250 in each round, though the rounds differ by 4; then 250, the safe one.
    drain = "| W2: drain, results kept, one process | taskq | 2,000 tasks/s |"
    assert f"{drain} **0.8 x** (0.8 .. 0.8) blitzq fast | **4 x** (4 .. 4) blitzq |" in ratios
    assert "| W3: round trip, idle worker, p50 | taskq | 2 ms | **0.5 x** (0.5 .. 1.5)" in ratios
    assert "![ratios.svg](ratios.svg)" in text


def test_bars_are_judged_by_medians_and_say_how_sure_that_is() -> None:
    found = {
        (one.bar.metric, one.bar.ours, one.bar.against): one
        for one in bars.verdicts(Summary(canned()["measurements"]))
    }
    # 4 times the fastest safe one in each round; 0.9 times the fastest, safe or not.
    assert found["drain", "taskq", "safe"].words == "met"
    assert found["drain", "taskq", "safe"].against == "the fastest that is safe: blitzq"
    assert found["drain", "taskq async", "fastest"].words == "missed"
    assert found["drain", "taskq", "celery"].words == "not measured"
    bars_met = section(report.markdown(canned()), "What taskq wants to reach")
    assert "\n1 of 20 bars were met, 16 could not be judged." in bars_met
    row = "| W2: drain, results kept, one process | taskq | **4** | 4 .. 4 | >= 4 | met |"
    assert f"{row} the fastest that is safe: blitzq |" in bars_met


def test_bars_of_taskq_itself_are_those_of_its_own_rounds() -> None:
    figures = ((100.0, 130.0, 60.0, 9.0), (200.0, 220.0, 500.0, 7.0), (100.0, 125.0, 105.0, 2.0))
    measurements = [
        made("taskq", number, "drain", drain=on, drain_off=off, drain_two=two, drain_two__left=left)
        for number, (on, off, two, left) in enumerate(figures)
    ]
    found = {one.bar.metric: one for one in bars.verdicts(Summary(measurements)) if one.bar.base}
    assert found["drain_off"].words == "met, not in every round"
    assert found["drain_off"].against == "its own: W2: drain, results kept, one process"
    # 0.6, 2.5 and 1.05 times one process, and 7 % left.
    assert found["drain_two"].words == "missed, not in every round"
    measurements[1]["figures"]["drain_two left"] = 3.0
    found = {one.bar.metric: one for one in bars.verdicts(Summary(measurements)) if one.bar.base}
    assert found["drain_two"].words == "met: 3 % left"
    assert found["round_trip p99"].words == "not measured"


def test_bars_are_about_figures_and_rows_that_there_are() -> None:
    metrics = {metric.id: metric for metric in METRICS}
    for bar in bars.BARS:
        assert named(bar.ours).project == OURS
        assert metrics[bar.metric].workload not in named(bar.ours).omits
        assert not bar.base or bar.base in metrics
        assert (bar.against == "own") == bool(bar.base)
        assert (bar.least is None) != (bar.most is None)


def test_where_a_peer_is_ahead_the_report_says_so() -> None:
    ahead = section(report.markdown(canned()), "Where a peer is ahead")
    assert "against taskq: **blitzq fast** (not safe) is 1.25 times as fast\n" in ahead
    assert (
        "p50, against taskq: **blitzq fast** (not safe) is 2 times as fast, though not in" in ahead
    )
    assert "**blitzq**" not in ahead
    data = canned()
    data["measurements"] = [one for one in data["measurements"] if one["peer"] != "blitzq fast"]
    assert "Nowhere" in section(report.markdown(data), "Where a peer is ahead")


def test_what_could_not_be_measured_is_listed_with_the_reason() -> None:
    missing = section(report.markdown(canned()), "What was not measured")
    assert "- celery: no wheel for this Python" in missing
    assert "- rq, cpu, in 1 of 3 rounds: FailedError: a/b ] (x) ''' ~~" in missing
    assert "- rq, sleeps: one job at a time in a process" in missing


def test_the_report_says_who_how_and_at_what_cost() -> None:
    text = report.markdown(canned())
    for peer in ("taskq", "taskq async", "blitzq", "blitzq fast", "rq"):
        one = named(peer)
        safe = "yes" if one.safe else "no"
        row = f"| {peer} | {one.distribution} 1.2.3 | {one.kind} | {safe} | {one.safety} |"
        assert f"{row} {one.settings} |" in section(text, "Who was measured")
    assert "| taskq | drain | 0.01 | 0.02 | evalsha 0.01 |" in section(text, "Redis commands")
    assert "- Python: 3.13.0\n- rounds: 3, of which medians are shown\n- duration: 21.5" in text
    assert "trial" not in text
    assert "trial" in report.markdown(canned() | {"scale": 0.1})
    assert "time limit" in report.markdown(canned() | {"stopped": True})


def test_the_report_is_a_page_that_the_tests_of_pages_accept() -> None:
    text = report.markdown(canned())
    assert re.findall(r"```|~~~|`-|\]\((?!https?:)", text) == []
    assert str(Path.home()) not in text
    assert max(map(len, report.METHOD.splitlines())) <= 100


def test_coroutines_are_held_against_coroutines() -> None:
    [ours] = [
        one
        for one in Summary(canned()["measurements"]).comparisons()
        if one.ours == "taskq async" and one.metric.id == "drain"
    ]
    assert {ratio.rival for ratio in ours.ratios} == {"blitzq", "blitzq fast"}


def test_every_metric_belongs_to_a_workload_and_is_drawn() -> None:
    assert {metric.workload for metric in METRICS} == set(WORKLOADS)
    drawn = [metric for metrics in plots.FIGURES.values() for metric in metrics]
    assert drawn == list(METRICS)


def test_a_trial_does_not_replace_the_published_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    for name in ("DATA", "DOCS", "TRIAL"):
        monkeypatch.setattr(program, name, tmp_path / name)
    (tmp_path / "DOCS").mkdir()
    (tmp_path / "DOCS" / "ratios.svg").write_text("of a run before")
    runs = ({"whole": False}, {"scale": 0.5}, {"rounds": 2}, {})
    for changes, folder in zip(runs, ("TRIAL", "TRIAL", "TRIAL", "DOCS"), strict=True):
        data = canned() | {"whole": True} | changes
        (tmp_path / "DATA").write_text(json.dumps(data))
        said = CliRunner().invoke(program.main, ["--again"]).output
        first, *verdicts, last = said.splitlines()
        assert first == "no plots: matplotlib is not installed"
        assert len(verdicts) == len(bars.BARS)
        assert "met: W2: drain, results kept, one process, taskq, 4 of the fastest" in said
        assert last == f"the report: {tmp_path / folder / 'report.md'}"
    assert [path.name for path in (tmp_path / "DOCS").iterdir()] == ["report.md"]


def test_a_peer_that_does_not_exist_is_refused() -> None:
    done = CliRunner().invoke(program.main, ["--peer", "sidekiq"])
    assert done.exit_code == 2
    assert "sidekiq" in done.output


def test_a_home_beside_the_checkout_whose_name_begins_alike_is_left_out_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environments, "ROOT", Path("/tmp/it"))
    monkeypatch.setenv("HOME", "/tmp/its")
    assert environments.anonymous("/tmp/its/a, /tmp/it/b in /tmp/it") == "~/a, ./b in ."


def test_rounds_are_interleaved_and_one_failure_ends_nothing(tmp_path: Path) -> None:
    def work(_: Bench, peer: Peer) -> Measured:
        if peer.name == "other":
            msg = f"no file {ROOT}/x\nin {Path.home()}"
            raise ValueError(msg)
        return Measured({"drain": 5.0, "cpu": math.nan}, {"drain": {"get": 1.0}})

    told: list[Measurement] = []
    peers = [Fake(), Other()]
    plan = Plan(peers, {"drain": work, "left out": work, "cpu": work}, 2)
    done = runner.run(plan, Bench(None, 1, 1, {}), told.append)  # type: ignore[arg-type]
    assert told == done
    turns = [(one.round, one.workload, one.peer) for one in done]
    assert turns == [
        (0, "drain", "fake"),
        (0, "drain", "other"),
        (0, "cpu", "fake"),
        (0, "cpu", "other"),
        (1, "drain", "other"),
        (1, "drain", "fake"),
        (1, "cpu", "other"),
        (1, "cpu", "fake"),
    ]
    assert done[0].figures == {"drain": 5.0}
    assert done[0].commands == {"drain": {"get": 1.0}}
    assert done[1].error == "ValueError: no file ./x in ~"
    late = Plan(peers, plan.workloads, 2, end=time.monotonic() - 1)
    assert runner.run(late, Bench(None, 1, 1, {}), told.append) == []  # type: ignore[arg-type]


def test_a_round_is_sized_by_the_one_before() -> None:
    bench = Bench(None, 2.0, 1.0, {})  # type: ignore[arg-type]
    assert bench.count(Fake(), "drain", 100) == 200
    bench.learn(Fake(), "drain", 5000)
    bench.learn(Fake(), "drain", math.nan)
    assert bench.count(Fake(), "drain", 100) == 10_000
    bench.learn(Fake(), "drain", 1e9)
    assert bench.count(Fake(), "drain", 100) == 200_000


def test_rounds_are_shortened_where_they_would_not_all_fit() -> None:
    bench = Bench(None, 1.0, 1.0, {})  # type: ignore[arg-type]
    bench.fit(took=100, allowed=200)
    assert bench.seconds == 1.0
    bench.fit(took=100, allowed=80)
    assert bench.seconds == pytest.approx(0.64)
    bench.fit(took=100, allowed=1)
    assert bench.seconds == pytest.approx(0.64 * 0.3)

    told: list[float] = []

    class Fitting(Bench):
        def fit(self, took: float, allowed: float) -> None:
            assert took < 60
            told.append(allowed)

    plan = Plan([Fake()], {"drain": lambda *_: Measured()}, 3, end=time.monotonic() + 600)
    runner.run(plan, Fitting(None, 1.0, 1.0, {}), lambda _: None)  # type: ignore[arg-type]
    assert told == pytest.approx([300, 600], abs=30)


def test_a_producer_checks_every_result() -> None:
    for mode in ("one", "threads", "bulk"):
        echo = Echo()
        done = BlockingProducer(echo).perform("together", Order(2500, mode))
        assert done["rate"] > 0
        assert echo.lots == ([100, 1000, 1000, 500] if mode == "bulk" else [])
    trips = BlockingProducer(Echo()).perform("trips", Order(50))
    assert 0 < trips["p50"] <= trips["p99"]
    for action in ("together", "trips"):
        with pytest.raises(WrongError):
            BlockingProducer(Echo(wrong=1)).perform(action, Order(50))


def test_a_wrong_answer_while_a_worker_starts_is_no_error_yet() -> None:
    class Starting(Echo):
        def values(self, handles: Any) -> Any:
            self.waits = getattr(self, "waits", 0) + 1
            return handles if self.waits > 1 else [None]

    starting = Starting()
    assert BlockingProducer(starting).perform("together", Order(50))["rate"] > 0
    # 1 that failed, 20 in its place, the hundred that warm up, and those that are measured.
    assert starting.waits == 23


def test_what_runs_is_seen_from_outside_in_forks_too(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from benchmarks.peers.work import add, burn\n"
        "assert [add(1, 2), burn(1, 2)] == [3, 3]\n"
        "if not os.fork():\n    add(1, 2)\n    os._exit(0)\n"
        "os.wait()\n"
    )
    with Reader(3) as probe:
        env = environments.environment("none", probe.variables())
        subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, check=True)
        assert probe.count() == 3
        assert [len(instants) for instants in probe.processes()] == [2, 1]
        folder = Path(probe.variables()["BENCH_PROBE"])
    assert not folder.exists()


def test_a_place_travels_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("rq", "redis://127.0.0.1:1/0", results=False, slots=1)
    for name, value in place.variables().items():
        monkeypatch.setenv(name, value)
    assert Place.here() == place


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_taskq_is_measured_as_its_peers_are(server: Server) -> None:
    bench = Bench(server, 1, 0.001, SECRET)
    for name in ("drain_two", "together"):
        measured = WORKLOADS[name](bench, named("taskq"))
        wanted = {metric.id for metric in METRICS if metric.workload == name}
        assert wanted <= set(measured.figures), name
    bulk = WORKLOADS["enqueue"](bench, named("taskq"))
    assert set(bulk.figures) == {"enqueue one", "enqueue threads", "enqueue bulk"}
    drained = WORKLOADS["drain"](bench, named("taskq")).commands["drain"]
    assert 0 < drained["evalsha"] < 2
    assert drained["reads"] > 0
    server.clear()


@pytest.mark.usefixtures("here")
def test_a_producer_starts_where_nothing_can_be_mistaken_for_a_module(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = Place("taskq", server.url)
    assert processes.produce(named("taskq"), place, "enqueue", SECRET, n=3)["rate"] > 0
    server.clear()


def test_many_are_gathered_by_whoever_can_do_that_in_time() -> None:
    bench = Bench(None, 1.0, 1.0, {})  # type: ignore[arg-type]
    for rate, n in ((300.0, 300), (3000.0, 3000), (4000.0, 50_000), (90_000.0, 50_000)):
        bench.learn(Fake(), "together", rate)
        assert workloads.many(bench, Fake()) == n


@pytest.mark.usefixtures("here")
def test_a_worker_that_ends_is_told_with_what_it_said(server: Server) -> None:
    class Broken(Fake):
        project = OURS
        pace = 10

        def commands(self, processes: int, task: str) -> list[list[str]]:
            return [["python", "-c", "raise SystemExit('it did not like it')"]] * processes

    place = Place("taskq", server.url)
    with processes.workers(Broken(), place, 1, "add", {}) as started:
        started._started[0].wait()
        with pytest.raises(processes.FailedError, match="ended with 1: it did not like it"):
            started.check()


def test_an_environment_that_cannot_be_made_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "bench")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    (tmp_path / "none.txt").write_text("")
    failed = environments.make(["none"], str(tmp_path / "no-python"))
    assert list(failed) == ["none"]
    assert "no-python" in failed["none"]


def test_nothing_that_configures_a_queue_reaches_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TASKQ_URL", "RQ_REDIS_URL", "CELERY_BROKER_URL", "PYTHONPATH"):
        monkeypatch.setenv(name, "elsewhere")
    assert "elsewhere" not in environments.environment("rq", {}).values()


def test_a_run_of_peers_listens_on_this_machine_alone(server: Server) -> None:
    assert server.url.startswith("redis://127.0.0.1:")
    with servers.connect(server.url) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        client.set("x", 1)
    server.clear()
    with servers.connect(server.url) as client:
        assert client.dbsize() == 0
        assert json.dumps(server.commands(1))
