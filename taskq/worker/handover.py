"""What passes between Redis and the pools: messages one way, ended attempts the other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from taskq.broker.claims import Exchanged, Finish, Room
from taskq.model import clock
from taskq.worker.board import Board
from taskq.worker.books import Books, Slots
from taskq.worker.delivery import Claim, Delivery, Done, given_back
from taskq.worker.port import Port

log = logging.getLogger("taskq.worker")

# A queue with messages of an unknown key is asked again after so many seconds.
UNKNOWN_KEY_SECONDS = 30.0
# With so many messages to run, an exchange may be on its way meanwhile.
AHEAD_LEAST = 16


class Handover:
    """Enters on the books what was claimed, and strikes off what ended, for all queues of a child.

    Touched under the exchange's lock only.
    """

    def __init__(self, ports: Sequence[Port], slots: Slots, board: Board) -> None:
        # No more claims: what still comes goes back.
        self.quiet = False
        # How many messages were run to an end.
        self.ended = 0
        # Messages of this child that wait for another attempt; kept for --burst only.
        self.retrying: set[bytes] | None = None
        self._ports = {port.queue: port for port in ports}
        self._slots = slots
        self._books = Books(slots, board, list(self._ports))
        # What came and is not handed out yet.
        self._brought: tuple[Claim, Exchanged] | None = None

    @property
    def held(self) -> int:
        """How many messages are claimed and not ended."""
        return len(self._books.held) + self._books.coming

    @property
    def plenty(self) -> bool:
        """Whether the threads have so much to run that a reply may take its time."""
        return self._slots.threads_waiting() >= AHEAD_LEAST

    @property
    def plenty_to_come(self) -> bool:
        """Whether they have so much, with what is not handed out yet."""
        return self._slots.threads_waiting() + self._books.coming >= AHEAD_LEAST

    def open_kinds(self) -> str:
        """Return the kinds of slot with room."""
        return "" if self.quiet else self._books.open_kinds()

    def room(self, port: Port, now: float, turn: int) -> Room:
        """Return how much can be claimed of a queue now."""
        if self.quiet or now < port.paused_until:
            return Room()
        return self._books.room(turn)

    def held_of(self, queue: str) -> dict[bytes, Delivery]:
        """Return what is held of a queue, by its field in `running:<worker>`."""
        return self._books.held_of(queue)

    def bring(self, port: Port, reply: Exchanged) -> None:
        """Take claimed messages; many are handed out when Redis is at work for us again."""
        claim = Claim(port.queue, port.worker, port.seq, reply.now_us, clock.monotonic())
        self._brought = claim, reply
        self._books.expect(reply)
        if len(reply.claimed) < AHEAD_LEAST:
            self.hand_out()

    def hand_out(self) -> None:
        """Put what was brought on the books, and into the pools."""
        if self._brought is None:
            return
        (claim, reply), self._brought = self._brought, None
        claimed = self._books.enter(claim, reply)
        if self.retrying is not None:
            self.retrying.difference_update(raw[12:44] for _, raw in reply.claimed)
        if self.quiet:
            self._give_back([*claimed.threads, *claimed.coroutines])
            return
        if claimed.threads:
            self._slots.put_threads(claimed.threads, claimed.quick)
        if claimed.coroutines:
            self._slots.put_coroutines(claimed.coroutines)

    def settle(self, ended: Iterable[Done]) -> None:
        """Take ended attempts off the books, and put them in line to be sent."""
        for done in self._books.leave(ended):
            self.ended += bool(done.task)
            claim = done.delivery.claim
            port = self._ports[claim.queue]
            if done.unknown_key:
                port.paused_until = clock.monotonic() + UNKNOWN_KEY_SECONDS
            port.add(done.finish, claim.worker)

    def give_all_back(self) -> None:
        """Put all that is held in line to go back, uncounted."""
        self._give_back(self._books.held)

    def note_all(self, finishes: Iterable[Finish], verdicts: str) -> None:
        """Note what Redis said to ends of attempts; mostly there is nothing to note."""
        if self.retrying is not None or "l" in verdicts:
            for finish, verdict in zip(finishes, verdicts, strict=False):
                self.note(finish, verdict)

    def note(self, finish: Finish, verdict: str) -> None:
        """Note what Redis said to the end of an attempt."""
        if verdict == "l" and finish.kind == "b":
            log.debug("%s was given back already", finish.field[:32].decode())
        elif verdict == "l":
            name = finish.field[:32].decode()
            log.warning("an outcome of %s came too late: another claim has the message", name)
        elif finish.kind == "y" and self.retrying is not None:
            self.retrying.add(finish.field[:32])

    def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        # Newest first: the oldest comes to stand at the end that is popped.
        ones = sorted(deliveries, key=lambda one: one.field[32:] + one.field, reverse=True)
        self.settle(map(given_back, ones))
