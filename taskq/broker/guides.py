"""Who takes the writes: what sentinels and the nodes of a cluster are asked, and what follows.

Nothing is sent here. A search is a generator of questions, which the connection puts to whom
they are for, blocking or awaited.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ResponseError,
)

from taskq.errors import BrokerError, BrokerUnavailable

# Host and port.
Address: TypeAlias = tuple[str, int]
# What HELLO tells of a server: its version, its mode, its role.
Hello: TypeAlias = Mapping[bytes, Any]

# A sentinel or a node that does not answer in that time is not waited for.
ASK_SECONDS = 1.0


class Question(msgspec.Struct, frozen=True):
    """What one server is asked; the reply is wanted back, or the error."""

    address: Address
    words: tuple[str, ...]


Search: TypeAlias = Generator[Question, Any, Address]


class Guide(Protocol):
    """Knows where to connect to, or whom to ask."""

    # How those who are asked are connected to, where it differs from the others.
    options: dict[str, Any]

    def search(self, slot: int) -> Search:
        """Return who takes the writes to a slot; it may have to ask first."""
        ...

    def check(self, address: Address, hello: Hello) -> None:
        """Raise `BrokerError` where the server that was found is not the right one."""
        ...

    def heed(self, slot: int, error: Exception) -> None:
        """Take note of what a server said, or that it did not."""
        ...


class Sentinels:
    """Asks the sentinels for the master, each time: what was true once may not be so now."""

    def __init__(
        self, place: str, addresses: Sequence[Address], service: str, options: dict[str, Any]
    ) -> None:
        self._place, self.service = place, service
        self.options = options
        # The one that answered last comes first.
        self._addresses = deque(addresses)

    @property
    def addresses(self) -> list[Address]:
        """The sentinels of the URL."""
        return list(self._addresses)

    def search(self, slot: int) -> Search:  # noqa: ARG002
        """Return the master that the first of them names who knows one that is up."""
        refusal, away = "", ""
        for address in list(self._addresses):
            reply = yield Question(address, ("SENTINEL", "MASTER", self.service))
            if isinstance(reply, Exception):
                if _refuses(reply):
                    refusal = f"{_spelt(address)}: {_told(reply)}"
                else:
                    away = f"{_spelt(address)}: {_told(reply)}"
                continue
            fields = pairs(reply)
            flags = fields.get(b"flags", b"").split(b",")
            if b"s_down" in flags or b"o_down" in flags:
                away = f"{_spelt(address)} says that the master is down"
                continue
            self._addresses.remove(address)
            self._addresses.appendleft(address)
            return fields[b"ip"].decode(), int(fields[b"port"])
        if not away:
            msg = (
                f"{self._place}: no sentinel knows the master {self.service!r}; the last of them, "
                f"{refusal}"
            )
            raise BrokerError(msg)
        msg = f"{self._place}: no sentinel names a master that is up; {away}"
        raise BrokerUnavailable(msg)

    def check(self, address: Address, hello: Hello) -> None:
        """Leave a master that was demoted: its sentinels may not know yet."""
        if _is_replica(hello):
            msg = f"{self._place}: {_spelt(address)} is a replica, and was named as the master"
            raise BrokerUnavailable(msg)

    def heed(self, slot: int, error: Exception) -> None:
        """Do nothing: they are asked each time."""


def slot_of(base: str) -> int:
    """Return the slot in which all keys of a queue are."""
    return key_slot(base.encode())


def pairs(reply: Sequence[Any]) -> dict[bytes, Any]:
    """Return names and values of a reply in which they stand by turns."""
    return dict(zip(reply[::2], reply[1::2], strict=False))


def _spelt(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _told(error: Exception) -> str:
    """Return an error's words; those of a refused login are not ours to show."""
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return "refused user or password"
    return f"{type(error).__name__}: {error}"


def _refuses(error: Exception) -> bool:
    """Whether an answer will be the same next time."""
    return isinstance(error, (ResponseError, AuthenticationError, AuthorizationError))


def _is_replica(hello: Hello) -> bool:
    return hello.get(b"role") in (b"slave", b"replica")
