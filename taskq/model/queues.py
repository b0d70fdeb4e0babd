"""A queue as an app declares it, and which of its partitions a message goes to.

An id says it by its last eight digits, so that sending a message again under the id it has
leads to the same partition. What is computed here is the same in every process and version.
"""

from __future__ import annotations

import hashlib

import msgspec

from taskq.config import check_name, check_partitions
from taskq.model import message

# Hex digits of an id; and how much of what they can say is used where an id is made to fit.
_DIGITS = 8
_USED = 0x7FFF_FFFF
_MOST_KEY = 1024


class Queue(msgspec.Struct, frozen=True):
    """A queue, and how many partitions it has: so many nodes of a cluster can share it.

    Without a number it has one, or as many as `TASKQ_QUEUES` says.
    """

    name: str
    partitions: int | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "name", check_name("queue", self.name))
        if self.partitions is not None:
            check_partitions(self.name, self.partitions)

    @classmethod
    def of(cls, declared: Queue | str) -> Queue:
        """Return what was declared, by its name alone or in full."""
        return declared if isinstance(declared, Queue) else cls(declared)


def of_id(id: str, count: int) -> int:
    """Return the partition of a message whose id was given, or sent before."""
    return int(id[-_DIGITS:], 16) % count


def of_key(key: str, count: int) -> int:
    """Return the partition of all messages that were given this key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"taskq-partition").digest()
    return int.from_bytes(digest) % count


def new_id(now_ms: int, partition: int, count: int) -> str:
    """Return a new id that says this partition of so many."""
    return fitted(message.new_id(now_ms), partition, count)


def fitted(id: str, partition: int, count: int) -> str:
    """Return a new id, changed so that it says this partition of so many."""
    number = int(id[-_DIGITS:], 16) & _USED
    return f"{id[:-_DIGITS]}{number - number % count + partition:0{_DIGITS}x}"


def check_key(key: object) -> str:
    """Return a partition key as text."""
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        msg = f"partition_key must be a str or an int, not {type(key).__name__}"
        raise TypeError(msg)
    # Of an enum, its value.
    text = str.__str__(key) if isinstance(key, str) else str(int(key))
    if not 1 <= len(text) <= _MOST_KEY:
        msg = f"partition_key must have 1 to {_MOST_KEY:,} characters, not {len(text):,}"
        raise ValueError(msg)
    return text
