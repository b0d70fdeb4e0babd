"""The keys of a queue. The only place that spells one.

All keys of a queue begin with the same hash tag, so that every script touches one slot
of a cluster. The scripts get the base as KEYS[1] and append the names below.

A queue may have partitions, each with all of these keys. The *place* of one is written
`<queue>/<number>`, that of the first `<queue>` alone. What is said of a queue here, and in
all that does not deal with partitions by name, is true of each place by itself.

| key | type | holds | lives |
|---|---|---|---|
| `ready:<lane>` | list | the serialised calls; LPUSH in, RPOP out | while not empty |
| `lanes` | zset | the lanes that are not empty, by priority | while not empty |
| `pass:<priority>` | zset | how much each of those lanes was served, for fairness | as they |
| `m:<id>` | string | the record of a message | no TTL until it is terminal |
| `running:<worker>` | hash | id and claim number → lane and message | while claimed |
| `workers` | zset | worker → lease expiry; to be a member is to hold the lease | till reaped |
| `names` | hash | worker → digest of the tasks it knows, what people call it | 1 day |
| `seqs` | hash | worker → number of its last exchange, and the answer | 1 day |
| `groups` | zset | digest of a set of tasks → until when some worker knows them | 1 day |
| `known:<digest>` | hash | task → `t` (thread) or `c` (coroutine) | 1 day |
| `wake:<worker>` | list | wakes one child, whatever it listens for | 1 minute |
| `cancels:<worker>` | hash | id of a message it holds → claim number, signed order | as the claim |
| `counts` | hash | how many were refused, expired, without record, disobeyed … | 90 days |
| `bell:<digest>:<kind>` | list | at most one token, which wakes one worker | 1 minute |
| `scheduled` | zset | id → due time; the message is in its record | while not empty |
| `waiting` | hash | task → how many of `scheduled` are its own | while not empty |
| `timer` | string | the worker that watches for the earliest due time | until then |
| `orphans` | zset | workers whose messages are being taken back | while not empty |
| `orphans:<worker>` | hash | those messages | while not empty |
| `tick`, `hold` | string | the reaper's last tick; until when it takes nothing back | 1 day |
| `dead` | zset | id of a dead letter → when its message ended | `dead_letter_age` |
| `dead:m` | hash | id → lane, terminal record and message | the same |
| `done:<id>` | channel | the outcome, or its state letter where it is large | |
| `schedules` | hash | name of a schedule → its signed definition | until removed |
| `fires` | hash | name of a schedule → its next tick, and what it fired | the same |
| `ticks` | zset | name of a schedule that goes on → when its next tick is fired | the same |
| `declared` | zset | name of a schedule in code → until when a worker vouches for it | the same |
| `agenda` | channel | the name of a schedule that was made or changed | |
| `mark` | string | nothing: a write, by which replicas show how far they are | 1 minute |
| `partitions` | string | how many the queue has, where it has several; of the first one | |
| `ahead` | string | µs by which a test's clock is ahead of Redis's; tests alone use it | 1 day |
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from taskq.config import MOST_PARTITIONS, check_name
from taskq.errors import ConfigError

PREFIX = "tq"
# The priority of the lane that bears the task's name alone.
DEFAULT_PRIORITY = 5
# Before the number of a partition; no name has one.
_SLASH = "/"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")


def place(queue: str, partition: int) -> str:
    """Return the place of one partition of a queue."""
    return f"{queue}{_SLASH}{partition}" if partition else queue


def places(queue: str, count: int) -> tuple[str, ...]:
    """Return the places of a queue with so many partitions."""
    return tuple(place(queue, number) for number in range(count))


def queue_of(place: str) -> str:
    """Return the queue that a place is of."""
    return place.partition(_SLASH)[0]


def queues_of(places: Iterable[str]) -> dict[str, int]:
    """Return the queues that these places are of, and how many each has."""
    found: dict[str, int] = {}
    for one in places:
        queue = queue_of(one)
        found[queue] = found.get(queue, 0) + 1
    return found


def told(places: Iterable[str]) -> str:
    """Return in words which queues these places are of."""
    counts = queues_of(places).items()
    return ", ".join(
        f"{name} ({count} partitions)" if count > 1 else name for name, count in counts
    )


def base(app: str, queue: str) -> str:
    """Return what every key of a queue begins with."""
    return f"{PREFIX}:{{{app}:{queue.replace(_SLASH, ':')}}}:"


def lane(task: str, priority: int) -> str:
    """Return the name of the ready list of a task at a priority."""
    return task if priority == DEFAULT_PRIORITY else f"{task}:{priority}"


def apart(task: str) -> str:
    """Return the name of a task under which its suspects wait, for children with one slot."""
    return f"!{task}"


def ready(app: str, queue: str, task: str, priority: int = DEFAULT_PRIORITY) -> str:
    """Return the key of the list that holds a task's queued calls."""
    return f"{base(app, queue)}ready:{lane(task, priority)}"


def record(app: str, queue: str, id: str) -> str:
    """Return the key of a message's record."""
    return f"{base(app, queue)}m:{id}"


def running(base: str, worker: str) -> str:
    """Return the key of what a child has claimed and not ended."""
    return f"{base}running:{worker}"


def scheduled(app: str, queue: str) -> str:
    """Return the key of the messages that wait for their time."""
    return f"{base(app, queue)}scheduled"


def done(app: str, queue: str, id: str) -> str:
    """Return the channel on which a message's outcome is published."""
    return f"{base(app, queue)}done:{id}"


def ticks(app: str, queue: str) -> str:
    """Return the key of when the next tick of each schedule is due."""
    return f"{base(app, queue)}ticks"


def ahead(app: str, queue: str) -> str:
    """Return the key of how far the clock of a test is ahead of Redis's."""
    return f"{base(app, queue)}ahead"


def mark(base: str) -> str:
    """Return the key that is written to see which replicas have all that was written before."""
    return f"{base}mark"


def agenda(app: str, queue: str) -> str:
    """Return the channel on which changes of a queue's schedules are told."""
    return f"{base(app, queue)}agenda"


def partitions(app: str, queue: str) -> str:
    """Return the key of how many partitions a queue has."""
    return f"{base(app, queue)}partitions"


def bell(app: str, queue: str, digest: str, kind: str) -> str:
    """Return the key of the bell of a group of workers, for one kind of slot."""
    return f"{base(app, queue)}bell:{digest}:{kind}"


def wake(app: str, queue: str, worker: str) -> str:
    """Return the key of the list that wakes one child; its kicks to itself have another name."""
    return f"{base(app, queue)}wake:{worker}"


def address(name: str, queue: str) -> str:
    """Return what people see as the id of a message: `<name>[@<queue>[/<partition>]]`."""
    return name if queue == "default" else f"{name}@{queue}"


def parse_address(text: object) -> tuple[str, str]:
    """Return the name and the place of an address."""
    if not isinstance(text, str):
        msg = f"an id must be a str, not {type(text).__name__}"
        raise TypeError(msg)
    name, at, queue = text.rpartition("@")
    if not at:
        return text, "default"
    queue, slash, number = queue.partition(_SLASH)
    check_name("queue", queue)
    if not slash:
        return name, queue
    if not _NUMBER.fullmatch(number) or int(number) >= MOST_PARTITIONS:
        msg = f"id {text[:200]!r}: after the queue, a partition is a number below {MOST_PARTITIONS}"
        raise ConfigError(msg)
    return name, place(queue, int(number))
