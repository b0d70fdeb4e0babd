"""What a child says to Redis and hears: ends of attempts one way, claimed messages back.

One exchange a queue is in flight at a time, and each has a number. One whose reply was
lost is sent again as it was, and gets the same reply: nothing is claimed twice, nothing
is stranded.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from taskq.broker import commands, keys
from taskq.broker.commands import Command, Exchanged, Finish, Room
from taskq.broker.connection import Endpoint
from taskq.broker.sync import Line
from taskq.errors import BrokerError, BrokerUnavailable
from taskq.model import clock
from taskq.worker.executor import Delivery, Done
from taskq.worker.meter import Meter
from taskq.worker.outbox import Outbox

log = logging.getLogger("taskq.worker")

MOST_FINISHES = 500
MOST_FINISH_BYTES = 4 << 20
# A queue with messages of an unknown key is asked again after so many seconds.
UNKNOWN_KEY_SECONDS = 30.0
_BACKOFF = (0.05, 1.0)


class Port:
    """One queue, as this child sees it. Touched under the exchange's lock only."""

    def __init__(self, app: str, queue: str) -> None:
        self.queue = queue
        self.base = keys.base(app, queue)
        # This child's id in the queue; a new one after its lease was lost.
        self.worker = b""
        self.enrolled = False
        self.seq = 0
        # Sent and not answered: to be sent again before anything else.
        self.pending: tuple[Command[Exchanged], Sequence[Finish]] | None = None
        self.finishes: deque[Finish] = deque()
        # Finishes of claims made under an id whose lease was lost.
        self.strays: dict[bytes, list[Finish]] = {}
        # Whether work may be waiting that was not asked for.
        self.hungry = True
        # Monotonic instants: claim nothing before; when the next message falls due.
        self.paused_until = 0.0
        self.due_at = math.inf

    @property
    def unsent(self) -> bool:
        """Whether something must be sent."""
        return bool(self.pending or self.finishes or self.strays)


class Slots:
    """What the exchange hands messages to: how many of each kind, and whither."""

    def __init__(self, threads: int, coroutines: int) -> None:
        self.sizes = {"t": threads, "c": coroutines}
        self.waiting: Callable[[], int] = lambda: 0
        self.put_threads: Callable[[list[Delivery], int], None] = lambda _d, _w: None
        self.put_coroutines: Callable[[list[Delivery]], None] = lambda _d: None


class Exchange:
    """Sends what ended, claims what there is room for; for all queues of one child."""

    def __init__(
        self,
        app: str,
        endpoint: Endpoint,
        queues: Iterable[str],
        kinds: dict[str, str],
        *,
        slots: Slots,
        outbox: Outbox,
        lease: float,
        name: str,
        digest: str,
    ) -> None:
        self.ports = [Port(app, queue) for queue in queues]
        self.outbox = outbox
        # No more claims. Set once, by the engine.
        self.quiet = False
        self.closed = False
        self._by_queue = {port.queue: port for port in self.ports}
        self._line = Line(endpoint)
        self._kinds, self._slots = kinds, slots
        self._lease_ms, self._name, self.digest = round(lease * 1000), name, digest
        self._meter = Meter()
        # One exchange at a time. Guards the ports and all below.
        self._lock = threading.Lock()
        self._held: dict[bytes, Delivery] = {}
        self._used = {"t": 0, "c": 0}
        self._turns = 0
        self._retry_at = 0.0
        self._pause = _BACKOFF[0]
        self._asked = True
        # Called after each turn, outside the lock.
        self.after_turn: Callable[[], None] = lambda: None
        # Called when the child's id in a queue has changed.
        self.enrolled: Callable[[], None] = lambda: None
        # Messages of this child that wait for another attempt; kept for --burst only.
        self.retrying: set[bytes] | None = None

    def ask(self, queues: Iterable[str] | None = None) -> None:
        """Let the next turn claim, from these queues or from all."""
        for port in self.ports:
            if queues is None or port.queue in queues:
                port.hungry = True
        self._asked = True

    def lead(self) -> None:
        """Take turns while there is something to send or to ask for.

        If another thread is at it, leave it to that one: it looks again when it ends.
        """
        while self._wanted() and self._lock.acquire(blocking=False):
            try:
                self._turn()
            except BrokerUnavailable as error:
                self._back_off(error)
            finally:
                self._lock.release()
            self.after_turn()

    def flush(self, give_back: Iterable[Delivery] = ()) -> bool:
        """Send all ends of attempts and give these messages back; return whether done."""
        back = sorted(give_back, key=lambda one: one.seq + one.raw[12:44], reverse=True)
        with self._lock:
            for delivery in back:
                if delivery.field in self._held:
                    self._settle(Done(delivery, Finish("b", delivery.field)))
            try:
                while len(self.outbox) or any(port.unsent for port in self.ports):
                    self._turn()
            except BrokerError as error:
                log.warning("not all could be handed back: %s", error)
                return False
        return True

    def leave(self) -> None:
        """Give up the leases and the connection."""
        with self._lock:
            self.closed = True
            try:
                for port in self.ports:
                    if port.enrolled:
                        self._line.run(commands.reclaim(port.base, self._lease_ms, 0, port.worker))
            except BrokerError as error:
                log.warning("the lease is left to run out: %s", error)
            for port in self.ports:
                port.enrolled = False
            self._line.close()
        self.enrolled()
        self.enrolled()

    def held(self) -> list[Delivery]:
        """Return what is claimed and not ended."""
        with self._lock:
            return list(self._held.values())

    @property
    def holding(self) -> int:
        """How many messages are claimed and not ended, or ended and not sent."""
        return len(self._held) + sum(len(port.finishes) for port in self.ports)

    def open_kinds(self) -> str:
        """Return the kinds of slot with room: what the bell should listen for."""
        if self.quiet:
            return ""
        return "".join(kind for kind, size in self._slots.sizes.items() if size > self._used[kind])

    def next_turn(self) -> float:
        """Return the monotonic instant at which a turn is due by itself."""
        if self._retry_at:
            return self._retry_at
        return min((port.due_at for port in self.ports), default=math.inf)

    def members(self) -> dict[str, str]:
        """Return this child's id in each queue."""
        return {port.queue: port.worker.decode() for port in self.ports if port.enrolled}

    def kick(self, queue_keys: Sequence[str]) -> None:
        """Wake this child's own bell, for the kinds it listens for have changed."""
        with self._lock:
            try:
                for key in queue_keys:
                    self._line.call("LPUSH", key, "1")
                    self._line.call("PEXPIRE", key, 5000)
            except BrokerError as error:
                log.debug("the bell was not kicked: %s", error)

    def _wanted(self) -> bool:
        if self.closed or clock.monotonic() < self._retry_at:
            return False
        if self._asked or len(self.outbox) or any(port.unsent for port in self.ports):
            return True
        return clock.monotonic() >= min((port.due_at for port in self.ports), default=math.inf)

    def _turn(self) -> None:
        """Send what ended to each queue concerned, and claim what there is room for."""
        for done in self.outbox.take():
            self._settle(done)
        self._asked = False
        now = clock.monotonic()
        self._turns += 1
        first = self._turns % len(self.ports)
        for port in (*self.ports[first:], *self.ports[:first]):
            if port.due_at <= now:
                port.hungry, port.due_at = True, math.inf
            if not port.enrolled:
                self._enrol(port)
            if port.strays:
                self._send_strays(port)
            room = self._room(port, now)
            if port.pending or port.finishes or (port.hungry and not room.empty):
                self._exchange(port, room)
        self._retry_at, self._pause = 0.0, _BACKOFF[0]

    def _exchange(self, port: Port, room: Room) -> None:
        if port.pending is None:
            port.seq += 1
            batch = _first(port.finishes)
            port.pending = (self._command(port, batch, room), batch)
            port.hungry = port.hungry and room.empty
        command, finishes = port.pending
        try:
            reply = self._line.run(command)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            self._isolate(port, finishes, error)
            return
        self._take(port, finishes, reply)

    def _take(self, port: Port, finishes: Sequence[Finish], reply: Exchanged) -> None:
        """Note what the reply says, and hand out what it brings."""
        port.pending = None
        if reply.word == "stale":
            log.error("%s: an exchange was overtaken; enrolling anew", port.queue)
            port.enrolled, self._asked = False, True
            return
        for finish, verdict in zip(finishes, reply.verdicts, strict=False):
            self._note(finish, verdict)
        for _ in finishes:
            port.finishes.popleft()
        if reply.word == "lost":
            log.warning("the lease on %s was lost; enrolling anew", port.queue)
            port.enrolled = False
            self._asked = True
        lead = reply.now_us // 1000 - clock.now_ms()
        if reply.next_due is not None:
            port.due_at = clock.monotonic() + max(0, reply.next_due - reply.now_us // 1000) / 1000
        if reply.more:
            port.hungry = True
        if reply.claimed:
            self._hand_out(port, reply, lead)

    def _hand_out(self, port: Port, reply: Exchanged, lead: int) -> None:
        seq, now = b"%010d" % port.seq, clock.monotonic()
        lots: dict[str, list[Delivery]] = {"t": [], "c": []}
        quick = 0
        for head, raw in reply.claimed:
            kind = "c" if head[:1] == b"c" else "t"
            quick += head[:1] == b"q"
            delivery = Delivery(
                port.queue, port.worker, seq, kind, head[1:], raw, reply.now_us, now, lead
            )
            self._held[delivery.field] = delivery
            if self.retrying is not None:
                self.retrying.discard(raw[12:44])
            lots[kind].append(delivery)
        for kind, lot in lots.items():
            self._used[kind] += len(lot)
        if lots["t"]:
            # One thread runs all the quick ones: to wake more would cost more than it saves.
            self._slots.put_threads(lots["t"], len(lots["t"]) - quick + bool(quick))
        if lots["c"]:
            self._slots.put_coroutines(lots["c"])

    def _room(self, port: Port, now: float) -> Room:
        if self.quiet or now < port.paused_until or not port.enrolled:
            return Room()
        free = {kind: max(0, size - self._used[kind]) for kind, size in self._slots.sizes.items()}
        return Room(free["t"], free["c"], self._meter.caps(self._slots.waiting()))

    def _settle(self, done: Done) -> None:
        """Take an ended attempt off the books and put it in line to be sent."""
        delivery = done.delivery
        if self._held.pop(delivery.field, None) is None:
            return
        self._used[delivery.kind] -= 1
        if done.task:
            self._meter.note(done.task, done.duration)
        port = self._by_queue[delivery.queue]
        if done.unknown_key:
            port.paused_until = clock.monotonic() + UNKNOWN_KEY_SECONDS
        if delivery.worker == port.worker:
            port.finishes.append(done.finish)
        else:
            port.strays.setdefault(delivery.worker, []).append(done.finish)

    def _note(self, finish: Finish, verdict: str) -> None:
        if verdict == "l":
            log.warning(
                "an outcome of %s came too late: another claim has the message",
                finish.field[:32].decode(),
            )
        elif finish.kind == "y" and self.retrying is not None:
            self.retrying.add(finish.field[:32])

    def _isolate(self, port: Port, finishes: Sequence[Finish], error: BrokerError) -> None:
        """Redis refused a batch: send its parts one by one, and leave the culprit out."""
        port.pending = None
        log.error("%s: an exchange was refused: %s", port.queue, error)
        for finish in finishes:
            port.seq += 1
            try:
                self._line.run(self._command(port, (finish,), Room()))
            except BrokerUnavailable:
                raise
            except BrokerError as refused:
                log.error("the end of %s was refused: %s", finish.field[:32].decode(), refused)
            port.finishes.popleft()
        port.paused_until = clock.monotonic() + _BACKOFF[1]

    def _send_strays(self, port: Port) -> None:
        """Offer outcomes under the id they were claimed by: they count if nobody took over."""
        for worker, finishes in list(port.strays.items()):
            for finish in finishes:
                command = commands.exchange(
                    port.base,
                    worker,
                    b"9" * 10,
                    self.digest,
                    self._lease_ms,
                    (finish,),
                    Room(),
                )
                self._note(finish, self._line.run(command).verdicts)
            del port.strays[worker]

    def _enrol(self, port: Port) -> None:
        if self.quiet and not port.unsent:
            return
        for finish in port.finishes:
            port.strays.setdefault(port.worker, []).append(finish)
        port.finishes.clear()
        port.worker, port.seq, port.pending = secrets.token_hex(16).encode(), 0, None
        self._line.run(
            commands.enrol(
                port.base, port.worker, self._lease_ms, self._name, self.digest, self._kinds
            )
        )
        port.enrolled = port.hungry = True
        self.enrolled()

    def _command(self, port: Port, finishes: Sequence[Finish], room: Room) -> Command[Exchanged]:
        seq = b"%010d" % port.seq
        return commands.exchange(
            port.base, port.worker, seq, self.digest, self._lease_ms, finishes, room
        )

    def _back_off(self, error: BrokerUnavailable) -> None:
        if not self._retry_at:
            log.warning("Redis cannot be reached, trying on: %s", error)
        jitter = 0.5 + secrets.randbelow(500) / 1000
        self._retry_at = clock.monotonic() + self._pause * jitter
        self._pause = min(2 * self._pause, _BACKOFF[1])


def _first(finishes: deque[Finish]) -> list[Finish]:
    """Return the finishes that go into one exchange."""
    batch: list[Finish] = []
    size = 0
    for finish in finishes:
        if batch and (
            len(batch) == MOST_FINISHES or size + len(finish.payload) > MOST_FINISH_BYTES
        ):
            break
        batch.append(finish)
        size += len(finish.payload)
    return batch
