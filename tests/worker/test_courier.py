"""The supervisor asks its children for user and password."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from taskq.broker.credentials import Provider
from taskq.broker.faults import NoCredentials
from taskq.worker import courier
from taskq.worker.channel import Channel
from taskq.worker.courier import Courier


class Child:
    """What the courier knows of one, and the other end of its channel."""

    serves, bye, frozen = True, False, False

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.channel, self.end = Channel(ours), Channel(theirs)

    def answers(self, asked: Any, to: Courier) -> threading.Thread:
        """Answer one question, as a child and its supervisor's loop do."""

        def live() -> None:
            for note in self.end.receive() or ():
                courier.answer(Provider(asked), note, self.end)
            for note in self.channel.receive() or ():
                to.hear(note)

        thread = threading.Thread(target=live)
        thread.start()
        return thread

    def close(self) -> None:
        self.channel.close()
        self.end.close()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    children = [Child(), Child()]
    yield children
    for child in children:
        child.close()


@pytest.mark.parametrize(
    ("said", "login"), [("p", ("p",)), (("p",), ("p",)), (("ann", "p"), ("ann", "p"))]
)
def test_a_child_is_asked(children: list[Any], said: Any, login: Any) -> None:
    one = Courier(children)
    answering = children[0].answers(lambda: said, one)
    assert one.fetch() == login
    answering.join()


def test_one_that_does_not_answer_is_passed_over(
    children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "_ANSWER_SECONDS", 60.0)
    one = Courier(children)
    answering = children[1].answers(lambda: "p", one)
    assert one.fetch() == ("p",)
    answering.join()


def test_where_none_can_what_was_told_last_is_used(children: list[Any]) -> None:
    one = Courier(children)
    with_one = children[0].answers(lambda: "p", one)
    one.fetch()
    with_one.join()
    children[0].bye = children[1].frozen = True
    assert one.fetch() == ("p",)


def test_those_that_are_mute_are_waited_for_once(
    children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each connection of the supervisor would take that long, and a lease would run out."""
    one = Courier(children)
    with_one = children[0].answers(lambda: "p", one)
    one.fetch()
    with_one.join()
    monkeypatch.setattr(courier, "_ANSWER_SECONDS", 0.1)
    assert one.fetch() == ("p",)
    monkeypatch.setattr(courier, "_ANSWER_SECONDS", 60.0)
    assert [one.fetch() for _ in range(5)] == [("p",)] * 5


def test_an_answer_that_comes_late_is_for_the_next(
    children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Courier(children)
    monkeypatch.setattr(courier, "_ANSWER_SECONDS", 0.1)
    with pytest.raises(NoCredentials):
        one.fetch()
    children[1].answers(lambda: ("ann", "p"), one).join()
    assert one.fetch() == ("ann", "p")


def test_where_none_ever_did_there_are_none(children: list[Any]) -> None:
    children[0].serves = children[1].bye = False
    children[1].frozen = True
    with pytest.raises(NoCredentials, match="no child of this worker answers"):
        Courier(children).fetch()


@pytest.mark.parametrize(("asked", "passing"), [(lambda: 1 / 0, True), (lambda: 5, False)])
def test_what_went_wrong_there_is_told_here(
    children: list[Any], asked: Any, *, passing: bool
) -> None:
    one = Courier(children)
    answering = children[0].answers(asked, one)
    with pytest.raises(NoCredentials, match="the provider of credentials") as told:
        one.fetch()
    assert told.value.passing is passing
    answering.join()
