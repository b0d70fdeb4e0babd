"""A line to a server that fails as networks do: late, mute, cut, at a named command.

It understands requests and replies as far as it must to know which reply answers what,
and which script an EVALSHA means. A connection that subscribes is passed on as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Self

from taskq.broker import scripts
from tests.failure.failpoints import ENDS_AT
from tests.servers import HOST

CHUNK = 1 << 16
# SO_LINGER of no length: the connection ends with a reset.
ABRUPT = struct.pack("ii", 1, 0)


class Act(StrEnum):
    """What becomes of a request."""

    # The connection ends before Redis has heard of it.
    LOSE_REQUEST = "lose the request"
    # Redis carries it out, and the connection ends instead of the reply.
    CUT_REPLY = "cut the reply"
    # Redis carries it out; the reply never comes, and the connection stays open.
    SWALLOW_REPLY = "swallow the reply"


@dataclasses.dataclass(frozen=True)
class Request:
    """A command as it passes."""

    # The name of the script, or the command in small letters.
    name: str
    words: list[bytes]

    @property
    def ends(self) -> int:
        """How many lots of ends of attempts it carries."""
        return int(self.words[ENDS_AT]) if self.name == "exchange" else 0


@dataclasses.dataclass
class Rule:
    """So many times, this is done to requests that match."""

    matches: Callable[[Request], bool]
    act: Act
    left: float
    fired: int = 0


class Proxy:
    """Passes bytes on between its clients and one server."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server((HOST, 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._names = {scripts.load(name).sha: name for name in scripts.names()}
        self._texts = {scripts.load(name).text.encode(): name for name in scripts.names()}
        # Guards the two below.
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._connections: set[_Connection] = set()
        # Set while bytes flow. What comes meanwhile waits, as it does for a network.
        self.flow = threading.Event()
        self.flow.set()
        # Seconds by which every request is late.
        self.delay = 0.0
        # Sees every request before the server does.
        self.watch: Callable[[Request], object] = lambda _request: None
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def on(self, name: str, act: Act, *, times: float = 1, ends: bool = False) -> Rule:
        """Do `act` to the next requests of this script or command; `ends`: that carry some."""
        rule = Rule(lambda one: one.name == name and (one.ends > 0 or not ends), act, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def each(self, matches: Callable[[Request], bool], act: Act) -> Rule:
        """Do `act` to every request for which `matches` says so, until `calm`."""
        rule = Rule(matches, act, float("inf"))
        with self._lock:
            self._rules.append(rule)
        return rule

    def calm(self) -> None:
        """Forget all rules, and let bytes flow."""
        with self._lock:
            self._rules.clear()
        self.delay = 0.0
        self.flow.set()

    def reset(self, *, subscribed: bool | None = None) -> int:
        """End the connections: all, only those that subscribe, or only the others."""
        with self._lock:
            ended = [one for one in self._connections if subscribed in (None, one.subscribed)]
        for one in ended:
            one.end()
        return len(ended)

    def close(self) -> None:
        self.flow.set()
        with contextlib.suppress(OSError):  # only a shutdown wakes an accept() that waits
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        self.reset()

    def judge(self, words: list[bytes]) -> tuple[Request, Act | None]:
        """Return what a request is, and what becomes of it."""
        request = Request(self._name(words), words)
        self.watch(request)
        with self._lock:
            for rule in self._rules:
                if rule.left > 0 and rule.matches(request):
                    rule.left -= 1
                    rule.fired += 1
                    return request, rule.act
        return request, None

    def forget(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _name(self, words: list[bytes]) -> str:
        word = words[0].lower().decode()
        if word == "evalsha":
            return self._names.get(words[1], "evalsha")
        return self._texts.get(words[1], "eval") if word == "eval" else word

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection((HOST, self._server_port))
                except OSError:
                    _reset(client)
                    continue
                connection = _Connection(self, client, server)
                with self._lock:
                    self._connections.add(connection)
                connection.start()


class _Connection:
    """One client's line: two threads, one for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.subscribed = False
        # What becomes of the replies to come.
        self._fates: deque[Act | None] = deque()

    def start(self) -> None:
        for target in (self._pass_on, self._pass_back):
            threading.Thread(target=target, daemon=True).start()

    def end(self) -> None:
        self._proxy.forget(self)
        for one in (self._client, self._server):
            _reset(one)

    def _pass_on(self) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := self._client.recv(CHUNK):
                buffer += data
                at = 0
                for end, words in _requests(buffer):
                    request, act = self._proxy.judge(words)
                    if act is Act.LOSE_REQUEST:
                        return self.end()
                    self.subscribed = self.subscribed or request.name.endswith("subscribe")
                    self._fates.append(act)
                    self._wait()
                    self._server.sendall(buffer[at:end])
                    at = end
                buffer = buffer[at:]
        return self.end()

    def _pass_back(self) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := self._server.recv(CHUNK):
                self._proxy.flow.wait()
                if self.subscribed:
                    self._client.sendall(buffer + data)
                    buffer = b""
                    continue
                buffer += data
                at = 0
                while (end := _end_of_reply(buffer, at)) is not None:
                    act = self._fates.popleft()
                    if act is Act.CUT_REPLY:
                        return self.end()
                    if act is None:
                        self._client.sendall(buffer[at:end])
                    at = end
                buffer = buffer[at:]
        return self.end()

    def _wait(self) -> None:
        if self._proxy.delay:
            time.sleep(self._proxy.delay)
        self._proxy.flow.wait()


def _reset(one: socket.socket) -> None:
    # The shutdown wakes the thread that reads; a close alone would not.
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPT)
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def _requests(buffer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the whole requests in a buffer, each with the place where it ends."""
    at = 0
    while (found := _request(buffer, at)) is not None:
        at = found[0]
        yield found


def _request(buffer: bytes, at: int) -> tuple[int, list[bytes]] | None:
    head = _line_end(buffer, at)
    if head is None:
        return None
    words: list[bytes] = []
    count, at = int(buffer[at + 1 : head - 2]), head
    for _ in range(count):
        head = _line_end(buffer, at)
        if head is None:
            return None
        size = int(buffer[at + 1 : head - 2])
        at = head + size + 2
        if at > len(buffer):
            return None
        words.append(buffer[head : head + size])
    return at, words


def _end_of_reply(buffer: bytes, at: int) -> int | None:
    """Return where the reply ends that begins at `at`; None: not all of it is there."""
    head = _line_end(buffer, at)
    if head is None or buffer[at : at + 1] not in b"$*":
        return head
    size = int(buffer[at + 1 : head - 2])
    if size < 0:
        return head
    if buffer[at : at + 1] == b"$":
        return head + size + 2 if head + size + 2 <= len(buffer) else None
    place: int | None = head
    for _ in range(size):
        if place is None:
            return None
        place = _end_of_reply(buffer, place)
    return place


def _line_end(buffer: bytes, at: int) -> int | None:
    found = buffer.find(b"\r\n", at)
    return None if found < 0 else found + 2
