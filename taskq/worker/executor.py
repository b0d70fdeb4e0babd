"""One message in, one outcome out: `_open` it, run the task, `_close` it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from taskq.broker import commands, records
from taskq.broker.commands import Finish
from taskq.broker.records import Record
from taskq.config import seconds
from taskq.errors import MaxRetriesExceeded, MessageTooLarge, Retry, SerializationError
from taskq.model import clock, context, message, outcome, serializers
from taskq.model.context import Context
from taskq.model.message import Message, Refused
from taskq.model.outcome import Finished, Outcome, Report, RetryIn
from taskq.model.retry import Attempt
from taskq.model.signing import Domain, UnknownKey

if TYPE_CHECKING:
    from taskq.client.app import TaskQ
    from taskq.client.task import Task

log = logging.getLogger("taskq.worker")

# A claimed message that did not start within this goes back: another slot may be free.
START_SECONDS = 0.1
# Outcomes live at least this long: so long no second copy of the id can be enqueued.
LEAST_TTL_MS = 60_000
NAMED_TTL_MS = 86_400_000


class Delivery(msgspec.Struct):
    """One message handed to this child."""

    queue: str
    # The claim: this child's id in that queue, and the number of the exchange.
    worker: bytes
    seq: bytes
    # 't' or 'c'
    kind: str
    # Empty at the first claim.
    record: bytes
    raw: bytes
    fence: int
    # By this process's monotonic clock.
    claimed_at: float
    # Redis's clock less this machine's, milliseconds.
    clock_lead: int

    @property
    def field(self) -> bytes:
        """The field of `running:<worker>`."""
        return self.raw[12:44] + self.seq


class Done(msgspec.Struct, frozen=True):
    """An ended attempt, ready to be sent."""

    delivery: Delivery
    finish: Finish
    # For measuring how many messages of the task may be claimed ahead.
    task: str = ""
    duration: float = 0.0
    # The message is signed with a key this process does not hold.
    unknown_key: bool = False


class Run:
    """One attempt under way: what the steps hand to each other."""

    __slots__ = (
        "args",
        "context",
        "kwargs",
        "message",
        "record",
        "started",
        "started_ms",
        "task",
    )

    task: Task[..., Any]
    message: Message
    record: Record
    context: Context
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    started: float
    started_ms: int


class Executor:
    """Runs messages. Knows tasks and bytes; neither Redis nor threads."""

    def __init__(self, app: TaskQ, worker: str) -> None:
        self._app = app
        self._worker = worker
        # What the app's lifespan yielded.
        self.state: Any = None

    def run(self, delivery: Delivery) -> Done:
        """Run one message on this thread."""
        opened = self._open(delivery)
        if isinstance(opened, Done):
            return opened
        token = context.enter(opened.context)
        try:
            value = opened.task.fn(*opened.args, **opened.kwargs)
        except BaseException as error:  # noqa: BLE001 - the outcome of the attempt
            return self._close(delivery, opened, self._failed, error)
        finally:
            context.leave(token)
        return self._close(delivery, opened, self._returned, value)

    async def arun(self, delivery: Delivery) -> Done:
        """Run one message on this event loop."""
        opened = self._open(delivery)
        if isinstance(opened, Done):
            return opened
        token = context.enter(opened.context)
        try:
            value = await opened.task.fn(*opened.args, **opened.kwargs)
        except BaseException as error:  # noqa: BLE001 - the outcome of the attempt
            return self._close(delivery, opened, self._failed, error)
        finally:
            context.leave(token)
        return self._close(delivery, opened, self._returned, value)

    def release(self, delivery: Delivery) -> Done:
        """Give a message back, uncounted."""
        return Done(delivery, Finish("b", delivery.field))

    def _open(self, delivery: Delivery) -> Run | Done:
        """Verify and decode; return the run, or how the attempt ended before it began."""
        started = clock.monotonic()
        if started - delivery.claimed_at > START_SECONDS:
            return self.release(delivery)
        run = Run()
        run.started, run.started_ms = started, clock.now_ms() + delivery.clock_lead
        try:
            run.message = message.decode(
                delivery.raw, self._app.seal(Domain.MESSAGE, delivery.queue)
            )
        except UnknownKey as error:
            log.error("%s: %s; is TASKQ_SECRET the same everywhere?", delivery.queue, error)
            return Done(delivery, Finish("b", delivery.field), unknown_key=True)
        except Refused as error:
            return self._refuse(delivery, str(error))
        envelope = run.message.envelope
        task = self._app.tasks.get(envelope.task)
        if task is None or task.coroutine != (delivery.kind == "c"):
            return self._refuse(delivery, f"not of the task in whose list it was: {envelope.task}")
        run.task = task
        run.record = self._record(delivery)
        run.context = self._context(run, delivery)
        try:
            args, run.kwargs = serializers.loads(envelope.serializer, envelope.body)
        except (SerializationError, ValueError, TypeError) as error:
            return self._close(delivery, run, self._final, error)
        run.args = (run.context, *args) if task.bind else tuple(args)
        return run

    def _record(self, delivery: Delivery) -> Record:
        if delivery.record:
            return records.parse(delivery.record)
        return Record(
            b"R", claims=1, fence=delivery.fence, worker=delivery.worker, seq=delivery.seq
        )

    def _context(self, run: Run, delivery: Delivery) -> Context:
        envelope = run.message.envelope
        return Context(
            envelope.name or run.message.id,
            envelope.task,
            delivery.queue,
            run.record.attempts + 1,
            run.record.claims,
            run.record.fence,
            envelope.headers or {},
            self.state,
            run.task.coroutine,
        )

    def _returned(self, delivery: Delivery, run: Run, value: Any) -> Outcome:
        """Return the outcome of an attempt that returned."""
        policy = run.task.retry_policy
        if policy.reads_results:
            now_ms = clock.now_ms() + delivery.clock_lead
            history = self._history(run, delivery)
            attempt = Attempt(run.context.attempt, run.started_ms, now_ms, history)
            if policy.wants(attempt.returned(value).state):
                msg = f"{run.task.name} returned what its policy retries: {type(value).__name__}"
                return self._retry(delivery, run, MaxRetriesExceeded(msg), attempt, None)
        if self._ignores_result(run):
            return Finished(self._report(delivery, run), self._ttl(run, failed=False))
        try:
            how, data = serializers.dumps(self._serializer(run), value)
        except SerializationError as error:
            return self._final(delivery, run, SerializationError(f"the result: {error}"))
        if len(data) > self._app.config.max_result_bytes:
            return self._final(delivery, run, _too_large(len(data), self._app))
        report = self._report(delivery, run, serializer=how, value=data)
        return Finished(report, self._ttl(run, failed=False))

    def _failed(self, delivery: Delivery, run: Run, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that raised."""
        now_ms = clock.now_ms() + delivery.clock_lead
        request = error if isinstance(error, Retry) else None
        if request is not None:
            cause = request.exc or request.__cause__ or request.__context__
            error = cause or MaxRetriesExceeded(f"{run.task.name} asked for another attempt")
        attempt = Attempt(run.context.attempt, run.started_ms, now_ms, self._history(run, delivery))
        return self._retry(delivery, run, error, attempt.raised(error), request)

    def _retry(
        self,
        delivery: Delivery,
        run: Run,
        error: BaseException,
        attempt: Attempt,
        request: Retry | None,
    ) -> Outcome:
        try:
            delay = attempt.next_delay(run.task.retry_policy, request)
        except Exception as broken:
            log.exception("the retry policy of %s failed", run.task.name)
            return self._final(delivery, run, broken)
        if delay is None:
            return self._final(delivery, run, error)
        log.info(
            "↻ %s[%s] attempt %d in %.3gs (%s)",
            run.task.name, run.context.id, run.context.attempt, delay, type(error).__name__,
            extra=self._extra(run),
        )  # fmt: skip
        line = outcome.attempt_error(
            run.context.attempt, error, clock.now_ms() + delivery.clock_lead
        )
        earlier = self._history(run, delivery)
        history = outcome.next_history(earlier, line, run.started_ms, delay)
        return RetryIn(round(delay * 1000), history)

    def _final(self, delivery: Delivery, run: Run, error: BaseException) -> Outcome:
        """Return the outcome of an attempt after which there is none."""
        log.error(
            "✗ %s[%s] failed in attempt %d",
            run.task.name, run.context.id, run.context.attempt,
            exc_info=error, extra=self._extra(run),
        )  # fmt: skip
        line = outcome.attempt_error(
            run.context.attempt, error, clock.now_ms() + delivery.clock_lead
        )
        earlier = self._history(run, delivery)
        history = outcome.next_history(earlier, line, run.started_ms, 0.0)
        failure = outcome.describe(error, self._serializer(run))
        report = self._report(delivery, run, failure=failure, errors=history.errors)
        return Finished(report, self._ttl(run, failed=True))

    def _report(self, delivery: Delivery, run: Run, **body: Any) -> Report:
        envelope = run.message.envelope
        return Report(
            envelope.task,
            envelope.enqueued_ms,
            run.started_ms,
            clock.now_ms() + delivery.clock_lead,
            self._worker,
            run.context.attempt,
            run.context.delivery,
            name=envelope.name,
            **body,
        )

    def _close(
        self,
        delivery: Delivery,
        run: Run,
        judge: Callable[[Delivery, Run, Any], Outcome],
        end: Any,
    ) -> Done:
        """Judge how the attempt ended, and put it in the exchange's words."""
        try:
            finish = self._finish(delivery, run, judge(delivery, run, end))
        except Exception as error:
            log.exception("the outcome of %s cannot be recorded", run.task.name)
            finish = self._finish(delivery, run, self._final(delivery, run, error))
        return Done(delivery, finish, run.task.name, clock.monotonic() - run.started)

    def _finish(self, delivery: Delivery, run: Run, end: Outcome) -> Finish:
        seal = self._app.seal(Domain.RESULT, delivery.queue)
        id_bytes = run.message.id.encode()
        if isinstance(end, RetryIn):
            history = outcome.sign(end.history, seal, id_bytes)
            return Finish("y", delivery.field, history, end.delay_ms)
        claim = delivery.worker + delivery.seq
        body = outcome.sign(end.report, seal, id_bytes + claim)
        kind = "s" if end.report.failure is None else "f"
        record = commands.terminal_record(kind.encode(), self._head(delivery), body)
        return Finish(kind, delivery.field, record, end.ttl_ms)

    def _refuse(self, delivery: Delivery, reason: str) -> Done:
        # Maintenance tells people, once a minute: whoever forges can forge many.
        log.debug("refused a message on %s: %s", delivery.queue, reason)
        words = reason.encode(errors="backslashreplace")[:500]
        record = commands.terminal_record(b"r", self._head(delivery), words)
        return Done(delivery, Finish("r", delivery.field, record, NAMED_TTL_MS))

    def _head(self, delivery: Delivery) -> bytes:
        """Return the message's record, less its state."""
        if delivery.record:
            return delivery.record[1 : records.HEAD_BYTES]
        return records.fresh(delivery.fence, delivery.worker + delivery.seq)

    def _history(self, run: Run, delivery: Delivery) -> outcome.History | None:
        if not run.record.tail:
            return None
        seal = self._app.seal(Domain.RESULT, delivery.queue)
        return outcome.read_history(run.record.tail, seal, run.message.id.encode())

    def _serializer(self, run: Run) -> str:
        return run.task.call_options.serializer or self._app.config.serializer

    def _ignores_result(self, run: Run) -> bool:
        sent = run.message.envelope.ignore_result
        return bool(run.task.call_options.ignore_result if sent is None else sent)

    def _ttl(self, run: Run, *, failed: bool) -> int:
        """Return how long the outcome is kept, milliseconds."""
        config, envelope = self._app.config, run.message.envelope
        own = run.task.call_options.result_ttl
        if failed:
            ttl = round(config.failure_ttl * 1000)
        elif envelope.result_ttl_ms is not None:
            ttl = envelope.result_ttl_ms
        else:
            ttl = round((config.result_ttl if own is None else seconds("result_ttl", own)) * 1000)
        return max(ttl, NAMED_TTL_MS if envelope.name else LEAST_TTL_MS)

    def _extra(self, run: Run) -> dict[str, Any]:
        return {
            "message_id": run.context.id,
            "task": run.task.name,
            "queue": run.context.queue,
            "attempt": run.context.attempt,
            "delivery": run.context.delivery,
        }


def _too_large(size: int, app: TaskQ) -> MessageTooLarge:
    limit = app.config.max_result_bytes
    msg = f"the result has {size:,} bytes, over max_result_bytes={limit:,}"
    return MessageTooLarge(msg)
