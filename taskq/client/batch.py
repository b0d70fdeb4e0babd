"""A batch: many calls on their way, written at once and sent page by page."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from taskq.broker import commands, keys
from taskq.broker.commands import Command, Lot
from taskq.broker.replication import Unreplicated
from taskq.client.mould import Mould
from taskq.client.result import Result
from taskq.client.signature import Alike, Signature
from taskq.client.spread import Spread, mould_of
from taskq.errors import (
    BrokerError,
    ConfigError,
    DuplicateMessage,
    EnqueueUncertain,
    Interrupted,
)

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")
E = TypeVar("E", BrokerError, DuplicateMessage)

# The script's letter for an id that another task's message has.
REFUSED = "x"


class _Part(msgspec.Struct):
    """Calls of one page that follow each other and are cast in one mould."""

    mould: Mould
    # Which of all the calls these are.
    numbers: list[int] = []
    # How each was written, and its bytes, until they are cast.
    hows: list[str] = []
    bodies: list[bytes] = []
    # Once they are.
    ids: list[str] = []

    def cast(self) -> Lot:
        """Sign the messages, and let go of what was written."""
        self.ids, lot = self.mould.cast_all(self.hows, self.bodies)
        self.hows, self.bodies = [], []
        return lot

    def name_of(self, id: str) -> str:
        """Return the text that people gave as the id of one of these, or else the id."""
        return self.mould.options.id or id

    def names(self) -> Iterator[tuple[int, str]]:
        """Return of each call which it is, and the name of its message."""
        if not self.ids:
            self.cast()
        return zip(self.numbers, map(self.name_of, self.ids), strict=True)


class _Page(msgspec.Struct):
    """Calls that go to one place together: as many as one command carries."""

    base: str
    replicas: int
    parts: list[_Part] = []
    # So many more go in, of so many bytes; or one that is larger than that.
    left: int = commands.MOST_MESSAGES
    room: int = commands.MOST_BYTES

    def takes(self, size: int) -> bool:
        """Whether one of so many bytes goes in."""
        return self.left > 0 and size <= self.room

    def commands(self) -> Iterator[tuple[list[_Part], Command[str]]]:
        """Return what sends them, each with those that it sends."""
        lots = [part.cast() for part in self.parts]
        by_lot = {id(lot): part for lot, part in zip(lots, self.parts, strict=True)}
        for page, command in commands.send_lots(self.base, lots):
            yield [by_lot[id(lot)] for lot in page], command.lasting(self.replicas)


class Batch(Generic[T]):
    """Many messages on their way, in the order in which they were given.

    All are written, and so checked, at first; they are signed page by page, while Redis
    works at the page before.
    """

    def __init__(self, app: TaskQ, calls: Iterable[Signature[T]]) -> None:
        self._app = app
        self._moulds: dict[tuple[int, str, int], Mould | Spread] = {}
        # Those that are sent to.
        self.queues: set[str] = set()
        self._places: dict[tuple[str, int], list[_Page]] = {}
        if isinstance(calls, Alike):
            alike = cast("Alike[T]", calls)
            one, rows = alike.one, list(alike.rows)
            # Signatures are made where one is asked for, to be sent again.
            self._calls: Iterable[Signature[T]] = Alike(one, rows)
            # Where there is no call, no queue is used.
            moulds = itertools.repeat(self._mould_of(one)) if rows else ()
            count = self._write(zip(moulds, rows, itertools.repeat(one.kwargs), strict=False))
        else:
            self._calls = list(calls)
            count = self._write(self._with_moulds(self._calls))
        # Of each call, once it was accepted.
        self._results: list[Result[T] | None] = [None] * count
        # The first call whose id is in use by another task: its number, and the error.
        self._refused: tuple[int, DuplicateMessage] | None = None
        # What is on the way; and what failed while others went on, by its error.
        self._under_way: deque[list[_Part]] = deque()
        self._failed: dict[BrokerError, list[_Part]] = {}

    def commands(self) -> Iterator[Command[str]]:
        """Return the commands that send them: a page of each queue, then the next of each."""
        rest = deque(
            itertools.chain.from_iterable(page.commands() for page in pages)
            for pages in self._places.values()
        )
        while rest:
            of_place = rest.popleft()
            for parts, command in itertools.islice(of_place, 1):
                self._under_way.append(parts)
                yield command
                rest.append(of_place)

    def accept(self, verdicts: str | BrokerError) -> None:
        """Note what Redis said to what was sent first, or how that failed."""
        parts = self._under_way.popleft()
        if isinstance(verdicts, BrokerError):
            self._failed[verdicts] = parts
            return
        letters = iter(verdicts)
        for part in parts:
            handles = part.mould.results(part.ids)
            # The letters last: what ends first is asked first, and takes none of the next part's.
            for number, handle, letter in zip(part.numbers, handles, letters, strict=False):
                if letter != REFUSED:
                    self._results[number] = handle
                elif self._refused is None or number < self._refused[0]:
                    self._refused = number, duplicate(part.mould.task, part.name_of(handle.wire_id))

    def results(self) -> list[Result[T]]:
        """Return the handles, in the order of the calls."""
        if self._refused:
            raise self._with_parts(self._refused[1])
        return [result for result in self._results if result is not None]

    def torn(self, error: BrokerError) -> BrokerError:
        """Return the error that befell a page, with what was sent and what was not."""
        # None where nothing was sent yet.
        parts = self._failed.get(error) or next(iter(self._under_way), None)
        if parts and isinstance(error, (Interrupted, Unreplicated)):
            first = parts[0]
            name = first.name_of(first.ids[0])
            error = uncertain(error, first.mould.task, name, first.mould.place)
        return self._with_parts(error)

    def _with_moulds(
        self, calls: Iterable[Signature[T]]
    ) -> Iterator[tuple[Mould | Spread, tuple[Any, ...], dict[str, Any]]]:
        last: Signature[T] | None = None
        found: Mould | Spread | None = None
        for call in calls:
            if found is None or last is None or not _alike(call, last):
                found = self._mould_of(call)
            last = call
            yield found, call.args, call.kwargs

    def _write(
        self, calls: Iterable[tuple[Mould | Spread, tuple[Any, ...], dict[str, Any]]]
    ) -> int:
        """Write all, and note on which page each goes; return how many there are."""
        last: Mould | None = None
        page = _Page("", 0)
        number = -1
        hows, bodies, numbers = [], [], []
        for number, (found, args, kwargs) in enumerate(calls):
            mould = found.choose()
            how, body = mould.write(args, kwargs)
            size = mould.besides + len(body)
            if mould is not last or not page.takes(size):
                last, (page, part) = mould, self._part_of(mould, size)
                # Here, for they are looked up once for each of very many.
                hows, bodies, numbers = part.hows, part.bodies, part.numbers
            hows.append(how)
            bodies.append(body)
            numbers.append(number)
            page.left -= 1
            page.room -= size
        return number + 1

    def _mould_of(self, call: Signature[T]) -> Mould | Spread:
        kind = (id(call.app), call.task, id(call.options))
        if kind not in self._moulds:
            check_app(self._app, call)
            self._moulds[kind] = mould_of(self._app, call.task, call.options)
            self.queues.add(call.queue)
        return self._moulds[kind]

    def _part_of(self, mould: Mould, size: int) -> tuple[_Page, _Part]:
        """Return where the next call goes that is cast in this mould, and has so many bytes."""
        pages = self._places.setdefault((mould.base, mould.replicas), [])
        if not pages or not pages[-1].takes(size):
            pages.append(_Page(mould.base, mould.replicas))
        page = pages[-1]
        if not page.parts or page.parts[-1].mould is not mould:
            page.parts.append(_Part(mould))
        return page, page.parts[-1]

    def _with_parts(self, error: E) -> E:
        names = dict[int, str]()
        for page in itertools.chain.from_iterable(self._places.values()):
            for part in page.parts:
                names.update(part.names())
        error.sent = [result for result in self._results if result is not None]
        error.unsent = [
            call.fixed(names[number])
            for number, (call, result) in enumerate(zip(self._calls, self._results, strict=True))
            if result is None
        ]
        return error


def _alike(one: Signature[Any], other: Signature[Any]) -> bool:
    """Whether both are cast in one mould, as far as can be seen at a glance."""
    return one.options is other.options and one.task is other.task and one.app is other.app


def duplicate(task: str, name: str) -> DuplicateMessage:
    """Return what is raised where another task's message has the id."""
    msg = f"the id {name!r} is in use by a message of another task than {task}"
    return DuplicateMessage(msg)


def uncertain(
    error: Interrupted | Unreplicated, task: str, name: str, place: str
) -> EnqueueUncertain:
    """Return what is raised where nobody knows whether a message was accepted, or can be lost."""
    address = keys.address(name, place)
    if isinstance(error, Unreplicated):
        told = f"if that dies now, {task} {address} may be lost"
    else:
        told = f"Redis may or may not have accepted {task} {address}"
    msg = f"{error}; {told}: enqueueing it again with options(id={name!r}) is safe"
    return EnqueueUncertain(msg, name)


def check_app(app: TaskQ, signature: Signature[Any]) -> None:
    """Raise `ConfigError` where a call is of another app."""
    if signature.app is not app:
        msg = f"{signature.task} is of the app {signature.app.name!r}: send it by that one"
        raise ConfigError(msg)
