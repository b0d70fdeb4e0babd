"""Handles on outcomes: `get`, its a-twin, and waiting for many at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskq.broker import commands, keys, queries, records
from taskq.broker.records import Record
from taskq.client import watch
from taskq.client.waiter import Wait
from taskq.config import Seconds, seconds
from taskq.errors import (
    BrokerUnavailable,
    Cancelled,
    Expired,
    MessageLost,
    MessageRefused,
    ResultNotStored,
    ResultTimeout,
)
from taskq.model import clock, context, message, outcome, serializers
from taskq.model.outcome import AttemptError, Report
from taskq.model.signing import Domain
from taskq.model.states import State

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

_UNSET: Any = object()
_AWAY_SECONDS = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of a message at one moment. Instants are aware, by Redis's clock."""

    id: str
    task: str | None
    queue: str
    status: State
    attempt: int
    delivery: int
    worker: str | None
    enqueued_at: datetime | None
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    # Of the failed attempts, newest first.
    errors: tuple[AttemptError, ...]
    traceback: str | None
    # What is odd, in words; None where nothing is.
    note: str | None


class Result(Generic[R_co]):
    """A handle on the outcome of one message. Pickles by its id."""

    def __init__(self, app: TaskQ, name: str, queue: str, *, task: str | None = None, stored: bool = True) -> None:
        self.app_name = app.name
        self.queue = queue
        self.wire_id = app.wire_id(name)
        self._app = app
        self._name = name
        self._task = task
        self._stored = stored
        self._record: Record | None = None
        self._lost = False
        self._last = State.UNKNOWN
        self._value: Any = _UNSET

    @property
    def id(self) -> str:
        """The address of the message; `app.result(id)` gives this handle again."""
        return keys.address(self._name, self.queue)

    def __repr__(self) -> str:
        return f"<Result {self.id}>"

    def __eq__(self, other: object) -> bool:
        """Whether both are handles on one message."""
        same = isinstance(other, Result) and self.app_name == other.app_name
        return same and self.id == other.id

    def __hash__(self) -> int:
        return hash((self.app_name, self.id))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickle, (self._app, self.id))

    def get(self, timeout: Seconds | None = None, *, in_task: bool = False) -> R_co:
        """Return what the task returned, waiting for it at most `timeout` seconds.

        A timeout leaves the message running.

        Raises:
            ResultTimeout: it is not over yet.
            ResultError: it ended without an outcome of the task; the class says how.
            Exception: what the task raised, the remote traceback as its cause.
            RuntimeError: called in a task without `in_task=True`; see the README.

        """
        self._check_stored()
        for _ in follow_sync(self._app, [self], timeout, in_task=in_task):
            pass
        return self._outcome()

    async def aget(self, timeout: Seconds | None = None) -> R_co:
        """Return what the task returned; as `get`, awaited."""
        self._check_stored()
        async for _ in follow_async(self._app, [self], timeout):
            pass
        return self._outcome()

    def __await__(self) -> Generator[Any, None, R_co]:
        """Return what the task returned; as `aget()`."""
        return self.aget().__await__()

    def exception(self, timeout: Seconds | None = None, *, in_task: bool = False) -> BaseException | None:
        """Return what `get` would raise, or None; `ResultTimeout` is raised."""
        try:
            self.get(timeout, in_task=in_task)
        except ResultTimeout:
            raise
        except BaseException as error:  # noqa: BLE001 - the outcome, handed over
            return self._raised(error)
        return None

    async def aexception(self, timeout: Seconds | None = None) -> BaseException | None:
        """Return what `aget` would raise, or None; `ResultTimeout` is raised."""
        try:
            await self.aget(timeout)
        except ResultTimeout:
            raise
        except BaseException as error:  # noqa: BLE001 - the outcome, handed over
            return self._raised(error)
        return None

    @property
    def status(self) -> State:
        """Where the message is; one round trip until it is terminal."""
        if self._record is None:
            self.settle(self._app.broker.call("GET", self._key))
        return self._state

    async def astatus(self) -> State:
        """Where the message is; one round trip until it is terminal."""
        if self._record is None:
            self.settle(await self._app.abroker().call("GET", self._key))
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
        return self._snapshot(self._app.broker.run(queries.look(self._base, self.wire_id)))

    async def asnapshot(self) -> Snapshot:
        """Return all that is known; one round trip, nothing is unpickled."""
        look = queries.look(self._base, self.wire_id)
        return self._snapshot(await self._app.abroker().run(look))

    def forget(self) -> bool:
        """Drop the stored outcome; False where the message is not over."""
        return self._app.broker.run(commands.forget(self._base, self.wire_id)) == "ok"

    async def aforget(self) -> bool:
        """Drop the stored outcome; False where the message is not over."""
        command = commands.forget(self._base, self.wire_id)
        return await self._app.abroker().run(command) == "ok"

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

    @property
    def settled(self) -> bool:
        """Whether nothing more can come: the outcome was read, or its record is gone."""
        return self._record is not None or self._lost

    @property
    def _base(self) -> str:
        return keys.base(self.app_name, self.queue)

    @property
    def _key(self) -> str:
        return keys.record(self.app_name, self.queue, self.wire_id)

    @property
    def _state(self) -> State:
        return State.UNKNOWN if self._lost else self._last

    def _check_stored(self) -> None:
        if not self._stored:
            msg = f"{self._task or self.id} runs with ignore_result=True: nothing is stored"
            raise ResultNotStored(msg)

    def _raised(self, error: BaseException) -> BaseException:
        """Let pass what is not an outcome: Ctrl-C, a refused call, Redis away."""
        if self._record is None and not isinstance(error, (MessageLost, ResultNotStored)):
            raise error
        return error

    def _report(self, record: Record) -> Report:
        seal = self._app.seal(Domain.RESULT, self.queue)
        bound_to = self.wire_id.encode() + record.worker + record.seq
        return outcome.read_report(record.tail, seal, bound_to)

    def _outcome(self) -> R_co:
        if self._value is not _UNSET:
            return self._value  # type: ignore[no-any-return]
        record = self._record
        if record is None:
            msg = f"Redis does not know {self.id}: its data was lost, or the result's time ran out"
            raise MessageLost(msg)
        if record.letter not in b"sf":
            raise self._unrun(record)
        report = self._report(record)
        if report.failure is not None:
            raise _with_history(outcome.revive(report.failure), report)
        if report.serializer is None:
            msg = f"{report.task} ran with ignore_result=True: nothing is stored"
            raise ResultNotStored(msg)
        self._value = serializers.loads(report.serializer, report.value)
        return self._value  # type: ignore[no-any-return]

    def _unrun(self, record: Record) -> Exception:
        words = record.tail[:2000].decode(errors="backslashreplace")
        if record.letter == b"e":
            return Expired(f"{self.id} did not start before it expired")
        if record.letter == b"c":
            return Cancelled(f"{self.id}: {words or 'cancelled'}")
        return MessageRefused(f"{self.id}: {words}")

    def _snapshot(self, look: queries.Look) -> Snapshot:
        record = look.record
        if record is None:
            return self._bare(State.UNKNOWN, "Redis does not know this id")
        report, envelope, note = None, None, None
        try:
            if record.letter in b"sf":
                report = self._report(record)
            elif look.message:
                seal = self._app.seal(Domain.MESSAGE, self.queue)
                envelope = message.decode(look.message, seal).envelope
        except Exception as error:  # noqa: BLE001 - a snapshot reports, whatever it finds
            note = f"{type(error).__name__}: {error}"
        if record.letter == b"r":
            note = "refused: " + record.tail[:500].decode(errors="backslashreplace")
        return Snapshot(
            id=self.id,
            task=report.task if report else envelope.task if envelope else self._task,
            queue=self.queue,
            status=record.state,
            attempt=record.attempts + (record.state is State.RUNNING),
            delivery=record.claims,
            worker=(report.worker if report else look.worker) or None,
            enqueued_at=_instant(report.enqueued_ms if report else envelope.enqueued_ms if envelope else self._born_ms),
            due_at=_instant(look.due_ms),
            started_at=_instant(report.started_ms if report else record.fence // 1000),
            finished_at=_instant(report.finished_ms) if report else None,
            errors=report.errors if report else self._errors(record),
            traceback=report.failure.traceback if report and report.failure else None,
            note=note,
        )

    def _bare(self, status: State, note: str) -> Snapshot:
        nothing = (None,) * 5
        return Snapshot(self.id, self._task, self.queue, status, 0, 0, *nothing, (), None, note)

    def _errors(self, record: Record) -> tuple[AttemptError, ...]:
        tail = record.tail
        if record.state in (State.SCHEDULED, State.RETRYING):
            at = 3 + int(tail[:3])
            tail = tail[at + 7 : at + 7 + int(tail[at : at + 7])]
        seal = self._app.seal(Domain.RESULT, self.queue)
        history = outcome.read_history(tail, seal, self.wire_id.encode())
        return history.errors if history else ()

    @property
    def _born_ms(self) -> int:
        """When a generated id was made; it says so itself."""
        return int(self.wire_id[:12], 16) if self._name == self.wire_id else 0


class Completed(Generic[T]):
    """Results in the order in which they end; for `for` and for `async for`."""

    def __init__(self, results: Iterable[Result[T]], timeout: Seconds | None) -> None:
        self._results = list(results)
        self._timeout = timeout

    def __iter__(self) -> Iterator[Result[T]]:
        if self._results:
            app = self._results[0]._app  # noqa: SLF001
            yield from follow_sync(app, self._results, self._timeout, in_task=False)

    async def __aiter__(self) -> AsyncIterator[Result[T]]:
        if self._results:
            app = self._results[0]._app  # noqa: SLF001
            async for result in follow_async(app, self._results, self._timeout):
                yield result


def as_completed(results: Iterable[Result[T]], *, timeout: Seconds | None = None) -> Completed[T]:
    """Return the results as they end, by `for` or `async for`.

    Raises:
        ResultTimeout: while iterating, when `timeout` seconds have passed.

    """
    return Completed(results, timeout)


def gather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = None,
    return_exceptions: bool = False,
    in_task: bool = False,
) -> list[T]:
    """Return what the tasks returned, in the order given.

    The first that failed, in that order, is raised; with `return_exceptions=True` the
    exceptions stand in the list.

    Raises:
        ResultTimeout: some are not over after `timeout` seconds.

    """
    wanted = list(results)
    for one in wanted:
        one._check_stored()  # noqa: SLF001
    if wanted:
        for _ in follow_sync(wanted[0]._app, wanted, timeout, in_task=in_task):  # noqa: SLF001
            pass
    return [_value_of(one, return_exceptions=return_exceptions) for one in wanted]


async def agather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = None,
    return_exceptions: bool = False,
) -> list[T]:
    """Return what the tasks returned; as `gather`, awaited."""
    wanted = list(results)
    for one in wanted:
        one._check_stored()  # noqa: SLF001
    if wanted:
        async for _ in follow_async(wanted[0]._app, wanted, timeout):  # noqa: SLF001
            pass
    return [_value_of(one, return_exceptions=return_exceptions) for one in wanted]


def follow_sync(
    app: TaskQ, results: list[Result[T]], timeout: Seconds | None, *, in_task: bool
) -> Iterator[Result[T]]:
    """Yield each result once it is terminal, blocking."""
    _check_task(in_task=in_task)
    deadline = _deadline(timeout)
    wake = threading.Event()
    steps = _plan(app, results, Wait(wake.set), once=deadline <= clock.monotonic())
    reply: Any = None
    with contextlib.closing(steps):
        while (step := _next(steps, reply)) is not None:
            reply, left = None, deadline - clock.monotonic()
            try:
                if isinstance(step, watch.Settled):
                    yield step.result
                elif isinstance(step, watch.Run):
                    app.broker.run(step.command)
                elif isinstance(step, watch.Ask):
                    reply = app.broker.call(*step.arguments, within=left)
                elif left > 0:
                    wake.wait(min(step.seconds, left))
                    wake.clear()
                else:
                    break
            except BrokerUnavailable as error:
                reply = error
                wake.wait(_AWAY_SECONDS)
    _check_over(results)


async def follow_async(
    app: TaskQ, results: list[Result[T]], timeout: Seconds | None
) -> AsyncIterator[Result[T]]:
    """Yield each result once it is terminal, awaited."""
    deadline = _deadline(timeout)
    wake, loop = asyncio.Event(), asyncio.get_running_loop()
    wait = Wait(lambda: _call_in(loop, wake))
    steps = _plan(app, results, wait, once=deadline <= clock.monotonic())
    reply: Any = None
    with contextlib.closing(steps):
        while (step := _next(steps, reply)) is not None:
            reply, left = None, deadline - clock.monotonic()
            try:
                if isinstance(step, watch.Settled):
                    yield step.result
                elif isinstance(step, watch.Run):
                    await app.abroker().run(step.command)
                elif isinstance(step, watch.Ask):
                    reply = await app.abroker().call(*step.arguments, within=left)
                elif left > 0:
                    await _rest(wake, min(step.seconds, left))
                else:
                    break
            except BrokerUnavailable as error:
                reply = error
                await asyncio.sleep(_AWAY_SECONDS)
    _check_over(results)


def _plan(app: TaskQ, results: list[Result[T]], wait: Wait, *, once: bool) -> watch.Steps:
    for one in results:
        if one.settled:
            yield watch.Settled(one)
    rest = [one for one in results if not one.settled]
    if rest:
        yield from watch.poll(rest) if once else watch.follow(app.waiter, rest, wait)


def _next(steps: watch.Steps, reply: Any) -> watch.Step | None:
    try:
        return steps.send(reply)
    except StopIteration:
        return None


async def _rest(wake: asyncio.Event, seconds_left: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds_left)):
            await wake.wait()
    except TimeoutError:
        return
    finally:
        wake.clear()


def _call_in(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake.set)


def _deadline(timeout: Seconds | None) -> float:
    if timeout is None:
        return float("inf")
    return clock.monotonic() + seconds("timeout", timeout)


def _check_over(results: list[Any]) -> None:
    waiting = [one for one in results if not one.settled]
    if waiting:
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        msg = f"{waiting[0].id}{more}: not over in time; the message goes on"
        raise ResultTimeout(msg)


def _check_task(*, in_task: bool) -> None:
    running = context.running()
    if running is None or (in_task and not running.coroutine):
        return
    if running.coroutine:
        msg = "in an `async def` task only awaiting is allowed: use `await result` or agather"
        raise RuntimeError(msg)
    msg = (
        "waiting for a result inside a task can lock up a full worker; "
        "say in_task=True if you know that it cannot"
    )
    raise RuntimeError(msg)


def _value_of(result: Result[Any], *, return_exceptions: bool) -> Any:
    try:
        return result._outcome()  # noqa: SLF001
    except BaseException as error:
        if return_exceptions:
            return error
        raise


def _with_history(error: BaseException, report: Report) -> BaseException:
    if len(report.errors) > 1:
        for one in report.errors:
            error.add_note(f"attempt {one.attempt}: {one.type}: {one.text}")
    return error


def _instant(ms: int | None) -> datetime | None:
    return clock.instant(ms) if ms else None


def _unpickle(app: TaskQ, address: str) -> Result[Any]:
    return app.result(address)
