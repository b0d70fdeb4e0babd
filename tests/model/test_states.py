"""The state machine is stated once, and all that speaks of states agrees with it."""

from __future__ import annotations

import re

import pytest

from taskq.broker.scripts import source
from taskq.model.states import LETTERS, TERMINAL, TRANSITIONS, State


def test_every_state_but_unknown_has_its_moves() -> None:
    assert set(TRANSITIONS) == set(State) - {State.UNKNOWN}


def test_every_state_but_unknown_has_a_letter() -> None:
    assert set(LETTERS.values()) == set(TRANSITIONS)
    assert all(len(letter) == 1 for letter in LETTERS)


def test_terminal_states_absorb() -> None:
    assert {state for state, moves in TRANSITIONS.items() if not moves} == TERMINAL


def test_a_lower_case_letter_is_terminal() -> None:
    assert {letter for letter, state in LETTERS.items() if state.terminal} == {
        letter for letter in LETTERS if letter.islower()
    }
    assert "string.byte(record) >= 97" in source("lib/records")


def test_no_move_leads_to_unknown_or_to_itself() -> None:
    for state, moves in TRANSITIONS.items():
        assert State.UNKNOWN not in moves
        assert state not in moves


def test_every_state_is_reached_from_the_first_two() -> None:
    reached = {State.SCHEDULED, State.QUEUED}
    for _ in State:
        reached |= {after for state in reached for after in TRANSITIONS[state]}
    assert reached == set(TRANSITIONS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (State.QUEUED, State.SUCCEEDED),
        (State.QUEUED, State.FAILED),
        (State.RETRYING, State.SUCCEEDED),
        (State.RETRYING, State.FAILED),
    ],
)
def test_a_late_finish_is_a_move(before: State, after: State) -> None:
    """A worker that lost its lease may still deliver, while nobody took its message over."""
    assert after in TRANSITIONS[before]


def test_the_scripts_write_letters_that_are_known() -> None:
    for name in ("exchange", "expire", "purge", "schedule", "enqueue", "lib/records"):
        for letter in re.findall(r"'([A-Za-z])' \.\.", source(name)):
            assert letter.encode() in LETTERS, f"{name}: {letter}"


def test_states_read_as_their_names() -> None:
    assert [f"{state}" for state in State] == [state.name for state in State]
    assert State.SUCCEEDED.terminal
    assert not State.RUNNING.terminal
    assert not State.UNKNOWN.terminal
