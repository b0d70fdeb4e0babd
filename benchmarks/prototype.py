"""The least that a queue on Redis can do: the yardstick, not a queue to use.

Messages are signed and pushed to a list; a script pops some of them into a hash of what
is running; they run; the next call of the same script stores and publishes the results,
and pops again. There are no records, lanes, fences, leases, retries or time limits: a
call lost with its process stays in the hash for ever.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import redis

ID_BYTES = 32
TAG_BYTES = 16
BATCH = 200  # messages in one claim; of 50, 100, 200 and 500 the best
RESULT_MS = 3_600_000

# KEYS  ready running results channels
# ARGV  room finishes (id result)*finishes
EXCHANGE = """
local at = 3
for _ = 1, tonumber(ARGV[2]) do
  local id, result = ARGV[at], ARGV[at + 1]
  if redis.call('HDEL', KEYS[2], id) == 1 then
    redis.call('SET', KEYS[3] .. id, result, 'PX', 3600000)
    redis.call('PUBLISH', KEYS[4] .. id, result)
  end
  at = at + 2
end
local got = redis.call('RPOP', KEYS[1], ARGV[1])
if not got then return {} end
local claimed = {}
for i, message in ipairs(got) do
  claimed[2 * i - 1] = string.sub(message, 1, 32)
  claimed[2 * i] = message
end
redis.call('HSET', KEYS[2], unpack(claimed))
return got
"""


def add(x: int, y: int) -> int:
    return x + y


TASKS: dict[str, Callable[..., Any]] = {"add": add}


class Tampered(Exception):
    """The bytes were not signed with this key, or changed since."""


@dataclasses.dataclass(frozen=True)
class Place:
    """One queue of the prototype: where it is, its keys, and the key that signs."""

    url: str
    base: str
    secret: str

    @property
    def ready(self) -> str:
        return self.base + "ready"

    @property
    def bell(self) -> str:
        return self.base + "bell"

    @property
    def running(self) -> str:
        return self.base + "running"

    @property
    def results(self) -> str:
        return self.base + "result:"

    @property
    def channels(self) -> str:
        return self.base + "done:"


class Wire:
    """Signed bytes: `id(32) tag(16) pickle` for a message, `tag(16) pickle` for a result."""

    def __init__(self, secret: str) -> None:
        self._state = hashlib.blake2b(key=secret.encode()[:64], digest_size=TAG_BYTES)

    def message(self, id_bytes: bytes, call: object) -> bytes:
        body = pickle.dumps(call, 5)
        return id_bytes + self._tag(id_bytes, body) + body

    def call(self, raw: bytes) -> Any:
        """Return what a message says; raise `Tampered` where it is not ours."""
        return self._opened(raw[:ID_BYTES], raw[ID_BYTES:])

    def result(self, id_bytes: bytes, value: object) -> bytes:
        body = pickle.dumps(value, 5)
        return self._tag(id_bytes, body) + body

    def value(self, id_bytes: bytes, raw: bytes) -> Any:
        """Return what a call returned; raise `Tampered` where the result is not ours."""
        return self._opened(id_bytes, raw)

    def _opened(self, id_bytes: bytes, sealed: bytes) -> Any:
        tag, body = sealed[:TAG_BYTES], sealed[TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(id_bytes, body)):
            raise Tampered
        return pickle.loads(body)

    def _tag(self, id_bytes: bytes, body: bytes) -> bytes:
        state = self._state.copy()
        state.update(id_bytes)
        state.update(body)
        return state.digest()


class Line:
    """One held connection of redis-py: no pool, no retries, hiredis as the parser."""

    def __init__(self, url: str) -> None:
        pool: Any = redis.ConnectionPool.from_url(url, protocol=2)
        self._connection = pool.make_connection()
        self._connection.connect()

    def call(self, *command: Any) -> Any:
        self.send(*command)
        return self.receive()

    def send(self, *command: Any) -> None:
        self._connection.send_command(*command, check_health=False)

    def receive(self) -> Any:
        return self._connection.read_response()

    def close(self) -> None:
        self._connection.disconnect()


class Producer:
    """Enqueues calls; asks for results."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.line, self.news = Line(place.url), Line(place.url)
        self.wire = Wire(place.secret)

    def enqueue(self, calls: Iterable[object], per_push: int = 1000) -> list[bytes]:
        """Push calls, so many in a round trip; return their ids."""
        pairs = [(new_id(), call) for call in calls]
        for at in range(0, len(pairs), per_push):
            page = [self.wire.message(*pair) for pair in pairs[at : at + per_push]]
            self.line.call("LPUSH", self.place.ready, *page)
        return [id_bytes for id_bytes, _ in pairs]

    def round_trip(self, call: object) -> Any:
        """Subscribe, push one call and ring, read the result as it is published."""
        id_bytes = new_id()
        channel = self.place.channels.encode() + id_bytes
        self.news.send("SUBSCRIBE", channel)
        self.line.send("LPUSH", self.place.ready, self.wire.message(id_bytes, call))
        self.line.send("LPUSH", self.place.bell, b"1")
        self.line.receive()
        self.line.receive()
        while (reply := self.news.receive())[0] != b"message":
            pass
        self.news.send("UNSUBSCRIBE", channel)
        return self.wire.value(id_bytes, reply[2])

    def echo_by_lists(self, call: object) -> Any:
        """Push one call and block until its result is pushed back."""
        id_bytes = new_id()
        self.line.call("LPUSH", self.place.ready, self.wire.message(id_bytes, call))
        _, raw = self.line.call("BLPOP", self.place.results.encode() + id_bytes, 4)
        return self.wire.value(id_bytes, raw)

    def close(self) -> None:
        self.line.close()
        self.news.close()

    def outcomes(self, ids: list[bytes]) -> int:
        """Return how many of these calls have a result, after verifying each."""
        found = 0
        for at in range(0, len(ids), 1000):
            page = ids[at : at + 1000]
            names = [self.place.results.encode() + id_bytes for id_bytes in page]
            for id_bytes, raw in zip(page, self.line.call("MGET", *names), strict=True):
                if raw is not None:
                    self.wire.value(id_bytes, raw)
                    found += 1
        return found


class Worker:
    """Threads that take from one buffer; the one that finds it empty calls for all."""

    def __init__(self, place: Place, threads: int) -> None:
        self._place = place
        self._threads = threads
        self._line = Line(place.url)
        self._wire = Wire(place.secret)
        self._sha = self._line.call("SCRIPT", "LOAD", EXCHANGE)
        self._keys = (place.ready, place.running, place.results, place.channels)
        # Claimed; and ended but not sent. Neither is ever rebound: that would lose entries.
        self._buffer: deque[bytes] = deque()
        self._ended: deque[tuple[bytes, bytes]] = deque()
        self._leading = threading.Lock()
        self._drained = False

    def drain(self) -> None:
        """Run until the list is empty and every result is stored."""
        threads = [threading.Thread(target=self._work) for _ in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._exchange()
        self._line.close()

    def _work(self) -> None:
        while not self._drained:
            try:
                raw = self._buffer.popleft()
            except IndexError:
                self._lead()
            else:
                self._ended.append(self._run(raw))

    def _run(self, raw: bytes) -> tuple[bytes, bytes]:
        name, args, kwargs = self._wire.call(raw)
        id_bytes = raw[:ID_BYTES]
        return id_bytes, self._wire.result(id_bytes, TASKS[name](*args, **kwargs))

    def _lead(self) -> None:
        with self._leading:
            if self._buffer or self._drained:
                return  # somebody else led meanwhile
            got = self._exchange()
            self._buffer.extend(got)
            self._drained = not got

    def _exchange(self) -> list[bytes]:
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        flat = [part for pair in ended for part in pair]
        got: list[bytes] = self._line.call(
            "EVALSHA", self._sha, 4, *self._keys, BATCH, len(ended), *flat
        )
        return got

    def answer(self) -> None:
        """Wait for the bell, claim, run, store and publish; until the process is ended."""
        bell = Line(self._place.url)
        while True:
            bell.call("BLPOP", self._place.bell, 4)
            while got := self._exchange():
                self._ended.extend(self._run(raw) for raw in got)


def echo(place: Place) -> None:
    """Answer calls pushed to a list by a push to another, until the process is ended."""
    line, wire = Line(place.url), Wire(place.secret)
    while True:
        popped = line.call("BLPOP", place.ready, 4)
        if popped is None:
            continue
        raw = popped[1]
        name, args, kwargs = wire.call(raw)
        key = place.results.encode() + raw[:ID_BYTES]
        line.call("LPUSH", key, wire.result(raw[:ID_BYTES], TASKS[name](*args, **kwargs)))
        line.call("PEXPIRE", key, RESULT_MS)


def new_id() -> bytes:
    return os.urandom(16).hex().encode()


def main() -> None:
    *address, mode = sys.argv[1:4]
    place = Place(*address, os.environ["TASKQ_SECRET"])
    if mode == "echo":
        echo(place)
    elif mode == "answer":
        Worker(place, 1).answer()
    else:
        Worker(place, int(mode)).drain()


if __name__ == "__main__":
    main()
