"""When a failed attempt is followed by another: tenacity's objects, asked without sleeping.

tenacity's `stop`, `wait` and `retry_*` objects are stateless callables of a
`RetryCallState`. Here one is built from what the message remembers, so that the wait
happens in Redis and no worker holds a message that waits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_random_exponential,
)

from taskq.config import Seconds, seconds
from taskq.errors import ConfigError, Retry
from taskq.model import clock
from taskq.model.times import aware

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from taskq.model.outcome import History

ErrorTypes: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
Predicate: TypeAlias = Callable[[RetryCallState], bool]
Stop: TypeAlias = Callable[[RetryCallState], bool]
Wait: TypeAlias = Callable[[RetryCallState], float]

MAX_DELAY = 366 * 86_400.0
# A record counts attempts in six digits.
MOST_RETRIES = 999_998

# Carries a policy's objects into RetryCallState, whose constructor wants one; never run.
_CARRIER = Retrying()


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are retried, until when, and after how long.

    Args:
        on: an exception class, a tuple of them, or a tenacity `retry_*` predicate.
        stop: a tenacity `stop_*`; `stop_after_attempt(4)` is one run and three retries.
        wait: a tenacity `wait_*`, in seconds.

    Raises:
        ConfigError: an argument is of another kind.

    """

    on: ErrorTypes | Predicate = Exception
    stop: Stop = stop_after_attempt(4)  # noqa: RUF009 - stateless
    wait: Wait = wait_exponential_jitter(initial=1, max=600)  # noqa: RUF009

    def __post_init__(self) -> None:
        if not (_is_error_types(self.on) or (callable(self.on) and not isinstance(self.on, type))):
            msg = f"retry on: an exception class, a tuple of them or a predicate, not {self.on!r}"
            raise ConfigError(msg)
        for name in ("stop", "wait"):
            if not callable(getattr(self, name)):
                msg = f"retry {name}: a tenacity {name}_* object, not {getattr(self, name)!r}"
                raise ConfigError(msg)

    @property
    def reads_results(self) -> bool:
        """Whether `on` may also ask for a retry after a return."""
        return not _is_error_types(self.on)

    def wants(self, state: RetryCallState) -> bool:
        """Whether this failure, or this return, is one to retry."""
        if _is_error_types(self.on):
            return retry_if_exception_type(self.on)(state)
        return bool(self.on(state))


class Attempt:
    """One ended attempt, as a policy sees it."""

    def __init__(self, number: int, started_ms: int, now_ms: int, history: History | None) -> None:
        state = RetryCallState(_CARRIER, None, (), {})
        first = history.first_started_ms if history else started_ms
        # tenacity measures on this process's monotonic clock.
        state.start_time = clock.monotonic() - max(0, now_ms - first) / 1000
        state.attempt_number = number
        state.idle_for = history.idle if history else 0.0
        self.state = state

    def raised(self, error: BaseException) -> Attempt:
        """Note that the attempt ended so."""
        self.state.set_exception((type(error), error, error.__traceback__))
        return self

    def returned(self, value: Any) -> Attempt:
        """Note that the attempt ended so."""
        self.state.set_result(value)
        return self

    def next_delay(self, policy: RetryPolicy, request: Retry | None = None) -> float | None:
        """Return the seconds until the next attempt, or None where there is none.

        A `request` (a raised `Retry`) stands above the policy's `on` and `wait`.
        """
        state = self.state
        if request is None and not policy.wants(state):
            return None
        asked = _asked_delay(request)
        delay = float(policy.wait(state)) if asked is None else asked
        state.upcoming_sleep = delay  # stop_before_delay reads it
        if policy.stop(state):
            return None
        return min(max(0.0, delay), MAX_DELAY)


class CeleryRetryOptions(TypedDict, total=False):
    """The keywords of `@app.task` with Celery's names and Celery's defaults."""

    autoretry_for: type[BaseException] | Iterable[type[BaseException]]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    max_retries: int | None
    default_retry_delay: Seconds


class RetryOptions(CeleryRetryOptions, total=False):
    """All keywords of `@app.task` that say when to retry: `retry=`, or Celery's."""

    retry: int | RetryPolicy | None


def policy_of(options: RetryOptions) -> RetryPolicy:
    """Return the policy that a task's options describe, in either family of names.

    Raises:
        ConfigError: options of both families, or a value out of range.

    """
    retry = options.get("retry")
    if retry is None:
        return _celery(options)
    others = [name for name in CeleryRetryOptions.__annotations__ if name in options]
    if others:
        msg = f"retry= does not go together with {', '.join(others)}"
        raise ConfigError(msg)
    rule = "retry must be a RetryPolicy or a number of retries"
    return retry if isinstance(retry, RetryPolicy) else RetryPolicy(stop=_stop_after(retry, rule))


def _celery(options: CeleryRetryOptions) -> RetryPolicy:
    """Return the same policy in tenacity's words."""
    errors: Any = options.get("autoretry_for", ())
    try:
        on: ErrorTypes = errors if isinstance(errors, type) else tuple(errors)
    except TypeError:
        on = errors  # no collection either: refused below
    if not _is_error_types(on):
        msg = f"autoretry_for must be an exception class or several, not {errors!r}"
        raise ConfigError(msg)
    limit = options.get("max_retries", 3)
    rule = "max_retries must be an int >= 0 or None"
    stop = stop_never if limit is None else _stop_after(limit, rule)
    return RetryPolicy(on, stop, _celery_wait(options))


def _celery_wait(options: CeleryRetryOptions) -> Wait:
    backoff = options.get("retry_backoff", False)
    if not backoff:
        return wait_fixed(_positive("default_retry_delay", options.get("default_retry_delay", 180)))
    factor = 1.0 if backoff is True else _positive("retry_backoff", backoff)
    most = _positive("retry_backoff_max", options.get("retry_backoff_max", 600))
    # Celery's jitter is a full one: anything from no wait to the whole of it.
    shape = wait_random_exponential if options.get("retry_jitter", True) else wait_exponential
    return shape(multiplier=factor, max=most)


def _positive(name: str, value: object) -> float:
    try:
        return seconds(name, value)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _stop_after(retries: object, rule: str) -> Stop:
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        msg = f"{rule}, not {retries!r:.40}"
        raise ConfigError(msg)
    if retries > MOST_RETRIES:
        msg = f"more than {MOST_RETRIES:,} retries cannot be counted: say stop_never, or None"
        raise ConfigError(msg)
    return stop_after_attempt(retries + 1)


def _is_error_types(value: object) -> TypeIs[ErrorTypes]:
    kinds: list[object] = [*value] if isinstance(value, tuple) else [value]
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)


def _asked_delay(request: Retry | None) -> float | None:
    if request is None:
        return None
    if request.eta is not None:
        return max(0.0, aware("eta", request.eta).timestamp() - clock.now())
    return None if request.delay is None else seconds("delay", request.delay)
