"""records.py reads what the scripts write, and writes what they expect."""

from __future__ import annotations

import pytest

from taskq.broker import records
from taskq.broker.records import NO_LABEL, NO_MARK, Record
from taskq.broker.scripts import source
from taskq.model.states import LETTERS, State

LABEL = b"0123abcd4102444800000"
COUNTERS = b"0000070020000000091700000000000001"
CLAIM = b"a" * 32 + b"0000000042"


class TestParse:
    def test_the_shortest_is_queued_and_says_nothing_else(self) -> None:
        assert records.parse(b"Q") == Record(b"Q")
        assert records.parse(b"Q").state is State.QUEUED

    def test_a_label_is_all_that_a_new_message_may_have(self) -> None:
        assert records.parse(b"Q" + LABEL) == Record(b"Q", LABEL)

    def test_one_that_was_scheduled_has_no_past(self) -> None:
        record = records.parse(b"S" + LABEL + b"005shop.message" + b"9" * 200)
        assert record == Record(b"S", LABEL, tail=b"005shop.message" + b"9" * 200)
        assert (record.state, record.history) == (State.SCHEDULED, b"")

    @pytest.mark.parametrize("letter", [letter for letter in LETTERS if letter not in b"QS"])
    @pytest.mark.parametrize("tail", [b"", b"\x00a tail\xff"])
    def test_the_long_form(self, letter: bytes, tail: bytes) -> None:
        record = records.parse(letter + LABEL + COUNTERS + CLAIM + tail)
        assert record == Record(
            letter, LABEL, 7, 2, 0, 9, 1700000000000001, b"a" * 32, b"0000000042", tail
        )
        assert record.state is LETTERS[letter]

    @pytest.mark.parametrize(
        "raw",
        [b"", b"?", b"Q12", b"Q" + b"x" * 21, b"\x80\x04pickle", b"s" + b"9" * 30 + b"x" * 99],
    )
    def test_what_no_script_wrote_is_unreadable(self, raw: bytes) -> None:
        record = records.parse(raw)
        assert record is records.UNREADABLE
        assert record.state.terminal
        assert record.history == b""


class TestWrite:
    def test_a_fresh_one_reads_back(self) -> None:
        record = records.parse(b"R" + records.fresh(1700000000000001, CLAIM))
        assert record == Record(
            b"R", claims=1, fence=1700000000000001, worker=b"a" * 32, seq=b"0000000042"
        )

    def test_an_attempt_is_counted(self) -> None:
        head = LABEL + COUNTERS + CLAIM
        assert records.with_attempt(head) == LABEL + b"000008" + COUNTERS[6:] + CLAIM

    def test_counting_stops_where_the_field_is_full(self) -> None:
        head = LABEL + b"999999" + COUNTERS[6:] + CLAIM
        assert records.with_attempt(head) == head

    def test_a_terminal_one_reads_back(self) -> None:
        head = records.fresh(1, CLAIM)
        record = records.parse(b"f" + records.with_attempt(head) + b"the report")
        assert (record.state, record.attempts, record.tail) == (State.FAILED, 1, b"the report")


class TestLabel:
    def test_nothing_to_note(self) -> None:
        assert records.label(None, 0) == b""

    @pytest.mark.parametrize(
        ("mark", "expires_ms", "label"),
        [
            ("0123abcd", 4102444800000, LABEL),
            ("0123abcd", 0, b"0123abcd0000000000000"),
            (None, 1, b"--------0000000000001"),
        ],
    )
    def test_what_there_is(self, mark: str | None, expires_ms: int, label: bytes) -> None:
        assert records.label(mark, expires_ms) == label
        assert len(label) == len(NO_LABEL)

    def test_a_mark_tells_tasks_apart(self) -> None:
        assert records.mark_of("shop.add") == records.mark_of("shop.add")
        assert records.mark_of("shop.add") != records.mark_of("shop.sub")
        assert len(records.mark_of("shop.add")) == 8


def test_lua_has_the_same_widths() -> None:
    text = source("lib/records")
    assert f"local HEAD = {records.HEAD_BYTES}\n" in text
    assert f"local NO_MARK = '{NO_MARK.decode()}'\n" in text
    assert f"local NO_LABEL = NO_MARK .. '{NO_LABEL[8:].decode()}'\n" in text
    assert f"local SHORT_HEAD = {1 + len(NO_LABEL)}\n" in text
    unclaimed = len(COUNTERS) + len(CLAIM)
    assert f"local UNCLAIMED = string.rep('0', {unclaimed})\n" in text
    assert 1 + len(NO_LABEL) + unclaimed == records.HEAD_BYTES
