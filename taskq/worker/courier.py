"""Fetches user and password for the supervisor, by way of its children: they have the app.

The supervisor imports no code of the app, so it has no provider of credentials to ask.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from taskq.broker.credentials import Login, Provider
from taskq.broker.faults import NeverCredentials, NoCredentials
from taskq.model import clock
from taskq.worker.channel import Channel, Note
from taskq.worker.process import ChildProcess

# Well under a lease, which must be renewed meanwhile.
_ANSWER_SECONDS = 3.0
# All may be kept busy in C. So long they are not waited for again.
_MUTE_SECONDS = 30.0


class Courier:
    """Asks all children; the first answers. What was told last is used where none does."""

    def __init__(self, children: Iterable[ChildProcess]) -> None:
        self._children = children
        # One connection is opened after the other.
        self._one = threading.Lock()
        self._answered = threading.Condition()
        # Questions so far, and the answer to the last.
        self._number = 0
        self._answer: Note | None = None
        self._last: Login | None = None
        # A monotonic instant until which none is asked.
        self._mute_until = 0.0

    def fetch(self) -> Login:
        """Return a password, or user and password; for every thread but the one that hears.

        Raises:
            NoCredentials: there are none.

        """
        with self._one:
            answer = self._ask()
            if answer is not None and "failed" in answer:
                raise (NoCredentials if answer["passing"] else NeverCredentials)(answer["failed"])
            if self._last is None:
                msg = "no child of this worker answers who could ask for user and password"
                raise NoCredentials(msg)
            return self._last

    def hear(self, note: Note) -> None:
        """Take an answer."""
        with self._answered:
            self._mute_until = 0.0
            if "login" in note:
                user, password = note["login"]
                # Also where it comes too late for whoever asked: the next one has it.
                self._last = (user, password) if user else (password,)
            if note["number"] == self._number and self._answer is None:
                self._answer = note
                self._answered.notify_all()

    def _ask(self) -> Note | None:
        if self._last is not None and clock.monotonic() < self._mute_until:
            return None
        with self._answered:
            self._number += 1
            self._answer = None
        # What ended, or runs nothing, answers nothing.
        able = [one for one in self._children if one.serves and not (one.bye or one.frozen)]
        for child in able:
            child.channel.send({"kind": "credentials", "number": self._number})
        with self._answered:
            if able and not self._answered.wait_for(lambda: self._answer, _ANSWER_SECONDS):
                self._mute_until = clock.monotonic() + _MUTE_SECONDS
            return self._answer


def answer(provider: Provider, note: Note, channel: Channel) -> None:
    """Answer for a child, in a thread: it must go on listening meanwhile."""

    def ask() -> None:
        told: Note = {"kind": "credentials", "number": note["number"]}
        try:
            told["login"] = ("", *provider.get_credentials())[-2:]
        except NoCredentials as error:
            told |= {"failed": str(error), "passing": error.passing}
        channel.send(told)

    threading.Thread(target=ask, name="taskq-credentials", daemon=True).start()
