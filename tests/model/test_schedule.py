"""Schedules as values: when they tick, what is refused, and which ticks are fired."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taskq.errors import ConfigError
from taskq.model import clock, schedule
from taskq.model.schedule import GRACE_MS, CatchUp, Definition, Overlap, Rule, check_window, plan
from taskq.model.signing import BadSignature, Domain, Keyring, Seal, UnknownKey

NAME = "report-42"
SECRET, OTHER = "s" * 32, "o" * 32
NOW = 1_800_000_000_000
HOUR = 3_600_000


def at(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def definition(rule: Rule, **fields: Any) -> Definition:
    return Definition(rule, "shop.report", "json", b"[[42],{}]", **fields)


def rules() -> st.SearchStrategy[Rule]:
    seconds = st.integers(1, 100_000).map(lambda count: count * 1000)
    start = st.just(0) | st.integers(NOW - 10 * HOUR, NOW + 10 * HOUR)
    periods = st.builds(Rule, every_ms=seconds, start_ms=start)
    crons = st.builds(
        Rule,
        cron=st.sampled_from(["* * * * *", "*/7 2-4 * * *", "30 2 * * *", "* * * * * *"]),
        zone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
        start_ms=start,
    )
    return st.builds(
        lambda rule, end, jitter: msgspec.structs.replace(
            rule, end_ms=end and NOW + end, jitter_ms=min(jitter, rule.every_ms or 1000)
        ),
        periods | crons,
        st.just(0) | st.integers(1, 20 * HOUR),
        st.just(0) | st.integers(1, 100_000),
    )


INSTANTS = st.integers(NOW - 20 * HOUR, NOW + 20 * HOUR)


@given(rules(), INSTANTS, INSTANTS)
@settings(deadline=None)
def test_the_next_tick_is_later_and_never_earlier_for_a_later_instant(
    rule: Rule, one: int, other: int
) -> None:
    first, second = (rule.next_after(moment) for moment in sorted((one, other)))
    for moment, tick in zip(sorted((one, other)), (first, second), strict=True):
        if tick is not None:
            assert tick > moment
            assert rule.start_ms <= tick <= (rule.end_ms or tick)
    if second is not None:
        assert first is not None
        assert first <= second
        # Nothing lies between an instant and its next tick.
        assert rule.next_after(second - 1) == second


@given(rules(), INSTANTS)
@settings(deadline=None)
def test_ticks_are_what_next_after_gives_one_by_one(rule: Rule, since: int) -> None:
    ticks = list(itertools.islice(rule.ticks(since, since + HOUR), 20))
    tick: int | None = since
    for expected in ticks:
        assert tick is not None
        tick = rule.next_after(tick)
        assert tick == expected
    assert all(since < tick <= since + HOUR for tick in ticks)


@given(rules(), INSTANTS, st.integers(0, HOUR // 2))
@settings(deadline=None)
def test_the_last_tick_is_the_last_of_all(rule: Rule, upto: int, back: int) -> None:
    ticks = list(rule.ticks(upto - back - 1, upto))
    assert rule.last_upto(upto, upto - back) == (ticks[-1] if ticks else None)


@given(rules(), st.sampled_from(CatchUp), st.integers(0, 3), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=200)
def test_no_plan_fires_twice_or_early_or_against_its_policy(
    rule: Rule, catch_up: CatchUp, hours: int, limit: int, data: st.DataObject
) -> None:
    one = definition(rule, catch_up=catch_up, window_ms=hours * HOUR)
    tick = rule.next_after(NOW)
    fired: list[int] = []
    now = NOW
    for _ in range(6):
        if tick is None:
            break
        now += data.draw(st.integers(0, 2_000) | st.integers(0, HOUR))
        first, found = tick, plan(one, NAME, tick, now, limit=limit)
        due = [rule.due(NAME, moment) for moment in found.fire]
        assert len(due) <= limit
        assert all(moment <= now for moment in due)
        late = [moment for moment in due if moment < now - GRACE_MS]
        if catch_up is CatchUp.NONE:
            assert not late
        if catch_up is CatchUp.LAST:
            assert not late or len(due) == 1
        assert not hours or all(moment >= now - hours * HOUR for moment in late)
        fired += found.fire
        tick = found.next
        assert tick is None or tick >= first
        if tick is not None and len(found.fire) < limit:
            assert rule.due(NAME, tick) > now
    assert fired == sorted(set(fired))


@given(rules(), st.integers(0, HOUR // 4), st.integers(1, 7))
@settings(deadline=None)
def test_all_are_caught_up_in_order_and_none_is_left_out(
    rule: Rule, passed: int, limit: int
) -> None:
    tick = rule.next_after(NOW)
    assume(tick is not None)
    assert tick is not None
    one, now = definition(rule, catch_up=CatchUp.ALL), tick + passed
    expected = [moment for moment in rule.ticks(tick - 1, now) if rule.due(NAME, moment) <= now]
    fired: list[int] = []
    while tick is not None:
        found = plan(one, NAME, tick, now, limit=limit)
        fired += found.fire
        tick = found.next
        if not found.fire:
            break
    assert fired == expected


@given(rules())
@settings(deadline=None)
def test_who_looks_every_few_seconds_fires_each_tick_once_whatever_the_policy(rule: Rule) -> None:
    tick = rule.next_after(NOW)
    expected = list(rule.ticks(NOW, NOW + 60_000))
    for catch_up in CatchUp:
        fired: list[int] = []
        following = tick
        # The last look is late enough for what jitter put off.
        for now in range(NOW, NOW + 60_000 + rule.jitter_ms + 9_000, 4_000):
            if following is not None:
                found = plan(definition(rule, catch_up=catch_up), NAME, following, now)
                fired += found.fire
                following = found.next
        assert [one for one in fired if one <= NOW + 60_000] == expected


class TestAfterAWeekWithoutWorkers:
    rule = Rule.of(cron="0 * * * *")
    since = at("2026-05-01T01:00Z")
    now = at("2026-05-08T00:30Z")

    def test_none_is_made_up_for(self) -> None:
        found = plan(definition(self.rule, catch_up=CatchUp.NONE), NAME, self.since, self.now)
        assert found == schedule.Plan((), at("2026-05-08T01:00Z"))

    def test_one_stands_for_all(self) -> None:
        found = plan(definition(self.rule), NAME, self.since, self.now)
        assert found == schedule.Plan((at("2026-05-08T00:00Z"),), at("2026-05-08T01:00Z"))

    def test_all_are_in_portions(self) -> None:
        one = definition(self.rule, catch_up=CatchUp.ALL)
        found = plan(one, NAME, self.since, self.now)
        assert found.fire == tuple(self.since + n * HOUR for n in range(100))
        assert found.next == self.since + 100 * HOUR

    def test_a_window_leaves_out_what_is_older(self) -> None:
        one = definition(self.rule, catch_up=CatchUp.ALL, window_ms=2 * HOUR)
        found = plan(one, NAME, self.since, self.now)
        assert found.fire == (at("2026-05-07T23:00Z"), at("2026-05-08T00:00Z"))
        one = definition(self.rule, window_ms=10 * 60_000)
        assert plan(one, NAME, self.since, self.now).fire == ()

    def test_a_year_of_seconds_costs_no_year(self) -> None:
        one = definition(Rule.of(cron="* * * * * *"))
        now = self.since + 365 * 24 * HOUR
        assert plan(one, NAME, self.since, now).next == now + 1000

    def test_one_that_has_ended_has_no_next_tick(self) -> None:
        rule = Rule.of(every=60, end=utc("2026-05-02"))
        found = plan(definition(rule), NAME, self.since, self.now)
        assert found == schedule.Plan((at("2026-05-02T00:00Z"),), None)


class TestPeriods:
    def test_they_are_counted_from_the_epoch_or_the_start(self) -> None:
        rule = Rule.of(every=dt.timedelta(minutes=5))
        assert rule.next_after(at("2026-01-01T00:00:01Z")) == at("2026-01-01T00:05Z")
        rule = Rule.of(every=300, start=utc("2026-01-01T00:02"))
        assert rule.next_after(0) == at("2026-01-01T00:02Z")
        assert rule.next_after(at("2026-01-01T00:02Z")) == at("2026-01-01T00:07Z")

    def test_the_last_instant_is_part_of_it(self) -> None:
        rule = Rule.of(every=60, start=utc("2026-01-01"), end=utc("2026-01-01T00:02"))
        ticks = list(rule.ticks(0, at("2027-01-01T00:00Z")))
        assert ticks == [at("2026-01-01T00:00Z") + n * 60_000 for n in range(3)]


class TestJitter:
    def test_it_is_the_same_everywhere_and_spread_evenly(self) -> None:
        rule = Rule.of(every=60, jitter=30)
        offsets = [rule.offset(f"job-{n}", NOW) for n in range(1000)]
        assert offsets == [rule.offset(f"job-{n}", NOW) for n in range(1000)]
        assert min(offsets) < 1000
        assert max(offsets) > 29_000
        assert rule.offset(NAME, NOW) != rule.offset(NAME, NOW + 60_000)

    def test_it_is_as_the_page_says(self) -> None:
        digest = hashlib.blake2b(b"a\x005000", digest_size=8, person=b"taskq-jitter").digest()
        assert Rule.of(every=60, jitter=30).offset("a", 5000) == int.from_bytes(digest) % 30_000


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({}, "cron= or every=, and not both"),
            ({"cron": "* * * * *", "every": 5}, "and not both"),
            ({"cron": "61 * * * *"}, "bad minute"),
            ({"cron": "0 0 30 2 *"}, "bad day-of-month"),
            ({"cron": "* * * * *", "timezone": "Europe/Berlim"}, "did you mean 'Europe/Berlin'"),
            ({"every": 5, "timezone": "Europe/Berlin"}, "timezone goes with cron"),
            ({"every": 0.9}, "1 second to ten years"),
            ({"every": dt.timedelta(days=4000)}, "1 second to ten years"),
            ({"every": -1}, "finite number"),
            ({"every": float("nan")}, "finite number"),
            ({"every": 5, "jitter": 6}, "jitter"),
            ({"cron": "* * * * *", "jitter": 61}, r"jitter \(61 s\).*\(60 s\)"),
            ({"cron": "0,5 7 * * *", "jitter": 301}, r"\(300 s\)"),
            ({"every": 5, "start": utc("2099-01-01")}, "ten years"),
            ({"every": 5, "start": utc("1969-01-01")}, "after 1970"),
            ({"every": 5, "start": utc("2026-01-02"), "end": utc("2026-01-02")}, "after start"),
            (
                {"cron": "@yearly", "start": utc("2026-01-02"), "end": utc("2026-05-01")},
                "before the first tick",
            ),
            ({"every": 5, "start": dt.datetime(2026, 1, 1)}, "aware"),  # noqa: DTZ001
            ({"every": 5, "end": dt.datetime(2026, 1, 1)}, "aware"),  # noqa: DTZ001
        ],
    )
    def test_is_refused_with_a_word_on_what_is_wrong(self, given: Any, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            Rule.of(**given)

    @pytest.mark.parametrize(
        "given",
        [
            {"cron": 5},
            {"every": "5"},
            {"every": True},
            {"cron": "* * * * *", "timezone": dt.UTC},
            {"every": 5, "start": "2026-01-01"},
            {"every": 5, "jitter": "1"},
        ],
    )
    def test_of_another_type_is_a_type_error(self, given: Any) -> None:
        with pytest.raises(TypeError):
            Rule.of(**given)

    def test_a_window_needs_something_to_catch_up(self) -> None:
        assert check_window(CatchUp.LAST, None) == 0
        assert check_window(CatchUp.ALL, dt.timedelta(hours=1)) == HOUR
        with pytest.raises(ConfigError, match="takes no window"):
            check_window(CatchUp.NONE, 60)
        with pytest.raises(ConfigError, match="10 s or more"):
            check_window(CatchUp.ALL, 9)


def test_what_this_machine_does_not_know_is_a_config_error() -> None:
    for rule in (Rule(cron="* * * * *", zone="Mars/Olympus"), Rule(cron="* * * * H")):
        with pytest.raises(ConfigError):
            rule.next_after(NOW)


def test_a_rule_says_itself_in_words() -> None:
    assert str(Rule.of(cron="@daily")) == "0 0 * * *"
    assert str(Rule.of(cron="0 7 * * mon", timezone="Europe/Berlin")) == "0 7 * * mon Europe/Berlin"
    assert str(Rule.of(every=dt.timedelta(minutes=5))) == "every 300 s"


class TestSigned:
    one = definition(
        Rule.of(cron="0 7 * * mon", timezone="Europe/Berlin", jitter=30),
        overlap=Overlap.SKIP,
        catch_up=CatchUp.ALL,
        headers={"who": "cron"},
        owner="shop.jobs",
        created_ms=clock.now_ms(),
    )

    @staticmethod
    def seal(*keys: str, app: str = "shop", queue: str = "q", domain: str = "schedule") -> Seal:
        return Keyring(keys).seal(Domain(f"taskq-{domain}"), app, queue)

    def test_what_was_signed_is_read(self) -> None:
        raw = schedule.sign(self.one, NAME, self.seal(SECRET))
        assert schedule.read(raw, NAME, self.seal(OTHER, SECRET)) == self.one
        assert schedule.read(raw, NAME, self.seal(SECRET)).overlap is Overlap.SKIP

    def test_its_layout_and_its_tag_are_as_the_protocol_says(self) -> None:
        raw = schedule.sign(self.one, NAME, self.seal(SECRET))
        key = hashlib.blake2b(SECRET.encode(), digest_size=32, person=b"taskq-derive").digest()
        mac = hashlib.blake2b(b"shop\0q\0", key=key, digest_size=16, person=b"taskq-schedule")
        mac.update(NAME.encode() + raw[25:])
        assert raw[:9] == b"b" + self.seal(SECRET).key_id
        assert raw[9:25] == mac.digest()
        assert msgspec.msgpack.decode(raw[25:])[1] == "shop.report"

    def test_each_byte_of_it_counts(self) -> None:
        seal = self.seal(SECRET)
        raw = schedule.sign(self.one, NAME, seal)
        for place in range(len(raw)):
            for changed in (raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :], raw[:place]):
                with pytest.raises((BadSignature, UnknownKey)):
                    schedule.read(changed, NAME, seal)

    @pytest.mark.parametrize(
        "place", [{"app": "shops"}, {"queue": "mail"}, {"domain": "message"}, {"domain": "control"}]
    )
    def test_it_is_of_its_app_its_queue_and_its_domain(self, place: dict[str, str]) -> None:
        raw = schedule.sign(self.one, NAME, self.seal(SECRET))
        with pytest.raises(BadSignature):
            schedule.read(raw, NAME, self.seal(SECRET, **place))

    def test_it_is_of_its_name(self) -> None:
        raw = schedule.sign(self.one, NAME, self.seal(SECRET))
        with pytest.raises(BadSignature):
            schedule.read(raw, "report-4", self.seal(SECRET))

    def test_a_key_that_is_not_held_is_told_apart(self) -> None:
        raw = schedule.sign(self.one, NAME, self.seal(SECRET))
        with pytest.raises(UnknownKey):
            schedule.read(raw, NAME, self.seal(OTHER))

    def test_what_is_signed_and_no_definition_is_refused(self) -> None:
        seal = self.seal(SECRET)
        for body in (b"", b"\xc1", msgspec.msgpack.encode(["x"])):
            raw = seal.stamp(NAME.encode(), body) + body
            with pytest.raises(BadSignature, match="unreadable schedule"):
                schedule.read(raw, NAME, seal)

    def test_old_bytes_are_read_by_new_code(self) -> None:
        seal = self.seal(SECRET)
        body = msgspec.msgpack.encode([["* * * * *"], "shop.report", "json", b""])
        read = schedule.read(seal.stamp(NAME.encode(), body) + body, NAME, seal)
        assert read == Definition(Rule(cron="* * * * *"), "shop.report", "json", b"")

    def test_no_argument_is_shown(self) -> None:
        assert repr(self.one) == "Definition(shop.report, 0 7 * * mon Europe/Berlin)"


def test_ticks_of_each_second_that_were_missed_are_not_gone_through_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    find = schedule.next_match

    def counted(expression: str, place: Any, instant: int) -> int | None:
        asked.append(instant)
        return find(expression, place, instant)

    monkeypatch.setattr(schedule, "next_match", counted)
    ended = Rule(cron="* * * * * *", end_ms=NOW - 2400 * HOUR)
    mondays = Rule(cron="* * * * * mon")
    for rule in (ended, mondays):
        fired = plan(definition(rule), NAME, NOW - 8000 * HOUR, NOW).fire
        assert len(fired) == 1
        assert fired[0] <= NOW < (rule.next_after(fired[0]) or NOW + 1)
    assert len(asked) < 500
