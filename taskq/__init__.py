"""A task queue for Python on Redis that loses nothing.

The README shows it; `ARCHITECTURE.md` is the map.
"""

from taskq.client.app import TaskQ
from taskq.client.dead import DeadLetter
from taskq.client.gather import agather, as_completed, gather
from taskq.client.outlook import Schedule
from taskq.client.result import Result
from taskq.client.signature import Signature
from taskq.client.snapshot import Snapshot
from taskq.client.task import Task
from taskq.errors import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    Cancelled,
    ConfigError,
    DeadLetterError,
    DuplicateMessage,
    EnqueueUncertain,
    Expired,
    HardTimeLimitExceeded,
    Interrupted,
    MaxRetriesExceeded,
    MessageLost,
    MessageRefused,
    MessageTooLarge,
    RemoteError,
    ResultError,
    ResultNotStored,
    ResultTampered,
    ResultTimeout,
    Retry,
    ScheduleError,
    SerializationError,
    SoftTimeLimitExceeded,
    TaskQError,
    WorkerCrashed,
)
from taskq.model.context import Context, current
from taskq.model.queues import Queue
from taskq.model.retry import RetryPolicy
from taskq.model.states import Cancellation, Rescheduling, State

__all__ = [
    "BrokerError",
    "BrokerFull",
    "BrokerUnavailable",
    "Cancellation",
    "Cancelled",
    "ConfigError",
    "Context",
    "DeadLetter",
    "DeadLetterError",
    "DuplicateMessage",
    "EnqueueUncertain",
    "Expired",
    "HardTimeLimitExceeded",
    "Interrupted",
    "MaxRetriesExceeded",
    "MessageLost",
    "MessageRefused",
    "MessageTooLarge",
    "Queue",
    "RemoteError",
    "Rescheduling",
    "Result",
    "ResultError",
    "ResultNotStored",
    "ResultTampered",
    "ResultTimeout",
    "Retry",
    "RetryPolicy",
    "Schedule",
    "ScheduleError",
    "SerializationError",
    "Signature",
    "Snapshot",
    "SoftTimeLimitExceeded",
    "State",
    "Task",
    "TaskQ",
    "TaskQError",
    "WorkerCrashed",
    "agather",
    "as_completed",
    "current",
    "gather",
]
