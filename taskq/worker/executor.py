"""One message in, one outcome out: open it, run the task, close it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.broker.commands import Finish
from taskq.errors import SerializationError
from taskq.model import clock, context, message, outcome, serializers
from taskq.model.context import Context
from taskq.model.message import Envelope, Refused
from taskq.model.outcome import Outcome, RetryIn
from taskq.model.signing import Domain, Seal, UnknownKey
from taskq.worker.delivery import Attempt, Delivery, Done
from taskq.worker.judge import NAMED_TTL_MS, Judge

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

log = logging.getLogger("taskq.worker")

# A claimed message that did not start within this goes back: another slot may be free.
START_SECONDS = 0.1
_MOST_WORDS = 500


class Executor:
    """Runs messages. Knows tasks and bytes; neither Redis nor threads."""

    def __init__(self, app: TaskQ, worker: str) -> None:
        self._app = app
        self._judge = Judge(app.config, worker)
        # Of messages and of outcomes, by queue.
        self._seals: dict[str, tuple[Seal, Seal]] = {}
        # What the app's lifespan yielded.
        self.state: Any = None
        # Set when all was given back: how an attempt ends is of no interest any more.
        self.closed = False

    def run(self, delivery: Delivery) -> Done:
        """Run one message on this thread."""
        attempt = self._open(delivery)
        if isinstance(attempt, Done):
            return attempt
        token = context.enter(attempt.context)
        try:
            args, kwargs = self._arguments(attempt)
            value = attempt.task.fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - the outcome of the attempt
            return self._close(attempt, self._judge.raised, error)
        finally:
            context.leave(token)
        return self._close(attempt, self._judge.returned, value)

    async def arun(self, delivery: Delivery) -> Done:
        """Run one message on this event loop."""
        attempt = self._open(delivery)
        if isinstance(attempt, Done):
            return attempt
        token = context.enter(attempt.context)
        try:
            args, kwargs = self._arguments(attempt)
            value = await attempt.task.fn(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - the outcome of the attempt
            return self._close(attempt, self._judge.raised, error)
        finally:
            context.leave(token)
        return self._close(attempt, self._judge.returned, value)

    def release(self, delivery: Delivery) -> Done:
        """Give a message back, uncounted."""
        return Done(delivery, Finish("b", delivery.field), late=True)

    def _open(self, delivery: Delivery) -> Attempt | Done:
        """Verify and decode; return the attempt, or why there is none."""
        started, claim = clock.monotonic(), delivery.claim
        if started - claim.at > START_SECONDS:
            return self.release(delivery)
        messages, results = self._seals.get(claim.queue) or self._make_seals(claim.queue)
        try:
            envelope = message.open_envelope(delivery.raw, messages)
        except UnknownKey as error:
            log.error("%s: %s; is TASKQ_SECRET the same everywhere?", claim.queue, error)
            return Done(delivery, Finish("b", delivery.field), unknown_key=True)
        except Refused as error:
            return self._refuse(delivery, str(error))
        task = self._app.tasks.get(envelope.task)
        if task is None or task.coroutine != (delivery.kind == "c"):
            reason = f"not of the task in whose list it was: {envelope.task}"
            return self._refuse(delivery, reason)
        context = self._context(delivery, envelope, coroutine=task.coroutine)
        return Attempt(delivery, envelope, task, context, results, started, claim.now_ms())

    def _context(self, delivery: Delivery, envelope: Envelope, *, coroutine: bool) -> Context:
        attempt, claims, fence = 1, 1, delivery.claim.fence
        if delivery.record:
            record = delivery.parsed_record()
            attempt, claims, fence = record.attempts + 1, record.claims, record.fence
        return Context(
            envelope.name or delivery.raw[12:44].decode(),
            envelope.task,
            delivery.claim.queue,
            attempt,
            claims,
            fence,
            envelope.headers or {},
            self.state,
            coroutine,
        )

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
        duration = clock.monotonic() - attempt.started
        return Done(attempt.delivery, finish, attempt.task.name, duration)

    def _finish(self, attempt: Attempt, end: Outcome) -> Finish:
        delivery, id_bytes = attempt.delivery, attempt.delivery.raw[12:44]
        if isinstance(end, RetryIn):
            history = outcome.sign(end.history, attempt.seal, id_bytes)
            return Finish("y", delivery.field, history, end.delay_ms)
        body = outcome.sign(end.report, attempt.seal, id_bytes + delivery.claim.name)
        kind, letter = ("s", b"s") if end.report.failure is None else ("f", b"f")
        return Finish(kind, delivery.field, letter + delivery.end + body, end.ttl_ms)

    def _refuse(self, delivery: Delivery, reason: str) -> Done:
        # Maintenance tells people, once a minute: whoever forges can forge many.
        log.debug("refused a message on %s: %s", delivery.claim.queue, reason)
        words = reason.encode(errors="backslashreplace")[:_MOST_WORDS]
        return Done(
            delivery, Finish("r", delivery.field, b"r" + delivery.end + words, NAMED_TTL_MS)
        )
