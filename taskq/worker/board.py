"""What a child runs, in memory that it shares with its supervisor: one entry a message.

The child writes, without locks; the supervisor reads, even when the child is busy in C or
dead. The file belongs to both by its descriptor and has no name.

| bytes | field | |
|---|---|---|
| 0 | state | 0 free, 1 claimed, 2 started, 3 ended and not yet sent |
| 1 | budget | how many crashes the message may cause; 0: as the settings say |
| 2-3 | queue | its place among the child's queues |
| 8-15 | thread | the identity of the thread that runs it; 0 until the task's own code begins |
| 16-23 | started | by CLOCK_MONOTONIC, which all processes share; noted where there is a limit |
| 24-31 | deadline | the same; infinite where there is no hard limit |
| 32-39 | claimed | the same |
| 40-47 | seq | the number of the exchange that claimed it |
| 48-63 | id | the 32 hex digits as 16 bytes |

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
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

FREE, CLAIMED, STARTED, ENDED = range(4)
ENTRY_BYTES = 64
# Entries beyond the slots: what is claimed ahead, twice over.
SPARE_ENTRIES = 1000
_BUDGET_AT, _THREAD_AT, _STARTED_AT = 1, 8, 16

_ENTRY = struct.Struct("=BBH4xQdddQ16s")
# What the messages of one exchange share, and what goes before the id.
_HEAD = struct.Struct("=BBH4xQdddQ")
_THREAD, _LIMITS = struct.Struct("=Q"), struct.Struct("=dd")
_write_thread = _THREAD.pack_into
_ident = threading.get_ident


class Entry(msgspec.Struct, frozen=True):
    """One claimed message, as the supervisor sees it."""

    state: int
    budget: int
    queue: int
    thread: int
    # Monotonic seconds.
    started: float
    deadline: float
    claimed: float
    seq: int
    id: str

    @property
    def ran(self) -> bool:
        """Whether the task's own code has begun, and has not ended."""
        return self.state == STARTED and self.thread != 0

    @property
    def field(self) -> bytes:
        """The field of `running:<worker>`."""
        return b"%b%010d" % (self.id.encode(), self.seq)


class Board:
    """The child's side. `claim` and `free` are called under the exchange's lock.

    `memory[at] = STARTED` notes that a message starts. Who does so reads the clock after it,
    not before: thus, of a start and a release by the supervisor, one sees the other. And
    `memory[at] = ENDED` notes that the task has ended. Calls would cost more than they do.
    """

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

    def claim(self, queue: int, seq: int, now: float, raws: Sequence[bytes]) -> list[int]:
        """Note the messages that one exchange brought; return where their entries begin."""
        memory, free = self.memory, self._free
        head = _HEAD.pack(CLAIMED, 0, queue, 0, 0.0, math.inf, now, seq)
        places: list[int] = []
        for raw in raws:
            at = free.pop() if free else 0
            memory[at : at + ENTRY_BYTES] = head + unhexlify(raw[12:44])
            places.append(at)
        return places

    def limit(self, at: int, started: float, deadline: float, budget: int) -> None:
        """Note how long a message may run, and how many crashes it may cause; before `run`."""
        _LIMITS.pack_into(self.memory, at + _STARTED_AT, started, deadline)
        self.memory[at + _BUDGET_AT] = budget

    def run(self, at: int) -> None:
        """Note that the task's own code begins, on this thread."""
        _write_thread(self.memory, at + _THREAD_AT, _ident())

    def free(self, places: Iterable[int]) -> None:
        """Forget messages: their ends are on their way, and will be told or not."""
        memory = self.memory
        for at in places:
            memory[at] = FREE
        self._free += filter(None, places)


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
    state, budget, queue, thread, started, deadline, claimed, seq, id_bytes = _ENTRY.unpack_from(
        memory, at
    )
    return Entry(state, budget, queue, thread, started, deadline, claimed, seq, id_bytes.hex())


def overdue(entries: Iterable[Entry], now: float) -> list[Entry]:
    """Return those that run past their hard limit."""
    return [one for one in entries if one.ran and one.deadline < now]
