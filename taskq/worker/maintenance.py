"""A worker's periodic duties: renew leases, take back what dead children held, warn.

Safe to run any number of times, in any number of workers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from taskq.broker import claims, commands, keys, queries
from taskq.broker.claims import DEFAULT_KEPT, Blame, Kept, Order
from taskq.broker.cluster import Lines
from taskq.broker.connection import Endpoint
from taskq.broker.queries import read_count
from taskq.errors import BrokerError
from taskq.model import clock
from taskq.model.signing import Keyring
from taskq.worker.warrants import Warrants

log = logging.getLogger("taskq.worker")

# Queue and the child's id in it.
Member: TypeAlias = tuple[str, str]
_WARN_SECONDS = 60.0
_WORTH_TELLING = {
    "refused": "refused %d messages on %s, unread: not ours, or badly signed",
    "distrusted": "set %d schedules aside on %s: not ours, or badly signed",
    "disobeyed": "did not obey %d orders to cancel on %s: not ours, or badly signed",
}


class Maintenance:
    """A thread that renews the leases of `members()` and reclaims those that ran out."""

    def __init__(
        self,
        app: str,
        endpoint: Endpoint,
        queues: Iterable[str],
        *,
        keyring: Keyring,
        lease: float,
        digest: str,
        members: Callable[[], Iterable[Member]],
        holds: Callable[[Member], bool] = lambda _member: True,
        kept: Kept = DEFAULT_KEPT,
        lost: Callable[[Member], None] = lambda _member: None,
        first: Callable[[], None] | None = None,
        grown: Callable[[dict[str, int]], None] = lambda _counts: None,
        orders: Callable[[Member, list[Order]], None] = lambda _member, _orders: None,
        forgotten: Callable[[Member], None] = lambda _member: None,
    ) -> None:
        self._app = app
        self._queues = list(queues)
        self._lease_ms, self._tick = round(lease * 1000), lease / 3
        self._digest, self._kept = digest, kept
        self._members = members
        # Whether a member holds messages; and how long its lease is renewed at each round.
        self._holds = holds
        self._held_until: dict[Member, float] = {}
        # Of partitions, one half is looked after in a round, and the other in the next.
        self._rounds = 0
        self._lost = lost
        # Called once, when Redis is reached; again where it raises a `BrokerError`.
        self._first = first
        # Queues that have more partitions than are looked after, and how many.
        self._grown = grown
        self._count_at = 0.0
        # What a member is to cancel, which it may not have heard.
        self._orders = orders
        # Called for a member of which Redis forgot something; who was told so.
        self._forgotten, self._told = forgotten, set[Member]()
        self._keyring, self._warrants = keyring, Warrants(app, keyring)
        self._lines = Lines(endpoint)
        # With a cluster: the queues whose node did not answer in this round. The others are
        # looked after all the same.
        self._clustered = endpoint.clustered
        self._silent: set[str] = set()
        self._wake = threading.Event()
        self._stopped = False
        # How many suspects wait in each queue, at the last look; read by the supervisor.
        self.suspects: dict[str, int] = {}
        # Children that died: what they held is taken back at once.
        self._dead: list[tuple[Member, Sequence[Blame]]] = []
        # What children hold and cannot start: given back at once.
        self._stuck: list[tuple[Member, Sequence[bytes]]] = []
        self._lock = threading.Lock()
        # Not at once: the children are about to say what they know.
        self._warn_at = clock.monotonic() + self._tick
        # How much had been counted at the last look, by queue and what it was.
        self._counted: dict[tuple[str, str], int] = {}
        self._away = False
        self._reached_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="taskq-maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def refresh(self, queues: Iterable[str], lease: float, digest: str, keyring: Keyring) -> None:
        """Take over what new children say of the app."""
        self._queues, self._digest = list(queues), digest
        if keyring.keys != self._keyring.keys:
            self._keyring, self._warrants = keyring, Warrants(self._app, keyring)
        if round(lease * 1000) != self._lease_ms:
            self._lease_ms, self._tick = round(lease * 1000), lease / 3
            self._wake.set()

    def stop(self) -> None:
        """End the thread after a last look at the dead."""
        self._stopped = True
        self._wake.set()
        self._thread.join(10)

    @property
    def reached(self) -> tuple[float | None, float]:
        """When the last good round ended, and how long it is from one to the next."""
        return self._reached_at, self._tick

    def reclaim(self, member: Member, blames: Sequence[Blame] = ()) -> None:
        """Take back what a dead child held, now; `blames` say what it died of."""
        with self._lock:
            self._dead.append((member, blames))
        self._wake.set()

    def release(self, member: Member, fields: Sequence[bytes]) -> None:
        """Give back what a child holds and cannot start, now."""
        with self._lock:
            self._stuck.append((member, fields))
        self._wake.set()

    def _run(self) -> None:
        pause = 0.0
        while not self._stopped:
            self._wake.wait(pause)
            self._wake.clear()
            pause = self._round()
        with contextlib.suppress(BrokerError):  # their leases will run out
            self._take_back_dead()
        self._lines.close()

    def _round(self) -> float:
        """Do all duties once; return the seconds until the next round."""
        # Those that answered come first: a node that is silent costs time.
        late, self._silent = self._silent, set[str]()
        try:
            if self._first is not None:
                self._first()
                self._first = None
            self._take_back_dead()
            self._give_back_stuck()
            self._renew(late)
            for queue in sorted(self._due(), key=late.__contains__):
                self._do(queue, functools.partial(self._reclaim, queue, ""))
            self._count()
            self._warn()
        except BrokerError as error:
            self._note_away(error)
            return 0.5 + secrets.randbelow(500) / 1000
        except Exception:
            # A defect in one duty must not end all of them: leases are to be renewed.
            log.exception("maintenance failed")
            return self._tick * (0.8 + secrets.randbelow(200) / 1000)
        # Also while a node is away: the other half of the partitions has its turn.
        self._rounds += 1
        if self._silent:
            return 0.5 + secrets.randbelow(500) / 1000
        self._away = False
        self._reached_at = clock.monotonic()
        return self._tick * (0.8 + secrets.randbelow(200) / 1000)

    def _do(self, queue: str, duty: Callable[[], None]) -> bool:
        """Do a duty of one queue; return whether it was done.

        Raises:
            BrokerError: Redis is away, and with it every queue.

        """
        if queue in self._silent:
            return False
        try:
            duty()
        except BrokerError as error:
            if not self._clustered:
                raise
            self._note_away(error)
            self._silent.add(queue)
            return False
        return True

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            log.warning("maintenance waits for Redis: %s", error)
        self._away = True

    def _take_back_dead(self) -> None:
        for one in list(self._dead):
            (queue, worker), blames = one
            if self._do(queue, functools.partial(self._reclaim, queue, worker, blames)):
                with self._lock:
                    self._dead.remove(one)

    def _give_back_stuck(self) -> None:
        while self._stuck:
            with self._lock:
                (queue, worker), fields = self._stuck.pop(0)
            # Where Redis is away they are stuck as well, and are looked at again.
            self._do(queue, functools.partial(self._release, queue, worker, fields))

    def _release(self, queue: str, worker: str, fields: Sequence[bytes]) -> None:
        base = keys.base(self._app, queue)
        count = self._lines.run(claims.release(base, worker.encode(), fields))
        if count:
            log.info("gave back %d messages of a busy child on %s", count, queue)

    def _divided(self, place: str) -> bool:
        """Whether it is one of several partitions."""
        queue = keys.queue_of(place)
        return sum(keys.queue_of(one) == queue for one in self._queues) > 1

    def _due(self) -> list[str]:
        """Return the queues that are looked after in this round: of partitions every other one."""
        return [
            place
            for number, place in enumerate(self._queues)
            if (number + self._rounds) % 2 == 0 or not self._divided(place)
        ]

    def _renew(self, late: set[str]) -> None:
        """Renew leases; in partitions of those who hold something, as `reclaim` renews the others.

        Who held something just now may have ended it without having said so.
        """
        now, members = clock.monotonic(), set(self._members())
        until = {one: at for one, at in self._held_until.items() if one in members and at > now}
        for member in members:
            if not self._divided(member[0]) or self._holds(member):
                until[member] = now + 2 * self._lease_ms / 1000
        self._held_until = until
        self._told &= members
        for member in sorted(until, key=lambda one: (one[0] in late, one)):
            self._do(member[0], functools.partial(self._renew_one, member))

    def _renew_one(self, member: Member) -> None:
        queue, worker = member
        base = keys.base(self._app, queue)
        command = claims.renew(base, worker.encode(), self._lease_ms, self._digest)
        renewed = self._lines.run(command)
        self._tell({member}, set() if renewed.word == "ok" else {member})
        if renewed.word == "lost":
            self._lost(member)
        elif renewed.orders:
            self._pass_on(member, renewed.orders)

    def _tell(self, asked: set[Member], forgotten: set[Member]) -> None:
        """Let those be told that were forgotten, each once."""
        new, self._told = forgotten - self._told, (self._told - asked) | forgotten
        for member in new:
            self._forgotten(member)

    def _pass_on(self, member: Member, told: list[Order]) -> None:
        """Let those orders be obeyed that are proven."""
        (queue, worker), warrants = member, self._warrants
        orders, unproven = warrants.proven(queue, told)
        if orders:
            self._orders(member, orders)
        warrants.drop(self._lines.of(keys.base(self._app, queue)), queue, worker.encode(), unproven)

    def _reclaim(self, queue: str, worker: str, blames: Sequence[Blame] = ()) -> None:
        left, ours = True, list[bytes]()
        if not worker and self._divided(queue):
            ours = [child.encode() for place, child in self._members() if place == queue]
        while left:
            command = claims.reclaim(
                keys.base(self._app, queue),
                self._lease_ms,
                round(self._tick * 1000),
                worker.encode(),
                self._digest,
                blames,
                self._kept,
                ours,
            )
            reply = self._lines.run(command)
            left, self.suspects[queue] = reply.left, reply.suspects
            self._tell(
                {(queue, one.decode()) for one in ours},
                {(queue, one.decode()) for one in reply.forgotten},
            )
            if reply.taken:
                log.warning("took back %d messages of a dead worker on %s", reply.taken, queue)

    def _count(self) -> None:
        """Once in a lease, see how many partitions queues have; say it where Redis forgot."""
        if clock.monotonic() < self._count_at:
            return
        self._count_at = clock.monotonic() + self._lease_ms / 1000
        grown: dict[str, int] = {}
        for queue, count in keys.queues_of(self._queues).items():
            self._do(queue, functools.partial(self._count_of, queue, count, grown))
        if grown:
            self._grown(grown)

    def _count_of(self, queue: str, count: int, grown: dict[str, int]) -> None:
        base = keys.base(self._app, queue)
        known = read_count(self._lines.of(base).call("GET", keys.partitions(self._app, queue)))
        if known < count:
            known = self._lines.run(commands.widen(base, count))
        if known > count:
            grown[queue] = known

    def _warn(self) -> None:
        """Once a minute, say what people should know of."""
        if clock.monotonic() < self._warn_at:
            return
        self._warn_at = clock.monotonic() + _WARN_SECONDS
        for queue in self._queues:
            self._do(queue, functools.partial(self._warn_of, queue))

    def _warn_of(self, queue: str) -> None:
        survey = self._lines.run(queries.survey(keys.base(self._app, queue), queue))
        waiting = [name for name, task in survey.tasks.items() if task.queued and not task.known]
        if waiting and survey.workers:
            log.warning(
                "on %s wait messages of tasks that no live worker knows: %s; is a module "
                "missing in include=?",
                queue,
                ", ".join(waiting),
            )
        for what, words in _WORTH_TELLING.items():
            count = survey.counts.get(what, 0)
            if (new := count - self._counted.setdefault((queue, what), count)) > 0:
                log.warning(words, new, queue)
            self._counted[queue, what] = count
