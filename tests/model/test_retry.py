"""When another attempt follows: tenacity's rules and Celery's, asked without waiting."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from typing import Any

import pytest
import tenacity
from tenacity import (
    RetryCallState,
    retry_any,
    retry_if_exception,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_if_result,
    retry_unless_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_combine,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
)

from taskq.errors import ConfigError, Retry
from taskq.model import clock
from taskq.model.outcome import History
from taskq.model.retry import MAX_DELAY, Attempt, RetryPolicy, policy_of
from taskq.model.times import aware

NO = ValueError("no")


@pytest.fixture(autouse=True)
def _never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No policy may put a worker to sleep: the wait happens in Redis."""

    def refuse(_seconds: float) -> None:
        pytest.fail("a worker slept")

    monkeypatch.setattr(tenacity.nap.time, "sleep", refuse)


def attempt(
    number: int = 1, *, started_s: float = 0, idle: float = 0, first_s: float | None = None
) -> Attempt:
    """Return an attempt that ends now, and began so many seconds ago."""
    now = clock.now_ms()
    history = None if first_s is None else History(now - round(first_s * 1000), idle)
    return Attempt(number, now - round(started_s * 1000), now, history)


def delays(policy: RetryPolicy, error: Exception = NO, attempts: int = 10) -> list[float | None]:
    """Return the waits after so many attempts, to the first after which there is none."""
    found: list[float | None] = []
    for number in range(1, attempts + 1):
        found.append(attempt(number).raised(error).next_delay(policy))
        if found[-1] is None:
            break
    return found


def fixed(**options: Any) -> RetryPolicy:
    """Return a policy that waits for exactly a second."""
    return RetryPolicy(**{"wait": wait_fixed(1), **options})


class TestPolicy:
    def test_the_default_is_four_attempts_with_growing_waits(self) -> None:
        found = delays(RetryPolicy())
        assert len(found) == 4
        assert found[3] is None
        for delay, least in zip(found, (1, 2, 4), strict=False):
            assert delay is not None
            assert least <= delay <= least + 1

    @pytest.mark.parametrize("on", [KeyError, (KeyError, OSError), Exception, (), BaseException])
    def test_takes_exception_classes(self, on: Any) -> None:
        RetryPolicy(on=on)

    @pytest.mark.parametrize(
        "on", [None, "KeyError", int, (KeyError, int), [KeyError], KeyError("instance"), 3]
    )
    def test_refuses_what_is_none(self, on: Any) -> None:
        with pytest.raises(ConfigError, match="retry on"):
            RetryPolicy(on=on)

    @pytest.mark.parametrize("field", ["stop", "wait"])
    @pytest.mark.parametrize("value", [None, 3, 1.5, "3"])
    def test_refuses_numbers_where_rules_belong(self, field: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"retry {field}"):
            RetryPolicy(**{field: value})

    @pytest.mark.parametrize(
        ("on", "error", "retried"),
        [
            (KeyError, KeyError(), True),
            (LookupError, KeyError(), True),
            (KeyError, NO, False),
            ((KeyError, ValueError), NO, True),
            ((), NO, False),
            (retry_if_exception_type(ValueError), NO, True),
            (retry_if_not_exception_type(ValueError), NO, False),
            (retry_unless_exception_type(ValueError), KeyError(), True),
            (retry_if_exception(lambda error: "no" in str(error)), NO, True),
            (retry_if_exception_message("yes"), NO, False),
            (retry_any(retry_if_result(bool), retry_if_exception_type(ValueError)), NO, True),
            (retry_if_result(lambda _value: True), NO, False),
        ],
    )
    def test_says_which_failures_are_retried(
        self, on: Any, error: Exception, *, retried: bool
    ) -> None:
        delay = attempt().raised(error).next_delay(fixed(on=on))
        assert delay == (1 if retried else None)

    def test_may_look_at_what_was_returned(self) -> None:
        policy = fixed(on=retry_if_result(lambda value: value is None))
        assert policy.reads_results
        assert policy.wants(attempt().returned(None).state)
        assert not policy.wants(attempt().returned(5).state)
        assert attempt().returned(None).next_delay(policy) == 1
        assert attempt(4).returned(None).next_delay(policy) is None  # the fourth was the last

    def test_classes_do_not_look_at_it(self) -> None:
        assert not RetryPolicy().reads_results
        assert not RetryPolicy(on=(KeyError, OSError)).reads_results


class TestStop:
    @pytest.mark.parametrize("limit", [1, 2, 5])
    def test_after_attempts(self, limit: int) -> None:
        policy = fixed(stop=stop_after_attempt(limit))
        assert delays(policy) == [1.0] * (limit - 1) + [None]

    def test_never(self) -> None:
        assert attempt(10_000).raised(NO).next_delay(fixed(stop=stop_never)) == 1

    @pytest.mark.parametrize(("began_s", "goes_on"), [(9, True), (11, False)])
    def test_after_a_time_counted_from_the_first_attempt(
        self, began_s: float, *, goes_on: bool
    ) -> None:
        """The earlier attempts ran in other processes; the message remembers when."""
        policy = fixed(stop=stop_after_delay(10))
        late = attempt(2, started_s=0.1, first_s=began_s).raised(NO)
        assert (late.next_delay(policy) is not None) is goes_on

    def test_before_a_time_counts_the_wait_to_come(self) -> None:
        policy = RetryPolicy(stop=stop_before_delay(10), wait=wait_fixed(5))
        assert attempt(2, first_s=4).raised(NO).next_delay(policy) == 5
        assert attempt(2, first_s=6).raised(NO).next_delay(policy) is None

    def test_whichever_comes_first(self) -> None:
        policy = fixed(stop=stop_any(stop_after_attempt(5), stop_after_delay(10)))
        assert attempt(4, first_s=1).raised(NO).next_delay(policy) == 1
        assert attempt(5, first_s=1).raised(NO).next_delay(policy) is None
        assert attempt(4, first_s=11).raised(NO).next_delay(policy) is None

    def test_a_clock_that_went_back_is_no_reason(self) -> None:
        policy = fixed(stop=stop_after_delay(10))
        assert attempt(2, first_s=-100).raised(NO).next_delay(policy) == 1

    def test_it_may_read_the_waits_so_far(self) -> None:
        policy = fixed(stop=lambda state: state.idle_for > 20)
        assert attempt(2, first_s=1, idle=20).raised(NO).next_delay(policy) == 1
        assert attempt(2, first_s=1, idle=21).raised(NO).next_delay(policy) is None


class TestWait:
    @pytest.mark.parametrize(
        ("wait", "expected"),
        [
            (wait_none(), [0, 0, 0, 0]),
            (wait_exponential(multiplier=1, max=6), [1, 2, 4, 6]),
            (wait_incrementing(start=1, increment=10), [1, 11, 21, 31]),
            (wait_chain(wait_fixed(1), wait_fixed(2), wait_fixed(9)), [1, 2, 9, 9]),
            (wait_combine(wait_fixed(1), wait_fixed(2)), [3, 3, 3, 3]),
            (wait_fixed(dt.timedelta(minutes=1)), [60, 60, 60, 60]),
            (lambda state: state.attempt_number * 10, [10, 20, 30, 40]),
        ],
    )
    def test_as_the_rule_says(self, wait: Any, expected: list[float]) -> None:
        policy = RetryPolicy(stop=stop_never, wait=wait)
        assert delays(policy, attempts=4) == expected

    def test_a_random_one_stays_within_its_bounds(self) -> None:
        policy = RetryPolicy(stop=stop_never, wait=wait_random(2, 3))
        found = delays(policy, attempts=50)
        assert all(delay is not None and 2 <= delay <= 3 for delay in found)
        assert len(set(found)) > 1

    def test_a_long_series_does_not_overflow(self) -> None:
        policy = RetryPolicy(stop=stop_never, wait=wait_exponential_jitter(initial=1, max=600))
        delay = attempt(100_000).raised(NO).next_delay(policy)
        assert delay is not None
        assert delay <= 600

    @pytest.mark.parametrize(
        ("asked", "given"),
        [(-5, 0), (math.inf, MAX_DELAY), (math.nan, 0), (10 * MAX_DELAY, MAX_DELAY), (3, 3)],
    )
    def test_what_a_rule_may_return_is_bounded(self, asked: float, given: float) -> None:
        policy = RetryPolicy(wait=lambda _state: asked)
        assert attempt().raised(NO).next_delay(policy) == given

    def test_a_rule_sees_the_exception(self) -> None:
        def wait(state: RetryCallState) -> float:
            assert state.outcome is not None
            error = state.outcome.exception()
            assert isinstance(error, ValueError)
            return float(len(str(error)))

        assert attempt().raised(NO).next_delay(RetryPolicy(wait=wait)) == 2


class TestNumberOfRetries:
    @pytest.mark.parametrize("number", [0, 1, 5])
    def test_is_so_many_after_the_first(self, number: int) -> None:
        assert len(delays(policy_of({"retry": number}))) == number + 1

    @pytest.mark.parametrize("number", [-1, True, "3", 1.5, object()])
    def test_what_is_none(self, number: Any) -> None:
        with pytest.raises(ConfigError, match="retry"):
            policy_of({"retry": number})

    def test_a_policy_is_taken_as_it_is(self) -> None:
        policy = RetryPolicy(on=KeyError)
        assert policy_of({"retry": policy}) is policy


class TestCelery:
    def test_without_options_nothing_is_retried_by_itself(self) -> None:
        for options in ({}, {"retry": None}, {"max_retries": 5}):
            assert delays(policy_of(options)) == [None]  # type: ignore[arg-type]

    def test_but_a_request_may_be_made_three_times_180_seconds_apart(self) -> None:
        policy = policy_of({})
        found = [attempt(n).raised(NO).next_delay(policy, Retry()) for n in range(1, 5)]
        assert found == [180, 180, 180, None]

    @pytest.mark.parametrize("errors", [KeyError, (KeyError,), [KeyError, OSError], {KeyError}])
    def test_autoretry_for_names_them(self, errors: Any) -> None:
        policy = policy_of({"autoretry_for": errors})
        assert delays(policy, KeyError()) == [180, 180, 180, None]
        assert delays(policy, NO) == [None]

    def test_no_limit(self) -> None:
        policy = policy_of({"autoretry_for": ValueError, "max_retries": None})
        assert attempt(100_000).raised(NO).next_delay(policy) == 180

    def test_no_retry(self) -> None:
        policy = policy_of({"autoretry_for": ValueError, "max_retries": 0})
        assert delays(policy) == [None]
        assert attempt().raised(NO).next_delay(policy, Retry()) is None

    def test_its_own_delay(self) -> None:
        for delay in (2, 2.0, dt.timedelta(seconds=2)):
            policy = policy_of({"autoretry_for": ValueError, "default_retry_delay": delay})
            assert delays(policy)[0] == 2

    def test_backoff_without_jitter_is_exact(self) -> None:
        policy = policy_of(
            {
                "autoretry_for": ValueError, "retry_backoff": True, "retry_backoff_max": 10,
                "retry_jitter": False, "max_retries": 6,
            }
        )  # fmt: skip
        assert delays(policy) == [1, 2, 4, 8, 10, 10, None]

    def test_backoff_by_a_factor(self) -> None:
        policy = policy_of({"autoretry_for": ValueError, "retry_backoff": 5, "retry_jitter": False})
        assert delays(policy) == [5, 10, 20, None]

    def test_jitter_is_a_full_one(self) -> None:
        """Anything from no wait to the whole of it, as in Celery."""
        policy = policy_of({"autoretry_for": ValueError, "retry_backoff": 10, "max_retries": None})
        for number, most in ((1, 10), (3, 40), (20, 600)):
            found = [attempt(number).raised(NO).next_delay(policy) for _ in range(300)]
            waits = [delay for delay in found if delay is not None]
            assert len(waits) == 300
            assert 0 <= min(waits) < most / 4
            assert most * 3 / 4 < max(waits) <= most

    @pytest.mark.parametrize(
        "option",
        [
            {"autoretry_for": KeyError}, {"retry_backoff": True}, {"retry_backoff_max": 5},
            {"retry_jitter": False}, {"max_retries": 3}, {"max_retries": None},
            {"default_retry_delay": 5},
        ],
        ids=lambda option: next(iter(option)),
    )  # fmt: skip
    @pytest.mark.parametrize("retry", [3, RetryPolicy()], ids=["number", "policy"])
    def test_both_families_do_not_mix(self, option: Any, retry: Any) -> None:
        with pytest.raises(ConfigError, match=f"retry= does not go .*{next(iter(option))}"):
            policy_of({"retry": retry, **option})

    @pytest.mark.parametrize(
        "option",
        [
            {"max_retries": -1}, {"default_retry_delay": -1}, {"default_retry_delay": math.nan},
            {"retry_backoff": -1}, {"retry_backoff": True, "retry_backoff_max": -1},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_value_out_of_range_is_a_config_error(self, option: Any) -> None:
        with pytest.raises(ConfigError, match=list(option)[-1]):
            policy_of(option)

    @pytest.mark.parametrize(
        "option",
        [
            {"max_retries": "3"}, {"max_retries": True}, {"default_retry_delay": "5"},
            {"default_retry_delay": None}, {"autoretry_for": int}, {"autoretry_for": [int]},
            {"autoretry_for": None}, {"autoretry_for": "ValueError"}, {"retry_backoff": "x"},
            {"retry_backoff": True, "retry_backoff_max": "x"},
            {"retry_backoff": True, "retry_backoff_max": None},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_value_of_another_kind_is_named(self, option: Any) -> None:
        name = "retry on|autoretry_for" if "autoretry_for" in option else list(option)[-1]
        with pytest.raises((ConfigError, TypeError), match=name):
            policy_of(option)


class TestRequest:
    """`raise Retry(...)` in a task."""

    def test_ignores_which_failures_are_retried(self) -> None:
        policy = fixed(on=())
        assert attempt().raised(NO).next_delay(policy) is None
        assert attempt().raised(NO).next_delay(policy, Retry()) == 1

    def test_obeys_the_limit(self) -> None:
        policy = fixed(on=(), stop=stop_after_attempt(2))
        assert attempt(2).raised(NO).next_delay(policy, Retry(delay=5)) is None

    @pytest.mark.parametrize("delay", [5, 5.0, dt.timedelta(seconds=5)])
    def test_its_delay_stands_above_the_rule(self, delay: Any) -> None:
        assert attempt().raised(NO).next_delay(fixed(), Retry(delay=delay)) == 5

    def test_no_delay_is_one_too(self) -> None:
        assert attempt().raised(NO).next_delay(fixed(), Retry(delay=0)) == 0

    def test_so_does_its_eta(self) -> None:
        eta = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60)
        delay = attempt().raised(NO).next_delay(fixed(), Retry(eta=eta))
        assert delay is not None
        assert 58 < delay <= 60

    def test_an_eta_that_has_passed_is_now(self) -> None:
        long_ago = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
        assert attempt().raised(NO).next_delay(fixed(), Retry(eta=long_ago)) == 0

    def test_an_eta_in_another_zone(self) -> None:
        zone = dt.timezone(dt.timedelta(hours=-7))
        eta = dt.datetime.now(zone) + dt.timedelta(seconds=60)
        delay = attempt().raised(NO).next_delay(fixed(), Retry(eta=eta))
        assert delay is not None
        assert 58 < delay <= 60

    def test_the_wait_that_it_asks_for_counts_against_the_limit(self) -> None:
        policy = fixed(stop=stop_before_delay(10))
        assert attempt().raised(NO).next_delay(policy, Retry(delay=9)) == 9
        assert attempt().raised(NO).next_delay(policy, Retry(delay=11)) is None

    @pytest.mark.parametrize("delay", [-1, math.nan, math.inf, "5", True])
    def test_what_is_no_delay(self, delay: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="delay"):
            attempt().raised(NO).next_delay(fixed(), Retry(delay=delay))

    def test_a_naive_eta(self) -> None:
        with pytest.raises(ValueError, match="aware"):
            attempt().raised(NO).next_delay(fixed(), Retry(eta=dt.datetime(2030, 1, 1)))  # noqa: DTZ001

    def test_delay_and_eta_do_not_mix(self) -> None:
        with pytest.raises(ValueError, match="not both"):
            Retry(delay=1, eta=dt.datetime.now(dt.UTC))


class TestAware:
    def test_an_aware_one_is_taken(self) -> None:
        instant = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
        assert aware("eta", instant) is instant

    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            (dt.datetime(2030, 1, 1), ValueError),  # noqa: DTZ001
            ("2030-01-01", TypeError),
            (5.0, TypeError),
            (dt.date(2030, 1, 1), TypeError),
            (None, TypeError),
        ],
    )
    def test_the_rest_is_refused_by_name(self, value: object, kind: type[Exception]) -> None:
        with pytest.raises(kind, match="eta"):
            aware("eta", value)


def test_the_rules_are_shared_by_all_messages_and_keep_no_state() -> None:
    policy = RetryPolicy(stop=stop_after_attempt(3), wait=wait_chain(*map(wait_fixed, (1, 2))))
    for _ in itertools.repeat(None, 3):
        assert delays(policy) == [1, 2, None]
