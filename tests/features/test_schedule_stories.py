"""A schedule through any story of days: each tick of its active hours is fired once."""

from __future__ import annotations

import dataclasses
import secrets
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq import Context, TaskQ
from taskq.testing import VirtualClock, running_worker

HOUR = timedelta(hours=1)
NAME = "hourly"
# So long takes what a test does between two steps, at most: what ticks then may go either way.
SLACK = timedelta(seconds=20)

steps = st.one_of(
    st.tuples(st.just("advance"), st.integers(1, 9 * 3600)),
    st.tuples(st.sampled_from(["pause", "resume", "run_now", "new_call"]), st.just(0)),
    st.tuples(st.just("backfill"), st.integers(1, 9)),
)


@dataclasses.dataclass
class Story:
    """What was done, and what must have come of it."""

    app: TaskQ
    clock: VirtualClock
    ran: list[datetime]
    active: bool = True
    by_hand: int = 0
    since: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))
    # Spans of time in which every tick is fired, and instants at which it may go either way.
    spans: list[tuple[datetime, datetime]] = dataclasses.field(default_factory=list)
    edges: list[datetime] = dataclasses.field(default_factory=list)

    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    def pause(self, _: int) -> None:
        self.app.schedules.pause(NAME, "a story")
        self._note(active=False)

    def resume(self, _: int) -> None:
        self.app.schedules.resume(NAME)
        self._note(active=True)

    def run_now(self, _: int) -> None:
        self.app.schedules.run_now(NAME).get(timeout=10)
        self.by_hand += 1

    def new_call(self, _: int) -> None:
        call = self.app.tasks["note"].s(secrets.token_hex(4))
        self.app.schedules.add(NAME, call, every=HOUR)

    def backfill(self, hours: int) -> None:
        end = self.clock.now()
        for one in self.app.schedules.backfill(NAME, end - hours * HOUR, end):
            one.get(timeout=10)
        self.spans.append((end - hours * HOUR, end))
        self.edges += [end - hours * HOUR, end]

    def end(self) -> None:
        self._note(active=False)

    def _note(self, *, active: bool) -> None:
        now = self.clock.now()
        if self.active:
            self.spans.append((self.since, now))
        self.active, self.since = active, now
        self.edges.append(now)

    def check(self) -> None:
        """Compare what ran with the full hours of the spans."""
        counted = Counter(self.ran)
        assert max(counted.values(), default=1) == 1, counted
        wanted = {hour for span in self.spans for hour in full_hours(*span)}
        odd = wanted ^ {tick for tick in counted if tick.minute == tick.second == 0}
        for hour in odd:
            assert any(abs(hour - edge) < SLACK for edge in self.edges), (hour, self)
        others = [tick for tick in counted if tick.minute or tick.second or tick.microsecond]
        assert len(others) <= self.by_hand <= len(others) + 1


def full_hours(start: datetime, end: datetime) -> list[datetime]:
    hour = start.replace(minute=0, second=0, microsecond=0) + HOUR
    found = []
    while hour < end:
        found.append(hour)
        hour += HOUR
    return found


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(story=st.lists(steps, min_size=3, max_size=10))
def test_each_tick_is_fired_once_whatever_is_done_meanwhile(story: list[tuple[str, int]]) -> None:
    clock, ran = VirtualClock(), list[datetime]()
    url = f"memory://{secrets.token_hex(4)}"
    app = TaskQ(f"t{secrets.token_hex(6)}", url=url)

    @app.task(name="note", bind=True)
    def note(ctx: Context, *_: Any) -> None:
        ran.append(datetime.fromisoformat(ctx.headers["taskq-tick"]))

    with running_worker(app, clock=clock):
        app.schedules.add(NAME, note.s(), every=HOUR)
        told = Story(app, clock, ran, since=clock.now())
        told.edges.append(clock.now())
        for verb, number in (*story, ("advance", 3600)):
            getattr(told, verb)(number)
        app.schedules.pause(NAME)
        told.end()
    told.check()
    app.close()
