"""What follows from the end of an attempt: success, another attempt, or failure."""

from __future__ import annotations

import logging
from typing import Any

from taskq.config import Config, seconds
from taskq.errors import MaxRetriesExceeded, MessageTooLarge, Retry, SerializationError
from taskq.model import outcome, retry, serializers
from taskq.model.outcome import Finished, Outcome, Report, RetryIn
from taskq.worker.delivery import Attempt

log = logging.getLogger("taskq.worker")

# Outcomes live at least this long: so long no second copy of the id can be enqueued.
LEAST_TTL_MS = 60_000
NAMED_TTL_MS = 86_400_000


class Judge:
    """Knows the settings and the tasks' policies; changes nothing."""

    def __init__(self, config: Config, worker: str) -> None:
        self._config = config
        self._worker = worker

    def returned(self, attempt: Attempt, value: Any) -> Outcome:
        """Return the outcome of an attempt that returned."""
        policy = attempt.task.retry_policy
        if policy.reads_results:
            ended = self._ended(attempt).returned(value)
            if policy.wants(ended.state):
                text = f"{attempt.task.name} returned what its policy retries"
                return self._again(attempt, MaxRetriesExceeded(text), ended, None)
        if self._ignores_result(attempt):
            return Finished(self._report(attempt), self._ttl(attempt, failed=False))
        try:
            how, data = serializers.dumps(self._serializer(attempt), value)
        except SerializationError as error:
            return self.failed(attempt, SerializationError(f"the result: {error}"))
        if len(data) > (limit := self._config.max_result_bytes):
            text = f"the result has {len(data):,} bytes, over max_result_bytes={limit:,}"
            return self.failed(attempt, MessageTooLarge(text))
        report = self._report(attempt, serializer=how, value=data)
        return Finished(report, self._ttl(attempt, failed=False))

    def raised(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that raised."""
        request = error if isinstance(error, Retry) else None
        if request is not None:
            cause = request.exc or request.__cause__ or request.__context__
            error = cause or MaxRetriesExceeded(f"{attempt.task.name} asked for another attempt")
        return self._again(attempt, error, self._ended(attempt).raised(error), request)

    def failed(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Return the outcome of an attempt after which there is none."""
        log.error(
            "✗ %s[%s] failed in attempt %d",
            attempt.task.name,
            attempt.context.id,
            attempt.context.attempt,
            exc_info=error,
            extra=attempt.facts(),
        )
        history = self._history(attempt, error, 0.0)
        failure = outcome.describe(error, self._serializer(attempt))
        report = self._report(attempt, failure=failure, errors=history.errors)
        return Finished(report, self._ttl(attempt, failed=True))

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
        now_ms = attempt.delivery.now_ms()
        return retry.Attempt(attempt.context.attempt, attempt.started_ms, now_ms, attempt.history())

    def _history(self, attempt: Attempt, error: BaseException, delay: float) -> outcome.History:
        number, now_ms = attempt.context.attempt, attempt.delivery.now_ms()
        line = outcome.attempt_error(number, error, now_ms)
        return outcome.next_history(attempt.history(), line, attempt.started_ms, delay)

    def _report(self, attempt: Attempt, **body: Any) -> Report:
        envelope = attempt.message.envelope
        return Report(
            envelope.task,
            envelope.enqueued_ms,
            attempt.started_ms,
            attempt.delivery.now_ms(),
            self._worker,
            attempt.context.attempt,
            attempt.context.delivery,
            name=envelope.name,
            **body,
        )

    def _serializer(self, attempt: Attempt) -> str:
        return attempt.task.call_options.serializer or self._config.serializer

    def _ignores_result(self, attempt: Attempt) -> bool:
        sent = attempt.message.envelope.ignore_result
        return bool(attempt.task.call_options.ignore_result if sent is None else sent)

    def _ttl(self, attempt: Attempt, *, failed: bool) -> int:
        """Return how long the outcome is kept, milliseconds."""
        envelope, own = attempt.message.envelope, attempt.task.call_options.result_ttl
        if failed:
            ttl = round(self._config.failure_ttl * 1000)
        elif envelope.result_ttl_ms is not None:
            ttl = envelope.result_ttl_ms
        else:
            kept = self._config.result_ttl if own is None else seconds("result_ttl", own)
            ttl = round(kept * 1000)
        return max(ttl, NAMED_TTL_MS if envelope.name else LEAST_TTL_MS)
