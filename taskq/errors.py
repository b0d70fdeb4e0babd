"""Every exception that taskq raises.

```
TaskQError
├── ConfigError (ValueError)            a setting, a name or an option that cannot work
├── SerializationError (ValueError)     arguments, a result or bytes that cannot travel
│   └── MessageTooLarge
├── DuplicateMessage                    the id is in use by another task
├── BrokerError                         Redis answered with an error
│   ├── BrokerUnavailable (ConnectionError)
│   │   ├── Interrupted                 the request may or may not have been carried out
│   │   └── EnqueueUncertain            the message may or may not have been accepted
│   └── BrokerFull                      Redis is at `maxmemory`; nothing was enqueued
├── DeadLetterError                     no such dead letter, or one that cannot be sent again
├── ScheduleError                       no such schedule, or one that cannot be changed so
├── ResultTimeout (TimeoutError)        the wait ended, the message goes on
├── SoftTimeLimitExceeded               raised in a task whose `timeout` or `deadline` has passed
└── ResultError                         a message ended in another way than by its task
    ├── RemoteError                     the task raised what cannot be rebuilt here
    ├── ResultTampered                  the stored outcome is not signed by us
    ├── Cancelled
    ├── Expired
    ├── MessageLost                     Redis does not know the id (any more)
    ├── MessageRefused                  the message was set aside unread
    ├── HardTimeLimitExceeded           its process was killed: `hard_timeout` had passed
    ├── WorkerCrashed                   it killed its process too often
    ├── ResultNotStored                 the task ignores its results
    └── MaxRetriesExceeded
Retry                                   a request of a task to run again, not an error
```

No `redis.*` exception leaves taskq.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class TaskQError(Exception):
    """The root of all errors that taskq raises by itself."""


class ConfigError(TaskQError, ValueError):
    """A setting, a name or an option that cannot work; the text says what to type."""


class SerializationError(TaskQError, ValueError):
    """Arguments, a result or an exception that cannot be turned to bytes or back."""


class MessageTooLarge(SerializationError):
    """A message over `max_message_bytes`, or an outcome over `max_result_bytes`."""


class DuplicateMessage(TaskQError):
    """The id given is in use by a message of another task."""

    # As of `BrokerError`.
    sent: Sequence[Any] = ()
    unsent: Sequence[Any] = ()


class BrokerError(TaskQError):
    """Redis answered with an error; nothing is known to be lost.

    Where many messages were sent at once, `sent` holds the results of those that were
    accepted and `unsent` the signatures of the rest, with fixed ids: to send those
    again is safe.
    """

    sent: Sequence[Any] = ()
    unsent: Sequence[Any] = ()


class BrokerUnavailable(BrokerError, ConnectionError):
    """No server answered within the deadline."""


class Interrupted(BrokerUnavailable):
    """The connection broke after the request was sent: it may have been carried out.

    To repeat it is safe: whatever changes something may be repeated.
    """


class EnqueueUncertain(BrokerUnavailable):
    """The message may be accepted, and may not be, or not for good; the text says which.

    The connection broke after the request was sent; or fewer replicas have the message than
    its `durability` asks for. Enqueueing again with `id` cannot run it twice; where it was no
    call that was enqueued, but a dead letter, or a message of a schedule, `id` is its address.
    """

    def __init__(self, message: str, id: str) -> None:
        super().__init__(message)
        self.id = id

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by both arguments, and what was sent and what was not."""
        return (EnqueueUncertain, (str(self), self.id), self.__dict__)


class BrokerFull(BrokerError):
    """Redis is at its `maxmemory`; the message was not accepted."""


class DeadLetterError(TaskQError):
    """There is no such dead letter, or it cannot be sent again; the text says which."""


class ScheduleError(TaskQError):
    """There is no such schedule, or it cannot be changed so; the text says which."""


class ResultTimeout(TaskQError, TimeoutError):
    """The outcome was not there in time. The message goes on."""


class SoftTimeLimitExceeded(TaskQError):
    """Raised in a task when its `timeout` or `deadline` has passed; catch it to clean up."""

    def __str__(self) -> str:
        """Say at least what it is: Python raises it in a thread without arguments."""
        return super().__str__() or "the time limit of the task has passed"


class ResultError(TaskQError):
    """A message ended in another way than by the return or the exception of its task."""


class RemoteError(ResultError):
    """A task's exception that cannot be rebuilt here, told in words."""

    def __init__(self, type: str, text: str, traceback: str = "") -> None:  # noqa: A002
        super().__init__(f"{type}: {text}" if text else type)
        self.type = type
        self.text = text
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str]]:
        """Pickle by the three facts, not by the sentence made of them."""
        return (RemoteError, (self.type, self.text, self.traceback))


class ResultTampered(ResultError):
    """The stored outcome carries no valid signature; it was not read."""


class Cancelled(ResultError):
    """The message was taken back before it ran, or stopped while it ran."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        # What whoever cancelled it said; at most 500 characters.
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by both arguments."""
        return (Cancelled, (str(self), self.reason), self.__dict__)


class Expired(ResultError):
    """The message had not started when its `expires` or `deadline` passed; it never runs."""


class MessageLost(ResultError):
    """Redis does not know the id: its data was lost, or the outcome's time ran out."""


class MessageRefused(ResultError):
    """A worker set the message aside unread: not ours, badly signed or unreadable."""


class HardTimeLimitExceeded(ResultError):
    """The task ran past its `hard_timeout`, and its process was killed."""


class WorkerCrashed(ResultError):
    """The message killed the processes that ran it, `max_crashes` of them."""


class ResultNotStored(ResultError):
    """The task runs with `ignore_result=True`: there is nothing to wait for."""


class MaxRetriesExceeded(ResultError):
    """The task asked for another attempt, and its policy allows none."""


class Retry(Exception):
    """Raise it in a task to run again: `raise Retry(delay=30)`.

    It ignores the policy's `on` and obeys its `stop`. `delay` is in seconds or a
    `timedelta`, `eta` an aware datetime; with neither, the policy's `wait` decides.
    `exc` is what the future raises when no attempt is left.
    """

    def __init__(
        self,
        delay: float | timedelta | None = None,
        eta: datetime | None = None,
        exc: BaseException | None = None,
    ) -> None:
        super().__init__("retry")
        if delay is not None and eta is not None:
            msg = "Retry takes a delay or an eta, not both"
            raise ValueError(msg)
        self.delay = delay
        self.eta = eta
        self.exc = exc
