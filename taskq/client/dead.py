"""Dead letters: messages that failed for the last time or were refused, kept for people.

`app.dead` lists, shows, retries and purges them. What came from Redis is verified on
reading, and nothing is unpickled.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from taskq.broker import commands, keys, queries
from taskq.broker.commands import Command
from taskq.broker.queries import Letter
from taskq.broker.replication import Unreplicated
from taskq.client.result import Result
from taskq.client.snapshot import words_of
from taskq.config import check_name
from taskq.errors import DeadLetterError, EnqueueUncertain, Interrupted, ResultTampered
from taskq.model import clock, message, outcome
from taskq.model.message import Message, Refused
from taskq.model.outcome import AttemptError, Report
from taskq.model.signing import Domain, UnknownKey
from taskq.model.states import DEATHS

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

PAGE = 100
# What was no message at all is kept under a name of its own.
_RAW_NAME = re.compile(r"raw-\d+-\d+")
# How a lane is written: a task, and a priority that is not the usual one.
_LANE = re.compile(r"([^:]+)(:\d)?")

# The last instant of the year 9999: nothing in Redis shall break a list.
_LATEST_MS = 253_402_300_799_999

_Letters: TypeAlias = list["DeadLetter"]
_Names: TypeAlias = list[str]
_Page: TypeAlias = tuple[list[Letter], int | None]


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that ended badly. Instants are aware, by Redis's clock."""

    # The address of the message; `app.dead.get(id)` gives this letter again.
    id: str
    queue: str
    # The task in whose list it lay; where there is an obstacle, perhaps of another.
    task: str
    # 'failed', 'refused' unread, 'timed out' at its hard limit, or 'crashed' too often.
    kind: str
    reason: str
    died_at: datetime
    attempts: int = 0
    crashes: int = 0
    deliveries: int = 0
    worker: str | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    # Of the failed attempts, newest first.
    errors: tuple[AttemptError, ...] = ()
    traceback: str | None = None
    # Bytes of the message.
    size: int = 0
    # Why it cannot be sent again; None where it can.
    obstacle: str | None = None


class DeadLetters:
    """The dead letters of an app."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app

    def list(
        self, queue: str | None = None, task: str | None = None, limit: int = PAGE
    ) -> _Letters:
        """Return the newest letters of a queue, or of all that the app declares.

        Raises:
            ConfigError: nobody declared the queue, or it or the task has no possible name.

        """
        found: _Letters = []
        _check_limit(limit)
        for one in self._places(queue, task):
            opened = (letter.told() for letter in self._walk(one))
            found += itertools.islice((one for one in opened if task in (None, one.task)), limit)
        return _newest(found, limit)

    async def alist(
        self, queue: str | None = None, task: str | None = None, limit: int = PAGE
    ) -> _Letters:
        """Return the newest letters; as `list`, awaited."""
        found: _Letters = []
        _check_limit(limit)
        for one in await self._aplaces(queue, task):
            count = 0
            async for letter in self._awalk(one):
                if count == limit:
                    break
                if task in (None, letter.told().task):
                    found.append(letter.told())
                    count += 1
        return _newest(found, limit)

    def get(self, id: str) -> DeadLetter:
        """Return the letter of the message at that address; `DeadLetterError` if there is none."""
        return self._find(id).told()

    async def aget(self, id: str) -> DeadLetter:
        """Return the letter of the message at that address; as `get`, awaited."""
        return (await self._afind(id)).told()

    def retry(self, id: str) -> Result[Any]:
        """Send the message again as a new one, drop the letter, and return the new handle.

        An expiry that has passed is left out. To repeat the call cannot enqueue twice.

        Raises:
            DeadLetterError: there is no such letter, or it is not a message of ours.
            EnqueueUncertain: the connection broke, or too few replicas have it; if it was done,
                the error's id is the new one, else the letter is there.

        """
        command, result = self._find(id).again()
        try:
            word = self._app.broker.run(command)
        except (Interrupted, Unreplicated) as error:
            raise _uncertain(error, result) from error
        _check_sent(id, word)
        return result

    async def aretry(self, id: str) -> Result[Any]:
        """Send the message again as a new one; as `retry`, awaited."""
        command, result = (await self._afind(id)).again()
        try:
            word = await self._app.abroker().run(command)
        except (Interrupted, Unreplicated) as error:
            raise _uncertain(error, result) from error
        _check_sent(id, word)
        return result

    def purge(self, *ids: str, queue: str | None = None, task: str | None = None) -> int:
        """Throw away these letters, or those of a task, a queue, or all; return how many."""
        if ids:
            return sum(self._app.broker.run(one)[0] for one in self._discards(ids))
        total = 0
        for one in self._places(queue, task):
            skip: int | None = 0
            while skip is not None:
                count, skip = self._app.broker.run(self._discard(one, skip, task))
                total += count
        return total

    async def apurge(self, *ids: str, queue: str | None = None, task: str | None = None) -> int:
        """Throw away letters; as `purge`, awaited."""
        broker = self._app.abroker()
        if ids:
            return sum([(await broker.run(one))[0] for one in self._discards(ids)])
        total = 0
        for one in await self._aplaces(queue, task):
            skip: int | None = 0
            while skip is not None:
                count, skip = await broker.run(self._discard(one, skip, task))
                total += count
        return total

    def _queues(self, queue: str | None, task: str | None) -> Sequence[str]:
        if task is not None:
            check_name("task", task)
        return self._app.queues if queue is None else (self._app.check_queue(queue),)

    def _places(self, queue: str | None, task: str | None) -> _Names:
        """Return all partitions of the queues that are meant."""
        known = self._app.partitions.known
        return [place for one in self._queues(queue, task) for place in known(one)]

    async def _aplaces(self, queue: str | None, task: str | None) -> _Names:
        known = self._app.partitions.aknown
        return [place for one in self._queues(queue, task) for place in await known(one)]

    def _walk(self, queue: str) -> Iterator[_Opened]:
        skip: int | None = 0
        while skip is not None:
            letters, skip = self._app.broker.run(self._page(queue, skip))
            for letter in letters:
                yield _Opened(self._app, queue, letter)

    async def _awalk(self, queue: str) -> AsyncIterator[_Opened]:
        skip: int | None = 0
        while skip is not None:
            letters, skip = await self._app.abroker().run(self._page(queue, skip))
            for letter in letters:
                yield _Opened(self._app, queue, letter)

    def _page(self, queue: str, skip: int) -> Command[_Page]:
        age_ms = round(self._app.config.dead_letter_age * 1000)
        return queries.letters(keys.base(self._app.name, queue), age_ms, skip, PAGE)

    def _find(self, id: str) -> _Opened:
        queue, name = self._where(id)
        letters, _ = self._app.broker.run(self._one(queue, name))
        return self._opened(id, queue, letters)

    async def _afind(self, id: str) -> _Opened:
        queue, name = self._where(id)
        letters, _ = await self._app.abroker().run(self._one(queue, name))
        return self._opened(id, queue, letters)

    def _one(self, queue: str, name: bytes) -> Command[_Page]:
        return queries.letters(keys.base(self._app.name, queue), 0, 0, 1, name)

    def _where(self, id: str) -> tuple[str, bytes]:
        name, queue = keys.parse_address(id)
        raw = _RAW_NAME.fullmatch(name)
        return queue, (name if raw else self._app.wire_id(name)).encode()

    def _opened(self, id: str, queue: str, letters: Sequence[Letter]) -> _Opened:
        if not letters:
            msg = f"there is no dead letter {id!r}"
            raise DeadLetterError(msg)
        return _Opened(self._app, queue, letters[0])

    def _discards(self, ids: Sequence[str]) -> Iterator[Command[tuple[int, int | None]]]:
        queues: dict[str, list[bytes]] = {}
        for id in ids:
            queue, name = self._where(id)
            queues.setdefault(queue, []).append(name)
        for queue, names in queues.items():
            for at in range(0, len(names), PAGE):
                base = keys.base(self._app.name, queue)
                yield commands.discard(base, 0, "", names[at : at + PAGE])

    def _discard(self, queue: str, skip: int, task: str | None) -> Command[tuple[int, int | None]]:
        return commands.discard(keys.base(self._app.name, queue), skip, task or "")


class _Opened:
    """A letter, with what could be verified of it."""

    def __init__(self, app: TaskQ, queue: str, letter: Letter) -> None:
        self._app, self._queue, self._letter = app, queue, letter
        self._name = letter.id.decode(errors="backslashreplace")
        self._message: Message | None = None
        self._obstacle: str | None = None
        try:
            self._message = message.decode(letter.message, app.seal(Domain.MESSAGE, queue))
        except (Refused, UnknownKey) as error:
            self._obstacle = str(error)
        else:
            self._obstacle = self._misplaced(self._message)

    def told(self) -> DeadLetter:
        """Return what is known, in words."""
        letter, record = self._letter, self._letter.record
        envelope = self._message.envelope if self._message else None
        report, reason, traceback = self._report()
        name = envelope.name if envelope and envelope.name else self._name
        return DeadLetter(
            id=keys.address(name, self._queue),
            queue=keys.queue_of(self._queue),
            task=letter.lane.partition(":")[0],
            kind=DEATHS.get(record.letter, "unknown"),
            reason=reason,
            died_at=clock.instant(self._died_ms),
            attempts=record.attempts,
            crashes=record.crashes,
            deliveries=record.claims,
            worker=report.worker if report else None,
            enqueued_at=clock.instant(envelope.enqueued_ms) if envelope else None,
            started_at=clock.instant(report.started_ms) if report else None,
            errors=report.errors if report else (),
            traceback=traceback,
            size=len(letter.message),
            obstacle=self._obstacle,
        )

    def again(self) -> tuple[Command[str], Result[Any]]:
        """Return what sends the message anew, and the handle on it."""
        if self._message is None or self._obstacle is not None:
            msg = f"the dead letter {self.told().id} cannot be sent again: {self._obstacle}"
            raise DeadLetterError(msg)
        now_ms, earlier = clock.now_ms(), self._message.envelope
        id = message.renewed_id(self._message.id, self._died_ms)
        # Its name, if it had one, is the name of the message that failed.
        deadline_ms = earlier.deadline_ms if (earlier.deadline_ms or 0) > now_ms else None
        envelope = msgspec.structs.replace(
            earlier, enqueued_ms=now_ms, name=None, deadline_ms=deadline_ms
        )
        expires_ms = self._message.expires_ms
        if expires_ms <= now_ms:
            expires_ms = deadline_ms or 0
        seal = self._app.seal(Domain.MESSAGE, self._queue)
        raw = message.encode(Message(id, expires_ms, envelope), seal)
        letter = self._letter
        command = commands.revive(
            keys.base(self._app.name, self._queue), letter.id, letter.died, letter.lane, raw
        ).lasting(self._app.replicas(envelope.task))
        stored = not envelope.ignore_result
        handle: Result[Any] = Result(self._app, id, self._queue, id, envelope.task, stored)
        return command, handle

    @property
    def _died_ms(self) -> int:
        return int(min(max(0.0, float(self._letter.died)), _LATEST_MS))

    def _misplaced(self, opened: Message) -> str | None:
        """Say whether a message of ours lies where nobody of ours put it."""
        lane = _LANE.fullmatch(self._letter.lane)
        if lane is None or lane[1] != opened.envelope.task:
            return f"not of the task in whose list it was: {opened.envelope.task}"
        if opened.id.encode() != self._letter.id:
            return "kept under the id of another message"
        return None

    def _report(self) -> tuple[Report | None, str, str | None]:
        """Return the report, why the message died, and the traceback."""
        record = self._letter.record
        if record.letter != b"f":
            return None, words_of(record), None
        seal = self._app.seal(Domain.RESULT, self._queue)
        try:
            claim = record.worker + record.seq
            report = outcome.read_report(record.tail, seal, self._letter.id + claim)
        except ResultTampered as error:
            return None, f"the report of its failure is not to be trusted: {error}", None
        failure = report.failure
        if failure is None:
            return report, "its report tells of no failure", None
        text = f"{failure.type}: {failure.text}" if failure.text else failure.type
        return report, text, failure.traceback


def _check_limit(limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:  # pyright: ignore[reportUnnecessaryIsInstance] - people pass anything
        msg = f"limit must be an int >= 0, not {limit!r}"
        raise ValueError(msg)


def _newest(letters: list[DeadLetter], limit: int) -> list[DeadLetter]:
    return sorted(letters, key=lambda one: one.died_at, reverse=True)[:limit]


def _uncertain(error: Interrupted | Unreplicated, result: Result[Any]) -> EnqueueUncertain:
    if isinstance(error, Unreplicated):
        told = (
            f"it was sent again as {result.id!r}: if that dies now, the letter may be back instead"
        )
    else:
        told = f"either the letter is still there, or it was sent again as {result.id!r}"
    return EnqueueUncertain(f"{error}; {told}", result.id)


def _check_sent(id: str, word: str) -> None:
    if word == "no":
        msg = f"there is no dead letter {id!r} any more"
        raise DeadLetterError(msg)
