"""What a child says to Redis and hears: ends of attempts one way, claimed messages back.

Any thread may lead: the one that finds work missing sends what is finished, for all, and
hands out what comes back. There is one exchange at a time. What it carries is in `handover`.
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
from taskq.worker.books import Slots
from taskq.worker.handover import Handover
from taskq.worker.orders import Orders
from taskq.worker.outbox import Outbox
from taskq.worker.port import Badge, Port, Reach
from taskq.worker.rounds import Rounds

log = logging.getLogger("taskq.worker")

# A busy worker does not hear bells: it asks each queue so often of its own accord.
ASK_SECONDS = 0.1
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
        # What is claimed and not ended. Guarded as the ports are.
        self.handover = Handover(self.ports, slots, board)
        # Called after each turn, outside the lock.
        self.after_turn: Callable[[], None] = lambda: None
        # Called when the child's id in a queue has changed.
        self.after_enrolling: Callable[[], None] = lambda: None
        # Whether bells may have rung that nobody was there to hear.
        self.deaf: Callable[[], bool] = lambda: True
        # When the last turn began, whether Redis answered or not.
        self.turned_at = clock.monotonic()
        self._rounds = Rounds(self.ports)
        self._slots, self._outbox = slots, outbox
        self.orders = Orders(app, access.keyring, slots)
        self._closed = False
        # Whether somebody asked for a turn since the last one began: to claim, to cancel, or to
        # make sure.
        self._asked = True
        # One exchange at a time. Guards the ports, but for what asks for a turn, and all below.
        self._lock = threading.Lock()
        # The port whose exchange stands behind the bell's blocked call; see `reserve`.
        self._reserved: Port | None = None
        # The port whose exchange is on its way, and when it is looked for at the latest.
        self._under_way: Port | None = None
        self._look_at = math.inf
        self._turns = 0
        # Whether the ports are to be asked though nothing was announced.
        self._unheard = True
        # When the last turn ended well: Redis answered.
        self.reached_at = clock.monotonic()

    def ask(self, queues: Iterable[str] | None = None) -> None:
        """Let the next turn claim, from these queues or from all."""
        for port in self.ports:
            if queues is None or port.queue in queues:
                port.hungry, port.rung = True, port.rung or queues is not None
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
            room = self.handover.room(port, now, self._turns)
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
            self.handover.hand_out()
        self._tell()
        return answer is not None

    def flush(self) -> None:
        """Send all ends of attempts, and give the rest back uncounted."""
        with self._lock:
            for reach in self._reaches.values():
                # Once more, whatever was before.
                reach.retry_at = 0.0
            self._receive()
            self.handover.settle(self._outbox.take())
            self.handover.give_all_back()
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
                    port.leave()
                except BrokerError as error:
                    log.warning("the lease is left to run out: %s", error)
                    away.add(port.reach)
            self._lines.close()
        self.after_enrolling()

    @property
    def holding(self) -> int:
        """How many messages are claimed and not ended, or ended and not sent."""
        return self.handover.held + sum(map(self._unsent, self.ports))

    def open_kinds(self) -> str:
        """Return the kinds of slot with room: what the bell should listen for."""
        return self.handover.open_kinds()

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
            return not self._slots.threads_waiting() or now >= self._look_at
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
        self.handover.settle(self._outbox.take())
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
            self.handover.hand_out()
        # With enough to run meanwhile, the reply is read when that is done.
        if not self.handover.plenty:
            self._receive()
        failed = [reach for reach in self._reaches.values() if reach.retry_at]
        if len(failed) < len(self._reaches):
            self.reached_at = clock.monotonic()
        for reach in failed:
            if not reach.away(clock.monotonic()):
                self._come_back(reach)

    def _may_wait(self, port: Port) -> bool:
        """Whether a port can have a later turn: Redis is at work, and here is much to run."""
        if self._under_way is None or not self.handover.plenty:
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
                port.disclaim(set(self.handover.held_of(port.queue)))
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
            port.make_sure()
        if not port.enrolled:
            port.enrol()
            self.after_enrolling()
        for finish, verdict in port.offer_strays():
            self.handover.note(finish, verdict)
        if port.summoned:
            self.handover.hand_out()
            self.orders.obey(port, self.handover.held_of(port.queue))
        room = self.handover.room(port, now, self._turns)
        if not port.unsent and not port.rung and (room.empty or not port.hungry):
            return
        self._begin(port, room, now)

    def _begin(self, port: Port, room: Room, now: float) -> None:
        if not room.empty:
            port.asked_at = now
        port.begin(room)
        self._under_way, self._look_at = port, now + GATHER_SECONDS

    def _post(self, port: Port) -> None:
        if not (port.at_ease and self._outbox.light):
            return
        self.handover.settle(self._outbox.take())
        self.turned_at = clock.monotonic()
        try:
            self._begin(port, self.handover.room(port, self.turned_at, self._turns), self.turned_at)
        except BrokerError as error:
            port.reach.back_off(error)
            return
        if not self.handover.plenty:
            self._look_at = self.turned_at

    def _receive(self) -> None:
        """Collect, and hand out at once."""
        self._collect()
        self.handover.hand_out()

    def _collect(self) -> None:
        """Take the reply to the exchange under way, if any; what it brought is handed out later."""
        port, self._under_way, self._look_at = self._under_way, None, math.inf
        if port is None:
            return
        # The handover keeps what one reply brought: that must be out before the next.
        self.handover.hand_out()
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
            self.handover.note_all(finishes, reply.verdicts)
            if reply.claimed:
                self._rounds.serve(port)
                self.handover.bring(port, reply)
                if reply.more and self.handover.plenty_to_come:
                    # What is left is claimed while that runs.
                    self._asked = True
            if reply.summoned and self.orders.summon(port):
                self._asked = True
        self._asked = self._asked or port.doubted or not port.enrolled

    def _reach(self, app: str, queue: str) -> Reach:
        line = self._lines.of(keys.base(app, queue))
        return self._reaches.setdefault(line, Reach(line))


def _pass_over(line: Line) -> None:
    """Receive a reply that says nothing new, be it an error."""
    try:
        line.receive()
    except BrokerUnavailable:
        raise
    except BrokerError as error:
        log.debug("a claim that was void was refused: %s", error)
