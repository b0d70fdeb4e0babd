"""The schedules that a worker's code declares: brought to Redis, vouched for, and taken away.

Those made at run time are signed anew, where keys are being rotated.

One is taken away by a worker that imported the module it was declared in, and finds it there
no more; and not before every worker that declared it has gone.
"""

from __future__ import annotations

import base64
import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from taskq.broker import keys, timetable
from taskq.broker.line import Line
from taskq.broker.timetable import Entry
from taskq.model import schedule
from taskq.model.schedule import Definition
from taskq.model.signing import BadSignature, UnknownKey
from taskq.worker.channel import Note
from taskq.worker.firing import Firer

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

log = logging.getLogger("taskq.worker")

# Others may declare the same at the same time.
_TRIES = 5


class Declared(msgspec.Struct, frozen=True):
    """What the code of a worker says of schedules."""

    # Queue → name → signed definition.
    definitions: dict[str, dict[str, bytes]] = {}
    # The modules that were imported.
    modules: frozenset[str] = frozenset()

    @classmethod
    def by(cls, app: TaskQ, queues: Iterable[str]) -> Declared:
        """Return what an app that was imported says of the schedules of some queues."""
        found: dict[str, dict[str, bytes]] = {queue: {} for queue in queues}
        for name, periodic in app.periodic_calls.items():
            if periodic.call.queue in found:
                found[periodic.call.queue][name] = periodic.sign(app)
        foreign = sys.stdlib_module_names
        modules = [name for name in sys.modules if name.partition(".")[0] not in foreign]
        return cls(found, frozenset((*modules, *(one.origin[0] for one in app.tasks.values()))))

    def note(self) -> Note:
        """Return it as a child tells it."""
        told = {
            queue: {name: base64.b64encode(raw).decode() for name, raw in some.items()}
            for queue, some in self.definitions.items()
        }
        return {"definitions": told, "modules": sorted(self.modules)}

    @classmethod
    def of(cls, note: Note) -> Declared:
        """Return what a child told."""
        heard = {
            queue: {name: base64.b64decode(text) for name, text in some.items()}
            for queue, some in note["definitions"].items()
        }
        return cls(heard, frozenset(note["modules"]))


class Declarer:
    """Brings the declared schedules of one queue to Redis. Used by one thread."""

    def __init__(self, app: str, queue: str, line: Line) -> None:
        self._queue, self._line = queue, line
        self._base = keys.base(app, queue)
        self._declared: dict[str, bytes] = {}
        self._modules: frozenset[str] = frozenset()
        # What Redis was not told yet; and who lapsed and is not ours to take away.
        self._untold: set[str] = set()
        self._others: set[str] = set()
        # Names that are taken by schedules made at run time.
        self._taken: set[str] = set()

    @property
    def names(self) -> list[str]:
        """What this worker vouches for."""
        return [one for one in self._declared if one not in self._taken]

    def learn(self, declared: dict[str, bytes], modules: frozenset[str]) -> None:
        """Take over what children that started last say; what they said before is known."""
        earlier, self._declared, self._modules = self._declared, declared, modules
        changed = {name for name, raw in declared.items() if earlier.get(name) != raw}
        self._untold = (self._untold & declared.keys()) | changed
        self._others.clear()
        self._taken.clear()

    def tell(self, firer: Firer, lease_ms: int) -> None:
        """Bring to Redis what it was not told yet.

        Raises:
            BrokerError: Redis is away; the rest is told next time, as is what others
                changed again and again.

        """
        for name in list(self._untold):
            if self._bring(name, self._declared[name], firer, lease_ms):
                self._untold.discard(name)

    def miss(self, names: Iterable[str]) -> None:
        """Note that Redis does not have what it was told once."""
        self._untold.update(name for name in names if name in self._declared)

    def clear_away(self, lapsed: Iterable[str], firer: Firer) -> None:
        """Take away what nobody declares any more, as far as it is ours."""
        names = [one for one in lapsed if one not in self._others and one not in self._declared]
        if not names:
            return
        _, _, entries = self._line.run(timetable.plans(self._base, names=names))
        for entry in entries:
            definition = _read(entry, firer)
            if definition is None or definition.owner not in self._modules:
                self._others.add(entry.name)
            elif self._line.run(timetable.unplan(self._base, entry.name, entry.definition)) == "ok":
                log.info(
                    "removed the schedule %s on %s: %s does not declare it any more",
                    entry.name, self._queue, definition.owner,
                )  # fmt: skip

    def renew(self, firer: Firer) -> bool:
        """Sign what was made at run time with the newest key; return whether that is done.

        A message is over some day, and the key that signed it can be dropped then. A schedule
        goes on.

        Raises:
            BrokerError: Redis is away, or full.

        """
        cursor, done = b"0", True
        while True:
            now_ms, cursor, page = self._line.run(timetable.plans(self._base, cursor))
            for entry in page:
                if schedule.signer_of(entry.definition) == firer.seal.key_id:
                    continue
                definition = _read(entry, firer)
                if definition is None or definition.owner or entry.progress is None:
                    continue
                raw = schedule.renewed(entry.definition, entry.name, firer.seal)
                tick = timetable.next_tick(entry.name, definition, definition, entry, now_ms)
                command = timetable.plan(
                    self._base, entry.name, raw, tick, known=entry.progress, declared=0
                )
                done = self._line.run(command) == "ok" and done
            if cursor == b"0":
                return done

    def _bring(self, name: str, raw: bytes, firer: Firer, lease_ms: int) -> bool:
        """Bring one to Redis; return whether it is there, or its name is taken."""
        mine = schedule.read(raw, name, firer.seal)
        for _ in range(_TRIES):
            now_ms, _, entries = self._line.run(timetable.plans(self._base, names=[name]))
            entry = entries[0] if entries else None
            earlier = _read(entry, firer) if entry else None
            if earlier is not None and not earlier.owner:
                self._taken.add(name)
                log.error(
                    "the schedule %s of %s is not declared: on %s one of that name was made at "
                    "run time; remove it, or give one of them another name",
                    name, mine.owner, self._queue,
                )  # fmt: skip
                return True
            command = timetable.plan(
                self._base,
                name,
                raw,
                timetable.next_tick(name, mine, earlier, entry, now_ms),
                known=entry.progress if entry else None,
                declared=lease_ms,
            )
            if self._line.run(command) == "ok":
                log.info("the schedule %s on %s: %s, %s", name, self._queue, mine.rule, mine.task)
                return True
        return False


def _read(entry: Entry, firer: Firer) -> Definition | None:
    """Return a definition if it is proven."""
    try:
        return firer.read(entry)
    except (UnknownKey, BadSignature):
        return None
