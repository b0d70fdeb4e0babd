"""What a child runs, in memory that it shares with its supervisor: one entry a message.

The child writes, without locks; the supervisor reads, even when the child is busy in C or
dead. The file belongs to both by its descriptor and has no name.

| bytes | field | |
|---|---|---|
| 0 | state | 0 free, 1 claimed, 2 started, 3 ended and not yet sent |
| 1 | budget | how many crashes the message may cause; 0: as the settings say |
| 2-3 | queue | its place among the child's queues |
| 8-15 | thread | the identity of the thread that runs it |
| 16-23 | started | by CLOCK_MONOTONIC, which all processes share |
| 24-31 | deadline | the same; infinite where there is no hard limit |
| 32-39 | claimed | the same |
| 40-55 | id | the 32 hex digits as 16 bytes |
| 56-63 | seq | the number of the exchange that claimed it |

A reader may meet an entry half written. Id and number then name no claim that exists, and
a script that is told of it does nothing.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import tempfile
import threading
from binascii import unhexlify
from collections.abc import Iterable
from typing import Any

import msgspec

FREE, CLAIMED, STARTED, ENDED = range(4)
ENTRY_BYTES = 64
# Entries beyond the slots: what is claimed ahead, twice over.
SPARE_ENTRIES = 1000
_BUDGET_AT, _RUN_AT = 1, 8

_ENTRY = struct.Struct("=BBH4xQddd16sQ")
_RUN = struct.Struct("=Qdd")
_write_entry, _write_run = _ENTRY.pack_into, _RUN.pack_into
_ident = threading.get_ident


class Entry(msgspec.Struct, frozen=True):
    """One claimed message, as the supervisor sees it."""

    state: int
    budget: int
    queue: int
    thread: int
    # Monotonic seconds; 0 where it has not started.
    started: float
    deadline: float
    claimed: float
    id: str
    seq: int

    @property
    def field(self) -> bytes:
        """The field of `running:<worker>`."""
        return b"%b%010d" % (self.id.encode(), self.seq)


class Board:
    """The child's side. `claim` and `free` are called under the exchange's lock."""

    def __init__(self, slots: int, descriptor: int | None = None) -> None:
        # Without a supervisor nobody reads it.
        count = 1 + slots + SPARE_ENTRIES
        self.memory: Any = bytearray(count * ENTRY_BYTES)
        if descriptor is not None:
            os.ftruncate(descriptor, count * ENTRY_BYTES)
            self.memory = mmap.mmap(descriptor, count * ENTRY_BYTES)
        # Where free entries begin. The first entry is for what finds none: nobody reads it.
        self._free = list(range((count - 1) * ENTRY_BYTES, 0, -ENTRY_BYTES))

    @property
    def room(self) -> int:
        """How many messages may be claimed: what has no entry is not claimed."""
        return len(self._free)

    def claim(self, queue: int, raw: bytes, seq: int, now: float) -> int:
        """Note a claimed message; return where its entry begins."""
        at = self._free.pop() if self._free else 0
        _write_entry(
            self.memory, at, CLAIMED, 0, queue, 0, 0.0, math.inf, now, unhexlify(raw[12:44]), seq
        )
        return at

    def start(self, at: int) -> None:
        """Note that a message starts. The caller reads the clock after this, not before.

        Thus, of a start and a release by the supervisor, one sees the other.
        """
        self.memory[at] = STARTED

    def run(self, at: int, started: float, deadline: float = math.inf, budget: int = 0) -> None:
        """Note where and how long a started message may run."""
        _write_run(self.memory, at + _RUN_AT, _ident(), started, deadline)
        if budget:
            self.memory[at + _BUDGET_AT] = budget

    def end(self, at: int) -> None:
        """Note that the task of a message has ended."""
        self.memory[at] = ENDED

    def free(self, at: int) -> None:
        """Forget a message: its end is on its way, and will be told or not."""
        self.memory[at] = FREE
        if at:
            self._free.append(at)


class BoardView:
    """The supervisor's side: it makes the file, hands it over, and reads."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="taskq-board-")  # noqa: SIM115 - kept
        self._memory: mmap.mmap | None = None

    def fileno(self) -> int:
        """Return the descriptor, which the child inherits."""
        return self._file.fileno()

    def entries(self, *states: int) -> list[Entry]:
        """Return what is in these states now."""
        memory = self._mapped()
        if memory is None:
            return []
        marks = memory[::ENTRY_BYTES]
        wanted = (place for place, mark in enumerate(marks) if place and mark in states)
        found = (_entry(memory, place * ENTRY_BYTES) for place in wanted)
        return [entry for entry in found if entry.state in states]

    def close(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._file.close()

    def _mapped(self) -> mmap.mmap | None:
        """Map the file once the child has given it its size."""
        if self._memory is None and not self._file.closed:
            size = os.fstat(self._file.fileno()).st_size
            if size:
                self._memory = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        return self._memory


def _entry(memory: mmap.mmap, at: int) -> Entry:
    state, budget, queue, thread, started, deadline, claimed, id_bytes, seq = _ENTRY.unpack_from(
        memory, at
    )
    return Entry(state, budget, queue, thread, started, deadline, claimed, id_bytes.hex(), seq)


def overdue(entries: Iterable[Entry], now: float) -> list[Entry]:
    """Return those that run past their hard limit."""
    return [one for one in entries if one.state == STARTED and 0 < one.started < one.deadline < now]
