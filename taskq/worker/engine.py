"""One child's engine: RUNNING → QUIET → DRAINING → STOPPED.

It joins the parts: the bell says that there is work, the exchange claims it, the pools
run it, the outbox brings back what came of it. Stopping is a protocol, in this order:
claim no more, wait for what runs, give back what did not end, leave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import secrets
import threading
from asyncio import CancelledError
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from taskq.broker import keys
from taskq.broker.claims import Kept
from taskq.config import Config
from taskq.errors import BrokerError
from taskq.model import clock
from taskq.worker.bell import Bell
from taskq.worker.board import Board
from taskq.worker.books import Slots
from taskq.worker.delivery import START_SECONDS, Delivery, take_back
from taskq.worker.exchange import ASK_SECONDS, GATHER_SECONDS, Exchange
from taskq.worker.executor import Executor
from taskq.worker.outbox import Outbox
from taskq.worker.pools.coroutines import CoroutinePool
from taskq.worker.pools.threads import ThreadPool
from taskq.worker.port import Badge

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

log = logging.getLogger("taskq.worker")

_LEAST_NAP = 0.002
# After a turn the tender looks on so long by itself.
_LINGER_SECONDS = 2 * GATHER_SECONDS
_JOIN_SECONDS = 2.0


class Phase(StrEnum):
    """Where an engine is in its life. It only moves forward."""

    NEW = "NEW"
    RUNNING = "RUNNING"
    QUIET = "QUIET"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What one child serves, and with how many slots."""

    # Their places: each partition is served as a queue of its own.
    queues: Sequence[str]
    threads: int
    coroutines: int
    name: str
    # The descriptor of the board; None where nobody reads one.
    board: int | None = None
    # One slot in all, for messages that are handed out alone.
    alone: bool = False


class Engine:
    """Claims and runs the messages of some queues."""

    def __init__(self, app: TaskQ, plan: Plan) -> None:
        self.app = app
        self.plan = plan
        self.phase = Phase.NEW
        self._prepared = False
        self.kinds = {name: "c" if task.coroutine else "t" for name, task in app.tasks.items()}
        known = self.kinds
        if plan.alone:
            known = {keys.apart(name): kind for name, kind in self.kinds.items()}
        self.digest = _digest(known)
        # Set when the tending thread should look at what is to be done.
        self._attention = threading.Event()
        self._moved = threading.Condition()
        self._lifespan: AbstractContextManager[Any] | AbstractAsyncContextManager[Any] | None = None
        self._board = Board(plan.threads + plan.coroutines, plan.board)
        self._executor = Executor(app, plan.name, self._board)
        # Until when the tender sleeps; infinite while it is awake, or sleeps until it is called.
        self._tend_at = math.inf
        self._outbox = Outbox(self._ended)
        slots = Slots(plan.threads, plan.coroutines, alone=plan.alone)
        endpoint = app.access.endpoint
        self.kept = _kept(app.config)
        lease_ms = round(app.config.lease * 1000)
        badge = Badge(plan.name, lease_ms, known, self.digest, self.kept)
        self.exchange = Exchange(
            app.name, app.access, plan.queues, badge, slots, self._outbox, self._board
        )
        self.exchange.after_turn = self._after_turn
        self.exchange.deaf = self._deaf
        child = secrets.token_hex(8)
        self._bell = Bell(app.name, endpoint, plan.queues, self.digest, child, self.exchange)
        self._threads = ThreadPool(
            plan.threads, self._executor.run, self._outbox, self.exchange.lead, self._listen
        )
        self._coroutines = CoroutinePool(
            plan.coroutines, self._executor.arun, self._outbox, self._post
        )
        slots.threads_waiting = self._threads.buffer.__len__
        slots.coroutines_waiting = self._coroutines.buffer.__len__
        slots.put_threads = self._threads.put
        slots.put_coroutines = self._coroutines.put
        slots.interrupt, slots.cancelled = self._interrupt, self._executor.cancelled
        slots.kept = lambda: self._coroutines.kept
        self._coroutines.freed = self._loop_freed
        self._tender = threading.Thread(target=self._tend, name="taskq-tender", daemon=True)

    def prepare(self) -> None:
        """Enter the app's lifespan.

        Raises:
            Exception: what it raised.

        """
        self._prepared = True
        self._coroutines.start()
        try:
            self._executor.state = self._enter_lifespan()
        except BaseException:
            self._coroutines.stop(_JOIN_SECONDS)
            raise

    def start(self) -> None:
        """Begin to claim; prepare, where that was not done. Returns at once."""
        if not self._prepared:
            self.prepare()
        self._threads.start()
        self.phase = Phase.RUNNING
        self._attention.set()
        self._tender.start()

    def insist(self) -> None:
        """See to it that no interrupt is lost, in a process of our own."""
        self._threads.insist()

    def hear(self) -> None:
        """Ask soon what is to be cancelled."""
        self.exchange.hear()
        self._attention.set()

    def look(self) -> None:
        """Ask soon for work: what is due may have changed."""
        self.exchange.ask()
        self._attention.set()

    def doubt(self, queue: str) -> None:
        """Look soon whether a queue still knows this child and its tasks."""
        self.exchange.doubt(queue)
        self._attention.set()

    def quiet(self) -> None:
        """Claim no more; give back what was claimed and did not start."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.QUIET
            self.exchange.handover.quiet = True
            self._give_back(math.inf)
            # The bell must not take a ring that another worker would answer.
            self._kick_bell()

    def drain(self, seconds: float) -> bool:
        """Wait for what runs, at most so long; return whether all of it ended."""
        self.quiet()
        if self.phase is Phase.STOPPED:
            return True
        self.phase = Phase.DRAINING
        deadline = clock.monotonic() + seconds
        with self._moved:
            while self._busy() and (left := deadline - clock.monotonic()) > 0:
                # The time limit is a net: a turn that ended notifies.
                self._moved.wait(min(left, 0.2))
        return not self._busy()

    def stop(self) -> bool:
        """Give back what did not end, uncounted; leave; end the threads.

        Return whether all of them have ended.
        """
        if self.phase is Phase.STOPPED:
            return True
        self.quiet()
        self.phase = Phase.STOPPED
        self.exchange.flush()
        # Given back as well, should one have come at the last moment.
        take_back(self._coroutines.buffer)
        self._executor.stop()
        self._threads.stop()
        self._kick_bell()
        self.exchange.leave()
        self._attention.set()
        self._exit_lifespan()
        with contextlib.suppress(TimeoutError):  # a task keeps the loop to itself
            self._coroutines.call(self.app.leave_loop(), _JOIN_SECONDS)
        ended = self._coroutines.stop(_JOIN_SECONDS) and self._threads.join(_JOIN_SECONDS)
        if ended:
            self._bell.close()
        else:
            log.warning("a task did not end; its message was given back")
        return ended

    def silence(self) -> float:
        """Return for how many seconds no turn has ended well; 0 where none is to be taken."""
        if self.phase is not Phase.RUNNING or not self.exchange.open_kinds():
            return 0.0
        return clock.monotonic() - self.exchange.reached_at

    def _busy(self) -> bool:
        return bool(self.exchange.holding or len(self._outbox))

    def _tend(self) -> None:
        """Send what waited long enough, claim what fell due, wake slots where work waits."""
        help_at = 0.0
        while self.phase is not Phase.STOPPED:
            nap = self._nap()
            self._tend_at = math.inf if nap is None else clock.monotonic() + nap
            self._attention.wait(nap)
            self._tend_at = math.inf
            self._attention.clear()
            since, now = self._outbox.since, clock.monotonic()
            if since is None or now - since >= GATHER_SECONDS or self._outbox.prompt:
                self.exchange.lead()
            if nap is None:
                # Called to look soon: what waits for a slot or a listener has only just begun to,
                # and mostly ends before another thread is awake.
                help_at = now + GATHER_SECONDS
            elif now >= help_at:
                self._threads.help()
                help_at = now + GATHER_SECONDS
            self._give_back(clock.monotonic() - START_SECONDS)

    def _give_back(self, claimed_before: float) -> None:
        """Give back what was claimed so long ago and did not start: another slot is free."""
        for buffer in (self._threads.buffer, self._coroutines.buffer):
            # Newest first: the oldest comes to stand at the end that is popped.
            for delivery in reversed(take_back(buffer, claimed_before)):
                self._outbox.put(self._executor.release(delivery), prompt=True)

    def _nap(self) -> float | None:
        """Return how long the tending thread may sleep; None until it is called."""
        now, due = clock.monotonic(), self.exchange.next_turn()
        # While one message comes after the other, it need not be called for each.
        if self._waiting() or now - self.exchange.turned_at < _LINGER_SECONDS:
            due = min(due, now + GATHER_SECONDS)
        # Where a turn is overdue, another thread is at it, and looks again when it ends.
        return None if due == math.inf else max(_LEAST_NAP, due - now)

    def _waiting(self) -> bool:
        """Whether something waits for a slot, or for somebody who listens."""
        return bool(self._threads.buffer or self._coroutines.buffer or self._threads.unwatched)

    def _ended(self, *, prompt: bool) -> None:
        """Let the tender send what ended: in time, or now."""
        self._call_tender(0.0 if prompt else clock.monotonic() + GATHER_SECONDS)

    def _post(self) -> None:
        """Send what ended, from the event loop; the tender reads the reply, or sees to it all."""
        try:
            self.exchange.post()
        finally:
            # Another thread's end may have found the exchange taken.
            self._outbox.hurry()
            self._call_tender(0.0)

    def _call_tender(self, at: float) -> None:
        """Let the tender look at the latest at this monotonic instant."""
        if at < self._tend_at:
            self._attention.set()

    def _listen(self) -> None:
        """Wait for work, on the calling thread, and claim it."""
        exchange = self.exchange
        heard = self._bell.listen(exchange.open_kinds(), exchange.members(), exchange.paused())
        if self.phase is Phase.STOPPED:
            return
        if heard is None:
            self.exchange.ask()
        elif heard.summons:
            self.exchange.hear(heard.queue)
        elif heard.claimed:
            pass
        elif heard.nothing:
            self.exchange.look_round()
        else:
            self.exchange.ask([heard.queue] if heard.queue else [])
        self.exchange.lead()

    def _deaf(self) -> bool:
        """Whether nobody listens to the bells, nor did just now."""
        bell = self._bell
        return not bell.listening and clock.monotonic() - bell.listened_at > ASK_SECONDS

    def _interrupt(self, delivery: Delivery) -> None:
        """Stop a message, if it has started. What a thread does in C goes on until that ends."""
        pool = self._coroutines if delivery.kind == "c" else self._threads
        pool.interrupt(delivery.key, CancelledError)

    def _loop_freed(self) -> None:
        self.exchange.ask()
        self._call_tender(0.0)

    def _after_turn(self) -> None:
        if self._bell.lacks(self.exchange.open_kinds(), self.exchange.members()):
            self._kick_bell()
        else:
            self._bell.claim()
        due = self.exchange.next_turn()
        if self._waiting():
            due = min(due, clock.monotonic() + GATHER_SECONDS)
        if due != math.inf:
            self._call_tender(due)
        if self.phase is not Phase.RUNNING:
            with self._moved:
                self._moved.notify_all()

    def _kick_bell(self) -> None:
        """End the bell's blocked call: what it should listen for has changed."""
        for kick in self._bell.kicks:
            try:
                self.app.broker.run(kick, within=0.1)
            except BrokerError as error:
                log.debug("the bell was not kicked: %s", error)
            else:
                return

    def _enter_lifespan(self) -> Any:
        if self.app.lifespan is None:
            return None
        manager = self.app.lifespan(self.app)
        if isinstance(manager, AbstractAsyncContextManager):
            value = self._coroutines.call(manager.__aenter__())
        else:
            value = manager.__enter__()
        self._lifespan = manager
        return value

    def _exit_lifespan(self) -> None:
        manager, self._lifespan = self._lifespan, None
        try:
            if isinstance(manager, AbstractAsyncContextManager):
                self._coroutines.call(manager.__aexit__(None, None, None), _JOIN_SECONDS)
            elif manager is not None:
                manager.__exit__(None, None, None)
        except Exception:
            log.exception("the lifespan failed on its way out")


def _kept(config: Config) -> Kept:
    return Kept(config.dead_letters, round(config.dead_letter_age * 1000))


def _digest(kinds: dict[str, str]) -> str:
    """Return the name of a set of tasks: workers that know the same ones share bells."""
    text = "\n".join(f"{task} {kind}" for task, kind in sorted(kinds.items()))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
