"""One connection to Redis, and what is said on it, blocking."""

from __future__ import annotations

import contextlib
import math
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar, cast

import hiredis
from redis.exceptions import NoScriptError, ResponseError

from taskq.broker import replication
from taskq.broker.commands import Command
from taskq.broker.connection import Endpoint
from taskq.broker.faults import CLIENT_ERRORS, ScriptMissing
from taskq.broker.sockets import SOCKET_TIMEOUT, Spin, can_read, is_open
from taskq.errors import BrokerError, BrokerUnavailable, Interrupted
from taskq.model import clock

T = TypeVar("T")
# A command: any number of bytes, str, int and float.
Words: TypeAlias = tuple[Any, ...]
# Any number of bytes, str and int; its stub knows of one.
pack = cast("Callable[[Words], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]

# A process has at most so many lines to one place.
MOST_LINES = 16
# So many of them may wait for replicas at a time: who asks for none finds another one.
MOST_LASTING = MOST_LINES // 2
# So many may be kept from the first page to the last by who sends very many, and more would not be
# faster: what is sent alone finds another one, beside these and those that wait.
MOST_STREAMS = MOST_LINES // 4
# What is larger than this is not copied to be sent. Of so many words none is, mostly: to look at
# each would take longer.
_LARGE, _MANY = 1 << 16, 64


def packed(words: Words) -> list[bytes]:
    """Return the bytes of a command, in the pieces in which they are to be sent."""
    if len(words) < _MANY:
        # No generator: it takes twice as long, at each call.
        for word in words:
            if type(word) is bytes and len(word) > _LARGE:
                return _in_pieces(words)
    return [pack(words)]


def _in_pieces(words: Words) -> list[bytes]:
    # RESP: https://redis.io/docs/latest/develop/reference/protocol-spec/
    pieces, small = list[bytes](), [b"*%d\r\n" % len(words)]
    for word in words:
        if type(word) is bytes and len(word) > _LARGE:
            small.append(b"$%d\r\n" % len(word))
            pieces += b"".join(small), word
            small = [b"\r\n"]
        else:
            # As a command of one word, less what says so.
            small.append(pack((word,)).removeprefix(b"*1\r\n"))
    return [*pieces, b"".join(small)]


class AllInUse(BrokerUnavailable):
    """No line became free in time. Nothing was sent."""


class Stream(Generic[T]):
    """Many calls of one caller, sent one after the other."""

    def __init__(self, calls: Iterable[Command[T]]) -> None:
        self._calls = iter(calls)
        # Those that have no reply yet.
        self.sent: deque[Command[T]] = deque()
        # A monotonic instant: since when a line, or the next reply, is waited for.
        self.began = clock.monotonic()

    def rest(self) -> Iterator[Command[T]]:
        """Return those that were not sent. What it takes to make one is not waited for."""
        while True:
            asked = clock.monotonic()
            command = next(self._calls, None)
            self.began += clock.monotonic() - asked
            if command is None:
                return
            yield command

    def answered(self) -> None:
        """Note that the first that was sent has its reply."""
        self.sent.popleft()
        self.began = clock.monotonic()


def words_of(command: Command[Any]) -> Words:
    """Return a script call as Redis is to hear it."""
    return "EVALSHA", command.script.sha, 1, command.base, *command.arguments


class Line:
    """One connection, used by one thread at a time. Nothing is repeated here."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection: Any = None
        # A monotonic instant after which no reply is waited for.
        self.until = math.inf
        # Whether its broker has lent no other one: who then stays awake for his reply is in the way
        # of few.
        self.alone = False
        self._spin = Spin()

    def call(self, *arguments: Any) -> Any:
        """Send one command and return the reply.

        Raises:
            Interrupted: the connection broke after the command was sent.
            BrokerUnavailable: it broke before, or Redis cannot serve at the moment.
            BrokerError: Redis refuses the command.

        """
        self.send(*arguments)
        return self.receive()

    def send(self, *arguments: Any, ahead: Words = ()) -> None:
        """Send one command, the reply to which must be received before the next.

        `ahead`: another one, which goes before it in the same packet, and is answered first.
        """
        connection = self._connection
        if connection is None:
            connection = self._connect()
        try:
            # redis-py looks at each argument first, for kinds that we do not send.
            pieces = packed(arguments)
            if ahead:
                pieces[0] = pack(ahead) + pieces[0]
            connection.send_packed_command(pieces, check_health=False)
        except CLIENT_ERRORS as error:
            raise self._broken(error, sent=True) from error

    def receive(self) -> Any:
        """Return the next reply."""
        if self._connection is None:
            msg = f"{self.endpoint.place}: the connection broke before the reply"
            raise Interrupted(msg)
        try:
            if self.until != math.inf:
                self._wait()
            return self._connection.read_response()
        except ResponseError as error:
            raise self._refused(error) from error
        except CLIENT_ERRORS as error:
            raise self._broken(error, sent=True) from error
        except BaseException:
            # Interrupted before its reply: the next caller would read that one.
            self.close()
            raise

    def hears(self, seconds: float) -> bool:
        """Return whether something comes within so many seconds; it is left to be received.

        Raises:
            BrokerUnavailable: the connection is broken.

        """
        connection = self._connection
        if connection is None:
            connection = self._connect()
        try:
            return can_read(connection, seconds)
        except CLIENT_ERRORS as error:
            raise self._broken(error, sent=False) from error

    def run(self, command: Command[T]) -> T:
        """Run a script call, loading the script where Redis does not have it."""
        self.begin(command)
        if self.alone:
            self._spin.wait(self._connection)
        return self.finish(command)

    def replicate(self, command: Command[Any], verdicts: str, until: float) -> None:
        """Wait for the replicas that a call asks for, which this line has just carried."""
        steps, reply = replication.steps(self.endpoint.place, command, verdicts, until), None
        try:
            while True:
                reply = self.call(*steps.send(reply))
        except StopIteration:
            return
        except replication.Unreplicated:
            raise
        except BrokerError as error:
            raise replication.troubled(error, verdicts) from error

    def begin(self, command: Command[T], ahead: Words = ()) -> None:
        """Send a script call, the reply to which must be read by `end` or `finish`.

        `ahead`: as in `send`.
        """
        self.send(*words_of(self.local(command)), ahead=ahead)

    def interject(self, call: Callable[[], Command[Any] | None]) -> bool:
        """Send the script call that `call` returns while another thread waits for a reply.

        Return whether it was sent. It is not asked for where the line is closed, or of TLS: such a
        socket is of one thread at a time.
        """
        sock = getattr(self._connection, "_sock", None)
        if type(sock) is not socket.socket or (command := call()) is None:
            return False
        try:
            for piece in packed(words_of(self.local(command))):
                sock.sendall(piece)
        except OSError:
            # Perhaps half of it: nothing may follow. Who waits hears of the end.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        return True

    def local(self, command: Command[T]) -> Command[T]:
        """Return a script call as it is to be sent on this line."""
        return command

    def end(self, command: Command[T]) -> T:
        """Return what the first call begun and not ended was answered."""
        return command.read(self.receive())

    def finish(self, command: Command[T]) -> T:
        """Return what the only call begun was answered, loading the script if need be."""
        try:
            return self.end(command)
        except ScriptMissing:
            return self.load(command)

    def load(self, command: Command[T]) -> T:
        """Run a script call by the script's text, which Redis keeps from then on."""
        text = command.script.text
        return command.read(self.call("EVAL", text, 1, command.base, *command.arguments))

    def connect(self) -> None:
        """Connect, if that is not so already."""
        if self._connection is None:
            self._connect()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return is_open(self._connection)

    def close(self) -> None:
        """Drop the connection; the next call opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*CLIENT_ERRORS):  # it is broken, or soon gone
                connection.disconnect()

    def _connect(self) -> Any:
        self._connection = self.endpoint.open()
        return self._connection

    def _wait(self) -> None:
        """Return when a reply begins; raise `Interrupted` if none does in time."""
        left = self.until - clock.monotonic()
        if left > SOCKET_TIMEOUT:
            return  # the socket's own limit comes first
        if not can_read(self._connection, max(0.0, left)):
            msg = f"{self.endpoint.place}: no answer in time"
            raise Interrupted(msg)

    def _broken(self, error: Exception, *, sent: bool) -> BrokerError:
        broken = self._connection
        self.close()
        return self.endpoint.translate(error, sent=sent, of=broken)

    def _refused(self, error: ResponseError) -> BrokerError:
        if isinstance(error, NoScriptError):
            return ScriptMissing(str(error))
        known = self.endpoint.translate(error, sent=True)
        if isinstance(known, BrokerUnavailable):
            self.close()  # a demoted or a loading server: look for another one
        return known
