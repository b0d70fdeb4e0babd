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

# A child that does not answer may be kept busy in C: then the next one is asked.
_ANSWER_SECONDS = 3.0
_MOST_SECONDS = 9.0


class Courier:
    """Asks one child after the other. What was told last is used where none answers."""

    def __init__(self, children: Iterable[ChildProcess]) -> None:
        self._children = children
        # One connection is opened after the other.
        self._one = threading.Lock()
        self._answered = threading.Condition()
        # Questions so far, and the answer to the last.
        self._number = 0
        self._answer: Note | None = None
        self._last: Login | None = None

    def fetch(self) -> Login:
        """Return a password, or user and password; for every thread but the one that hears.

        Raises:
            NoCredentials: there are none.

        """
        with self._one:
            answer = self._ask()
            if answer is not None:
                if "failed" in answer:
                    raise (NoCredentials if answer["passing"] else NeverCredentials)(
                        answer["failed"]
                    )
                user, password = answer["login"]
                self._last = (user, password) if user else (password,)
            if self._last is None:
                msg = "no child of this worker answers who could ask for user and password"
                raise NoCredentials(msg)
            return self._last

    def hear(self, note: Note) -> None:
        """Take an answer."""
        with self._answered:
            if note["number"] == self._number:
                self._answer = note
                self._answered.notify_all()

    def _ask(self) -> Note | None:
        with self._answered:
            self._number += 1
            self._answer = None
        until, asked = clock.monotonic() + _MOST_SECONDS, False
        for child in self._children:
            # What ended, or runs nothing, answers nothing.
            if child.serves and not (child.bye or child.frozen):
                child.channel.send({"kind": "credentials", "number": self._number})
                asked = True
                if self._wait(min(_ANSWER_SECONDS, until - clock.monotonic())):
                    break
        if asked:
            # Who asks a service may take longer; whoever answers first is heard.
            self._wait(until - clock.monotonic())
        return self._answer

    def _wait(self, seconds: float) -> bool:
        with self._answered:
            return self._answered.wait_for(lambda: self._answer is not None, max(0.0, seconds))


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
