"""Records: what Redis knows of a message, as the scripts write it.

`lua/lib/records.lua` draws the layout; this module reads it, and writes the terminal form.
"""

from __future__ import annotations

import functools
import hashlib

import msgspec

from taskq.model.states import LETTERS, State

HEAD_BYTES = 98
NO_MARK = b"--------"
NO_LABEL = NO_MARK + b"0" * 13
WORKER_BYTES, SEQ_DIGITS = 32, 10


class Record(msgspec.Struct, frozen=True):
    """The fixed part of a record, and what follows it."""

    letter: bytes
    label: bytes = NO_LABEL
    attempts: int = 0
    crashes: int = 0
    # Points of suspicion; `lua/reclaim.lua` says for what.
    suspect: int = 0
    # How many times the message was claimed.
    claims: int = 0
    fence: int = 0
    worker: bytes = b"0" * WORKER_BYTES
    seq: bytes = b"0" * SEQ_DIGITS
    tail: bytes = b""

    def __repr__(self) -> str:
        """Show the state, and not what follows the fixed part."""
        return f"Record({self.letter!r}, attempts={self.attempts}, claims={self.claims})"

    @property
    def state(self) -> State:
        """What the letter stands for."""
        return LETTERS.get(self.letter, State.FAILED)

    @property
    def history(self) -> bytes:
        """The signed history of earlier attempts; empty where there is none."""
        if self.state.terminal or self.letter == b"S":
            return b""
        return _history_of(self.tail) if self.letter == b"Y" else self.tail

    @property
    def unreported(self) -> bool:
        """Whether it is that of a success of which nobody wanted to know more."""
        return self.letter == b"s" and not self.tail


def _history_of(tail: bytes) -> bytes:
    """Return the history in a tail that begins with the lane: `RETRYING`."""
    try:
        at = 3 + int(tail[:3])
        return tail[at + 7 : at + 7 + int(tail[at : at + 7])]
    except ValueError:  # no script wrote that; nor would it be verified
        return b""


# What stands for bytes that no script wrote. Its state is a failed one: it absorbs.
UNREADABLE = Record(b"?")


def parse(raw: bytes) -> Record:
    """Return the record in `raw`, of any of its forms, or `UNREADABLE`."""
    try:
        return _parsed(raw)
    except ValueError:
        return UNREADABLE


def _parsed(raw: bytes) -> Record:
    label = raw[1:22] or NO_LABEL
    if raw[:1] not in LETTERS or len(label) != len(NO_LABEL) or not label[8:].isdigit():
        msg = "no record"
        raise ValueError(msg)
    if raw[:1] == b"S":
        return Record(b"S", label, tail=raw[1 + len(NO_LABEL) :])
    if len(raw) < HEAD_BYTES:
        return Record(raw[:1], label)
    return Record(
        letter=raw[:1],
        label=label,
        attempts=int(raw[22:28]),
        crashes=int(raw[28:31]),
        suspect=int(raw[31:34]),
        claims=int(raw[34:40]),
        fence=int(raw[40:56]),
        worker=raw[56:88],
        seq=raw[88:98],
        tail=raw[98:],
    )


# All messages that one exchange claims for the first time share these two: hence the caches.
@functools.lru_cache(maxsize=16)
def fresh(fence: int, claim: bytes) -> bytes:
    """Return the record, less its state, of a message claimed for the first time."""
    return b"%b%b000001%016d%b" % (NO_LABEL, b"0" * 12, fence, claim)


@functools.lru_cache(maxsize=16)
def with_attempt(head: bytes) -> bytes:
    """Return a record less its state, with one more attempt counted."""
    return b"%b%06d%b" % (head[:21], min(int(head[21:27]) + 1, 999_999), head[27:97])


def label(mark: str | None, expires_ms: int) -> bytes:
    """Return the label of a new message; empty where there is nothing to note."""
    if mark is None and not expires_ms:
        return b""
    return (mark.encode() if mark else NO_MARK) + b"%013d" % expires_ms


def mark_of(task: str) -> str:
    """Return the eight hex digits by which a record with a given id names its task."""
    return hashlib.blake2b(task.encode(), digest_size=4, person=b"taskq-mark").hexdigest()
