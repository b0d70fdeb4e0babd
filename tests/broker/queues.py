"""A queue and its workers as the tests of the scripts see them, and the books they keep."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import pytest

from taskq.broker import claims, commands, keys, queries, records
from taskq.broker.claims import Blame, Exchanged, Finish, Order, Renewed, Room
from taskq.broker.commands import Command, Outgoing
from taskq.broker.connection import Endpoint
from taskq.broker.line import Line
from taskq.broker.queries import Letter
from taskq.broker.records import Record
from taskq.errors import BrokerError
from taskq.model import clock, control, message
from taskq.model.message import Envelope, Message
from taskq.model.signing import Domain, Keyring
from taskq.model.states import State
from tests.broker.drivers import Driver

T = TypeVar("T")

LEASE_MS, TICK_MS = 15_000, 5_000
PROOF = b"\0\xff" + b"p" * (control.PROOF_BYTES - 2)
TTL_MS, DAY_MS = 60_000, 86_400_000
ADD, MAIL, CRAWL = "t.add", "t.mail", "t.crawl"
# What most workers here know: two tasks for threads, one for coroutines.
KINDS = {ADD: "t", MAIL: "t", CRAWL: "c"}
HEX = set("0123456789abcdef")
# All keys of a queue with what is in them, in one call: name, type, TTL, content.
DUMP = """
local read = {string = 'GET', hash = 'HGETALL'}
local out = {}
for i, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind, content = redis.call('TYPE', key).ok, ''
  if read[kind] then content = redis.call(read[kind], key) end
  if kind == 'list' then content = redis.call('LRANGE', key, 0, -1) end
  if kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  out[i] = {string.sub(key, #KEYS[1] + 1), kind, redis.call('PTTL', key), content}
end
return out
"""


class Queue:
    """One queue of one app, through one driver."""

    def __init__(self, driver: Driver, url: str, app: str, name: str = "default") -> None:
        self.url, self.app, self.name = url, app, name
        self.base = keys.base(app, name)
        self.seal = Keyring(["a secret of the tests, long enough"]).seal(Domain.MESSAGE, app, name)
        self._driver = driver
        self._lines: list[Line] = []
        # As the last reclaim said.
        self.suspects = 0

    def close(self) -> None:
        """End the subscriptions."""
        for line in self._lines:
            line.close()

    def run(self, command: Command[T]) -> T:
        return self._driver.run(command)

    def call(self, word: str, key: str, *rest: Any) -> Any:
        """Send a plain command on one key of the queue."""
        return self._driver.call(word, self.base + key, *rest)

    def evaluate(self, text: str, *arguments: Any) -> Any:
        """Run a script of the test's own; it gets the base as KEYS[1]."""
        return self._driver.call("EVAL", text, 1, self.base, *arguments)

    @property
    def now_ms(self) -> int:
        seconds, micros = self._driver.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def message(
        self,
        task: str = ADD,
        *,
        id: str | None = None,
        name: str | None = None,
        priority: int = keys.DEFAULT_PRIORITY,
        body: bytes = b"body",
        expires_ms: int = 0,
        due: str | None = None,
    ) -> Outgoing:
        """Return a message as a producer sends it; `name` is an id given by a person."""
        id = message.id_of(self.app, name) if name else id or message.new_id(clock.now_ms())
        one = Message(id, expires_ms, Envelope(task, 0, "pickle", body, name))
        label = records.label(records.mark_of(task) if name else None, expires_ms)
        raw = message.encode(one, self.seal)
        return Outgoing(one, raw, keys.lane(task, priority), label, due)

    def messages(self, count: int, task: str = ADD, **options: Any) -> list[Outgoing]:
        """Return several messages whose ids are in their order."""
        first = int(message.new_id(clock.now_ms()), 16)
        return [self.message(task, id=f"{first + at:032x}", **options) for at in range(count)]

    def enqueue(self, *outgoing: Outgoing) -> str:
        return self.run(commands.enqueue(self.base, outgoing))

    def schedule(self, *outgoing: Outgoing) -> str:
        return self.run(commands.schedule(self.base, outgoing))

    def queued(self, count: int = 1, task: str = ADD, **options: Any) -> list[str]:
        """Enqueue so many messages; return their ids, the first to be claimed first."""
        outgoing = self.messages(count, task, **options)
        assert self.enqueue(*outgoing) == "o" * count
        return [one.message.id for one in outgoing]

    def worker(self, kinds: dict[str, str] | None = None) -> Worker:
        """Return a worker that has enrolled."""
        worker = Worker(self, KINDS if kinds is None else kinds)
        assert worker.enrol() == "ok"
        return worker

    def cancel(self, id: str, reason: str = "", *, terminate: bool = False) -> str:
        return self.run(commands.cancel(self.base, id, order(reason, terminate=terminate)))

    def reschedule(self, id: str, due: str) -> str:
        return self.run(commands.reschedule(self.base, id, due))

    def reclaim(self, worker: Worker | None = None, *blames: Blame) -> int:
        """Take back what one worker held, or all those whose lease ran out."""
        taken, left = 0, True
        while left:
            reply = self.run(
                claims.reclaim(
                    self.base,
                    LEASE_MS,
                    TICK_MS,
                    worker.id if worker else b"",
                    worker.digest if worker else "",
                    blames,
                )
            )
            taken, left, self.suspects = taken + reply.taken, reply.left, reply.suspects
        return taken

    def ready(self, lane: str = ADD) -> list[str]:
        """Return the ids in a ready list, the next to be claimed first."""
        raws = self.call("LRANGE", f"ready:{lane}", 0, -1)
        return [raw[12:44].decode() for raw in reversed(raws)]

    def scheduled(self) -> list[str]:
        return [id.decode() for id in self.call("ZRANGE", "scheduled", 0, -1)]

    def fall_due(self) -> None:
        """Let the time of all that is scheduled have come."""
        for id in self.call("ZRANGE", "scheduled", 0, -1):
            self.call("ZADD", "scheduled", 1, id)

    def raw_record(self, id: str) -> bytes | None:
        raw: bytes | None = self.call("GET", f"m:{id}")
        return raw

    def record(self, id: str) -> Record:
        raw = self.raw_record(id)
        assert raw is not None, f"no record of {id}"
        return records.parse(raw)

    def state(self, id: str) -> State:
        raw = self.raw_record(id)
        return State.UNKNOWN if raw is None else records.parse(raw).state

    def ttl(self, id: str) -> int:
        """Return the milliseconds that a record has left; -1 without end, -2 no record."""
        return int(self.call("PTTL", f"m:{id}"))

    def bells(self, worker: Worker) -> str:
        """Return the kinds for which the bell of the worker's group rings; silence them."""
        rang = ""
        for kind in "tc":
            if self.call("LPOP", f"bell:{worker.digest}:{kind}") is not None:
                rang += kind
        return rang

    def listen(self, id: str) -> Callable[[], bytes]:
        """Subscribe to an outcome; return what returns it once it was published."""
        return self.listen_to(keys.done(self.app, self.name, id).encode())

    def listen_to(self, channel: bytes) -> Callable[[], bytes]:
        """Subscribe to a channel of the queue; return what returns the next that is published."""
        line = Line(Endpoint(self.url).at(self.base))
        self._lines.append(line)
        line.call("TIME")  # once it is connected, it knows how is published there
        shard = "S" if line.endpoint.sharded else ""
        told = line.call(f"{shard}SUBSCRIBE", channel)
        assert told == [f"{shard}subscribe".lower().encode(), channel, 1]

        def news() -> bytes:
            kind, told_on, payload = line.receive()
            assert (kind, told_on) == (f"{shard}message".lower().encode(), channel)
            return bytes(payload)

        return news

    def publish(self, id: str, payload: bytes) -> None:
        """Publish what no script has, to those who listen."""
        self.call(self._lines[-1].endpoint.publish, f"done:{id}", payload)

    def survey(self) -> queries.Survey:
        return self.run(queries.survey(self.base, self.name))

    def letters(self) -> dict[str, Letter]:
        """Return all dead letters, by the names they are kept under."""
        found: dict[str, Letter] = {}
        skip: int | None = 0
        while skip is not None:
            page, skip = self.run(queries.letters(self.base, 90 * DAY_MS, skip, 1000))
            found |= {one.id.decode(): one for one in page}
        return found

    def keys(self) -> list[str]:
        """Return the names of all keys of the queue, less what they all begin with."""
        found = self._driver.call("KEYS", self.base + "*")
        return sorted(key.decode()[len(self.base) :] for key in found)

    def pass_a_day(self) -> None:
        """Take away what Redis would have forgotten after a day of silence."""
        for name, (_, ttl, _) in self.dump().items():
            if 0 <= ttl <= DAY_MS:
                self.call("DEL", name)

    def clear(self) -> None:
        """Leave nothing behind on a server that many tests share."""
        if names := self.keys():
            self._driver.call("DEL", *(self.base + name for name in names))

    def dump(self) -> dict[str, tuple[bytes, int, Any]]:
        """Return all there is: name → type, milliseconds left, content."""
        rows = self.evaluate(DUMP, self.base + "*")
        return {
            name.decode(errors="replace"): (kind, int(ttl), content)
            for name, kind, ttl, content in rows
        }

    def records(self) -> dict[str, tuple[bytes, int]]:
        """Return all records, each with the milliseconds it has left."""
        rows = self.dump().items()
        return {name[2:]: (raw, ttl) for name, (_, ttl, raw) in rows if name.startswith("m:")}

    def audit(self) -> None:
        """Check the books: each message has one place, and a record that says so."""
        Audit(self).check()


class FullQueue(Queue):
    """A queue on a server of its own, whose memory can run out."""

    def fill(self) -> None:
        """From now on the server is at its `maxmemory`."""
        self._driver.call("CONFIG", "SET", "maxmemory", "1")

    def make_room(self) -> None:
        self._driver.call("CONFIG", "SET", "maxmemory", "0")


class Worker:
    """A child that claims and ends messages, one exchange at a time."""

    def __init__(self, queue: Queue, kinds: dict[str, str], id: str | None = None) -> None:
        self.queue = queue
        self.id = (id or secrets.token_hex(16)).encode()
        self.kinds = kinds
        # Of a group of its own, so that its bells ring for it alone.
        self.digest = self.id[-12:].decode()
        self.seq = 0
        self.kept = claims.DEFAULT_KEPT
        # id → the field of `running:<worker>` under which it was claimed.
        self.fields: dict[str, bytes] = {}
        self.last: Command[Exchanged]

    def enrol(self) -> str:
        return self.queue.run(
            claims.enrol(self.queue.base, self.id, LEASE_MS, "host:1", self.digest, self.kinds)
        )

    def renew(self, lease_ms: int = LEASE_MS) -> str:
        return self.renewed(lease_ms).word

    def renewed(self, lease_ms: int = LEASE_MS) -> Renewed:
        return self.queue.run(claims.renew(self.queue.base, self.id, lease_ms, self.digest))

    def orders(self) -> list[Order]:
        return self.queue.run(claims.orders(self.queue.base, self.id))

    def disobey(self, *orders: Order) -> int:
        return self.queue.run(claims.disobey(self.queue.base, self.id, orders))

    def command(self, seq: int, finishes: Sequence[Finish], room: Room) -> Command[Exchanged]:
        return claims.exchange(
            self.queue.base, self.id, b"%010d" % seq, self.digest, LEASE_MS, finishes, room,
            self.kept,
        )  # fmt: skip

    def exchange(
        self,
        *finishes: Finish,
        threads: int = 0,
        coroutines: int = 0,
        caps: dict[str, int] | None = None,
    ) -> Exchanged:
        self.seq += 1
        self.last = self.command(self.seq, finishes, Room(threads, coroutines, caps or {}))
        reply = self.queue.run(self.last)
        for id in ids(reply):
            self.fields[id] = id.encode() + b"%010d" % self.seq
        return reply

    def again(self) -> Exchanged:
        """Send the last exchange once more, as after a lost reply."""
        return self.queue.run(self.last)

    def claim(
        self, threads: int = 100, coroutines: int = 0, caps: dict[str, int] | None = None
    ) -> list[str]:
        """Claim; return the ids in the order of the reply."""
        return ids(self.exchange(threads=threads, coroutines=coroutines, caps=caps))

    def finish(self, *finishes: Finish) -> str:
        """End attempts, claim nothing; return the verdicts."""
        return self.exchange(*finishes).verdicts

    def head(self, id: str) -> bytes:
        """Return the record of a claimed message, less its state."""
        raw = self.queue.raw_record(id)
        if raw is None or len(raw) < records.HEAD_BYTES:
            return records.fresh(1, self.id + self.fields[id][32:])
        return raw[1 : records.HEAD_BYTES]

    def succeeded(self, id: str, body: bytes = b"report", ttl_ms: int = TTL_MS) -> Finish:
        record = b"s" + records.with_attempt(self.head(id)) + body
        return Finish("s", self.fields[id], record, ttl_ms)

    def failed(self, id: str, body: bytes = b"report", ttl_ms: int = TTL_MS) -> Finish:
        record = b"f" + records.with_attempt(self.head(id)) + body
        return Finish("f", self.fields[id], record, ttl_ms)

    def refused(self, id: str, words: bytes = b"bad signature") -> Finish:
        record = b"r" + records.with_attempt(self.head(id)) + words
        return Finish("r", self.fields[id], record, TTL_MS)

    def retry(self, id: str, delay_ms: int = 0, history: bytes = b"history") -> Finish:
        return Finish("y", self.fields[id], history, delay_ms)

    def cancelled(self, id: str, words: bytes = b"no more") -> Finish:
        return Finish("c", self.fields[id], b"c" + self.head(id) + words, TTL_MS)

    def released(self, id: str) -> Finish:
        return Finish("b", self.fields[id])


def order(reason: str = "", *, terminate: bool = False, proof: bytes = PROOF) -> bytes:
    """Return an order to cancel as scripts see it: they do not look into the proof."""
    return (b"t" if terminate else b"-") + proof + reason.encode()


def ids(reply: Exchanged) -> list[str]:
    """Return the ids of the messages claimed, in the order of the reply."""
    return [raw[12:44].decode() for _, raw in reply.claimed]


class Audit:
    """What is in Redis, read with plain commands, against the rules.

    I9: while a message's bytes are in any list or hash, its record exists without TTL.
    What was set aside for people (`dead:m`) is over, and has records of its own kind.
    """

    def __init__(self, queue: Queue) -> None:
        found = queue.dump()
        self.keys = {name: content for name, (_, _, content) in found.items()}
        self.records = {
            name[2:]: (raw, ttl) for name, (_, ttl, raw) in found.items() if name.startswith("m:")
        }
        # id → where its bytes are.
        self.places: dict[str, list[str]] = {}
        for name, content in self.keys.items():
            if name.startswith("ready:"):
                self._note(name, content)
            elif name.startswith(("running:", "orphans:")):
                self._note(name, [value[3 + int(value[:3]) :] for value in content[1::2]])
        for id in self.keys.get("scheduled", [])[::2]:
            self.places.setdefault(id.decode(), []).append("scheduled")

    def ready(self, lane: str) -> list[str]:
        """Return the ids in a ready list, the next to be claimed first."""
        raws = self.keys.get(f"ready:{lane}", [])
        return [raw[12:44].decode() for raw in reversed(raws)]

    def check(self) -> None:
        for id, places in self.places.items():
            self._check_placed(id, places)
        for id, (raw, ttl) in self.records.items():
            if id not in self.places:
                state = records.parse(raw).state
                assert state.terminal, f"{id} is lost: {state}, and in no place"
                assert ttl > 0, f"the outcome of {id} is kept for ever"
        self._check_lanes()
        self._check_waiting()

    def _note(self, name: str, raws: Iterable[bytes]) -> None:
        for raw in raws:
            id = raw[12:44].decode("ascii", errors="replace")
            if raw[:2] == message.MAGIC and set(id) <= HEX:
                self.places.setdefault(id, []).append(name)

    def _check_placed(self, id: str, places: list[str]) -> None:
        assert len(places) == 1, f"{id} is in {places}"
        assert id in self.records, f"I9: {id} is in {places[0]} and has no record"
        raw, ttl = self.records[id]
        assert ttl == -1, f"I9: {id} is in {places[0]}, its record has the TTL {ttl}"
        record = records.parse(raw)
        letters = {"ready": b"Qsfrcetk", "sched": b"SY", "runni": b"R", "orpha": b"Rsf"}
        assert record.letter in letters[places[0][:5]], f"{id} in {places[0]}: {record}"
        if places[0].startswith("running:"):
            worker = places[0].removeprefix("running:").encode()
            assert record.worker == worker, f"{id} is held by another than its record says"

    def _check_lanes(self) -> None:
        lanes = {lane.decode() for lane in self.keys.get("lanes", [])[::2]}
        full = {name.removeprefix("ready:") for name in self.keys if name.startswith("ready:")}
        assert full <= lanes, f"nobody will look into {full - lanes}"
        assert lanes <= full, f"empty lanes stay open: {lanes - full}"

    def _check_waiting(self) -> None:
        counts: Counter[str] = Counter()
        for id, places in self.places.items():
            if places == ["scheduled"]:
                tail = records.parse(self.records[id][0]).tail
                counts[tail[3 : 3 + int(tail[:3])].decode().partition(":")[0]] += 1
        pairs = self.keys.get("waiting", [])
        told = {k.decode(): int(v) for k, v in zip(pairs[::2], pairs[1::2], strict=True)}
        assert told == counts


def refusal(queue: Queue, command: Command[Any]) -> str:
    """Return what Redis says when it refuses a command."""
    with pytest.raises(BrokerError) as raised:
        queue.run(command)
    return str(raised.value)
