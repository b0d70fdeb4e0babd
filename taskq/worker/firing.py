"""What a schedule that is due does: its definition, verified, becomes signed messages.

Whoever can write to Redis can put a schedule there; who holds no key of the app cannot prove
it, and nothing is signed for him.
"""

from __future__ import annotations

import itertools
import logging
import re

from taskq.broker import timetable
from taskq.broker.timetable import Entry, Firing, Progress
from taskq.model import control, schedule
from taskq.model.schedule import Definition, Overlap
from taskq.model.signing import BadSignature, Domain, Keyring, Seal

log = logging.getLogger("taskq.worker")

# Of ticks that were missed: more than these are not told from each other.
_MOST_MISSED = 1000
# Definitions that were verified; more are verified again.
_MOST_KNOWN = 1000
# An algorithm and the id of a key. Where there are none, no rotation is under way.
_SIGNED = re.compile(rb"[bhu][0-9a-f]{8}")
_CANCELLED = b"the next tick of its schedule came"


class Firer:
    """Makes the messages of the schedules of one queue. Used by one thread."""

    def __init__(self, app: str, queue: str, keyring: Keyring) -> None:
        self._app = app
        self._schedules, self._messages, self._orders = (
            keyring.seal(domain, app, queue)
            for domain in (Domain.SCHEDULE, Domain.MESSAGE, Domain.CONTROL)
        )
        self._known: dict[tuple[str, bytes], Definition] = {}

    @property
    def seal(self) -> Seal:
        """What signs and verifies definitions."""
        return self._schedules

    def read(self, entry: Entry) -> Definition:
        """Return the definition of a schedule; raise as `schedule.read`."""
        key = (entry.name, entry.definition)
        known = self._known.get(key)
        if known is None:
            if _SIGNED.match(entry.definition) is None:
                msg = "not a signed schedule"
                raise BadSignature(msg)
            known = schedule.read(entry.definition, entry.name, self._schedules)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = known
        return known

    def firing(self, entry: Entry, progress: Progress, now_ms: int) -> Firing:
        """Return what to do about a schedule that is due.

        Raises:
            UnknownKey, BadSignature: its definition is not proven.
            ConfigError: its zone is not known on this machine.

        """
        definition, name = self.read(entry), entry.name
        fire, following = self._planned(definition, name, progress, now_ms)
        missed = _missed(definition, progress.tick, now_ms, fire, following)
        overlap, skipped = definition.overlap, 0
        # Only the first of several could run, or only the last is to.
        if len(fire) > 1 and overlap is Overlap.QUEUE:
            fire, following = fire[:1], fire[1]
        elif len(fire) > 1 and overlap is not Overlap.ALLOW:
            skipped = len(fire) - 1
            fire = fire[:1] if overlap is Overlap.SKIP else fire[-1:]
        messages = [
            (tick, timetable.cast(self._app, name, definition, tick, now_ms, self._messages))
            for tick in fire
        ]
        return Firing(
            *self._overlap(overlap, name, progress),
            following or 0,
            definition.rule.due(name, following) if following else 0,
            messages,
            skipped,
            missed,
        )

    def _planned(
        self, definition: Definition, name: str, progress: Progress, now_ms: int
    ) -> tuple[tuple[int, ...], int | None]:
        rule, tick = definition.rule, progress.tick
        if progress.waits and rule.next_after(tick - 1) == tick:
            # It was on time, and had to wait: it is not missed, however late it is.
            return (tick,), rule.next_after(tick)
        planned = schedule.plan(definition, name, progress.tick, now_ms)
        return planned.fire, planned.next

    def _overlap(self, overlap: Overlap, name: str, progress: Progress) -> tuple[str, bytes]:
        """Return the letter of the policy, and the order that it needs."""
        if overlap is not Overlap.CANCEL_RUNNING or progress.id == timetable.NO_ID:
            return overlap.value[0], b""
        if timetable.message_before(self._app, name, progress) is None:
            # Somebody wrote it there: no order is signed for whatever it is.
            return Overlap.ALLOW.value[0], b""
        order = control.give(progress.id.encode(), _CANCELLED, self._orders, terminate=False)
        return overlap.value[0], order


def _missed(
    definition: Definition, tick: int, now_ms: int, fire: tuple[int, ...], following: int | None
) -> int:
    """Return how many ticks are neither fired now nor later."""
    upto = now_ms if following is None else following - 1
    passed = itertools.islice(definition.rule.ticks(tick - 1, upto), _MOST_MISSED)
    return max(0, sum(1 for _ in passed) - len(fire))
