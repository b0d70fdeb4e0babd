"""Messages sent at the same time share a round trip: group commit.

Two calls of the script may be under way to a queue. Who comes meanwhile waits until one of them
ends; then one call takes the messages of all who wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import threading
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Protocol

from taskq.broker.commands import MOST_BYTES, MOST_MESSAGES, Outgoing
from taskq.broker.faults import LONGEST_PAUSE
from taskq.broker.replication import Unreplicated
from taskq.errors import BrokerError, BrokerFull, BrokerUnavailable, Interrupted
from taskq.model import clock

# With one alone, Redis would be idle while the next is made; with more, less would be shared.
_MOST_UNDER_WAY = 2
# Who waits looks again after so many seconds, should nobody be left to wake it.
_PATIENCE = 0.1


class _Call:
    """One message, and once it was sent the verdict on it, or what went wrong."""

    __slots__ = ("_uncertain", "done", "error", "one", "place", "until", "verdict", "woken")

    def __init__(self, one: Outgoing, seconds: float) -> None:
        self.one = one
        # Whoever sends it, it is given up at this monotonic instant.
        self.until = clock.monotonic() + seconds
        # Where it is under way.
        self.place: threading.Lock | None = None
        # Set when it is over, or is to be sent by the very one who waits: by a thread, or on an
        # event loop.
        self.woken: threading.Lock | None = None
        self.done: asyncio.Future[None] | None = None
        self.verdict = ""
        self.error: BrokerError | None = None
        self._uncertain = False

    @property
    def over(self) -> bool:
        """Whether there is an outcome."""
        return bool(self.verdict) or self.error is not None

    @property
    def overdue(self) -> bool:
        """Whether it should be over: whoever took it was interrupted."""
        return clock.monotonic() - self.until > LONGEST_PAUSE

    def fail(self, error: BrokerError) -> None:
        """Note what befell the call that carried it: while there is time, another may."""
        self.place = None
        self._uncertain = self._uncertain or isinstance(error, Interrupted)
        if isinstance(error, BrokerUnavailable) and self.until - clock.monotonic() > LONGEST_PAUSE:
            return
        # One each: what a thread raises bears the traceback of that thread.
        self.error = Interrupted(str(error)) if self._uncertain else copy.copy(error)

    def miss(self, error: Unreplicated) -> None:
        """Note that replicas were waited for in vain: while there is time, they are asked anew."""
        self.place = None
        if not error.late or self.until - clock.monotonic() <= _PATIENCE:
            self.error = error

    def outcome(self) -> str:
        """Return the verdict, or raise what went wrong."""
        if self.error is not None:
            raise self.error
        return self.verdict


class _Run(Protocol):
    """Sends messages in one call of the script, tried for so many seconds."""

    def __call__(self, some: Sequence[Outgoing], *, within: float) -> str: ...


class Group:
    """Those that send to one queue, from any thread.

    A task's thread can be interrupted anywhere, even with a page that it took and did not send.
    So each looks after its own message, which may be sent twice: its id tells.
    """

    def __init__(self, run: _Run, seconds: float) -> None:
        self._run, self._seconds = run, seconds
        self._waiting: deque[_Call] = deque()
        # Held while a call is under way. Only by `with`: an interrupt leaves none locked.
        self._places = [threading.Lock() for _ in range(_MOST_UNDER_WAY)]

    def send(self, one: Outgoing) -> str:
        """Send a message, perhaps with those of others; return the verdict on it.

        Raises:
            BrokerError: what befell the call that carried it.

        """
        call = _Call(one, self._seconds)
        try:
            place = None if self._waiting else self._free_place()
            if place is None:
                self._waiting.append(call)
            else:
                # Nobody waits, as mostly. To stand in line would take as long as to make the call.
                with place:
                    self._send([call], self._limit(call))
                _wake(self._first())
            if not call.over:
                self._stand_in_line(call, fresh=place is None)
        except BaseException:
            # Interrupted: what was not sent must not be sent with a call that comes much later.
            with contextlib.suppress(ValueError):
                self._waiting.remove(call)
            raise
        return call.outcome()

    def _stand_in_line(self, call: _Call, *, fresh: bool) -> None:
        """Return when a call is over, which waits to be sent by whoever leads next."""
        call.woken = woken = threading.Lock()
        woken.acquire()
        while not call.over:
            place = call.place
            if place is None:
                place = self._free_place()
            elif place.locked() and not call.overdue:
                place = None
            if place is None:
                # It is under way, or in line: whoever holds a place may do so for long.
                woken.acquire(timeout=_PATIENCE)
            else:
                with place:
                    if not call.over:
                        self._lead(call, place, fresh=fresh)
                # After its release: who came before, and found no place, waits for this.
                _wake(self._first())
            fresh = False

    def _limit(self, call: _Call) -> float:
        """Return for how many seconds a call goes on that carries one message alone."""
        left = _left([call])
        # Who has just come needs no limit but the one that each call has.
        return math.inf if left > self._seconds - _PATIENCE else left

    def _free_place(self) -> threading.Lock | None:
        for place in self._places:
            if not place.locked():
                return place
        return None

    def _first(self) -> _Call | None:
        try:
            return self._waiting[0]
        except IndexError:
            return None

    def _lead(self, own: _Call, place: threading.Lock, *, fresh: bool) -> None:
        """Send what waits; and `own`, unless it is under way at another place."""
        page = _take(self._waiting, place)
        if own.place is place and own not in page:
            page.append(own)  # who took it was interrupted
        if page:
            alone = fresh and len(page) == 1
            self._send(page, self._limit(page[0]) if alone else _left(page))

    def _send(self, page: list[_Call], within: float) -> None:
        try:
            verdicts = self._run([call.one for call in page], within=within)
        except Unreplicated as error:
            for call, verdict in zip(page, error.verdicts, strict=True):
                call.miss(error.of(verdict))
            self._go_on(page)
        except BrokerError as error:
            if _may_be_of_one(error, page):
                for call in page:
                    self._send([call], _left([call]))
                return
            for call in page:
                call.fail(error)
            self._go_on(page)
        else:
            for call, verdict in zip(page, verdicts, strict=True):
                call.verdict = verdict
                _wake(call)

    def _go_on(self, page: list[_Call]) -> None:
        """Wake those who were sent in vain; those who have time left are first in line."""
        self._waiting.extendleft(call for call in reversed(page) if not call.over)
        for call in page:
            _wake(call)


class AsyncGroup:
    """Those that send to one queue, on one event loop."""

    def __init__(self, run: _AsyncRun, seconds: float) -> None:
        self._run, self._seconds = run, seconds
        self._waiting: deque[_Call] = deque()
        self._under_way = 0
        self._carriers: set[asyncio.Task[None]] = set()

    async def send(self, one: Outgoing) -> str:
        """Send a message, perhaps with those of others; as `Group.send`, awaited."""
        call, within = _Call(one, self._seconds), math.inf
        while not call.over:
            if self._under_way < _MOST_UNDER_WAY:
                self._under_way += 1
                await self._carry([call], within)
            else:
                call.done = asyncio.get_running_loop().create_future()
                self._waiting.append(call)
                await call.done
            within = call.until - clock.monotonic()
        return call.outcome()

    async def _carry(self, page: list[_Call], within: float) -> None:
        try:
            await self._send(page, within)
        finally:
            for call in page:
                if call.done is not None and not call.done.done():
                    call.done.set_result(None)
            self._go_on()

    async def _send(self, page: list[_Call], within: float) -> None:
        try:
            verdicts = await self._run([call.one for call in page], within=within)
        except Unreplicated as error:
            for call, verdict in zip(page, error.verdicts, strict=True):
                call.miss(error.of(verdict))
        except BrokerError as error:
            if _may_be_of_one(error, page):
                for call in page:
                    await self._send([call], _left([call]))
                return
            for call in page:
                call.fail(error)
        else:
            for call, verdict in zip(page, verdicts, strict=True):
                call.verdict = verdict

    def _go_on(self) -> None:
        """Let a task of its own carry those who wait: any of them may be cancelled."""
        page: list[_Call] = []
        while self._waiting and not page:
            page = [call for call in _take(self._waiting) if call.done and not call.done.done()]
        if not page:
            self._under_way -= 1
            return
        carrier = asyncio.get_running_loop().create_task(self._carry(page, _left(page)))
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)


class _AsyncRun(Protocol):
    """As `_Run`, awaited."""

    def __call__(self, some: Sequence[Outgoing], *, within: float) -> Awaitable[str]: ...


def _left(page: Sequence[_Call]) -> float:
    """Return for how many seconds a call may go on that carries these."""
    soonest = page[0].until if len(page) == 1 else min(call.until for call in page)
    return soonest - clock.monotonic()


def _may_be_of_one(error: BrokerError, page: Sequence[_Call]) -> bool:
    """Whether an error may be on account of one message, which must not cost its neighbours."""
    return len(page) > 1 and not isinstance(error, (BrokerUnavailable, BrokerFull))


def _wake(call: _Call | None) -> None:
    if call is not None and call.woken is not None:
        with contextlib.suppress(RuntimeError):  # it is awake
            call.woken.release()


def _take(waiting: deque[_Call], place: threading.Lock | None = None) -> list[_Call]:
    """Take as many as one call of the script may carry; at least one, if there is one."""
    page: list[_Call] = []
    size = 0
    while waiting and len(page) < MOST_MESSAGES:
        try:
            call = waiting.popleft()
        except IndexError:  # at the other place they were quicker
            break
        size += len(call.one.raw)
        if page and size > MOST_BYTES:
            waiting.appendleft(call)
            break
        call.place = place
        page.append(call)
    return page
