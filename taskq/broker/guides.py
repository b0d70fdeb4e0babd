"""Who takes the writes: what sentinels and the nodes of a cluster are asked, and what follows.

Nothing is sent here. A search is a generator of questions, which the connection puts to whom
they are for, blocking or awaited.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

import msgspec
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)

from taskq.broker.faults import NoCredentials, distrusts, told
from taskq.errors import BrokerError, BrokerUnavailable
from taskq.model import clock

# Host and port.
Address: TypeAlias = tuple[str, int]
# What HELLO tells of a server: its version, its mode, its role.
Hello: TypeAlias = Mapping[bytes, Any]

# A sentinel or a node that does not answer in that time is not waited for.
ASK_SECONDS = 1.0
# For so long nobody waits for a node that was silent, but the one who tries it again: longer than
# that takes, and shorter than calls are tried.
_SPARE_SECONDS = 5.0


class Misplaced(BrokerError):
    """The URL is that of another kind of server; nothing was done."""


class _Obstacle(StrEnum):
    """Why one who was asked did not tell."""

    LOGIN = "the login is refused"
    CERTIFICATE = "the certificate is not trusted"
    REFUSAL = "the question is refused"
    AWAY = "nobody answers"


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

    def questions(self) -> list[Question]:
        """Return what is asked of each of those who are asked."""
        ...


class Sentinels:
    """Asks the sentinels for the master, each time: what was true once may not be so now."""

    def __init__(
        self, place: str, addresses: Sequence[Address], service: str, options: dict[str, Any]
    ) -> None:
        self._place, self.service = place, service
        self.options = options
        # The one that answered last comes first.
        self._addresses = list(addresses)
        # Whether any of them ever let us in.
        self._answered = False

    def search(self, slot: int) -> Search:  # noqa: ARG002
        """Return the master that the first of them names who knows one that is up."""
        said: dict[_Obstacle, str] = {}
        for address in self._addresses:
            reply = yield Question(address, ("SENTINEL", "MASTER", self.service))
            if isinstance(reply, Exception):
                said[_obstacle(reply)] = f"{spelt(address)}: {told(reply)}"
                continue
            self._answered = True
            fields = pairs(reply)
            flags = fields.get(b"flags", b"").split(b",")
            if b"s_down" in flags or b"o_down" in flags:
                said[_Obstacle.AWAY] = f"{spelt(address)} says that the master is down"
                continue
            # In one step: other threads look at it too.
            others = (one for one in self._addresses if one != address)
            self._addresses = [address, *others]
            return fields[b"ip"].decode(), int(fields[b"port"])
        words = "; ".join(said.values())
        if bar := _bar(said, answered=self._answered):
            msg = f"{self._place}: no sentinel names the master: {bar}; {words}"
            if bar is _Obstacle.LOGIN:
                msg += "; for sentinels it is sentinel_username= and sentinel_password= of the URL"
            raise BrokerError(msg)
        if _Obstacle.AWAY in said:
            msg = f"{self._place}: no sentinel names a master that is up; {words}"
            raise BrokerUnavailable(msg)
        msg = (
            f"{self._place}: no sentinel knows the master {self.service!r}; the last of them, "
            f"{words}"
        )
        raise Misplaced(msg)

    def check(self, address: Address, hello: Hello) -> None:
        """Leave a master that was demoted: its sentinels may not know yet."""
        if _is_replica(hello):
            msg = f"{self._place}: {spelt(address)} is a replica, and was named as the master"
            raise BrokerUnavailable(msg)

    def heed(self, slot: int, error: Exception) -> None:
        """Do nothing: they are asked each time."""

    def questions(self) -> list[Question]:
        """Return what each sentinel is asked."""
        return [Question(one, ("SENTINEL", "MASTER", self.service)) for one in self._addresses]


class Slots:
    """Knows which node of a cluster has which slots; asks the nodes when that was not true."""

    def __init__(self, place: str, seeds: Sequence[Address], options: dict[str, Any]) -> None:
        self._place = place
        self.options = options
        self._seeds = list(seeds)
        # Whom to ask, the next one first: one that is cut off may tell what was.
        self._known = list(seeds)
        # Whether any of them ever let us in.
        self._answered = False
        # Slots from, to, and whose they are; replaced as a whole.
        self._ranges: list[tuple[int, int, Address]] = []
        # What nodes said of single slots since.
        self._moved: dict[int, Address] = {}
        # Nodes that did not answer in time, with the monotonic instant from which on one caller
        # may try them again.
        self._silent: dict[Address, float] = {}

    def owner(self, slot: int) -> Address | None:
        """Return who has a slot, as far as is known."""
        moved = self._moved.get(slot)
        if moved is not None:
            return moved
        return next((one for low, high, one in self._ranges if low <= slot <= high), None)

    def search(self, slot: int) -> Search:
        """Return the node that has the slot; ask where that is not known."""
        owner = self.owner(slot)
        if owner is None:
            owner = yield from self._learn(slot)
        self._spare(owner)
        return owner

    def note_silent(self, address: Address) -> None:
        """Note that no answer came in time from a node."""
        self._silent.setdefault(address, 0.0)

    def is_silent(self, address: Address) -> bool:
        """Whether a node did not answer in time when it was asked last."""
        return address in self._silent

    def check(self, address: Address, hello: Hello) -> None:
        """Leave a node that was demoted, or is of no cluster."""
        self._silent.pop(address, None)
        if _is_replica(hello):
            self._doubt()
            msg = f"{self._place}: {spelt(address)} is a replica by now"
            raise BrokerUnavailable(msg)

    def heed(self, slot: int, error: Exception) -> None:
        """Go where a node points to; where one is away or cannot serve, ask anew."""
        moved: Any = error if isinstance(error, MovedError) else None
        if moved is not None and moved.host:
            self._moved[slot] = (moved.host, int(moved.port))
        elif not isinstance(error, ResponseError) or isinstance(
            error, (MovedError, ClusterDownError, ReadOnlyError)
        ):
            self._doubt()

    def questions(self) -> list[Question]:
        """Return what each node that is known is asked."""
        known = dict.fromkeys([*self._seeds, *self._known])
        return [Question(one, ("CLUSTER", "SLOTS")) for one in known]

    def _doubt(self) -> None:
        self._ranges, self._moved = [], {}

    def _spare(self, address: Address) -> None:
        """Let one caller wait for a node that is silent, and nobody else meanwhile.

        A thread has lines to several partitions: it would wait for each of them.
        """
        until, now = self._silent.get(address), clock.monotonic()
        if until is None:
            return
        if now < until:
            self._doubt()  # another may have taken its place by now
            msg = f"{self._place}: {spelt(address)} does not answer"
            raise BrokerUnavailable(msg)
        self._silent[address] = now + _SPARE_SECONDS

    def _learn(self, slot: int) -> Search:
        """Ask one node after the other, until one knows whose a slot is."""
        said, answered = dict[_Obstacle, str](), False
        self._known = [*self._known[1:], *self._known[:1]]
        known = dict.fromkeys([*self._known, *self._seeds])
        for address in sorted(known, key=self._silent.__contains__):
            reply = yield Question(address, ("CLUSTER", "SLOTS"))
            if isinstance(reply, Exception):
                obstacle, words = _obstacle(reply), f"{spelt(address)}: {told(reply)}"
                if obstacle is _Obstacle.REFUSAL:
                    msg = f"{self._place}: {words}"
                    if "cluster support disabled" in str(reply):
                        msg += "; it is no cluster; one server's URL begins with redis://"
                        raise Misplaced(msg)
                    raise BrokerError(msg)
                said[obstacle] = words
                continue
            nodes, answered, self._answered = slots_of(reply, address), True, True
            owner = next((some[0] for low, high, some in nodes if low <= slot <= high), None)
            if owner is None:
                continue  # it was taken out of the cluster, perhaps, and others are in there
            self._ranges = [(low, high, some[0]) for low, high, some in nodes]
            self._moved = {}
            self._known = list(dict.fromkeys(one for _, _, some in nodes for one in some))
            return owner
        bar = _bar(said, answered=self._answered)
        if bar and not answered:
            msg = f"{self._place}: no node answers: {bar}; {'; '.join(said.values())}"
            raise BrokerError(msg)
        what = f"no node has the slot {slot}" if answered else "no node answers"
        raise BrokerUnavailable("; ".join((f"{self._place}: {what}", *said.values())))


class Fixed:
    """Leads to one server, whoever that is by now."""

    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, address: Address) -> None:
        self._address = address

    def search(self, slot: int) -> Search:  # noqa: ARG002
        """Return the server."""
        return self._address
        yield  # a search that asks nobody

    def check(self, address: Address, hello: Hello) -> None:
        """Take it as it is."""

    def heed(self, slot: int, error: Exception) -> None:
        """Do nothing: there is no other."""

    def questions(self) -> list[Question]:
        """Return nothing: nobody is asked."""
        return []


def slots_of(reply: Sequence[Any], asked: Address) -> list[tuple[int, int, list[Address]]]:
    """Return ranges of slots, each with its master and the replicas, as `asked` told them."""
    return [
        # One that has no name for itself is the one asked.
        (low, high, [((node[0] or b"").decode() or asked[0], int(node[1])) for node in nodes])
        for low, high, *nodes in reply
    ]


def slot_of(base: str) -> int:
    """Return the slot in which all keys of a queue are."""
    return key_slot(base.encode())


def pairs(reply: Sequence[Any] | dict[bytes, Any]) -> dict[bytes, Any]:
    """Return names and values of a reply in which they stand by turns; by RESP3 they do not."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=False))


def spelt(address: Address) -> str:
    """Return host and port as people write them."""
    return f"{address[0]}:{address[1]}"


def _obstacle(error: Exception) -> _Obstacle:
    if distrusts(error):
        return _Obstacle.CERTIFICATE
    if isinstance(error, NoCredentials):
        return _Obstacle.AWAY if error.passing else _Obstacle.LOGIN
    if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
        return _Obstacle.LOGIN
    return _Obstacle.REFUSAL if isinstance(error, ResponseError) else _Obstacle.AWAY


def _bar(said: Mapping[_Obstacle, str], *, answered: bool) -> _Obstacle | None:
    """Return what keeps us out, where no time will mend that; `answered`: we were let in once.

    Then one that is away may let us in again. Where nobody ever did, what the URL says is wrong.
    """
    if answered and _Obstacle.AWAY in said:
        return None
    return next((one for one in (_Obstacle.LOGIN, _Obstacle.CERTIFICATE) if one in said), None)


def _is_replica(hello: Hello) -> bool:
    return hello.get(b"role") in (b"slave", b"replica")
