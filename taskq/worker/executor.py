"""One message in, one outcome out: open it, run the task, close it."""

from __future__ import annotations

import logging
import math
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.broker.claims import Finish
from taskq.errors import SerializationError, SoftTimeLimitExceeded
from taskq.model import clock, context, message, outcome, serializers
from taskq.model.context import Context
from taskq.model.message import NEVER, Envelope, Refused
from taskq.model.outcome import Outcome, RetryIn
from taskq.model.signing import Domain, Seal, UnknownKey
from taskq.worker.alarms import Alarm, Alarms
from taskq.worker.board import ENDED, STARTED, Board
from taskq.worker.delivery import (
    START_SECONDS,
    AsyncSlot,
    Attempt,
    Delivery,
    Done,
    Slot,
    SyncSlot,
    given_back,
)
from taskq.worker.judge import NAMED_TTL_MS, Judge

if TYPE_CHECKING:
    from taskq.client.app import TaskQ
    from taskq.client.task import Task

log = logging.getLogger("taskq.worker")

_MOST_WORDS = 500


class Executor:
    """Runs messages. Knows tasks and bytes; neither Redis nor threads."""

    def __init__(self, app: TaskQ, worker: str, board: Board) -> None:
        self._app, self._tasks = app, app.tasks
        self._judge = Judge(app.config, worker)
        self._board, self._memory = board, board.memory
        self._alarms = Alarms()
        # Of messages and of outcomes, by queue.
        self._seals: dict[str, tuple[Seal, Seal]] = {}
        # What the app's lifespan yielded.
        self.state: Any = None
        # Set when all was given back: how an attempt ends is of no interest any more.
        self.closed = False
        # Messages that are to be cancelled, with the reason. Filled by the exchange.
        self.cancelled: dict[Delivery, bytes] = {}

    def run(self, delivery: Delivery, slot: SyncSlot) -> Done:
        """Run one message on this thread."""
        attempt = self._open(delivery)
        if isinstance(attempt, Done):
            return attempt
        token = context.enter(attempt.context)
        alarm = None
        try:
            args, kwargs = self._arguments(attempt)
            try:
                slot.current = delivery
                if attempt.soft is not None:
                    alarm = self._limit(attempt, slot)
                if self.cancelled:
                    self._check(delivery)
                value = attempt.task.fn(*args, **kwargs)
            finally:
                # First this, then the look: an interrupt does it the other way round.
                slot.current = None
                if slot.touched:
                    slot.leave()
        except BaseException as error:  # noqa: BLE001 - the outcome of the attempt
            return self._fail(attempt, error)
        finally:
            if alarm is not None:
                self._alarms.drop(alarm)
            context.leave(token)
        return self._close(attempt, self._judge.returned, value)

    async def arun(self, delivery: Delivery, slot: AsyncSlot) -> Done:
        """Run one message on this event loop."""
        attempt = self._open(delivery)
        if isinstance(attempt, Done):
            return attempt
        token = context.enter(attempt.context)
        alarm = None
        try:
            args, kwargs = self._arguments(attempt)
            slot.current = delivery
            try:
                if self.cancelled:
                    self._check(delivery)
                running = attempt.task.fn(*args, **kwargs)
                if attempt.soft is not None:
                    alarm, running = self._limit(attempt, slot), slot.guard(running)
                value = await running
            finally:
                slot.current = None
        except BaseException as error:  # noqa: BLE001 - the outcome of the attempt
            return self._fail(attempt, error)
        finally:
            if alarm is not None:
                self._alarms.drop(alarm)
            context.leave(token)
        return self._close(attempt, self._judge.returned, value)

    def stop(self) -> None:
        """Judge nothing any more: all was given back."""
        self.closed = True
        self._alarms.stop()

    def release(self, delivery: Delivery) -> Done:
        """Give a message back, uncounted."""
        return given_back(delivery, late=True)

    def _open(self, delivery: Delivery) -> Attempt | Done:
        """Verify and decode; return the attempt, or why there is none."""
        self._memory[delivery.entry] = STARTED
        started, claim = clock.monotonic(), delivery.claim
        if started - claim.at > START_SECONDS:
            return self.release(delivery)
        if self.cancelled and delivery in self.cancelled:
            return self._call_off(delivery, delivery.unstarted)
        messages, results = self._seals.get(claim.queue) or self._make_seals(claim.queue)
        try:
            envelope = message.open_envelope(delivery.raw, messages)
        except UnknownKey as error:
            log.error("%s: %s; is TASKQ_SECRET the same everywhere?", claim.queue, error)
            return given_back(delivery, unknown_key=True)
        except Refused as error:
            return self._refuse(delivery, str(error))
        task = self._tasks.get(envelope.task)
        if task is None or task.coroutine != (delivery.kind == "c"):
            reason = f"not of the task in whose list it was: {envelope.task}"
            return self._refuse(delivery, reason)
        return self._begin(delivery, envelope, task, results, started)

    def _begin(
        self,
        delivery: Delivery,
        envelope: Envelope,
        task: Task[..., Any],
        seal: Seal,
        started: float,
    ) -> Attempt | Done:
        """Say that it runs; or give it back, where it is too late for that."""
        claim, attempt, claims, soft, at_deadline = delivery.claim, 1, 1, None, False
        fence = claim.fence
        if delivery.record:
            record = delivery.parsed_record()
            attempt, claims, fence = record.attempts + 1, record.claims, record.fence
        context = Context(
            envelope.name or delivery.raw[12:44].decode(),
            task.name,
            claim.queue_name,
            attempt,
            claims,
            fence,
            envelope.headers or {},
            self.state,
            task.coroutine,
        )
        if (
            not task.plain
            or envelope.timeout_ms is not None
            or envelope.hard_timeout_ms is not None
        ):
            soft = self._note_limits(delivery, envelope, task, context, started)
        if envelope.deadline_ms is not None:
            left = (envelope.deadline_ms - claim.ms_at(started)) / 1000
            if left <= 0:
                return self._too_late(delivery, envelope.deadline_ms)
            at_deadline = soft is None or left < soft
            soft = left if soft is None else min(left, soft)
            _note_deadline(context, envelope.deadline_ms)
        self._board.run(delivery.entry)
        return Attempt(delivery, envelope, task, context, seal, started, soft, at_deadline)

    def _too_late(self, delivery: Delivery, deadline_ms: int) -> Done:
        expires = delivery.raw[44:57]
        if not NEVER < expires <= b"%013d" % deadline_ms:
            # No claim would ever drop it: it would come and go without end.
            return self._refuse(delivery, "its header lets it start after its deadline")
        # The claim that meets it next tells whoever waits.
        return given_back(delivery)

    def _note_limits(
        self,
        delivery: Delivery,
        envelope: Envelope,
        task: Task[..., Any],
        context: Context,
        started: float,
    ) -> float | None:
        """Tell supervisor and task how long it may run; return the soft limit, in seconds.

        They are those of the call, else those of the task.
        """
        soft, hard = task.limits
        if envelope.timeout_ms is not None:
            soft = envelope.timeout_ms / 1000
        if envelope.hard_timeout_ms is not None:
            hard = envelope.hard_timeout_ms / 1000
        deadline = math.inf if hard is None else started + hard
        self._board.limit(delivery.entry, started, deadline, task.max_crashes)
        if (least := hard if soft is None else soft) is not None:
            context.deadline = clock.instant(clock.now_ms() + round(least * 1000))
        return soft

    def _limit(self, attempt: Attempt, slot: Slot) -> Alarm:
        """Let the alarm ring in the slot when the soft limit has passed."""
        delivery = attempt.delivery

        def ring() -> None:
            slot.interrupt(delivery, SoftTimeLimitExceeded)

        return self._alarms.set(attempt.started + (attempt.soft or 0.0), ring)

    def _make_seals(self, queue: str) -> tuple[Seal, Seal]:
        """Return what verifies the messages of a queue and what signs its outcomes."""
        seals = self._app.seal(Domain.MESSAGE, queue), self._app.seal(Domain.RESULT, queue)
        self._seals[queue] = seals
        return seals

    def _arguments(self, attempt: Attempt) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return what to call the function with; only here are verified bytes unpickled."""
        envelope = attempt.envelope
        try:
            args, kwargs = serializers.loads(envelope.serializer, envelope.body)
        except ValueError as error:
            msg = f"the arguments: {error}"
            raise SerializationError(msg) from error
        return ((attempt.context, *args) if attempt.task.bind else args), kwargs

    def _fail(self, attempt: Attempt, error: BaseException) -> Done:
        """Close an attempt that raised; or call it off, where that was to stop it."""
        if isinstance(error, SoftTimeLimitExceeded) and not error.args and attempt.soft is not None:
            what = "deadline" if attempt.at_deadline else f"timeout of {attempt.soft:g} s"
            error.args = (f"{attempt.task.name} ran into its {what}",)
        if (
            isinstance(error, CancelledError)
            and attempt.delivery in self.cancelled
            and not self.closed
        ):
            log.info(
                "⊘ %s[%s] was cancelled", attempt.task.name, attempt.context.id,
                extra=attempt.facts(),
            )  # fmt: skip
            return self._call_off(attempt.delivery, attempt.delivery.end)
        return self._close(attempt, self._judge.raised, error)

    def _close(self, attempt: Attempt, judge: Callable[[Attempt, Any], Outcome], end: Any) -> Done:
        """Judge how the attempt ended, and put it in the exchange's words."""
        if self.closed:
            return self.release(attempt.delivery)
        try:
            finish = self._finish(attempt, judge(attempt, end))
        except Exception as error:
            # Whatever is wrong, an outcome must be told: then one of plain words.
            log.exception("the outcome of %s cannot be recorded", attempt.task.name)
            plain = SerializationError(f"the outcome cannot be recorded: {type(error).__name__}")
            finish = self._finish(attempt, self._judge.failed(attempt, plain))
        self._memory[attempt.delivery.entry] = ENDED
        duration = clock.monotonic() - attempt.started
        return Done(attempt.delivery, finish, attempt.task.name, duration)

    def _finish(self, attempt: Attempt, end: Outcome) -> Finish:
        delivery, field = attempt.delivery, attempt.delivery.field
        if isinstance(end, RetryIn):
            history = outcome.sign(end.history, attempt.seal, field[:32])
            return Finish("y", field, history, end.delay_ms)
        report = end.report
        if report is None:
            return Finish("s", field, b"s" + delivery.end, end.ttl_ms)
        letter = "s" if report.failure is None else "f"
        body = outcome.sign(report, attempt.seal, field[:32] + delivery.claim.name)
        return Finish(letter, field, letter.encode() + delivery.end + body, end.ttl_ms)

    def _check(self, delivery: Delivery) -> None:
        """Look once more, now that it can be interrupted: an order may have come before."""
        if delivery in self.cancelled:
            raise CancelledError

    def _call_off(self, delivery: Delivery, head: bytes) -> Done:
        record = b"c" + head + self.cancelled.get(delivery, b"")
        return Done(delivery, Finish("c", delivery.field, record, NAMED_TTL_MS))

    def _refuse(self, delivery: Delivery, reason: str) -> Done:
        # Maintenance tells people, once a minute: whoever forges can forge many.
        log.debug("refused a message on %s: %s", delivery.claim.queue, reason)
        words = reason.encode(errors="backslashreplace")[:_MOST_WORDS]
        return Done(
            delivery, Finish("r", delivery.field, b"r" + delivery.end + words, NAMED_TTL_MS)
        )


def _note_deadline(context: Context, deadline_ms: int) -> None:
    """Tell the task of its deadline, and with it all that the task enqueues."""
    context.deadline_ms, instant = deadline_ms, clock.instant(deadline_ms)
    context.deadline = instant if context.deadline is None else min(context.deadline, instant)
