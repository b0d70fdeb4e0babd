"""The handle on the outcome of one message: `get`, and its a-twin."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from taskq.broker import commands, keys, queries, records
from taskq.broker.commands import Command
from taskq.broker.records import Record
from taskq.client.drive import follow_async, follow_sync
from taskq.client.snapshot import MOST_WORDS, Snapshot, Subject, words_of
from taskq.config import Seconds
from taskq.errors import (
    Cancelled,
    ConfigError,
    Expired,
    HardTimeLimitExceeded,
    MessageLost,
    MessageRefused,
    ResultNotStored,
    ResultTampered,
    WorkerCrashed,
)
from taskq.model import control, outcome, serializers, times
from taskq.model.outcome import Report
from taskq.model.signing import Domain
from taskq.model.states import Cancellation, Rescheduling, State

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

R_co = TypeVar("R_co", covariant=True)

# The value of what was not read yet.
_UNSET: Any = object()


# A struct: a program may make a million of them at once.
class Result(msgspec.Struct, Generic[R_co], weakref=True, eq=False):
    """A handle on the outcome of one message. Pickles by its id."""

    app: TaskQ
    # The id that was given, or else the id.
    _name: str
    # The queue, and which of its partitions; see `keys.place`.
    place: str
    wire_id: str
    _task: str | None = None
    _stored: bool = True
    # What is known of it, and its value, once that was read.
    _record: Record | None = None
    _lost: bool = False
    _last: State = State.UNKNOWN
    _value: R_co = _UNSET

    @property
    def app_name(self) -> str:
        """The name of its app."""
        return self.app.name

    @property
    def queue(self) -> str:
        """The queue it went to."""
        return keys.queue_of(self.place)

    @property
    def id(self) -> str:
        """The address of the message; `app.result(id)` gives this handle again."""
        return keys.address(self._name, self.place)

    def __repr__(self) -> str:
        return f"<Result {self.id}>"

    def __eq__(self, other: object) -> bool:
        """Whether both are handles on one message."""
        if not isinstance(other, Result):
            return False
        return self.app_name == other.app_name and self.id == other.id

    def __hash__(self) -> int:
        return hash((self.app_name, self.id))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickle, (self.app, self.id))

    def get(self, timeout: Seconds | None = None, *, in_task: bool = False) -> R_co:
        """Return what the task returned, waiting for it at most `timeout` seconds.

        A timeout leaves the message running.

        Raises:
            ResultTimeout: it is not over yet.
            ResultError: it ended without an outcome of the task; the class says how.
            Exception: what the task raised, the remote traceback as its cause.
            RuntimeError: called in a task without `in_task=True`; see the README.

        """
        self.check_stored()
        for _ in follow_sync(self.app, [self], timeout, in_task=in_task):
            pass
        return self.outcome()

    async def aget(self, timeout: Seconds | None = None) -> R_co:
        """Return what the task returned; as `get`, awaited."""
        self.check_stored()
        async for _ in follow_async(self.app, [self], timeout):
            pass
        return self.outcome()

    def __await__(self) -> Generator[Any, None, R_co]:
        """Return what the task returned; as `aget()`."""
        return self.aget().__await__()

    def exception(
        self, timeout: Seconds | None = None, *, in_task: bool = False
    ) -> BaseException | None:
        """Return what `get` would raise, or None; `ResultTimeout` is raised."""
        try:
            self.get(timeout, in_task=in_task)
        except BaseException as error:  # noqa: BLE001 - the outcome, handed over
            return self._raised(error)
        return None

    async def aexception(self, timeout: Seconds | None = None) -> BaseException | None:
        """Return what `aget` would raise, or None; `ResultTimeout` is raised."""
        try:
            await self.aget(timeout)
        except BaseException as error:  # noqa: BLE001 - the outcome, handed over
            return self._raised(error)
        return None

    @property
    def status(self) -> State:
        """Where the message is; one round trip until it is terminal."""
        if self._record is None:
            self.settle(self.app.broker.call("GET", self._key))
        return self._state

    async def astatus(self) -> State:
        """Where the message is; one round trip until it is terminal."""
        if self._record is None:
            self.settle(await self.app.abroker().call("GET", self._key))
        return self._state

    def ready(self) -> bool:
        """Whether the outcome is recorded."""
        return self.status.terminal

    async def aready(self) -> bool:
        """Whether the outcome is recorded."""
        return (await self.astatus()).terminal

    def successful(self) -> bool:
        """Whether the task returned."""
        return self.status is State.SUCCEEDED

    async def asuccessful(self) -> bool:
        """Whether the task returned."""
        return await self.astatus() is State.SUCCEEDED

    def failed(self) -> bool:
        """Whether it is over in any other way."""
        return self.status.terminal and not self.successful()

    async def afailed(self) -> bool:
        """Whether it is over in any other way."""
        return (await self.astatus()).terminal and not await self.asuccessful()

    def snapshot(self) -> Snapshot:
        """Return all that is known; one round trip, nothing is unpickled."""
        return self._subject.snapshot(
            self.app.broker.run(queries.look(self._base, self.wire_id, self._task))
        )

    async def asnapshot(self) -> Snapshot:
        """Return all that is known; one round trip, nothing is unpickled."""
        look = queries.look(self._base, self.wire_id, self._task)
        return self._subject.snapshot(await self.app.abroker().run(look))

    def forget(self) -> bool:
        """Drop the stored outcome; False where the message is not over."""
        return self.app.broker.run(commands.forget(self._base, self.wire_id)) == "ok"

    async def aforget(self) -> bool:
        """Drop the stored outcome; False where the message is not over."""
        command = commands.forget(self._base, self.wire_id)
        return await self.app.abroker().run(command) == "ok"

    def cancel(self, reason: str | None = None, *, terminate: bool = False) -> Cancellation:
        """Take the message back, and say what that did.

        One that waits will not start; `get` raises `Cancelled` at once. One that runs is
        told: a coroutine by `CancelledError`, a thread by the same as soon as it runs
        Python code. If the task ends by itself before, its own outcome stands.

        Args:
            reason: for whoever waits; at most 500 characters of it are kept.
            terminate: kill the process in which it runs. What else ran there runs again.

        """
        return Cancellation(self.app.broker.run(self._cancel(reason, terminate=terminate)))

    async def acancel(self, reason: str | None = None, *, terminate: bool = False) -> Cancellation:
        """Take the message back, and say what that did; as `cancel`, awaited."""
        command = self._cancel(reason, terminate=terminate)
        return Cancellation(await self.app.abroker().run(command))

    def reschedule(
        self, *, eta: datetime | None = None, countdown: Seconds | None = None
    ) -> Rescheduling:
        """Give a message that waits for its time another one, and say what that did.

        Sooner or later than the one it has; also the time of another attempt.

        Args:
            eta: an aware datetime; one that is past is now.
            countdown: seconds from now.

        Raises:
            ConfigError: neither, or both.
            TypeError, ValueError: a value of another kind or out of range.

        """
        return Rescheduling(self.app.broker.run(self._reschedule(eta, countdown)))

    async def areschedule(
        self, *, eta: datetime | None = None, countdown: Seconds | None = None
    ) -> Rescheduling:
        """Give a message that waits for its time another one; as `reschedule`, awaited."""
        return Rescheduling(await self.app.abroker().run(self._reschedule(eta, countdown)))

    # What follows is for the waits in this package.

    def settle(self, raw: bytes | None) -> bool:
        """Take the record as read; return whether nothing more can come."""
        if raw is None:
            self._lost = True
            return True
        self._lost = False
        record = records.parse(raw)
        if record.state.terminal:
            self._record = record
        self._last = record.state
        return record.state.terminal

    def look_again(self) -> None:
        """Forget that Redis did not know the id: it may by now."""
        self._lost = False

    @property
    def settled(self) -> bool:
        """Whether nothing more can come: the outcome was read, or its record is gone."""
        return self._record is not None or self._lost

    def _cancel(self, reason: str | None, *, terminate: bool) -> Command[str]:
        if reason is not None and not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance] - people pass anything
            msg = f"reason must be a str, not {type(reason).__name__}"
            raise TypeError(msg)
        if not isinstance(terminate, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - the same
            msg = f"terminate must be a bool, not {type(terminate).__name__}"
            raise TypeError(msg)
        words = (reason or "")[:MOST_WORDS].encode(errors="backslashreplace")
        seal = self.app.seal(Domain.CONTROL, self.place)
        order = control.give(self.wire_id.encode(), words, seal, terminate=terminate)
        return commands.cancel(self._base, self.wire_id, order)

    def _reschedule(self, eta: datetime | None, countdown: Seconds | None) -> Command[str]:
        times.check_due(countdown, eta)
        due = times.due(countdown, eta)
        if due is None:
            msg = "reschedule to when? Give eta= or countdown="
            raise ConfigError(msg)
        return commands.reschedule(self._base, self.wire_id, due)

    @property
    def _base(self) -> str:
        return keys.base(self.app_name, self.place)

    @property
    def _key(self) -> str:
        return keys.record(self.app_name, self.place, self.wire_id)

    @property
    def _state(self) -> State:
        return State.UNKNOWN if self._lost else self._last

    def check_stored(self) -> None:
        """Raise `ResultNotStored` where there is nothing to wait for."""
        if not self._stored:
            msg = f"{self._task or self.id} runs with ignore_result=True: nothing is stored"
            raise ResultNotStored(msg)

    def _raised(self, error: BaseException) -> BaseException:
        """Let pass what is not an outcome: a timeout, Ctrl-C, a refused call, Redis away."""
        if self._record is None and not isinstance(error, (MessageLost, ResultNotStored)):
            raise error
        return error

    @property
    def _subject(self) -> Subject:
        generated = self._name == self.wire_id
        return Subject(self.id, self.wire_id, self.place, self._task, self.app.seal, generated)

    def outcome(self) -> R_co:
        """Return or raise how the message ended; the record was read before."""
        if self._value is not _UNSET:
            return self._value
        record = self._record
        if record is None:
            msg = f"Redis does not know {self.id}: its data was lost, or the result's time ran out"
            raise MessageLost(msg)
        if record.letter not in b"sf":
            raise self._unrun(record)
        if record.unreported:
            msg = f"{self._task or self.id} ran with ignore_result=True: nothing is stored"
            raise ResultNotStored(msg)
        report = self._subject.report(record)
        if report.failure is not None:
            raise _with_history(outcome.revive(report.failure), report)
        if report.serializer is None:
            msg = f"{self.id}: its outcome is neither a value nor a failure"
            raise ResultTampered(msg)
        self._value = serializers.loads(report.serializer, report.value)
        return self._value

    def _unrun(self, record: Record) -> Exception:
        words = words_of(record)
        if record.letter == b"e":
            return Expired(f"{self.id} did not start before it expired")
        if record.letter == b"t":
            return HardTimeLimitExceeded(f"{self.id} {words}")
        if record.letter == b"k":
            return WorkerCrashed(f"{self.id} {words}")
        if record.letter == b"c":
            return Cancelled(f"{self.id}: {words or 'cancelled'}", words)
        if record is records.UNREADABLE:
            return ResultTampered(f"{self.id}: what stands in its record is not of taskq")
        return MessageRefused(f"{self.id}: {words}")


def _with_history(error: BaseException, report: Report) -> BaseException:
    if len(report.errors) > 1:
        for one in report.errors:
            BaseException.add_note(error, f"attempt {one.attempt}: {one.type}: {one.text}")
    return error


def _unpickle(app: TaskQ, address: str) -> Result[Any]:
    return app.result(address)
