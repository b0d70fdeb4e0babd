"""What a child holds, and how much more it can take."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from taskq.broker.claims import Exchanged, Room
from taskq.worker.board import CLAIMED, Board
from taskq.worker.delivery import Claim, Delivery, Done
from taskq.worker.meter import Meter

# What a claim says of a message: the kind of slot it is for, and whether its task is quick.
_SORTS = {b"t": ("t", False), b"q": ("t", True), b"c": ("c", False), b"d": ("c", True)}


class Slots:
    """Whither claimed messages go: how many of each kind, and the pools' own calls."""

    def __init__(self, threads: int, coroutines: int, *, alone: bool = False) -> None:
        self.sizes = {"t": threads, "c": coroutines}
        # Whether one message at a time is all there may be, of either kind.
        self.alone = alone
        # Whether a task keeps the event loop to itself.
        self.kept: Callable[[], bool] = lambda: False
        # How many messages wait for a thread, and for their turn on the loop.
        self.threads_waiting: Callable[[], int] = lambda: 0
        self.coroutines_waiting: Callable[[], int] = lambda: 0
        # Messages, and how many of them are quick.
        self.put_threads: Callable[[list[Delivery], int], None] = lambda _messages, _quick: None
        self.put_coroutines: Callable[[list[Delivery]], None] = lambda _messages: None
        # Messages that are to be cancelled, with the reason; they are held until they end.
        self.cancelled: dict[Delivery, bytes] = {}
        # Stop one of them, if it has started.
        self.interrupt: Callable[[Delivery], None] = lambda _message: None


@dataclasses.dataclass(slots=True)
class Claimed:
    """What one exchange brought, by kind of slot."""

    threads: list[Delivery]
    coroutines: list[Delivery]
    # How many of the threads' are of a task that is known to be quick.
    quick: int = 0


class Books:
    """The messages that are claimed and not ended. Touched under the exchange's lock only."""

    def __init__(self, slots: Slots, board: Board, queues: Sequence[str]) -> None:
        self.held: set[Delivery] = set()
        self._slots, self._board = slots, board
        self._places = {queue: place for place, queue in enumerate(queues)}
        self._used = {"t": 0, "c": 0}
        # Those that are not of a task known to be quick.
        self._slow: dict[str, set[Delivery]] = {"t": set(), "c": set()}
        # What an exchange brought and is not entered yet, and how many of it are not quick.
        self._coming, self._coming_slow = {"t": 0, "c": 0}, {"t": 0, "c": 0}
        self._meters = {"t": Meter(), "c": Meter()}

    @property
    def coming(self) -> int:
        """How many messages came that are not entered yet."""
        return self._coming["t"] + self._coming["c"]

    def expect(self, reply: Exchanged) -> None:
        """Count what an exchange brought, which is entered later."""
        sorts = Counter(head[:1] for head, _ in reply.claimed)
        self._coming_slow = {"t": sorts[b"t"], "c": sorts[b"c"]}
        self._coming = {"t": sorts[b"t"] + sorts[b"q"], "c": sorts[b"c"] + sorts[b"d"]}

    def enter(self, claim: Claim, reply: Exchanged) -> Claimed:
        """Note what an exchange brought."""
        raws = [raw for _, raw in reply.claimed]
        entries = self._board.claim(self._places[claim.queue], int(claim.seq), claim.at, raws)
        claimed = Claimed([], [])
        for (head, raw), entry in zip(reply.claimed, entries, strict=True):
            kind, quick = _SORTS[head[:1]]
            delivery = Delivery(claim, kind, head[1:], raw, entry)
            (claimed.threads if kind == "t" else claimed.coroutines).append(delivery)
            if not quick:
                self._slow[kind].add(delivery)
            elif kind == "t":
                claimed.quick += 1
        for kind, lot in (("t", claimed.threads), ("c", claimed.coroutines)):
            self.held.update(lot)
            self._used[kind] += len(lot)
        self._coming, self._coming_slow = {"t": 0, "c": 0}, {"t": 0, "c": 0}
        return claimed

    def leave(self, ended: Iterable[Done]) -> list[Done]:
        """Note ends of attempts; return those of messages that were not given back meanwhile."""
        held, used, left = self.held, self._used, list[Done]()
        durations = defaultdict[tuple[str, str], list[float]](list)
        for done in ended:
            delivery = done.delivery
            if delivery not in held:
                continue
            held.remove(delivery)
            used[delivery.kind] -= 1
            left.append(done)
            if done.task:
                durations[delivery.kind, done.task].append(done.duration)
            elif done.late:
                self._meters[delivery.kind].doubt()
        for slow in filter(None, self._slow.values()):
            slow.difference_update(done.delivery for done in left)
        self._board.free([done.delivery.entry for done in left])
        for (kind, task), seconds in durations.items():
            self._meters[kind].note(task, seconds)
        if self._slots.cancelled:
            for done in left:
                self._slots.cancelled.pop(done.delivery, None)
        return left

    def held_of(self, queue: str) -> dict[bytes, Delivery]:
        """Return what is held of a queue, by its field in `running:<worker>`."""
        return {one.field: one for one in self.held if one.claim.queue == queue}

    def open_kinds(self) -> str:
        """Return the kinds of slot with room."""
        if self._slots.alone and self.held:
            return ""
        return ("t" if self._free("t") else "") + ("c" if self._free("c") else "")

    def room(self, turn: int) -> Room:
        """Return how much can be claimed now."""
        if self._slots.alone:
            if self.held:
                return Room()
            # One message in all: for a thread or for the loop, by turns.
            return Room(threads=1) if turn % 2 else Room(coroutines=1)
        caps: dict[str, int] = {}
        free: dict[str, int] = {}
        for kind, count_waiting in (
            ("t", self._slots.threads_waiting),
            ("c", self._slots.coroutines_waiting),
        ):
            # Before those are counted that wait: one may start meanwhile.
            slow = self._slow_waiting(kind)
            waiting = count_waiting() + self._coming[kind]
            free[kind] = self._free(kind, self._ahead(kind, waiting, slow))
            if self._has_slot_for_quick(kind):
                caps |= self._meters[kind].caps(waiting)
        threads, coroutines = free["t"], free["c"]
        room = self._board.room - self.coming
        # What has no entry on the board is not claimed; first of all, nothing ahead.
        if sum(caps.values()) > room - threads - coroutines:
            caps = {}
        return Room(min(threads, room), min(coroutines, room), caps)

    def _slow_waiting(self, kind: str) -> int:
        """Return how many that are not quick have not started."""
        memory = self._board.memory
        unstarted = [one for one in self._slow[kind] if memory[one.entry] == CLAIMED]
        return len(unstarted) + self._coming_slow[kind]

    def _has_slot_for_quick(self, kind: str) -> bool:
        """Whether others leave a slot: else what is claimed ahead would not run at once."""
        if kind == "c" and self._slots.kept():
            return False
        return self._slow_ones(kind) < self._slots.sizes[kind]

    def _ahead(self, kind: str, waiting: int, slow_waiting: int) -> int:
        """Return how many of those that wait are quick, at least.

        They take a slot for a moment only: else a backlog of them would keep all others out.
        """
        quick = self._used[kind] + self._coming[kind] - self._slow_ones(kind)
        return min(max(0, waiting - slow_waiting), quick)

    def _slow_ones(self, kind: str) -> int:
        return len(self._slow[kind]) + self._coming_slow[kind]

    def _free(self, kind: str, ahead: int = 0) -> int:
        if kind == "c" and self._used[kind] and self._slots.kept():
            return 0
        taken = self._used[kind] + self._coming[kind] - ahead
        return max(0, self._slots.sizes[kind] - taken)
