"""Which partition a message goes to: the same in every process, in each version."""

from __future__ import annotations

import enum
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq import ConfigError, Queue
from taskq.config import MOST_PARTITIONS, read_queues
from taskq.model import message, queues

counts = st.integers(1, MOST_PARTITIONS)


@given(st.integers(0, 2**47), counts, st.data())
def test_a_new_id_says_its_partition(now_ms: int, count: int, data: st.DataObject) -> None:
    partition = data.draw(st.integers(0, count - 1))
    id = queues.new_id(now_ms, partition, count)
    assert queues.of_id(id, count) == partition
    assert message.WIRE_ID.fullmatch(id)
    assert id.startswith(f"{now_ms:012x}7")


def test_new_ids_are_all_different() -> None:
    ids = {queues.new_id(0, number % 8, 8) for number in range(10_000)}
    assert len(ids) == 10_000


@pytest.mark.parametrize(("key", "partition"), [("customer-42", 3), ("7", 6), ("grüße", 3)])
def test_keys_lead_where_they_always_led(key: str, partition: int) -> None:
    assert queues.of_key(key, 8) == partition


def test_keys_are_spread_evenly() -> None:
    found = Counter(queues.of_key(f"customer-{number}", 8) for number in range(8_000))
    assert len(found) == 8
    assert min(found.values()) > 800


class Key(str, enum.Enum):  # noqa: UP042 - its text is not its value
    A = "a"


@pytest.mark.parametrize(("key", "text"), [("a", "a"), (7, "7"), (-1, "-1"), (Key.A, "a")])
def test_a_key_is_text_or_a_number(key: Any, text: str) -> None:
    assert queues.check_key(key) == text


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (True, TypeError),
        (1.5, TypeError),
        (b"a", TypeError),
        ("", ValueError),
        ("x" * 1025, ValueError),
    ],
)
def test_what_can_be_no_key_is_told(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="partition_key"):
        queues.check_key(key)


def test_a_queue_may_leave_its_number_to_others() -> None:
    assert Queue("low").partitions is None
    assert Queue.of("low") == Queue("low")


@pytest.mark.parametrize("number", [0, -1, MOST_PARTITIONS + 1])
def test_a_number_of_partitions_has_bounds(number: int) -> None:
    with pytest.raises(ConfigError, match=f"partitions of the queue low must be 1 to .*{number}"):
        Queue("low", partitions=number)


@pytest.mark.parametrize("number", ["8", 1.0, True])
def test_a_number_of_partitions_is_an_int(number: Any) -> None:
    with pytest.raises(TypeError, match="partitions of the queue low must be an int"):
        Queue("low", partitions=number)


@pytest.mark.parametrize("name", ["", "a b", "a/1", "a:8"])
def test_a_queue_needs_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="queue name"):
        Queue(name)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("a", {"a": None}),
        (" a , b:8,", {"a": None, "b": 8}),
        ("a:2,a", {"a": 2}),
        ("a,a:2", {"a": 2}),
    ],
)
def test_queues_are_read_from_text(text: str, found: dict[str, int | None]) -> None:
    assert read_queues("-Q", text) == found


@pytest.mark.parametrize(
    "text", ["a:", "a:x", "a:8,a:4", "a:8:9", ":8", "a b", "a:0", "a:-1", "a:9999999999", "a:٣"]
)
def test_text_that_names_no_queues_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        read_queues("-Q", text)
