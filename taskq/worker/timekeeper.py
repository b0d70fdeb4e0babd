"""Fires the schedules of an app's queues, each tick once, however many others do the same.

Nothing here decides what is due, or who fires it: Redis's clock and one script do. So any
number of these may run, and their own clocks may be wrong.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable

from taskq.broker import keys, timetable
from taskq.broker.cluster import Lines
from taskq.broker.connection import Endpoint
from taskq.broker.line import Line
from taskq.broker.timetable import Agenda, Entry
from taskq.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError
from taskq.model import clock
from taskq.model.schedule import Unreadable
from taskq.model.signing import BadSignature, Keyring, UnknownKey
from taskq.model.words import printable
from taskq.worker.declaring import Declared, Declarer
from taskq.worker.ear import Ears
from taskq.worker.firing import Firer

log = logging.getLogger("taskq.worker")

# So often each queue is looked at though nothing was heard: whoever lost an announcement with
# its connection looks when it subscribes anew.
_LOOK_SECONDS = 15.0
# When to look at a tick that waits, before it can be heard that the message before it is over.
_WAIT_MS = 500
# How long it goes on leaving out what cannot be fired here.
_IGNORE_SECONDS = 60.0
_TELL_SECONDS = 60.0
# A declaration outlives the worker that vouched for it by so many leases.
_DECLARED_LEASES = 4


class Timekeeper:
    """A thread that sleeps until the next tick, and fires it."""

    def __init__(
        self,
        app: str,
        endpoint: Endpoint,
        queues: Iterable[str],
        *,
        keyring: Keyring,
        lease: float,
        declared: Declared,
    ) -> None:
        self._app = app
        self._lines = Lines(endpoint)
        self._lease = lease
        self._wake = threading.Event()
        # Set once what is declared is known to Redis, and what was due is fired.
        self.ready = threading.Event()
        self._stopped = False
        self._watches: dict[str, _Watch] = {}
        # What others say of the app; taken over by the thread before its next round.
        self._news: tuple[list[str], Keyring, Declared] | None = None
        self.refresh(queues, keyring, declared)
        self._ear = Ears(app, endpoint, self._queues, self._hear)
        self._thread = threading.Thread(target=self.run, name="taskq-schedules", daemon=True)

    def start(self) -> None:
        """Fire in a thread of its own."""
        self._thread.start()

    def refresh(self, queues: Iterable[str], keyring: Keyring, declared: Declared) -> None:
        """Take over what new children say of the app."""
        self._news = list(queues), keyring, declared
        self._wake.set()

    def look(self) -> None:
        """Look at all queues soon: what is due may have changed."""
        for watch in self._watches.values():
            watch.changed = True
        self._wake.set()

    def quit(self) -> None:
        """Fire no more; returns at once."""
        self._stopped = True
        self._ear.stop()
        self._wake.set()

    def stop(self) -> None:
        """Fire no more, and end the thread."""
        self.quit()
        if self._thread.is_alive():
            self._thread.join(10)

    def run(self) -> None:
        """Fire what is due until told to quit."""
        self._ear.start()
        pause = 0.0
        while not self._stopped:
            self._wake.wait(pause)
            self._wake.clear()
            if not self._stopped:
                pause = self._round()
        self._lines.close()

    def _queues(self) -> list[str]:
        return list(self._watches)

    def _hear(self, queue: str) -> None:
        watch = self._watches.get(queue)
        if watch is not None:
            watch.changed = True
        self._wake.set()

    def _round(self) -> float:
        """Look at the queues whose time has come; return the seconds until the next round."""
        self._take_over()
        now = clock.monotonic()
        for watch in self._watches.values():
            if watch.changed or watch.look_at <= now:
                try:
                    watch.look(self._lines.of(watch.base), self._lease, self._ear)
                    watch.ails = False
                except BrokerError as error:
                    if not watch.ails:
                        log.warning("schedules on %s wait: %s", watch.queue, error)
                    watch.ails = True
                    watch.look_at = clock.monotonic() + 0.5 + secrets.randbelow(500) / 1000
                except Exception:
                    # What is wrong with one queue must not keep the others from being fired.
                    log.exception("schedules on %s", watch.queue)
                    watch.look_at = clock.monotonic() + _LOOK_SECONDS
        if not any(watch.ails for watch in self._watches.values()):
            self.ready.set()
        at = min((watch.look_at for watch in self._watches.values()), default=now + _LOOK_SECONDS)
        return max(0.0, at - clock.monotonic())

    def _take_over(self) -> None:
        news, self._news = self._news, None
        if news is None:
            return
        queues, keyring, declared = news
        known = self._watches
        self._watches = {
            queue: known.get(queue) or _Watch(self._app, queue, self._lines) for queue in queues
        }
        self._ear.attend()
        for queue, watch in self._watches.items():
            watch.learn(keyring, declared.definitions.get(queue, {}), declared.modules)


class _Watch:
    """One queue, and when to look at it again. Used by one thread, but for `changed`."""

    def __init__(self, app: str, queue: str, lines: Lines) -> None:
        self._app, self.queue = app, queue
        self.base = keys.base(app, queue)
        self._declarer = Declarer(app, queue, lines.of(self.base))
        self._firer: Firer
        # Monotonic instants.
        self.look_at = self._vouch_at = self._forgive_at = 0.0
        # Whether a schedule was made or changed meanwhile; whether the last look failed.
        self.changed = self.ails = False
        # Schedules that cannot be fired here, and perhaps elsewhere.
        self._ignored: set[bytes] = set()
        # Whether some may be signed with an older key.
        self._renews = False
        # Of which it was said.
        self._told: set[str] = set()
        # When to tell again of a key that is not held.
        self._tell_at = 0.0

    def learn(self, keyring: Keyring, declared: dict[str, bytes], modules: frozenset[str]) -> None:
        """Take over what the worker's code says."""
        self._firer = Firer(self._app, self.queue, keyring)
        self._declarer.learn(declared, modules)
        # With one key there is nothing that another one has signed and this one proves.
        self._renews = len(keyring.keys) > 1
        self._ignored.clear()
        self._told.clear()
        self.look_at = self._vouch_at = 0.0

    def look(self, line: Line, lease: float, ear: Ears) -> None:
        """Fire what is due, and note when to look again.

        Raises:
            BrokerError: Redis is away, or full.

        """
        now = clock.monotonic()
        if self.changed or now >= self._forgive_at:
            self._ignored.clear()
            self._forgive_at = now + _IGNORE_SECONDS
        self.changed = False
        lease_ms = round(_DECLARED_LEASES * lease * 1000)
        self._declarer.tell(self._firer, lease_ms)
        if self._renews:
            self._renews = not self._declarer.renew(self._firer)
        vouches = now >= self._vouch_at
        agenda = line.run(
            timetable.agenda(
                self.base,
                declared=lease_ms if vouches else 0,
                skipped=self._ignored,
                names=self._declarer.names if vouches else (),
            )
        )
        seen = clock.monotonic()
        if vouches:
            self._vouch_at = seen + lease
            self._declarer.miss(agenda.gone)
            self._declarer.clear_away(agenda.lapsed, self._firer)
        next_ms = self._fire_all(line, agenda, ear)
        left = min(_LOOK_SECONDS, lease) if self._declarer.names else _LOOK_SECONDS
        if next_ms is not None:
            # One more: what the clock says was cut off.
            left = min(left, max(0, next_ms - agenda.now_ms + 1) / 1000)
        self.look_at = seen if agenda.gone else seen + left

    def _fire_all(self, line: Line, agenda: Agenda, ear: Ears) -> int | None:
        """Fire what is due; return when the next tick is, by Redis's clock."""
        times = [] if agenda.next_ms is None else [agenda.next_ms]
        unproven: list[Entry] = []
        for entry in agenda.due:
            try:
                at = self._fire(line, entry, agenda.now_ms, ear)
                times += [] if at is None else [at]
            except Unreadable as error:
                self._ignore(entry, error)
            except BadSignature as error:
                # Maintenance tells people, once a minute: whoever forges can forge many.
                log.debug("%s: the schedule %s: %s", self.queue, printable(entry.name), error)
                unproven.append(entry)
            except (BrokerFull, BrokerUnavailable):
                raise
            except UnknownKey as error:
                # As above; and what is not fired by one worker may be by another.
                self._ignored.add(entry.key)
                if (now := clock.monotonic()) >= self._tell_at:
                    self._tell_at = now + _TELL_SECONDS
                    self._tell(entry, f"{error}; is TASKQ_SECRET the same everywhere?")
            except (ConfigError, BrokerError) as error:
                self._ignore(entry, error)
            except Exception as error:
                # What is wrong with one schedule must not keep the others from being fired.
                log.exception("%s: the schedule %s", self.queue, printable(entry.name))
                self._ignore(entry, error)
        if unproven:
            # They are due no more; whatever becomes of that, they are not asked for again.
            self._ignored.update(entry.key for entry in unproven)
            line.run(timetable.distrust(self.base, unproven))
        return min(times, default=None)

    def _ignore(self, entry: Entry, error: Exception) -> None:
        """Leave a schedule to others, for some time."""
        self._ignored.add(entry.key)
        if entry.name not in self._told:
            self._told.add(entry.name)
            self._tell(entry, str(error))

    def _tell(self, entry: Entry, why: str) -> None:
        log.error(
            "%s: the schedule %s is not fired here: %s",
            self.queue, printable(entry.name), printable(why),
        )  # fmt: skip

    def _fire(self, line: Line, entry: Entry, now_ms: int, ear: Ears) -> int | None:
        """Fire what is due of a schedule, unless another one does; return when to look again."""
        if entry.progress is None:
            msg = "what it fired so far cannot be read"
            raise BadSignature(msg)
        firing = self._firer.firing(entry, entry.progress, now_ms)
        word, fired = line.run(timetable.fire(self.base, entry.name, entry.progress, firing))
        if word == "wait":
            heard = ear.await_end(self.queue, entry.progress.id)
            return None if heard else now_ms + _WAIT_MS
        if word == "ok":
            log.debug("%s: fired %d messages of %s", self.queue, fired, entry.name)
            if firing.missed:
                log.info("%s: %d ticks of %s were missed", self.queue, firing.missed, entry.name)
        elif firing.order:
            return now_ms  # another message may be the one to cancel
        return firing.due_ms or None
