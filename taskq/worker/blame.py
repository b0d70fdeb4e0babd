"""Which of the messages that a child ran its death is charged to, if to any."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from taskq.broker.claims import Blame
from taskq.worker.board import Entry, overdue

# So many children with one slot run at a time, each for a message that may kill it.
MOST_ALONE = 4

# What faulthandler writes before a process dies of a signal.
_TITLE = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)
_THREAD = re.compile(r"^Current thread 0x([0-9a-f]+)", re.MULTILINE)


class Cause(StrEnum):
    """Who ended a child."""

    # It left when it was told to, or was killed for reasons of ours: no message is charged.
    OURS = "ours"
    # It was killed for messages that ran past their hard limit.
    LIMIT = "limit"
    # Anything else: something that ran in it, or somebody outside.
    CRASH = "crash"


class Death(msgspec.Struct, frozen=True):
    """The end of a child."""

    cause: Cause
    # How it ended, for people.
    words: str
    # When, by the monotonic clock.
    at: float
    # The thread that faulthandler names.
    thread: int | None = None


class Charge(msgspec.Struct, frozen=True):
    """What a death has to do with a message that ran; the letters are those of `reclaim`."""

    letter: str
    entry: Entry

    def blame(self, death: Death, most: int) -> Blame:
        """Return it for `reclaim`; `most` crashes are allowed where the task says nothing."""
        budget = self.entry.budget or most
        return Blame(self.letter, self.entry.field, budget, self._reason(death, budget))

    def _reason(self, death: Death, budget: int) -> str:
        """Return what the future of the message raises, if it ends by this death."""
        if self.letter == "t":
            limit = self.entry.deadline - self.entry.started
            return f"ran past its hard_timeout of {limit:g} s; its process was killed"
        often = "once" if budget == 1 else f"{budget} times"
        return f"killed its process {often}; the last one ended {death.words}"


def charges(entries: Iterable[Entry], death: Death) -> list[Charge]:
    """Return the charges. What had not started, or had ended, is not concerned."""
    ran = [entry for entry in entries if entry.ran]
    if death.cause is Cause.OURS:
        return []
    if death.cause is Cause.LIMIT:
        return _split(ran, overdue(ran, death.at), "t")
    known = _culprits(ran, death)
    if len(known) == 1:
        return _split(ran, known, "k")
    suspects = known or ran
    # Of more than can run alone at a time most are innocent, and would wait for each other:
    # they run again at once, and are suspects if it happens again.
    return _split(ran, suspects, "s" if len(suspects) <= MOST_ALONE else "i")


def _culprits(ran: list[Entry], death: Death) -> list[Entry]:
    """Return the messages that alone can be the cause; none: any of them can."""
    if death.thread is not None:
        return [entry for entry in ran if entry.thread == death.thread]
    if len(ran) == 1:
        return ran
    return overdue(ran, death.at)


def _split(ran: list[Entry], guilty: list[Entry], letter: str) -> list[Charge]:
    return [Charge(letter if entry in guilty else "i", entry) for entry in ran]


def named_thread(dump: str) -> int | None:
    """Return the thread in which the process died, by what faulthandler wrote."""
    found = _THREAD.search(dump)
    return int(found[1], 16) if found else None


def title(dump: str) -> str:
    """Return what faulthandler calls the error; empty where it wrote nothing."""
    found = _TITLE.search(dump)
    return found[1] if found else ""
