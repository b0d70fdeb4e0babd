"""The instants of cron expressions, against a clock that is watched minute by minute."""

from __future__ import annotations

import bisect
import os
import subprocess
import sys
import zoneinfo
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.errors import ConfigError
from taskq.model.cron import ALIASES, check_expression, next_match, zone_of
from tests.model.calendar_oracle import Expression, Film, changes, shown

HOUR = 3600
YEARS = (2024, 5)
ZONES = {
    "America/New_York": "an hour at 2:00",
    "Europe/Berlin": "an hour at 2:00 and 3:00",
    "Europe/Dublin": "its winter is the one that is put back by law",
    "Atlantic/Azores": "at midnight, from the day before",
    "America/Havana": "at midnight, and back into the day before's",
    "America/Santiago": "at midnight, in the southern hemisphere",
    "Asia/Beirut": "at midnight",
    "Australia/Sydney": "in the southern hemisphere",
    "Australia/Lord_Howe": "half an hour",
    "Pacific/Chatham": "at 2:45",
    "Africa/Casablanca": "for one month a year, by the moon",
    "Antarctica/Troll": "two hours",
    "Asia/Kolkata": "never",
}
EXPRESSIONS = [
    "* * * * *",
    "0 * * * *",
    "30 * * * *",
    "*/30 * * * *",
    "*/30 2 * * *",
    "15 */2 * * *",
    "* 1-3 * * *",
    "30 2 * * *",
    "30 1 * * *",
    "0 0 * * *",
    "45 23 * * *",
    "15,45 0-3 * * *",
    "0 2,3 * * *",
    "50 2 * * sun",
    "10 1 * * 6-7",
    "0 3 1-7 * sun",
    "20 0 1,31 mar,apr,sep-nov *",
    "5/20 0-23/3 * * *",
]


def compare(film: Film, zone: str, text: str, change: int) -> None:
    """Compare the next tick from many instants, the more the nearer to a change of the clock."""
    place, ticks = zoneinfo.ZoneInfo(zone), film.ticks(Expression(text))
    reach = 60 * 60 if len(ticks) < 200 else 10 * 60 if len(ticks) < 2000 else 30
    for start in {*starts_near(change, film), *(at for at in ticks if abs(at - change) < reach)}:
        expected = next(iter(ticks[bisect.bisect_right(ticks, start) :]), None)
        found = next_match(text, place, start)
        if expected is None:
            assert found is None or found > film.instants[-1]
        else:
            assert found == expected, (
                f"{text!r} after {shown(start, zone)}: {found and shown(found, zone)}, "
                f"not {shown(expected, zone)}"
            )


def starts_near(change: int, film: Film) -> Iterator[int]:
    step = len(film.instants) * 6
    # Not from the first: the film does not show whether that was a repeated hour.
    yield from range(film.instants[0] + 3 * HOUR, film.instants[-1], step)
    # Before it, at it, in the hour that is skipped or repeated, and just after that.
    for minutes in (-90, -61, -46, -31, -16, -1, 14, 29, 30, 44, 59, 60, 89, 119):
        yield change + 60 * minutes + minutes % 3
    yield from (change - 1, change)


@pytest.mark.parametrize("zone", ZONES)
def test_each_change_of_the_clock_in_five_years(zone: str) -> None:
    found = changes(zone, *YEARS)
    assert len(found) == (0 if zone == "Asia/Kolkata" else 10)
    for change in found:
        film = Film.of(zone, change - 5 * HOUR, change + 27 * HOUR)
        for text in EXPRESSIONS:
            compare(film, zone, text, change)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "America/Havana"])
@pytest.mark.parametrize(
    "text", ["* * * * * *", "*/7 30 1 * * *", "59 59 * * * *", "10-12 45,15 0-3 * * *"]
)
def test_seconds_too(zone: str, text: str) -> None:
    for change in changes(zone, 2026, 1):
        film = Film.of(zone, change - 2 * HOUR, change + 3 * HOUR, step=1)
        compare(film, zone, text, change)


def test_a_day_that_a_zone_left_out_is_made_up_for_at_the_next() -> None:
    change = Film.of("Pacific/Apia", *(at - 5 * HOUR for at in (1325239200, 1325350800)))
    for text in ("30 2 * * *", "0 0 30 dec *", "0 * * * *", "*/30 2 * * *"):
        compare(change, "Pacific/Apia", text, 1325239200)


@given(
    st.sampled_from([*ZONES]),
    st.integers(1_700_000_000, 1_900_000_000),
    st.builds(
        "{} {} {} {} {}".format,
        st.sampled_from(["*", "*/7", "0", "30", "5,59", "10-20/3"]),
        st.sampled_from(["*", "*/5", "0", "1,2", "0-6", "23"]),
        st.sampled_from(["*", "*/2", "1", "13,31", "1-7"]),
        st.sampled_from(["*", "2", "mar-apr", "*/3"]),
        st.sampled_from(["*", "0", "7", "mon-fri", "sat,sun", "*/2"]),
    ),
)
@settings(max_examples=100, deadline=None)
def test_any_expression_on_any_day(zone: str, at: int, text: str) -> None:
    film = Film.of(zone, at - 30 * HOUR, at + 24 * HOUR, 60)
    compare(film, zone, text, at)


def test_it_is_looked_for_in_fifty_years() -> None:
    place = zone_of("Europe/Berlin")
    found = next_match("0 0 29 2 mon#5", place, 1_800_000_000)
    assert found is not None
    assert next_match("0 0 1 1 *", place, 1 << 60) is None


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_spelled_out(alias: str) -> None:
    assert check_expression(alias) == check_expression(alias.upper()) == ALIASES[alias]


def test_white_space_and_names_are_no_matter() -> None:
    assert check_expression("  0  7 *\t* MON-fri ") == "0 7 * * MON-fri"
    place = zone_of("UTC")
    for one, other in (("0 7 * * MON", "0 7 * * 1"), ("0 0 1 jan,DEC *", "0 0 1 1,12 *")):
        assert next_match(one, place, 0) == next_match(other, place, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("61 * * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 0 * *", "bad day-of-month"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 * 13 *", "bad month"),
        ("0 0 * * 8", "bad day-of-week"),
        ("0 0 * * mon-sun", "bad day-of-week"),
        ("0 0 * *", "wrong number of fields"),
        ("* * * * * * *", "wrong number of fields"),
        ("", "wrong number of fields"),
        ("@dayly", "did you mean '@daily'"),
        ("@reboot", "unknown alias"),
        ("* " * 200, "at most 256"),
        ("*/0 * * * *", "bad minute"),
    ],
)
def test_an_impossible_expression_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_expression(text)


@given(
    st.text(max_size=40)
    | st.text(alphabet="0123456789*/-,#LW @\u0663monjan", min_size=9, max_size=40)
    | st.lists(
        st.sampled_from(
            ["*", "1", "L", "LW", "5L", "1#2", "*/2", "L/2", "1-5", "0,L", "5#9", "L-3"]
        ),
        min_size=5,
        max_size=6,
    ).map(" ".join)
)
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        plain = check_expression(text)
    except ConfigError:
        return
    assert check_expression(plain) == plain
    first = next_match(plain, zone_of("Europe/Berlin"), 1_800_000_000)
    assert first is None or first > 1_800_000_000


@pytest.mark.parametrize(
    "name", ["Europe/Berlim", "Europe", "", "../UTC", "/etc/passwd", "a\0b", "x" * 5000]
)
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown timezone"):
        zone_of(name)


def test_the_nearest_zone_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Europe/Berlim'; did you mean 'Europe/Berlin'"):
        zone_of("Europe/Berlim")


def test_other_types_are_refused() -> None:
    for value in (None, 5, b"* * * * *"):
        with pytest.raises(TypeError, match="must be a str"):
            check_expression(value)
        with pytest.raises(TypeError, match="must be a str"):
            zone_of(value)


def test_zones_are_known_without_the_files_of_the_machine() -> None:
    code = "from taskq.model.cron import zone_of; print(zone_of('Asia/Beirut').key)"
    environ = {**os.environ, "PYTHONTZPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "Asia/Beirut\n"
