"""Which connection leads to a queue: one for all, or with a cluster one to each queue's node.

A queue is one slot, so one node has all of it. Nothing here knows which: a line finds that
when it connects, and again when it is told that its node is the wrong one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from taskq.broker.aio import AsyncBroker, AsyncLine
from taskq.broker.commands import Command, Outgoing
from taskq.broker.connection import Endpoint
from taskq.broker.faults import CLIENT_ERRORS
from taskq.broker.line import AllInUse, Line, Words
from taskq.broker.replication import Unreplicated
from taskq.broker.sockets import SOCKET_TIMEOUT, can_read
from taskq.broker.sync import AT_ONCE, BEHIND_OTHERS, Broker
from taskq.errors import BrokerError, BrokerUnavailable, Interrupted
from taskq.model import clock

T = TypeVar("T")

# So long a node may take to be connected to, however little time is left.
_CONNECT_SECONDS = 1.0


class NodeLine(Line):
    """A line to the node that has one queue. It publishes as that node can."""

    def send(self, *arguments: Any, ahead: Words = ()) -> None:
        """Send one command; see `Line.send`. Where others found the node silent, do not wait."""
        if self._connection is not None and self.endpoint.is_silent(self._connection):
            self.close()
            raise _silent(self.endpoint)
        super().send(*arguments, ahead=ahead)

    def begin(self, command: Command[T], ahead: Words = ()) -> None:
        """Send a script call; see `Line.begin`."""
        self.connect()
        super().begin(command, ahead)

    def local(self, command: Command[T]) -> Command[T]:
        """Return a script call as it is to be sent on this line; see `Line.local`."""
        return command.publishing(self.endpoint.publish)

    def finish(self, command: Command[T]) -> T:
        """Return what the only call begun was answered; see `Line.finish`, and `send`."""
        connection = self._connection
        if connection is not None and self.endpoint.is_silent(connection) and not self.answered:
            self.close()
            raise Interrupted(str(_silent(self.endpoint)))
        return super().finish(command)

    def load(self, command: Command[T]) -> T:
        """Run a script call by the script's text; see `Line.load`."""
        return super().load(self.local(command))

    def _connect(self) -> Any:
        left = max(self.until - clock.monotonic(), _CONNECT_SECONDS)
        self._connection = self.endpoint.open(min(left, SOCKET_TIMEOUT))
        return self._connection

    def fileno(self) -> int:
        """Return the descriptor of the open connection, for a selector; -1 where it is closed."""
        socket = getattr(self._connection, "_sock", None)
        return -1 if socket is None else socket.fileno()

    @property
    def answered(self) -> bool:
        """Whether the next reply, or the end of the connection, can be read at once."""
        try:
            return self._connection is None or can_read(self._connection, 0.0)
        except CLIENT_ERRORS:
            return True


class AsyncNodeLine(AsyncLine):
    """`NodeLine`, awaited."""

    async def run(self, command: Command[T]) -> T:
        """Run a script call; see `AsyncLine.run`."""
        return await super().run(await self._localised(command))

    async def begin(self, command: Command[T]) -> None:
        """Send a script call; see `AsyncLine.begin`."""
        await super().begin(await self._localised(command))

    async def send(self, *arguments: Any) -> None:
        """Send one command; see `NodeLine.send`."""
        if self._wire is not None and self.endpoint.is_silent(self._wire.connection):
            await self.close()
            raise _silent(self.endpoint)
        await super().send(*arguments)

    async def _localised(self, command: Command[T]) -> Command[T]:
        if self._wire is None:
            await self._connect()
        return command.publishing(self.endpoint.publish)


class Lines:
    """The lines of one thread, each opened when it is needed first."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._one = None if endpoint.clustered else Line(endpoint)
        self._lines: dict[str, Line] = {}

    def of(self, base: str) -> Line:
        """Return the line to a queue: the same for all, but with a cluster."""
        if self._one is not None:
            return self._one
        line = self._lines.get(base)
        if line is None:
            line = self._lines[base] = NodeLine(self._endpoint.at(base))
        return line

    def run(self, command: Command[T]) -> T:
        """Run one script call on the line of its queue."""
        return self.of(command.base).run(command)

    def close(self) -> None:
        """Close all of them."""
        for line in (self._one, *self._lines.values()):
            if line is not None:
                line.close()


class _NodeBroker(Broker):
    make_line = NodeLine

    def note_answer(self) -> None:
        """Note that one of those who send many was answered."""
        self._served_at = clock.monotonic()

    def hold_line(self, held: contextlib.ExitStack, latest: float, *, lasting: bool) -> Line:
        """Return a line that is given back when `held` is left; it is waited for until `latest`.

        `lasting`: it is to wait for replicas.
        """
        return held.enter_context(self._stream_line(latest, lasting=lasting))

    def take_off(self, command: Command[T], line: Line, asked: float) -> _Flight[T]:
        """Send a script call, and return it while it is on its way; its line was asked for then."""
        # In an outage no deadline begins anew where others have waited for one.
        waited = clock.monotonic() - max(asked, self._served_at)
        return _Flight(self, line, command, waited, self._deadline)


class _HeldLines:
    """Lines that one thread holds, a few to each queue; it waits for one only without any.

    Else those who hold lines to one node could wait for ever for those who wait for theirs.
    """

    def __init__(self, held: contextlib.ExitStack) -> None:
        self._held = held
        self._lines: dict[tuple[_NodeBroker, bool], Line] = {}

    def take(self, broker: _NodeBroker, *, lasting: bool) -> bool:
        """Take one, unless all are in use; return whether there is one."""
        key = broker, lasting
        if key not in self._lines:
            try:
                self._lines[key] = broker.hold_line(self._held, AT_ONCE, lasting=lasting)
            except AllInUse:
                return False
        return True

    def of(self, broker: _NodeBroker, *, lasting: bool) -> Line:
        """Return one; if it must be waited for, all others are given back, so none may be busy."""
        if not self.take(broker, lasting=lasting):
            self._lines.clear()
            self._held.close()
            line = broker.hold_line(self._held, BEHIND_OTHERS, lasting=lasting)
            self._lines[broker, lasting] = line
        return self._lines[broker, lasting]


class _Flight(Generic[T]):
    """A script call on its way, the only one on its line."""

    def __init__(
        self, broker: _NodeBroker, line: Line, command: Command[T], waited: float, deadline: float
    ) -> None:
        self.command = command
        self._broker, self._line = broker, line
        self._until = clock.monotonic() + deadline - waited
        # For so many seconds its line was waited for, and nobody answered.
        self._waited = waited
        self._error: BrokerError | None = None
        # Those that are on their way at the same time are not waited for one after the other.
        line.until = self._until
        try:
            line.begin(command)
        except BrokerError as error:
            self._error = error

    def land(self, *, again: bool) -> T:
        """Return the reply; where something broke on the way, try `again` or not."""
        began = clock.monotonic() - self._waited
        try:
            if self._error is not None:
                raise self._error
            reply = self._line.finish(self.command)
            if self.command.replicas:
                # It asks for less and less, once at least, and must hear what is answered.
                self._line.until = math.inf
                self._line.replicate(self.command, str(reply), self._until)
        except BrokerUnavailable as error:
            if not again:
                raise
            # On the line that it has: there may be no other, for as long as it has this one.
            reply = self._broker.again(self.command, error, began, self._line)
        self._broker.note_answer()
        return reply


class _AsyncNodeBroker(AsyncBroker):
    make_line = AsyncNodeLine

    async def run_one_of_many(self, command: Command[T]) -> T:
        """Run one script call of those that somebody sends; what is sent alone goes first."""
        asked = clock.monotonic()
        async with self._stream_place():
            # In an outage no deadline begins anew where others have waited for one.
            began = max(asked, self._served_at)
            return await self.run(command, within=began + self._deadline - clock.monotonic())


class ClusterBroker(Broker):
    """A broker for each queue, behind the face of one."""

    def reset(self) -> None:
        """Begin without connections."""
        super().reset()
        self._brokers: dict[str, _NodeBroker] = {}

    def run(self, command: Command[T], *, within: float = float("inf")) -> T:
        """Run one script call; see `Broker.run`."""
        return self._of(command.base).run(command, within=within)

    def enqueue(self, base: str, one: Outgoing, replicas: int = 0) -> str:
        """Queue one message; see `Broker.enqueue`."""
        return self._of(base).enqueue(base, one, replicas)

    def run_each(self, calls: Iterable[Command[T]]) -> Iterator[T | BrokerError]:
        """Run many, on all nodes at a time, those of one queue one after the other.

        An error stands for one that failed, after which no more are sent; one of them is
        raised when all that were on their way have arrived: see `_gravest`.
        """
        flights: dict[str, _Flight[T]] = {}
        errors: list[BrokerError] = []

        def land(base: str) -> T | BrokerError:
            try:
                return flights.pop(base).land(again=not errors)
            except BrokerError as error:
                errors.append(error)
                return error

        with contextlib.ExitStack() as held:
            lines = _HeldLines(held)
            for command in calls:
                base, broker, lasting = command.base, self._of(command.base), command.replicas > 0
                while base in flights or (flights and not lines.take(broker, lasting=lasting)):
                    yield land(next(iter(flights)))
                if errors:
                    break
                asked = clock.monotonic()
                line = lines.of(broker, lasting=lasting)
                flights[base] = broker.take_off(command, line, asked)
            while flights:
                yield land(next(iter(flights)))
            if errors:
                raise _gravest(errors)  # here: the lines are not given back as if all were well

    def call(self, *arguments: Any, within: float = float("inf")) -> Any:
        """Send one command to the node that has its first key; see `Broker.call`."""
        return self._of(base_of(_key(arguments))).call(*arguments, within=within)

    def close(self) -> None:
        """Close the idle connections; the next call opens a new one."""
        for broker in list(self._brokers.values()):
            broker.close()

    def _of(self, base: str) -> _NodeBroker:
        broker = self._brokers.get(base)
        if broker is None:
            # Two threads may come here: then each broker is right for those who have it.
            broker = self._brokers[base] = _NodeBroker(self.endpoint.at(base), self._deadline)
        return broker


class AsyncClusterBroker(AsyncBroker):
    """`ClusterBroker`, awaited."""

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        super().__init__(endpoint, deadline)
        self._brokers: dict[str, _AsyncNodeBroker] = {}

    async def run(self, command: Command[T], *, within: float = float("inf")) -> T:
        """Run one script call; see `AsyncBroker.run`."""
        return await self._of(command.base).run(command, within=within)

    async def enqueue(self, base: str, one: Outgoing, replicas: int = 0) -> str:
        """Queue one message; see `AsyncBroker.enqueue`."""
        return await self._of(base).enqueue(base, one, replicas)

    async def run_each(self, calls: Iterable[Command[T]]) -> AsyncIterator[T | BrokerError]:
        """Run many, on all nodes at a time; see `ClusterBroker.run_each`."""
        flights: dict[str, asyncio.Task[T]] = {}
        errors: list[BrokerError] = []

        async def land() -> T | BrokerError:
            base = next(iter(flights))
            try:
                return await flights[base]
            except BrokerError as error:
                errors.append(error)
                return error
            finally:
                del flights[base]

        try:
            for command in calls:
                while command.base in flights:
                    yield await land()
                if errors:
                    break
                one = self._of(command.base).run_one_of_many(command)
                flights[command.base] = asyncio.ensure_future(one)
            while flights:
                yield await land()
        finally:
            for task in flights.values():
                task.cancel()
            await asyncio.gather(*flights.values(), return_exceptions=True)
        if errors:
            raise _gravest(errors)

    async def call(self, *arguments: Any, within: float = math.inf) -> Any:
        """Send one command to the node that has its first key; see `AsyncBroker.call`."""
        return await self._of(base_of(_key(arguments))).call(*arguments, within=within)

    async def close(self) -> None:
        """Close the idle connections; the next call opens a new one."""
        for broker in list(self._brokers.values()):
            await broker.close()

    def _of(self, base: str) -> _AsyncNodeBroker:
        broker = self._brokers.get(base)
        if broker is None:
            broker = _AsyncNodeBroker(self.endpoint.at(base), self._deadline)
            self._brokers[base] = broker
        return broker


def open_broker(endpoint: Endpoint, deadline: float) -> Broker:
    """Return the blocking driver for a place."""
    return (ClusterBroker if endpoint.clustered else Broker)(endpoint, deadline)


def open_abroker(endpoint: Endpoint, deadline: float) -> AsyncBroker:
    """Return the driver for a place, of the running event loop."""
    return (AsyncClusterBroker if endpoint.clustered else AsyncBroker)(endpoint, deadline)


def _gravest(errors: Sequence[BrokerError]) -> BrokerError:
    """Return the first error after which nobody knows what was done; where none is, the first."""
    unsure = (one for one in errors if isinstance(one, (Interrupted, Unreplicated)))
    return next(unsure, errors[0])


def _silent(endpoint: Endpoint) -> BrokerUnavailable:
    # To connect anew is for the next call: WAIT, on another connection, proves nothing.
    return BrokerUnavailable(f"{endpoint.place}: a node does not answer")


def _key(arguments: Sequence[Any]) -> str | bytes:
    """Return the first key of a command; where there is none, any node will do."""
    at = 3 if arguments[0] in ("EVAL", "EVALSHA") else 1
    return arguments[at] if len(arguments) > at else ""


def base_of(key: str | bytes) -> str:
    """Return the base of a queue's key or channel."""
    text = key.decode() if isinstance(key, bytes) else str(key)
    head, brace, _ = text.partition("}")
    return f"{head}{brace}:"
