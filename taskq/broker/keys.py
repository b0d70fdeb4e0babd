"""The keys of a queue. The only place that spells one.

All keys of a queue begin with the same hash tag, so that every script touches one slot
of a cluster. The scripts get the base as KEYS[1] and append the names below.

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
| `ahead` | string | µs by which a test's clock is ahead of Redis's; tests alone use it | 1 day |
"""

from __future__ import annotations

from taskq.config import check_name

PREFIX = "tq"
# The priority of the lane that bears the task's name alone.
DEFAULT_PRIORITY = 5


def base(app: str, queue: str) -> str:
    """Return what every key of a queue begins with."""
    return f"{PREFIX}:{{{app}:{queue}}}:"


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


def bell(app: str, queue: str, digest: str, kind: str) -> str:
    """Return the key of the bell of a group of workers, for one kind of slot."""
    return f"{base(app, queue)}bell:{digest}:{kind}"


def wake(app: str, queue: str, worker: str) -> str:
    """Return the key of the list that wakes one child; its kicks to itself have another name."""
    return f"{base(app, queue)}wake:{worker}"


def address(name: str, queue: str) -> str:
    """Return what people see as the id of a message: `<name>[@<queue>]`."""
    return name if queue == "default" else f"{name}@{queue}"


def parse_address(text: object) -> tuple[str, str]:
    """Return the name and the queue of an address."""
    if not isinstance(text, str):
        msg = f"an id must be a str, not {type(text).__name__}"
        raise TypeError(msg)
    name, at, queue = text.rpartition("@")
    return (name, check_name("queue", queue)) if at else (text, "default")
