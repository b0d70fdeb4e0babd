"""The board: what the child writes is what the supervisor reads, torn or whole."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.model import message
from taskq.worker import board as boards
from taskq.worker.board import CLAIMED, ENDED, ENTRY_BYTES, STARTED, Board, BoardView

SLOTS = 4


@pytest.fixture
def view() -> Iterator[BoardView]:
    made = BoardView()
    yield made
    made.close()


@pytest.fixture
def board(view: BoardView) -> Board:
    return Board(SLOTS, view.fileno())


def claim(board: Board, id: str) -> int:
    return board.claim(0, 1, 1.0, [raw_of(id)])[0]


def raw_of(id: str) -> bytes:
    return b"TQ1b00000000" + id.encode() + b"0" * 13


@given(
    queue=st.integers(0, 2**16 - 1),
    seq=st.integers(0, 10**10 - 1),
    now=st.floats(0, 1e9),
    budget=st.integers(1, 255),
)
def test_a_message_is_read_as_it_was_written(queue: int, seq: int, now: float, budget: int) -> None:
    view = BoardView()
    board = Board(SLOTS, view.fileno())
    id = message.new_id(1)
    (at,) = board.claim(queue, seq, now, [raw_of(id)])
    (claimed,) = view.entries(CLAIMED)
    assert (claimed.queue, claimed.id, claimed.seq, claimed.claimed) == (queue, id, seq, now)
    assert claimed.field == id.encode() + b"%010d" % seq
    assert claimed.deadline == math.inf
    board.memory[at] = STARTED
    assert not view.entries(STARTED)[0].ran
    board.limit(at, now + 1, now + 2, budget)
    board.run(at)
    (started,) = view.entries(STARTED)
    assert started.ran
    assert (started.id, started.queue, started.seq) == (id, queue, seq)
    assert started.thread == threading.get_ident()
    assert (started.started, started.deadline, started.budget) == (now + 1, now + 2, budget)
    view.close()


def test_a_message_goes_through_its_states(view: BoardView, board: Board) -> None:
    at = claim(board, message.new_id(1))
    states = [CLAIMED, STARTED, ENDED]
    for state in states:
        board.memory[at] = state
        assert [one for one in states if view.entries(one)] == [state]
    board.free([at])
    assert view.entries(CLAIMED, STARTED, ENDED) == []


def test_a_new_message_inherits_nothing(view: BoardView, board: Board) -> None:
    at = claim(board, message.new_id(1))
    board.limit(at, 1.0, 2.0, 7)
    board.run(at)
    board.free([at])
    assert claim(board, message.new_id(1)) == at
    (entry,) = view.entries(CLAIMED)
    assert (entry.thread, entry.started, entry.deadline, entry.budget) == (0, 0.0, math.inf, 0)


def test_a_full_board_has_no_room_and_forgets_what_comes_beyond(
    view: BoardView, board: Board
) -> None:
    ids = [message.new_id(1) for _ in range(board.room)]
    places = board.claim(0, 1, 1.0, [raw_of(id) for id in ids])
    assert len(ids) == SLOTS + boards.SPARE_ENTRIES
    assert board.room == 0
    beyond = claim(board, message.new_id(1))
    board.memory[beyond] = STARTED
    board.run(beyond)
    assert sorted(entry.id for entry in view.entries(CLAIMED, STARTED)) == sorted(ids)
    for place in (beyond, *places):
        board.free([place])
    assert board.room == len(ids)


def test_a_board_of_which_nothing_was_written_is_empty(view: BoardView) -> None:
    assert view.entries(CLAIMED, STARTED, ENDED) == []


def test_the_board_of_a_killed_process_is_read(view: BoardView) -> None:
    id = message.new_id(1)
    script = (
        "import os, signal, sys\n"
        "from taskq.worker.board import Board\n"
        f"board = Board({SLOTS}, int(sys.argv[1]))\n"
        f"(at,) = board.claim(3, 7, 1.0, [{raw_of(id)!r}])\n"
        "board.memory[at] = 2\n"
        "board.run(at)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(view.fileno())],
        pass_fds=[view.fileno()],
        check=False,
    )
    assert ended.returncode == -9
    (entry,) = view.entries(STARTED)
    assert (entry.id, entry.queue, entry.seq) == (id, 3, 7)


@given(st.binary(min_size=ENTRY_BYTES, max_size=ENTRY_BYTES))
def test_any_bytes_are_read_without_an_error(noise: bytes) -> None:
    """The writer may be killed between any two bytes."""
    view = BoardView()
    os.ftruncate(view.fileno(), 2 * ENTRY_BYTES)
    os.pwrite(view.fileno(), noise, ENTRY_BYTES)
    found = view.entries(CLAIMED, STARTED, ENDED)
    assert len(found) == (noise[0] in (CLAIMED, STARTED, ENDED))
    assert all(len(entry.field) == 32 + len(str(entry.seq).zfill(10)) for entry in found)
    boards.overdue(found, 1.0)
    view.close()


def test_only_what_runs_past_its_deadline_is_overdue(view: BoardView, board: Board) -> None:
    late, early, endless, ended, unread = (message.new_id(1) for _ in range(5))
    for id, deadline in ((late, 5.0), (early, 50.0), (endless, math.inf), (ended, 5.0)):
        at = claim(board, id)
        board.memory[at] = STARTED
        board.limit(at, 2.0, deadline, 0)
        board.run(at)
        if id == ended:
            board.memory[at] = ENDED
    at = claim(board, unread)
    board.memory[at] = STARTED
    board.limit(at, 2.0, 5.0, 0)
    entries = view.entries(CLAIMED, STARTED, ENDED)
    assert [entry.id for entry in boards.overdue(entries, 10.0)] == [late]
