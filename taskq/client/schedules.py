"""Schedules: calls that are made again and again, at the ticks of a rule.

`app.schedules` makes, shows, changes and removes them. What came from Redis is verified on
reading, and no argument of a call is unpickled.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack

from taskq.client.outlook import Schedule
from taskq.client.periodic import When
from taskq.client.planning import Planning, Steps
from taskq.client.result import Result
from taskq.client.signature import Signature
from taskq.errors import BrokerError

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")


class Schedules:
    """The schedules of an app. A name may be `<name>@<queue>` as well, where it is not alone."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app
        self._planning = Planning(app)

    def add(self, name: str, call: Signature[Any], /, **when: Unpack[When]) -> Schedule:
        """Make a schedule of a call, `task.s(...)`, or change it; what it fired is kept.

        Raises:
            ConfigError, ValueError, TypeError: a rule that cannot work; the text says why.
            ScheduleError: a worker's code declares it, or it is on another queue.
            SerializationError: the call cannot be written.

        """
        return self._run(self._planning.add(name, call, when))

    async def aadd(self, name: str, call: Signature[Any], /, **when: Unpack[When]) -> Schedule:
        """Make a schedule of a call, or change it; as `add`, awaited."""
        return await self._arun(self._planning.add(name, call, when))

    def list(self, queue: str | None = None) -> _Schedules:
        """Return the schedules of a queue, or of all that the app declares, by name."""
        return self._run(self._planning.list(queue))

    async def alist(self, queue: str | None = None) -> _Schedules:
        """Return the schedules of a queue; as `list`, awaited."""
        return await self._arun(self._planning.list(queue))

    def get(self, name: str) -> Schedule:
        """Return one schedule; `ScheduleError` names the nearest if there is none."""
        return self._run(self._planning.get(name))

    async def aget(self, name: str) -> Schedule:
        """Return one schedule; as `get`, awaited."""
        return await self._arun(self._planning.get(name))

    def pause(self, name: str, note: str = "") -> None:
        """Fire its ticks no more until it is resumed; the note is for people."""
        self._run(self._planning.pause(name, note))

    async def apause(self, name: str, note: str = "") -> None:
        """Fire its ticks no more; as `pause`, awaited."""
        await self._arun(self._planning.pause(name, note))

    def resume(self, name: str) -> None:
        """Fire the ticks of a paused schedule from now on."""
        self._run(self._planning.resume(name))

    async def aresume(self, name: str) -> None:
        """Fire the ticks of a paused schedule; as `resume`, awaited."""
        await self._arun(self._planning.resume(name))

    def remove(self, name: str) -> None:
        """Remove a schedule; what it has enqueued stays.

        Raises:
            ScheduleError: there is none, or the code of a worker that lives declares it.

        """
        self._run(self._planning.remove(name))

    async def aremove(self, name: str) -> None:
        """Remove a schedule; as `remove`, awaited."""
        await self._arun(self._planning.remove(name))

    def run_now(self, name: str) -> Result[Any]:
        """Enqueue its call at once, paused or not, whatever its overlap says.

        Calls within one millisecond are one.

        Raises:
            EnqueueUncertain: the connection broke, or too few replicas have it; the error's id
                is that of the message, which may be there and may be lost.

        """
        return self._run(self._planning.run_now(name))

    async def arun_now(self, name: str) -> Result[Any]:
        """Enqueue its call at once; as `run_now`, awaited."""
        return await self._arun(self._planning.run_now(name))

    def backfill(self, name: str, start: datetime, end: datetime) -> _Results:
        """Enqueue the messages of all ticks from `start` until before `end`, in the past.

        A tick whose message is known is not fired again: for a day after that was over.

        Raises:
            ValueError: naive datetimes, a span in the future, or more than 10,000 ticks.
            EnqueueUncertain: half way, as of `run_now`; `error.sent` holds the results of what
                was accepted before, and to backfill the span again is safe.

        """
        return self._run(self._planning.backfill(name, start, end))

    async def abackfill(self, name: str, start: datetime, end: datetime) -> _Results:
        """Enqueue the messages of all ticks of a span; as `backfill`, awaited."""
        return await self._arun(self._planning.backfill(name, start, end))

    def next(self, name: str, n: int = 5) -> _Instants:
        """Return the next ticks, though it be paused."""
        return self._run(self._planning.next(name, n))

    async def anext(self, name: str, n: int = 5) -> _Instants:
        """Return the next ticks; as `next`, awaited."""
        return await self._arun(self._planning.next(name, n))

    def _run(self, steps: Steps[T]) -> T:
        reply: Any = None
        try:
            while True:
                command = steps.send(reply)
                try:
                    reply = self._app.broker.run(command)
                except BrokerError as error:
                    steps.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _arun(self, steps: Steps[T]) -> T:
        reply: Any = None
        try:
            while True:
                command = steps.send(reply)
                try:
                    reply = await self._app.abroker().run(command)
                except BrokerError as error:
                    steps.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


# The method `list` stands before the type.
_Schedules: TypeAlias = list[Schedule]
_Results: TypeAlias = list[Result[Any]]
_Instants: TypeAlias = list[datetime]
