"""The profile finds every stage in the code, adds up, and is a page. Nothing is timed here."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.profile import __main__ as program
from benchmarks.profile import page
from benchmarks.profile.page import Profile
from benchmarks.profile.server import Spent
from benchmarks.profile.stages import ROOT, STAGES, found
from benchmarks.profile.stopwatch import Stopwatch, cost

PLACES = [place for stage in STAGES for place in stage.places]


@pytest.mark.parametrize("place", PLACES)
def test_every_stage_is_a_function_that_there_is(place: str) -> None:
    assert callable(found(place)[2])


def test_a_stage_is_timed_without_what_it_calls_and_only_inside_the_root() -> None:
    watch = Stopwatch()

    def spin(milliseconds: int) -> None:
        end = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < end:
            pass

    inner = watch.around("sign", lambda: spin(30))

    def work() -> None:
        spin(10)
        inner()
        inner()

    outer = watch.around("judge", work)
    outer()
    assert watch.shares["judge"].calls == 0
    threads = [
        threading.Thread(target=watch.around(ROOT.name, outer)),
        threading.Thread(target=outer),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = {name: (one.calls, one.inner_calls) for name, one in watch.shares.items() if one.calls}
    assert shares == {"loop": (1, 1), "judge": (1, 2), "sign": (2, 0)}
    took = watch.nanoseconds()
    assert took["sign"] > 55e6
    assert took["judge"] > 9e6
    assert took["loop"] + took["judge"] < watch.shares["loop"].own + watch.shares["judge"].own
    assert took["open"] == 0


def test_the_watch_knows_what_it_costs() -> None:
    inside, outside = cost()
    assert 0 <= inside < 1e5
    assert 0 < outside < 1e5


def test_what_lua_takes_is_what_its_commands_do_not() -> None:
    before = Spent({"set": 10}, {"set": 100, "evalsha": 200}, 1000)
    after = Spent(
        {"set": 20, "evalsha": 1, "info": 1},
        {"set": 150, "evalsha": 400, "info": 3},
        1600,
    )
    spent = after.since(before, 10)
    assert spent.calls["set"] == 1
    assert (spent.scripts, spent.lua, spent.processor) == (20, 15, 60)
    assert spent.inside == {"set": 5}


@pytest.mark.slow
def test_a_run_writes_a_page_that_adds_up(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKQ_URL", redis_url)
    monkeypatch.setenv("TASKQ_SECRET", "a secret of more than thirty-two characters")
    file = tmp_path / "profile.md"
    words = ["--url", redis_url, "--messages", "300", "--rounds", "1", "--out", str(file)]
    done = CliRunner().invoke(program.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = file.read_text(encoding="utf-8")
    assert "A trial" in text
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = {row[0].removeprefix("| "): row[1:] for row in cells}
    assert {stage.name for stage in STAGES} <= set(rows)
    for stage in ("verify", "decode", "arguments", "run", "judge", "sign", "close"):
        assert rows[stage][2] == "1.00"
    total = sum(float(rows[stage.name][0]) for stage in STAGES)
    assert float(rows["all"][0]) == pytest.approx(total, abs=0.1)
    assert all(f"| {name} |" in text for name in ("Lua itself", "SET", "all scripts", "the server"))


def test_the_page_is_one_that_the_tests_of_pages_accept() -> None:
    spent = Spent({"set": 1, "evalsha": 0.01}, {"set": 0.5, "evalsha": 2}, 3)
    stages = {stage.name: [1.0, 3.0, 2.0] for stage in STAGES}
    calls = {stage.name: 1.0 for stage in STAGES}
    profile = Profile({"system": "some"}, 50_000, stages, calls, [31.0, 30.0, 32.0], [spent] * 3)
    text = page.markdown(profile)
    assert f"| all | {2 * len(STAGES):.2f} | 100 % |  | without the watch: 31.00 µs |" in text
    assert "| Lua itself | 1.50 | 50 % |  |" in text
    assert "trial" not in text
    assert re.findall(r"```|~~~|\]\((?!https?:)", text) == []
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 110
