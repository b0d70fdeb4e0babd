"""Bytes that no script wrote, where scripts read: the queue goes on, and they are set aside.

Whoever can write to Redis can put them there. What signs and verifies is not asked here: these
are so wrong that Lua could stumble.
"""

from __future__ import annotations

import os
import random
import secrets

import pytest

from taskq.broker import claims, commands, queries, records
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, Queue, Worker, ids

# Neither drivers nor servers differ in what scripts do; Lua itself does, in memory.
pytestmark = pytest.mark.parametrize("place", ["server-sync", "memory-sync"], indirect=True)

HEAD = records.fresh(1_700_000_000_000_000, b"w" * 32 + b"0000000001")
RECORDS = {
    "empty": b"",
    "one letter": b"R",
    "no letter": b"?" + HEAD,
    "half a label": b"Q--------0000",
    "no expiry": b"Q--------xxxxxxxxxxxxx",
    "short": b"R" + HEAD[:50],
    "no numbers": b"R" + b"x" * 97,
    "zeros": b"\0" * 98,
    "a space for a digit": b"Q" + HEAD[:21] + b"     1" + HEAD[27:],
    "no claim number": b"R" + HEAD[:-10] + b"0x00000001",
    "nothing scheduled": b"S" + HEAD[:21],
    "no label": b"S" + b"x" * 21 + b"005t.addmessage",
    "no lane": b"S" + HEAD[:21] + b"000message",
    "a lane longer than all": b"S" + HEAD[:21] + b"999t.addmessage",
    "nothing but a lane": b"S" + HEAD[:21] + b"005t.add",
    "no lane again": b"Y" + HEAD + b"0000000000message",
    "a lane of no length": b"Y" + HEAD + b"abct.add0000000message",
    "a lane too long": b"Y" + HEAD + b"999t.add0000000message",
    "a history too long": b"Y" + HEAD + b"005t.add9999999message",
    "no message": b"Y" + HEAD + b"005t.add0000000",
}
ENDS = ["succeeded", "failed", "retry", "released", "refused", "cancelled"]
# Leave nothing but what the workers are known by.
SWEEP = """
local keys = redis.call('KEYS', ARGV[1] .. '*')
for _, key in ipairs(keys) do
  local name = string.match(string.sub(key, #ARGV[1] + 1), '^%a+')
  if not string.find(' workers names groups known seqs ', ' ' .. (name or '') .. ' ', 1, true) then
    redis.call('DEL', key)
  end
end
"""


@pytest.fixture
def dice() -> random.Random:
    seed = os.environ.get("TASKQ_FAULT_SEED") or secrets.token_hex(8)
    print(f"TASKQ_FAULT_SEED={seed}")  # pytest shows it where the test fails
    return random.Random(seed)


def damaged(dice: random.Random, good: bytes) -> bytes:
    """Return good bytes with some changed, cut off, doubled or put before."""
    raw = bytearray(good)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(raw) + 1)
        raw[at : at + dice.randrange(40)] = dice.randbytes(dice.choice((0, 1, 3, 40)))
    return bytes(raw)


def over(queue: Queue, worker: Worker) -> None:
    """What came afterwards runs as ever, and nothing is left."""
    ids_ = queue.queued(2)
    assert worker.claim() == ids_
    assert worker.finish(*map(worker.succeeded, ids_)) == "kk"


@pytest.mark.parametrize("raw", RECORDS.values(), ids=list(RECORDS))
def test_a_message_whose_record_is_none_is_run_with_a_new_one(queue: Queue, raw: bytes) -> None:
    """As one without a record."""
    first, second, third = queue.queued(3)
    queue.call("SET", f"m:{second}", raw)
    worker = queue.worker()
    assert worker.claim() == [first, second, third]
    assert queue.record(second).claims == 1
    assert queue.survey().counts == {"unrecorded": 1}
    assert worker.finish(*map(worker.succeeded, (first, second, third))) == "kkk"
    over(queue, worker)


def test_a_key_of_another_type_is_no_record(queue: Queue) -> None:
    [id] = queue.queued()
    queue.call("DEL", f"m:{id}")
    queue.call("LPUSH", f"m:{id}", "x")
    worker = queue.worker()
    assert worker.claim() == [id]
    queue.call("DEL", f"m:{id}")
    queue.call("LPUSH", f"m:{id}", "x")
    assert worker.finish(worker.retry(id)) == "k"
    assert queue.state(id) is State.QUEUED
    assert worker.claim() == [id]
    assert worker.finish(worker.failed(id)) == "k"


@pytest.mark.parametrize("raw", RECORDS.values(), ids=list(RECORDS))
def test_an_attempt_ends_whatever_its_record_is(queue: Queue, raw: bytes) -> None:
    worker = queue.worker()
    for end in ENDS:
        first, second = queue.queued(2)
        worker.claim()
        finishes = [getattr(worker, end)(one) for one in (first, second)]
        queue.call("SET", f"m:{first}", raw)
        assert worker.finish(*finishes) == "kk", end
        assert queue.state(first) is queue.state(second), end
        if not queue.state(first).terminal:
            assert sorted(worker.claim()) == [first, second]
            worker.finish(*map(worker.succeeded, (first, second)))
    over(queue, worker)


@pytest.mark.parametrize("raw", RECORDS.values(), ids=list(RECORDS))
def test_what_a_dead_worker_held_goes_back_whatever_the_records_are(
    queue: Queue, raw: bytes
) -> None:
    first, second = queue.queued(2)
    queue.worker().claim()
    dead = queue.worker()
    queue.call("ZADD", "workers", 1, dead.id)
    third, fourth = queue.queued(2)
    dead.claim()
    queue.call("SET", f"m:{third}", raw)
    assert queue.reclaim(dead) == 2
    assert {first, second}.isdisjoint(queue.ready())
    assert queue.ready() == [third, fourth]
    assert queue.record(fourth).claims == 1


@pytest.mark.parametrize("end", [*ENDS, "reclaimed", "released by the supervisor"])
@pytest.mark.parametrize("value", [b"", b"5", b"abcdef", b"999t.add", b"005t.add", b"-05t.addTQ1"])
def test_what_was_claimed_and_is_no_message_is_set_aside(
    queue: Queue, value: bytes, end: str
) -> None:
    first, second = queue.queued(2)
    worker, other = queue.worker(), queue.worker()
    worker.claim()
    queue.call("HSET", f"running:{worker.id.decode()}", worker.fields[first], value)
    if end in ENDS:
        assert worker.finish(*(getattr(worker, end)(one) for one in (first, second))) == "kk"
    else:
        if end != "reclaimed":
            fields = [worker.fields[one] for one in (first, second)]
            assert queue.run(claims.release(queue.base, worker.id, fields)) == 1
        queue.reclaim(worker)
    if end not in ("succeeded", "cancelled"):
        letters = [one for one in queue.letters().values() if value in one.message]
        assert letters or end == "failed"
        assert queue.state(first) is State.FAILED
    while claimed := other.claim():
        other.finish(*map(other.succeeded, claimed))
    assert queue.state(second).terminal
    over(queue, other)


def test_a_field_that_is_none_is_set_aside_with_its_bytes(queue: Queue) -> None:
    worker, other = queue.worker(), queue.worker()
    [id] = queue.queued()
    worker.claim()
    for field in (b"", b"x", b"\0" * 42, id.encode()):
        queue.call("HSET", f"running:{worker.id.decode()}", field, b"junk")
    queue.reclaim(worker)
    assert len(queue.letters()) == 4
    assert queue.survey().counts["refused"] == 4
    over_all = other.claim()
    assert over_all in ([id], [])
    other.finish(*map(other.succeeded, over_all))
    over(queue, other)


@pytest.mark.parametrize("raw", RECORDS.values(), ids=list(RECORDS))
def test_a_scheduled_message_whose_record_is_none_is_set_aside(queue: Queue, raw: bytes) -> None:
    """Its bytes were there: it is lost, and whoever waits is told."""
    first, second = queue.messages(2, due="+1000")
    queue.schedule(first, second)
    id = first.message.id
    queue.call("SET", f"m:{id}", raw)
    queue.fall_due()
    worker = queue.worker()
    assert worker.claim() == [second.message.id]
    assert queue.state(id) is State.FAILED
    assert queue.survey().counts == {"refused": 1}
    [letter] = queue.letters().values()
    assert letter.message == raw
    assert worker.finish(worker.succeeded(second.message.id)) == "k"
    assert queue.survey().tasks.get(ADD) is None
    over(queue, worker)


@pytest.mark.parametrize("score", ["-inf", "+inf", "1e300", "-1e300", "0.5", "nan"])
def test_what_is_no_message_in_the_schedule_holds_nobody_up(queue: Queue, score: str) -> None:
    one = queue.message(due="+1000")
    queue.schedule(one)
    queue.fall_due()
    if score != "nan":
        for member in (b"", b"x", b"\xff" * 32, b"0" * 32):
            queue.call("ZADD", "scheduled", score, member)
    worker = queue.worker()
    reply = worker.exchange(threads=5)
    assert ids(reply) == [one.message.id]
    worker.finish(worker.succeeded(one.message.id))
    over(queue, worker)
    queue.call("DEL", "scheduled")


@pytest.mark.parametrize("lane", ["", ":", ":5", "!", "!:9", "x" * 2000, f"{ADD}:{'9' * 1200}"])
def test_a_lane_that_is_none_holds_nobody_up(queue: Queue, lane: str) -> None:
    queue.call("ZADD", "lanes", 7, lane)
    queue.call("LPUSH", f"ready:{lane}", b"junk")
    worker = queue.worker()
    over(queue, worker)
    queue.reclaim(queue.worker())
    queue.survey()
    queue.letters()
    queue.call("DEL", f"ready:{lane}")
    queue.call("ZREM", "lanes", lane)


@pytest.mark.parametrize("raw", RECORDS.values(), ids=list(RECORDS))
def test_no_record_keeps_people_from_looking_or_taking_back(queue: Queue, raw: bytes) -> None:
    id = "0" * 31 + "1"
    queue.call("SET", f"m:{id}", raw)
    assert queue.run(queries.look(queue.base, id, ADD)) is not None
    assert queue.run(commands.expire(queue.base, id)) == "no"
    assert queue.run(commands.forget(queue.base, id)) == "no"
    assert queue.cancel(id, "away with it") == "cancelled"
    assert queue.state(id) is State.CANCELLED


def test_a_fence_that_cannot_grow_stays_within_its_width(queue: Queue) -> None:
    [id] = queue.queued()
    worker = queue.worker()
    worker.claim()
    worker.finish(worker.released(id))
    raw = queue.raw_record(id)
    assert raw is not None
    queue.call("SET", f"m:{id}", raw[:40] + b"9" * 16 + raw[56:])
    assert worker.claim() == [id]
    assert queue.record(id).worker == worker.id
    assert worker.finish(worker.failed(id)) == "k"


def damage(queue: Queue, dice: random.Random) -> bytes:
    """Change something that scripts read; return what it was, and where."""
    places = ("m:", "running:", "orphans:", "ready:", "scheduled")
    found = [one for one in queue.dump().items() if one[0].startswith(places)]
    name, (kind, _, content) = dice.choice(found)
    at = dice.randrange(0, len(content), 2) if kind == b"hash" else 0
    if kind == b"string":
        queue.call("SET", name, damaged(dice, content))
    elif kind == b"hash":
        queue.call("HSET", name, content[at], damaged(dice, content[at + 1]))
    elif kind == b"list":
        queue.call("LSET", name, 0, damaged(dice, content[0]))
    else:
        queue.call("ZREM", name, content[0])
        queue.call("ZADD", name, dice.choice((-1, 0, 1e18)), damaged(dice, content[0]))
    return name.encode() + (content if kind == b"string" else b"".join(content[at : at + 2]))


def test_damage_by_chance_stops_no_queue(queue: Queue, dice: random.Random) -> None:
    """In all that a message has in Redis, at all points of its life."""
    honest = queue.worker()
    for _ in range(40):
        waits = queue.messages(2, dice.choice((ADD, CRAWL)), due="+1000")
        queue.schedule(*waits)
        all_ids = [*queue.queued(3), *(one.message.id for one in waits)]
        worker = queue.worker()
        claimed = worker.claim(2, 2)
        if dice.random() < 0.5:
            worker.finish(worker.retry(claimed[0], 1000))
        touched = damage(queue, dice)
        queue.fall_due()
        queue.reclaim(worker)
        while claimed := honest.claim(100, 100):
            end = dice.choice((honest.succeeded, honest.failed))
            honest.finish(*map(end, claimed))
        spared = [one for one in all_ids if one.encode() not in touched]
        assert all(queue.state(one).terminal for one in spared), touched
        queue.survey()
        queue.letters()
        queue.evaluate(SWEEP, queue.base)
    over(queue, honest)
