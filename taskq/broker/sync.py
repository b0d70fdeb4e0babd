"""Runs commands, blocking. `aio.py` is the same, awaited."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import queue
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

from tenacity import Retrying

from taskq.broker import commands, replication
from taskq.broker.commands import Command, Outgoing
from taskq.broker.connection import Endpoint
from taskq.broker.faults import ScriptMissing, retrying
from taskq.broker.grouping import Group
from taskq.broker.line import (
    MOST_LASTING,
    MOST_LINES,
    MOST_STREAMS,
    AllInUse,
    Line,
    Stream,
)
from taskq.errors import BrokerError, BrokerUnavailable, Interrupted
from taskq.model import clock

T = TypeVar("T")
# One for each line that may be in use. In C: an interrupt loses none.
_Tokens: TypeAlias = "queue.SimpleQueue[None]"

# Until when a line is waited for: not at all; as long as others are served.
AT_ONCE = -math.inf
BEHIND_OTHERS = math.inf
_NO_PLACE = object()
# How many replicas have it is told when time is up: so much longer that is waited for.
_COUNT_SECONDS = 1.0
# Who has waited until the end has so much left at most: the system's clock is coarse.
_TOO_LITTLE_SECONDS = 0.005


# Of a broker: `_line`, `_lasting_line`.
_Lend: TypeAlias = Callable[[float, float], contextlib.AbstractContextManager[Line]]


class Broker:
    """Runs commands on a few connections, from any thread, again after a broken one."""

    make_line: Callable[[Endpoint], Line] = Line

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.endpoint = endpoint
        self._deadline = deadline
        self.reset()
        _brokers.add(self)

    def reset(self) -> None:
        """Begin without connections. After a fork: the parent keeps those it has."""
        self._groups: dict[tuple[str, int], Group] = {}
        self._idle: deque[Line] = deque()
        self._places = _tokens(MOST_LINES)
        self._lasting_places = _tokens(MOST_LASTING)
        self._stream_places = _tokens(MOST_STREAMS)
        # A monotonic instant: when Redis answered somebody last.
        self._served_at = -math.inf

    def run(self, command: Command[T], *, within: float = math.inf) -> T:
        """Run one script call; what broke on the way is tried again until the deadline.

        It is tried for `within` seconds, and no longer than the deadline.
        """
        began = clock.monotonic()
        ask = _runner(command, began + min(within, self._deadline))
        lend = self._lender(command)
        try:
            with lend(began + within, began + self._deadline) as line:
                return ask(line)
        except BrokerUnavailable as error:
            return self._again(began, error, ask, within, lend)

    def enqueue(self, base: str, one: Outgoing, replicas: int = 0) -> str:
        """Queue one message; with those that other threads send to the queue meanwhile.

        Only those that wait for as many replicas share a call: nobody waits for more.
        """
        group = self._groups.get((base, replicas))
        if group is None:

            def run(some: Sequence[Outgoing], *, within: float) -> str:
                return self.run(commands.enqueue(base, some).lasting(replicas), within=within)

            # Two threads may come here: then each group is right for those who have it.
            group = self._groups[base, replicas] = Group(run, self._deadline)
        return group.send(one)

    def run_each(self, calls: Iterable[Command[T]]) -> Iterator[T | BrokerError]:
        """Run many; the next is made and sent while Redis works at the one before.

        With a cluster, an error stands for one that failed while others were on their way.
        """
        stream = Stream(calls)
        while True:
            try:
                with self._stream_line(BEHIND_OTHERS) as line:
                    # In an outage no deadline begins anew where others have waited for one.
                    stream.began = max(stream.began, self._served_at)
                    for reply in _replies(line, stream):
                        self._served_at = clock.monotonic()
                        yield reply
            except ScriptMissing:
                while stream.sent:
                    yield self.run(stream.sent[0])
                    stream.answered()
            except BrokerUnavailable as error:
                if not stream.sent:
                    raise
                # What was on the way is sent again, one by one: scripts may be repeated.
                while stream.sent:
                    yield self.again(stream.sent[0], error, stream.began)
                    stream.answered()
            else:
                if not stream.sent:
                    return
                yield self.run(stream.sent[0])
                stream.answered()

    def again(
        self,
        command: Command[T],
        error: BrokerUnavailable,
        began: float,
        line: Line | None = None,
    ) -> T:
        """Run one script call that broke on the way, until the deadline; on `line`, if given."""
        lend = self._lender(command) if line is None else functools.partial(_same, line)
        ask = _runner(command, began + self._deadline)
        return self._again(began, error, ask, lend=lend)

    def call(self, *arguments: Any, within: float = math.inf) -> Any:
        """Send one command that may be repeated, and return the reply.

        It is tried for `within` seconds, and no longer than the deadline.
        """
        began = clock.monotonic()
        try:
            with self._line(began + within) as line:
                return line.call(*arguments)
        except BrokerUnavailable as error:
            return self._again(began, error, lambda line: line.call(*arguments), within)

    def close(self) -> None:
        """Close the idle connections; the next call opens a new one."""
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._idle.pop().close()

    def _lender(self, command: Command[Any]) -> _Lend:
        return self._lasting_line if command.replicas else self._line

    def _again(
        self,
        began: float,
        first: BrokerUnavailable,
        ask: Callable[[Line], T],
        within: float = math.inf,
        lend: _Lend | None = None,
    ) -> T:
        interrupted = isinstance(first, Interrupted)
        latest = began + min(self._deadline, within)
        left = latest - clock.monotonic()
        if left <= _TOO_LITTLE_SECONDS:
            raise first

        def once() -> T:
            nonlocal interrupted
            try:
                with (lend or self._line)(began + within, latest) as line:
                    return ask(line)
            except Interrupted:
                interrupted = True
                raise

        try:
            return Retrying(**retrying(left))(once)
        except BrokerError as error:
            if not interrupted or isinstance(error, replication.Unreplicated):
                raise
            # One of the attempts may have been carried out, whatever the last one met.
            raise Interrupted(str(error)) from error

    @contextlib.contextmanager
    def _line(
        self, until: float = math.inf, latest: float | None = None
    ) -> Generator[Line, None, None]:
        """Lend a line: its replies are waited for until `until`, and itself until `latest`.

        Whoever waits for one must hold none, or those who do wait for each other for ever.
        """
        place: list[None] = []
        line: Line | None = None
        try:
            try:
                # Taken and noted in one call into C: an interrupt comes before or after it.
                place.extend(itertools.islice(iter(self._places.get_nowait, _NO_PLACE), 1))
            except queue.Empty:
                self._wait_for(self._places, place, until, latest)
            line = self._take_idle() or self.make_line(self.endpoint)
            line.until, line.alone = until, self._places.qsize() == MOST_LINES - 1
            yield line
            self._served_at = clock.monotonic()
        except BrokerError:
            raise
        except BaseException:
            # Perhaps between a request and its reply: the next caller would read that.
            if line is not None:
                line.close()
            raise
        finally:
            if place:
                self._places.put(None)
            if line is not None:
                self._idle.append(line)

    @contextlib.contextmanager
    def _lasting_line(
        self, until: float = math.inf, latest: float | None = None
    ) -> Generator[Line, None, None]:
        """Lend a line to who waits for replicas."""
        if latest is None:
            latest = clock.monotonic() + self._deadline
        # Before the line: whoever has one waits for nothing that others hold.
        with self._place(self._lasting_places, until, latest), self._line(until, latest) as line:
            yield line

    @contextlib.contextmanager
    def _stream_line(self, latest: float, *, lasting: bool = False) -> Generator[Line, None, None]:
        """Lend a line to who sends many; `lasting`: and waits for replicas."""
        lend = self._lasting_line if lasting else self._line
        # As above.
        with self._place(self._stream_places, math.inf, latest), lend(latest=latest) as line:
            yield line

    @contextlib.contextmanager
    def _place(
        self, places: _Tokens, until: float, latest: float | None
    ) -> Generator[None, None, None]:
        place: list[None] = []
        try:
            self._wait_for(places, place, until, latest)
            yield
        finally:
            if place:
                places.put(None)

    def _wait_for(
        self, places: _Tokens, place: list[None], until: float, latest: float | None
    ) -> None:
        began = clock.monotonic()
        if latest is None:
            latest = began + self._deadline
        while True:
            limit = latest
            if latest == BEHIND_OTHERS:
                limit = max(began, self._served_at) + self._deadline
            wait = functools.partial(
                places.get, timeout=max(0.0, min(until, limit) - clock.monotonic())
            )
            with contextlib.suppress(queue.Empty):
                place.extend(itertools.islice(iter(wait, _NO_PLACE), 1))
                return
            if latest != BEHIND_OTHERS or self._served_at + self._deadline <= clock.monotonic():
                raise self._all_in_use(places)

    def _all_in_use(self, places: _Tokens) -> AllInUse:
        what = f"all {MOST_LINES} connections are in use"
        if places is self._lasting_places:
            what = f"all {MOST_LASTING} connections that may wait for replicas do so"
        elif places is self._stream_places:
            what = f"all {MOST_STREAMS} connections that may send many calls do so"
        return AllInUse(f"{self.endpoint.place}: {what}")

    def _take_idle(self) -> Line | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _tokens(count: int) -> _Tokens:
    tokens: _Tokens = queue.SimpleQueue()
    for _ in range(count):
        tokens.put(None)
    return tokens


@contextlib.contextmanager
def _same(line: Line, until: float, _latest: float) -> Generator[Line, None, None]:
    line.until = until
    yield line


def _runner(command: Command[T], until: float) -> Callable[[Line], T]:
    if not command.replicas:
        return lambda line: line.run(command)

    def run(line: Line) -> T:
        line.until += _COUNT_SECONDS
        reply = line.run(command)
        line.replicate(command, str(reply), until)
        return reply

    return run


def _replies(line: Line, stream: Stream[T]) -> Iterator[T]:
    """Yield the replies, one command ahead.

    It ends before one that waits for replicas, which is left in `sent`: that takes another line.
    """
    sent = stream.sent
    try:
        for command in stream.rest():
            sent.append(command)
            if not command.replicas:
                line.begin(command)
            if len(sent) > 1:
                yield line.end(sent[0])
                stream.answered()
            if command.replicas:
                return
        while sent:
            yield line.end(sent[0])
            stream.answered()
    except BrokerError:
        # The reply to a later command may still come.
        line.close()
        raise


_brokers: weakref.WeakSet[Broker] = weakref.WeakSet()


def _after_fork() -> None:
    """Give the child process connections of its own."""
    for broker in list(_brokers):
        broker.reset()


os.register_at_fork(after_in_child=_after_fork)
