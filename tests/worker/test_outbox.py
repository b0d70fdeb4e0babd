"""The outbox between many slots and one exchange: nothing lost, no mark left behind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from taskq.broker.claims import Finish
from taskq.worker.delivery import Claim, Delivery, Done
from taskq.worker.outbox import Outbox

SLOTS, EACH = 4, 5000


@pytest.fixture
def _restless() -> Iterator[None]:
    """Let threads change places as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def done(number: int = 0) -> Done:
    claim = Claim("q", b"w" * 32, b"0000000001", 1, 0.0)
    delivery = Delivery(claim, "t", b"", b"")
    return Done(delivery, Finish("s", b"%d" % number))


class Notified:
    """Counts the calls for attention."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, *, prompt: bool) -> None:
        self.times += 1


def test_the_first_is_told_and_the_rest_come_along() -> None:
    notified = Notified()
    outbox = Outbox(notified)
    assert outbox.since is None
    for number in range(5):
        outbox.put(done(number), prompt=False)
    since = outbox.since
    assert since is not None
    assert (len(outbox), notified.times, outbox.prompt) == (5, 1, False)
    assert [one.finish.field for one in outbox.take()] == [b"0", b"1", b"2", b"3", b"4"]
    assert (len(outbox), outbox.since, outbox.prompt) == (0, None, False)


def test_one_that_is_urgent_is_told_though_others_wait() -> None:
    notified = Notified()
    outbox = Outbox(notified)
    outbox.put(done(), prompt=False)
    outbox.put(done(), prompt=True)
    outbox.put(done(), prompt=True)
    assert (notified.times, outbox.prompt) == (2, True)
    assert len(outbox.take()) == 3
    assert not outbox.prompt


def test_an_empty_one_gives_nothing() -> None:
    outbox = Outbox(Notified())
    assert outbox.take() == []
    assert outbox.since is None


@pytest.mark.parametrize("urgency", ["patient", "prompt"])
@pytest.mark.usefixtures("_restless")
def test_nothing_is_lost_between_put_and_take(urgency: str) -> None:
    """Whoever is told takes; whatever is left when all is quiet was told to nobody."""
    called = threading.Event()

    def call(*, prompt: bool) -> None:
        called.set()

    outbox = Outbox(call)
    taken: list[bytes] = []
    ended = threading.Event()

    def take() -> None:
        while not ended.is_set():
            called.wait(0.2)
            called.clear()
            taken.extend(one.finish.field for one in outbox.take())

    def put(start: int) -> None:
        for number in range(start, start + EACH):
            outbox.put(done(number), prompt=urgency == "prompt")

    taker = threading.Thread(target=take)
    putters = [threading.Thread(target=put, args=(at * EACH,)) for at in range(SLOTS)]
    for thread in (taker, *putters):
        thread.start()
    for thread in putters:
        thread.join()
    ended.set()
    called.set()
    taker.join()
    taken += [one.finish.field for one in outbox.take()]
    assert len(taken) == SLOTS * EACH
    assert set(taken) == {b"%d" % number for number in range(SLOTS * EACH)}
    assert (outbox.since, outbox.prompt) == (None, False)
