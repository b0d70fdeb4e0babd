"""What was known of a message at one moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from taskq.broker import keys
from taskq.broker.queries import Look
from taskq.broker.records import UNREADABLE, Record
from taskq.model import clock, message, outcome
from taskq.model.message import Envelope
from taskq.model.outcome import AttemptError, Report
from taskq.model.signing import Domain, Seal
from taskq.model.states import State
from taskq.model.words import printable

# Characters of a reason.
MOST_WORDS = 500


class Snapshot(msgspec.Struct, frozen=True):
    """What was known of a message at one moment. Instants are aware, by Redis's clock."""

    id: str
    task: str | None
    queue: str
    status: State
    attempt: int = 0
    delivery: int = 0
    worker: str | None = None
    enqueued_at: datetime | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    # Of the failed attempts, newest first.
    errors: tuple[AttemptError, ...] = ()
    traceback: str | None = None
    # What is odd, in words; None where nothing is.
    note: str | None = None

    def __repr__(self) -> str:
        """Show all but the traceback, which is long."""
        names = [name for name in self.__struct_fields__ if name != "traceback"]
        return f"Snapshot({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


class Subject(msgspec.Struct, frozen=True):
    """The message a snapshot is of, as its handle knows it."""

    address: str
    wire_id: str
    place: str
    task: str | None
    seal: Callable[[Domain, str], Seal]
    # A generated id tells when it was made; a given one does not.
    generated: bool

    def snapshot(self, look: Look) -> Snapshot:
        """Return what `look` says, verified and in words."""
        record = look.record
        if record is None:
            return self._unknown()
        report, envelope, note = None, None, None
        try:
            report = self._told(record)
            envelope = self._envelope(look.message)
        except Exception as error:  # noqa: BLE001 - a snapshot reports, whatever it finds
            note = f"{type(error).__name__}: {error}"
        if look.known is False:
            note = "no live worker knows this task"
        if record is UNREADABLE:
            note = "what stands in its record is not of taskq"
        if record.letter == b"r":
            note = "refused: " + words_of(record)
        if record.letter == b"c":
            note = "cancelled: " + (words_of(record) or "no reason was given")
        if record.letter in b"tk":
            note = words_of(record)
        source = report or envelope
        return Snapshot(
            id=self.address,
            task=source.task if source else self.task,
            queue=keys.queue_of(self.place),
            status=record.state,
            attempt=record.attempts + (record.state is State.RUNNING),
            delivery=record.claims,
            worker=(report.worker if report else look.worker) or None,
            enqueued_at=_instant(source.enqueued_ms if source else self._born_ms),
            due_at=_instant(look.due_ms),
            started_at=_instant(report.started_ms if report else record.fence // 1000),
            finished_at=_instant(report.finished_ms) if report else None,
            errors=report.errors if report else self._errors(record),
            traceback=report.failure.traceback if report and report.failure else None,
            note=note,
        )

    def report(self, record: Record) -> Report:
        """Return the signed report in a terminal record; `ResultTampered` if it is not ours."""
        seal = self.seal(Domain.RESULT, self.place)
        return outcome.read_report(
            record.tail, seal, self.wire_id.encode() + record.worker + record.seq
        )

    def _told(self, record: Record) -> Report | None:
        has_one = record.letter in b"sf" and not record.unreported
        return self.report(record) if has_one else None

    def _unknown(self) -> Snapshot:
        note = "Redis does not know this id"
        queue = keys.queue_of(self.place)
        return Snapshot(self.address, self.task, queue, State.UNKNOWN, note=note)

    def _envelope(self, raw: bytes) -> Envelope | None:
        if not raw:
            return None
        return message.decode(raw, self.seal(Domain.MESSAGE, self.place)).envelope

    def _errors(self, record: Record) -> tuple[AttemptError, ...]:
        seal = self.seal(Domain.RESULT, self.place)
        history = outcome.read_history(record.history, seal, self.wire_id.encode())
        return history.errors if history else ()

    @property
    def _born_ms(self) -> int:
        is_uuid7 = self.generated and self.wire_id[12] == "7"
        return int(self.wire_id[:12], 16) if is_uuid7 else 0


def words_of(record: Record) -> str:
    """Return the words with which a message ended that has no report.

    Whoever can write to Redis can write them: they are cut, and drive no terminal.
    """
    return printable(record.tail[:2000].decode(errors="backslashreplace")[:MOST_WORDS])


def _instant(ms: int | None) -> datetime | None:
    try:
        return clock.instant(ms) if ms else None
    except (OverflowError, ValueError, OSError):  # no instant that there is
        return None
