"""What follows from the end of an attempt: success, another attempt, or failure."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from taskq.config import Config, seconds
from taskq.errors import MaxRetriesExceeded, MessageTooLarge, Retry, SerializationError
from taskq.model import outcome, retry, serializers
from taskq.model.message import Envelope
from taskq.model.outcome import AttemptError, Failure, Finished, Outcome, Report, RetryIn
from taskq.worker.delivery import Attempt

if TYPE_CHECKING:
    from taskq.client.task import Task

log = logging.getLogger("taskq.worker")

# Outcomes live at least this long: so long no second copy of the id can be enqueued.
LEAST_TTL_MS = 60_000
# Those of messages with a given id, and of what was refused or cancelled.
NAMED_TTL_MS = 86_400_000


class Terms(NamedTuple):
    """What the settings and a task's own options say of its outcomes."""

    serializer: str
    ignore_result: bool
    result_ttl_ms: int
    # Whether its retry policy looks at what it returned.
    reads_results: bool


class Judge:
    """Knows the settings and the tasks' policies; changes nothing."""

    def __init__(self, config: Config, worker: str) -> None:
        self._config = config
        self._worker = worker
        self._terms: dict[Task[..., Any], Terms] = {}

    def returned(self, attempt: Attempt, value: Any) -> Outcome:
        """Return the outcome of an attempt that returned."""
        terms = self._terms.get(attempt.task) or self._make_terms(attempt.task)
        if terms.reads_results:
            ended = self._ended(attempt).returned(value)
            if attempt.task.retry_policy.wants(ended.state):
                text = f"{attempt.task.name} returned what its policy retries"
                return self._again(attempt, MaxRetriesExceeded(text), ended, None)
        envelope = attempt.envelope
        own, ignored = envelope.result_ttl_ms, envelope.ignore_result
        ttl_ms = _kept(envelope, terms.result_ttl_ms if own is None else own)
        if terms.ignore_result if ignored is None else ignored:
            return Finished(None, ttl_ms)
        try:
            how, data = serializers.dumps(terms.serializer, value)
        except SerializationError as error:
            return self.failed(attempt, SerializationError(f"the result: {error}"))
        if len(data) > (limit := self._config.max_result_bytes):
            text = f"the result has {len(data):,} bytes, over max_result_bytes={limit:,}"
            return self.failed(attempt, MessageTooLarge(text))
        return Finished(self._report(attempt, how, data), ttl_ms)

    def raised(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that raised."""
        request = error if isinstance(error, Retry) else None
        if request is not None:
            cause = request.exc or request.__cause__ or request.__context__
            error = cause or MaxRetriesExceeded(f"{attempt.task.name} asked for another attempt")
        return self._again(attempt, error, self._ended(attempt).raised(error), request)

    def failed(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Return the outcome of an attempt after which there is none."""
        self._tell(attempt, error)
        history = self._history(attempt, error, 0.0)
        failure = outcome.describe(error, self._make_terms(attempt.task).serializer)
        report = self._report(attempt, failure=failure, errors=history.errors)
        return Finished(report, _kept(attempt.envelope, round(self._config.failure_ttl * 1000)))

    def _tell(self, attempt: Attempt, error: BaseException) -> None:
        """Log a failure, with as much of the exception as is wanted."""
        detail = self._config.log_errors
        words = f": {error}" if detail == "text" else ""
        log.error(
            "✗ %s[%s] failed in attempt %d: %s%s",
            attempt.task.name,
            attempt.context.id,
            attempt.context.attempt,
            type(error).__name__,
            words,
            exc_info=error if detail == "traceback" else None,
            extra=attempt.facts(),
        )

    def _again(
        self, attempt: Attempt, error: BaseException, ended: retry.Attempt, request: Retry | None
    ) -> Outcome:
        """Return the wait for another attempt, if the policy allows one."""
        try:
            delay = ended.next_delay(attempt.task.retry_policy, request)
        except Exception as broken:  # noqa: BLE001 - a policy is user code
            broken.add_note(f"raised by the retry policy of {attempt.task.name}")
            return self.failed(attempt, broken)
        if delay is None:
            return self.failed(attempt, error)
        deadline_ms = attempt.envelope.deadline_ms
        if deadline_ms and attempt.delivery.claim.now_ms() + delay * 1000 >= deadline_ms:
            # The attempt would not start: what this one raised is the outcome.
            return self.failed(attempt, error)
        log.info(
            "↻ %s[%s] attempt %d failed (%s), another in %.3g s",
            attempt.task.name,
            attempt.context.id,
            attempt.context.attempt,
            type(error).__name__,
            delay,
            extra=attempt.facts(),
        )
        return RetryIn(round(delay * 1000), self._history(attempt, error, delay))

    def _ended(self, attempt: Attempt) -> retry.Attempt:
        now_ms = attempt.delivery.claim.now_ms()
        return retry.Attempt(attempt.context.attempt, attempt.started_ms, now_ms, attempt.history())

    def _history(self, attempt: Attempt, error: BaseException, delay: float) -> outcome.History:
        number, now_ms = attempt.context.attempt, attempt.delivery.claim.now_ms()
        line = outcome.attempt_error(number, error, now_ms)
        return outcome.next_history(attempt.history(), line, attempt.started_ms, delay)

    def _report(
        self,
        attempt: Attempt,
        serializer: str | None = None,
        value: bytes = b"",
        failure: Failure | None = None,
        errors: tuple[AttemptError, ...] = (),
    ) -> Report:
        envelope, context = attempt.envelope, attempt.context
        claim = attempt.delivery.claim
        return Report(
            envelope.task,
            envelope.enqueued_ms,
            claim.ms_at(attempt.started),
            claim.now_ms(),
            self._worker,
            context.attempt,
            context.delivery,
            serializer,
            value,
            failure,
            errors,
            envelope.name,
        )

    def _make_terms(self, task: Task[..., Any]) -> Terms:
        own, config = task.call_options, self._config
        kept = config.result_ttl if own.result_ttl is None else own.result_ttl
        terms = self._terms[task] = Terms(
            own.serializer or config.serializer,
            ignore_result=bool(own.ignore_result),
            result_ttl_ms=round(seconds("result_ttl", kept) * 1000),
            reads_results=task.retry_policy.reads_results,
        )
        return terms


def _kept(envelope: Envelope, ttl_ms: int) -> int:
    """Return how long the outcome is kept, milliseconds."""
    least = NAMED_TTL_MS if envelope.name else LEAST_TTL_MS
    return ttl_ms if ttl_ms > least else least  # noqa: FURB136 - max() takes three times as long
