"""What a child says to Redis and hears: ends of attempts one way, claimed messages back.

Any thread may lead: the one that finds work missing sends what is finished, for all, and
hands out what comes back. There is one exchange at a time.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence

from taskq.broker import keys
from taskq.broker.access import Access
from taskq.broker.claims import Exchanged, Finish, Room
from taskq.broker.cluster import Lines
from taskq.broker.commands import Command
from taskq.broker.line import Line
from taskq.errors import BrokerError, BrokerUnavailable
from taskq.model import clock
from taskq.worker.board import Board
from taskq.worker.books import Books, Slots
from taskq.worker.delivery import Claim, Delivery, Done
from taskq.worker.orders import Orders
from taskq.worker.outbox import Outbox
from taskq.worker.port import Badge, Port, Reach
from taskq.worker.rounds import Rounds

log = logging.getLogger("taskq.worker")

# A queue with messages of an unknown key is asked again after so many seconds.
UNKNOWN_KEY_SECONDS = 30.0
# A busy worker does not hear bells: it asks each queue so often of its own accord.
ASK_SECONDS = 0.1
# With so many messages to run, an exchange may be on its way meanwhile.
AHEAD_LEAST = 16
# How long an ended attempt may wait for company on its way to Redis.
GATHER_SECONDS = 0.005
# Where one node of a cluster is away, the others are not kept waiting for longer.
_AWAY_SECONDS = 1.0


class Exchange:
    """Sends what ended, claims what there is room for; for all queues of one child."""

    def __init__(
        self,
        app: str,
        access: Access,
        queues: Iterable[str],
        badge: Badge,
        slots: Slots,
        outbox: Outbox,
        board: Board,
    ) -> None:
        self._lines = Lines(access.endpoint)
        # One; but with a cluster one for each queue.
        self._reaches: dict[Line, Reach] = {}
        self.ports = [Port(app, queue, badge, self._reach(app, queue)) for queue in queues]
        # No more claims. Set once, by the engine.
        self.quiet = False
        # Called after each turn, outside the lock.
        self.after_turn: Callable[[], None] = lambda: None
        # Called when the child's id in a queue has changed.
        self.enrolled: Callable[[], None] = lambda: None
        # How many messages were run to an end.
        self.ended = 0
        # Whether bells may have rung that nobody was there to hear.
        self.deaf: Callable[[], bool] = lambda: True
        # When the last turn began, whether Redis answered or not.
        self.turned_at = clock.monotonic()
        # Messages of this child that wait for another attempt; kept for --burst only.
        self.retrying: set[bytes] | None = None
        self._rounds = Rounds(self.ports)
        self._by_queue = {port.queue: port for port in self.ports}
        self._slots, self._outbox = slots, outbox
        self.orders = Orders(app, access.keyring, slots)
        self._closed = False
        # Whether a claim was asked for since the last turn.
        self._asked = True
        # One exchange at a time. Guards the ports and all below.
        self._lock = threading.Lock()
        self._books = Books(slots, board, list(self._by_queue))
        # The port whose exchange stands behind the bell's blocked call; see `reserve`.
        self._reserved: Port | None = None
        # The port whose exchange is on its way, and when it is looked for at the latest.
        self._under_way: Port | None = None
        self._look_at = math.inf
        # What came and is handed out when the next exchange is on its way.
        self._brought: tuple[Claim, Exchanged] | None = None
        self._turns = 0
        # Whether the ports are to be asked though nothing was announced.
        self._unheard = True
        # When the last turn ended well: Redis answered.
        self.reached_at = clock.monotonic()

    def ask(self, queues: Iterable[str] | None = None) -> None:
        """Let the next turn claim, from these queues or from all."""
        for port in self.ports:
            if queues is None or port.queue in queues:
                port.hungry, port.rung = True, queues is not None
        self._asked = True

    def look_round(self) -> None:
        """Let the next turn claim where nothing was announced, and nobody asked just now."""
        now = clock.monotonic()
        for port in self._rounds.next_idle(now):
            port.hungry = port.hungry or now - port.asked_at > ASK_SECONDS
        self._asked = True

    def hear(self, queue: str | None = None) -> None:
        """Let the next turn ask what is to be cancelled, in a queue or in all."""
        for port in self.ports:
            port.summoned = port.summoned or queue in (None, port.queue)
        self._asked = True

    def doubt(self, queue: str) -> None:
        """Let the next turn see to it that a queue knows this child and its tasks."""
        for port in self.ports:
            port.doubted = port.doubted or port.queue == queue
        self._asked = True

    def lead(self) -> None:
        """Take turns while there is something to send or to ask for.

        If another thread is at it, leave it to that one: it looks again when it ends.
        """
        while self._wanted() and self._lock.acquire(blocking=False):
            try:
                self._guarded(self._turn)
            finally:
                self._lock.release()
            self._tell()

    def post(self) -> None:
        """Send what ended, and leave the reply to the next turn; or leave it all to that.

        For the event loop of the tasks, which waits for nobody: it sends nothing where more than
        one queue, another thread, a broken line or a great deal is in the way.
        """
        if len(self.ports) > 1 or self._slots.alone or not self._lock.acquire(blocking=False):
            return
        try:
            (port,) = self.ports
            if not (self._closed or self._under_way or port.reach.retry_at):
                self._guarded(lambda: self._post(port))
        finally:
            self._lock.release()

    def reserve(self) -> Command[Exchanged] | None:
        """Return a claim to be carried out when a bell rings; `redeem` takes the reply.

        None where something is in hand, or there are more queues, one of which will ring. A turn
        that is taken meanwhile sends the same exchange itself, as after a broken connection: of
        the two only the first to arrive does something.
        """
        if len(self.ports) > 1 or self._slots.alone or not self._lock.acquire(blocking=False):
            return None
        try:
            (port,), now = self.ports, clock.monotonic()
            room = self._room(port, now)
            idle = not (self._closed or self._wanted() or self._under_way or self.holding)
            if room.empty or port.reach.retry_at or not idle:
                return None
            self._reserved = port
            return port.next_call(room)
        finally:
            self._lock.release()
            # Who ended meanwhile found the lock taken, and left it to whoever had it.
            self._outbox.hurry()

    def redeem(self, line: Line) -> bool:
        """Take the reply to what stood behind the bell's call; return whether it was news.

        Raises:
            BrokerError: there is none; the exchange is sent again.

        """
        with self._lock:
            port, self._reserved = self._reserved, None
            if port is None or self._closed:
                _pass_over(line)
                return False
            answer = port.end(line)
            self.turned_at = self.reached_at = port.asked_at = clock.monotonic()
            self._heed(port, answer)
            self._unpack()
        self._tell()
        return answer is not None

    def flush(self) -> None:
        """Send all ends of attempts, and give the rest back uncounted."""
        with self._lock:
            for reach in self._reaches.values():
                # Once more, whatever was before.
                reach.retry_at = 0.0
            self._receive()
            self._settle(self._outbox.take())
            self._give_back(self._books.held)
            while len(self._outbox) or any(self._sendable(port) for port in self.ports):
                self._turn()
            if any(map(self._unsent, self.ports)):
                log.warning("what is unfinished is left to the end of its lease")

    def leave(self) -> None:
        """Give up the leases and the connection."""
        with self._lock:
            self._closed = True
            away: set[Reach] = set()
            for port in self.ports:
                if port.reach in away:
                    continue
                try:
                    port.leave(port.reach.line)
                except BrokerError as error:
                    log.warning("the lease is left to run out: %s", error)
                    away.add(port.reach)
            self._lines.close()
        self.enrolled()

    @property
    def holding(self) -> int:
        """How many messages are claimed and not ended, or ended and not sent."""
        return len(self._books.held) + self._books.coming + sum(map(self._unsent, self.ports))

    def open_kinds(self) -> str:
        """Return the kinds of slot with room: what the bell should listen for."""
        return "" if self.quiet else self._books.open_kinds()

    def paused(self) -> frozenset[str]:
        """Return the queues of which nothing is claimed now: their bells would ring on and on."""
        now = clock.monotonic()
        return frozenset(port.queue for port in self.ports if now < port.paused_until)

    def next_turn(self) -> float:
        """Return the monotonic instant at which a turn is due by itself."""
        away = [reach.retry_at for reach in self._reaches.values() if reach.retry_at]
        if len(away) == len(self._reaches):
            return min(away)
        if self._under_way is not None:
            return self._look_at
        since = self._outbox.since
        gathered = math.inf if since is None else since + GATHER_SECONDS
        due = (port.due_at for port in self.ports if not port.reach.retry_at)
        return min(gathered, *away, *due)

    def members(self) -> dict[str, str]:
        """Return this child's id in each queue."""
        return {port.queue: port.worker.decode() for port in self.ports if port.enrolled}

    def _wanted(self) -> bool:
        now = clock.monotonic()
        if self._closed or all(reach.away(now) for reach in self._reaches.values()):
            return False
        if self._under_way is not None:
            # While there is something to run, Redis may take its time.
            return not self._slots.waiting() or now >= self._look_at
        if self._asked or self._outbox.since is not None:
            return True
        return any(
            self._unsent(port) or port.reach.retry_at or port.due_at <= now
            for port in self.ports
            if not port.reach.away(now)
        )

    def _guarded(self, turn: Callable[[], None]) -> None:
        """Take a turn: a defect in one must not make the worker deaf to all that follow."""
        try:
            turn()
        except Exception as error:
            log.exception("a turn failed")
            for reach in self._reaches.values():
                # A reply that was not read would be taken for that to the next call.
                reach.line.close()
                reach.back_off(error)

    def _sendable(self, port: Port) -> bool:
        return bool(self._unsent(port) and not port.reach.retry_at)

    def _tell(self) -> None:
        """Say that a turn was taken; a defect there must not end a slot or the tender."""
        try:
            self.after_turn()
        except Exception:
            log.exception("what follows a turn failed")

    def _unsent(self, port: Port) -> int:
        """Return how many ends wait to be sent; a reserved claim carries none."""
        return port.unsent - (port is self._reserved)

    def _turn(self) -> None:
        """Send what ended to each queue concerned, and claim what there is room for."""
        self._asked, self.turned_at, self._reserved = False, clock.monotonic(), None
        # While Redis is still at work on what is on its way.
        self._settle(self._outbox.take())
        self._collect()
        self._turns += 1
        self._unheard = self.deaf()
        # Room goes to the first in line, and so to all of them in time.
        for port in self._rounds.order():
            if self._may_wait(port):
                self._asked = True
                continue
            self._collect()
            if not port.reach.away(self.turned_at):
                self._visit(port)
            self._unpack()
        # With enough to run meanwhile, the reply is read when that is done.
        if self._slots.waiting() < AHEAD_LEAST:
            self._receive()
        failed = [reach for reach in self._reaches.values() if reach.retry_at]
        if len(failed) < len(self._reaches):
            self.reached_at = clock.monotonic()
        for reach in failed:
            if not reach.away(clock.monotonic()):
                self._come_back(reach)

    def _may_wait(self, port: Port) -> bool:
        """Whether a port can have a later turn: Redis is at work, and here is much to run."""
        if self._under_way is None or self._slots.waiting() < AHEAD_LEAST:
            return False
        due = port.rung or port.due_at <= self.turned_at
        return not due and self.turned_at - port.visited_at < ASK_SECONDS

    def _come_back(self, reach: Reach) -> None:
        """Begin to use a line again that has answered: Redis may have forgotten something."""
        self._receive()
        if reach.away(clock.monotonic()):
            return  # it broke again; what was claimed meanwhile is in the reply that is to come
        try:
            for port in reach.ports:
                port.disclaim(reach.line, set(self._books.fields_of(port.queue)))
        except BrokerError as error:
            reach.back_off(error)
        else:
            reach.line.until = math.inf
            reach.answered()
            for port in reach.ports:
                port.hungry = True

    def _visit(self, port: Port) -> None:
        reach, port.visited_at = port.reach, self.turned_at
        if reach.retry_at and len(self._reaches) > 1:
            reach.line.until = clock.monotonic() + _AWAY_SECONDS
        try:
            self._speak(port)
        except BrokerError as error:
            reach.back_off(error)

    def _speak(self, port: Port) -> None:
        now = clock.monotonic()
        if port.due_at <= now:
            # Even without room: what is due is queued then, and others are rung for.
            port.rung, port.due_at = True, math.inf
        # To ask each partition each time would cost more than to listen to their bells.
        if now - port.asked_at > ASK_SECONDS and (self._unheard or not port.divided):
            port.hungry = True
        if port.doubted:
            port.make_sure(port.reach.line)
        if not port.enrolled:
            port.enrol(port.reach.line)
            self.enrolled()
        for finish, verdict in port.offer_strays(port.reach.line):
            self._note(finish, verdict)
        if port.summoned:
            self._unpack()
            self.orders.obey(port, self._books.fields_of(port.queue))
        room = self._room(port, now)
        if not port.unsent and not port.rung and (room.empty or not port.hungry):
            return
        self._begin(port, room, now)

    def _begin(self, port: Port, room: Room, now: float) -> None:
        if not room.empty:
            port.asked_at = now
        port.begin(port.reach.line, room)
        self._under_way, self._look_at = port, now + GATHER_SECONDS

    def _post(self, port: Port) -> None:
        if not (port.at_ease and self._outbox.light):
            return
        self._settle(self._outbox.take())
        self.turned_at = clock.monotonic()
        try:
            self._begin(port, self._room(port, self.turned_at), self.turned_at)
        except BrokerError as error:
            port.reach.back_off(error)
            return
        if self._slots.waiting() < AHEAD_LEAST:
            self._look_at = self.turned_at

    def _receive(self) -> None:
        """Take the reply to the exchange that is on its way, if there is one, and hand it out."""
        self._collect()
        self._unpack()

    def _collect(self) -> None:
        """Take that reply; what it brought may be left to `_unpack`."""
        port, self._under_way, self._look_at = self._under_way, None, math.inf
        if port is None:
            return
        self._unpack()
        try:
            answer = port.end(port.reach.line)
        except BrokerError as error:
            port.reach.back_off(error)
        else:
            self._heed(port, answer)

    def _heed(self, port: Port, answer: tuple[Exchanged, Sequence[Finish]] | None) -> None:
        """Take note of a reply, if there is one to what was sent last."""
        if answer is not None:
            reply, finishes = answer
            if self.retrying is not None or "l" in reply.verdicts:
                for finish, verdict in zip(finishes, reply.verdicts, strict=False):
                    self._note(finish, verdict)
            if reply.claimed:
                self._rounds.serve(port)
                self._bring(port, reply)
                if reply.more and self._slots.waiting() + self._books.coming >= AHEAD_LEAST:
                    # What is left is claimed while that runs.
                    self._asked = True
            if reply.summoned and self.orders.summon(port):
                self._asked = True
        self._asked = self._asked or port.doubted or not port.enrolled

    def _bring(self, port: Port, reply: Exchanged) -> None:
        """Take claimed messages; many are handed out when Redis is at work for us again."""
        claim = Claim(port.queue, port.worker, port.seq, reply.now_us, clock.monotonic())
        self._brought = claim, reply
        self._books.expect(reply)
        if len(reply.claimed) < AHEAD_LEAST:
            self._unpack()

    def _unpack(self) -> None:
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

    def _reach(self, app: str, queue: str) -> Reach:
        line = self._lines.of(keys.base(app, queue))
        return self._reaches.setdefault(line, Reach(line))

    def _room(self, port: Port, now: float) -> Room:
        if self.quiet or now < port.paused_until:
            return Room()
        return self._books.room(self._turns)

    def _settle(self, ended: Iterable[Done]) -> None:
        """Take ended attempts off the books, and put them in line to be sent."""
        for done in self._books.leave(ended):
            self.ended += bool(done.task)
            claim = done.delivery.claim
            port = self._by_queue[claim.queue]
            if done.unknown_key:
                port.paused_until = clock.monotonic() + UNKNOWN_KEY_SECONDS
            port.add(done.finish, claim.worker)

    def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        # Newest first: the oldest comes to stand at the end that is popped.
        ones = sorted(deliveries, key=lambda one: one.field[32:] + one.field, reverse=True)
        self._settle(Done(one, Finish("b", one.field)) for one in ones)

    def _note(self, finish: Finish, verdict: str) -> None:
        if verdict == "l" and finish.kind == "b":
            log.debug("%s was given back already", finish.field[:32].decode())
        elif verdict == "l":
            name = finish.field[:32].decode()
            log.warning("an outcome of %s came too late: another claim has the message", name)
        elif finish.kind == "y" and self.retrying is not None:
            self.retrying.add(finish.field[:32])


def _pass_over(line: Line) -> None:
    """Receive a reply that says nothing new, be it an error."""
    try:
        line.receive()
    except BrokerUnavailable:
        raise
    except BrokerError as error:
        log.debug("a claim that was void was refused: %s", error)
