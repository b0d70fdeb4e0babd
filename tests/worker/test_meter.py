"""How much is claimed ahead of a free slot: only of what was quick, and is."""

from __future__ import annotations

import pytest

from taskq.worker.meter import AHEAD_SECONDS, MOST_AHEAD, QUICK_SECONDS, Meter

QUICK, SLOW = 0.0001, 0.1


def after(*durations: float, task: str = "t") -> Meter:
    meter = Meter()
    for duration in durations:
        meter.note(task, [duration])
    return meter


def test_at_first_nothing_is_claimed_ahead() -> None:
    assert Meter().caps(0) == {}
    assert after(*[QUICK] * 19).caps(0) == {}


def test_a_task_that_was_quick_twenty_times_is() -> None:
    assert after(*[QUICK] * 20).caps(0) == {"t": int(AHEAD_SECONDS / QUICK / 2)}


def test_what_is_ahead_takes_no_longer_than_it_may() -> None:
    for duration in (0.00005, 0.0002, 0.0009):
        (cap,) = after(*[duration] * 40).caps(0).values()
        assert cap >= 1
        assert cap * duration <= AHEAD_SECONDS * 1.001


def test_there_is_a_most() -> None:
    for duration in (0.0, 1e-9):
        (cap,) = after(*[duration] * 20).caps(0).values()
        assert 0.45 * MOST_AHEAD < cap <= MOST_AHEAD / 2


def test_what_waits_here_already_counts() -> None:
    meter = after(*[QUICK] * 20)
    assert meter.caps(50) == {"t": 50}
    assert meter.caps(90) == {"t": 10}
    assert meter.caps(100) == {}
    assert meter.caps(1000) == {}


def test_a_task_that_is_not_quick_is_never_ahead() -> None:
    assert after(*[2 * QUICK_SECONDS] * 100).caps(0) == {}
    assert after(*[SLOW] * 100).caps(0) == {}


@pytest.mark.parametrize("quick", [20, 40, 100])
def test_one_slow_run_ends_it_at_once(quick: int) -> None:
    meter = after(*[QUICK] * quick, SLOW)
    assert meter.caps(0) == {}
    for _ in range(18):
        meter.note("t", [QUICK])
    assert meter.caps(0) == {}


def test_a_task_that_is_quick_again_comes_back() -> None:
    meter = after(*[QUICK] * 20, SLOW)
    for _ in range(60):
        meter.note("t", [QUICK])
    assert "t" in meter.caps(0)


def test_one_run_in_twenty_may_be_longer() -> None:
    longer = 2 * QUICK_SECONDS
    assert after(*[QUICK] * 39, longer).caps(0)
    assert not after(*[QUICK] * 36, *[longer] * 4).caps(0)


def test_doubt_ends_it_for_all_until_more_was_measured() -> None:
    """A message that was claimed ahead could not start in time."""
    meter = after(*[QUICK] * 20)
    for _ in range(20):
        meter.note("other", [QUICK])
    assert set(meter.caps(0)) == {"t", "other"}
    meter.doubt()
    assert meter.caps(0) == {}
    for _ in range(20):
        meter.note("other", [QUICK])
    assert set(meter.caps(0)) == {"other"}


def test_tasks_are_measured_apart() -> None:
    meter = Meter()
    for _ in range(40):
        meter.note("quick", [QUICK])
        meter.note("slow", [SLOW])
    assert set(meter.caps(0)) == {"quick"}
