"""The children of one supervisor: which there are, which there should be, and who starts when.

Regular children fill places, numbered from 1; where one ends, another takes its place. Children
for suspects have no place: each ends when it finds nothing more to do.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping

from taskq.model import clock
from taskq.worker.blame import MOST_ALONE
from taskq.worker.channel import Note
from taskq.worker.maintenance import Member
from taskq.worker.process import ChildProcess, Orders
from taskq.worker.roll import LOAD_SECONDS

log = logging.getLogger("taskq.worker")

_RESTART_MOST = 2.0
_RESTART_RESET = 10.0


class Staff:
    """The collection of them. Other threads may read it; only the main one changes it."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._children: list[ChildProcess] = []
        # How many places there are, and how many seconds a child may drain: what the command
        # line says, else the app, and before it has told it a guess.
        self.places = orders.processes or 1
        self.patience = 25.0 if orders.shutdown_timeout is None else orders.shutdown_timeout
        # When there was last a sign of life, by place: where children die again and again,
        # there is none.
        self.alive: dict[int, float] = {}
        # When to start a child again, and the pause before the one after, by place.
        self._restarts: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        # Those that are to be replaced and whose successor did not come to serve: when the next
        # one is tried, and why.
        self._spent: dict[ChildProcess, tuple[float, str]] = {}
        # Members that Redis did not know, once: the child may know already.
        self._unknown: set[Member] = set()
        # How many children for suspects there have been.
        self._alone = 0

    def __iter__(self) -> Iterator[ChildProcess]:
        # Over a copy: what is done to one may start another or strike one off.
        return iter(list(self._children))

    def __len__(self) -> int:
        return len(self._children)

    def __contains__(self, child: object) -> bool:
        return child in self._children

    def learn(self, hello: Note) -> None:
        """Take over what the app says, as far as the command line leaves it open."""
        self.places = self._orders.processes or hello["processes"]
        if self._orders.shutdown_timeout is None:
            self.patience = hello["shutdown_timeout"]

    def divide(self, counts: Mapping[str, int]) -> None:
        """Let children that start from now on serve at least so many partitions of queues."""
        partitions = {**self._orders.partitions, **counts}
        self._orders = dataclasses.replace(self._orders, partitions=partitions)

    def start(self, place: int) -> ChildProcess:
        """Start a child in a place."""
        self._restarts.pop(place, None)
        name = self._orders.name if place == 1 else f"{self._orders.name}.{place}"
        # The first of all: no place was ever alive.
        orders = dataclasses.replace(self._orders, first=not self.alive)
        child = ChildProcess(orders, place, name)
        self._children.append(child)
        self.alive.setdefault(place, child.born)
        return child

    def fill(self) -> None:
        """Start children in the places that are empty and wait for nobody."""
        taken = {child.number for child in self._children} | self._restarts.keys()
        for place in range(1, self.places + 1):
            if place not in taken:
                self.start(place)

    def start_alone(self, suspects: dict[str, int]) -> None:
        """Start a child with one slot for each suspect that waits in a queue, up to a few.

        Each that has not loaded the app yet was started for one of them.
        """
        loading = sum(child.alone and not child.serves for child in self._children)
        running = sum(child.alone for child in self._children)
        for queue in [queue for queue, count in suspects.items() if count > 0]:
            provided = min(suspects[queue], loading)
            loading -= provided
            suspects[queue] -= provided
            while suspects[queue] > 0 and running < MOST_ALONE:
                # The next look at Redis tells what is left.
                suspects[queue] -= 1
                running += 1
                self._alone += 1
                orders = dataclasses.replace(self._orders, threads=1, coroutines=1, alone=True)
                name = f"{self._orders.name}.alone{self._alone}"
                self._children.append(ChildProcess(orders, 0, name))

    def recycle(self, child: ChildProcess, why: str) -> None:
        """Replace a child that works: another is started first, then this one ends its work.

        Where that one does not come to serve, this one goes on: better a child over its limit
        than none.
        """
        if child.leaving or child in self._spent:
            return
        log.info("child %d is replaced: %s", child.pid, why)
        child.leaving = True
        if child.alone:
            self.retire(child)
        else:
            child.successor, child.spent = self.start(child.number), why

    def relieve(self, child: ChildProcess) -> None:
        """Let the child go whose place this one has taken, or should have."""
        for earlier in self._children:
            if earlier.successor is child:
                self.retire(earlier)

    def retire(self, child: ChildProcess) -> None:
        """Let a child end its work, and go."""
        child.retire(self.patience)

    def remove(self, child: ChildProcess) -> None:
        """Strike a child off that has ended."""
        self._children.remove(child)
        self._spent.pop(child, None)
        for earlier in self._children:
            if earlier.successor is child and not child.serves:
                self._keep(earlier)

    def _keep(self, child: ChildProcess) -> None:
        """Let a child go on whose successor ended before it served, if it is of any use."""
        # Condemned: it was told to claim no more, and was not killed after all.
        if self.fills(child.number) or child.condemned_at is not None:
            self.retire(child)
            return
        child.leaving, child.successor = False, None
        self._spent[child] = clock.monotonic() + LOAD_SECONDS, child.spent

    def replace(self, child: ChildProcess) -> None:
        """Have another take the place of one that ended: at once, then with growing pauses."""
        lived = clock.monotonic() - child.born
        pause = self._pauses.get(child.number, 0.0) if lived < _RESTART_RESET else 0.0
        self._pauses[child.number] = min(_RESTART_MOST, max(0.1, 2 * pause))
        if child.failed:
            log.error("a child cannot start: %s", child.failed)
            pause = float("inf") if self._orders.reload else max(pause, 1.0)
        if self.fills(child.number) or child.number > self.places:
            return  # a rolling restart has put another in its place, or needs none there
        self._restarts[child.number] = clock.monotonic() + pause

    def fills(self, place: int) -> bool:
        """Whether a child is there that is to stay."""
        return any(one.number == place and not one.leaving for one in self._children)

    def restart(self, now: float) -> None:
        """Start those whose pause is over, and give up successors that do not come to serve."""
        for child, (at, why) in list(self._spent.items()):
            if at <= now:
                del self._spent[child]
                self.recycle(child, why)
        for child in self._children:
            new = child.successor
            if new is not None and not new.serves and now - new.born >= LOAD_SECONDS:
                log.error("child %d has not loaded in %g s: killing it", new.pid, LOAD_SECONDS)
                new.kill()
        for place in [place for place, at in self._restarts.items() if at <= now]:
            self.start(place)

    def hurry(self) -> None:
        """Let nobody pause any longer: the code is another one."""
        self._restarts = dict.fromkeys(self._restarts, 0.0)
        self._spent = {child: (0.0, why) for child, (_, why) in self._spent.items()}

    def members(self) -> list[Member]:
        """Return whose leases are to be renewed."""
        return [member for child in self if not child.frozen for member in child.members.items()]

    def holds(self, member: Member) -> bool:
        """Whether a child has messages of a queue on its board."""
        queue, worker = member
        for child in self:
            if child.members.get(queue) == worker:
                try:
                    return bool(child.held(queue))
                except ValueError:
                    # It has ended, and its board was closed, while this thread looked.
                    return True
        return False

    def lost(self, member: Member) -> None:
        """Redis does not know a child's lease: replace the child, unless it has seen it."""
        if member not in self._unknown:
            self._unknown.add(member)
            return
        self._unknown.discard(member)
        for child in self:
            if member in child.members.items():
                log.error("child %d lost its lease and does not answer; replacing it", child.pid)
                child.kill()

    def forgotten(self, member: Member) -> None:
        """Redis does not know a child, or its tasks: let the child look, and enrol anew."""
        for child in self:
            if member in child.members.items():
                child.channel.send({"kind": "forgotten", "queue": member[0]})

    def retries(self) -> int:
        """Return how many messages wait for another attempt; 1 where nobody is there to tell."""
        return sum(child.retrying for child in self) + (not self._children)
