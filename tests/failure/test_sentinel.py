"""F30, F31, F33: failovers by sentinels, under load."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

import taskq
from taskq import MessageLost
from tests.eventually import let_pass, until
from tests.failure.books import check_after
from tests.failure.scene import Scene

on_sentinel = pytest.mark.parametrize("topology", ["sentinel"], indirect=True)
Results = dict[Any, Any]


class Producer:
    """Sends messages until it is told to end, each as one accepted call."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.accepted: Results = {}
        self.errors: list[BaseException] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: len(self.accepted) > 50)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(30)

    def more(self, count: int = 50) -> Callable[[], bool]:
        """Return whether so many more were accepted since now."""
        enough = len(self.accepted) + count
        return lambda: bool(self.errors) or len(self.accepted) >= enough

    def _send_on(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            try:
                sent = self._scene.send("note", number)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
                return
            self.accepted[sent] = number


@pytest.fixture
def held(scene: Scene) -> Iterator[Any]:
    """A message that runs, and goes on to run, whatever happens to Redis meanwhile."""
    held = scene.send("hold", str(scene.folder))
    yield held
    scene.go()


def survivors(scene: Scene, expected: Results, most_lost: int = 50) -> Results:
    """Wait for all ends; return what the new master knows: the rest says that it was lost."""
    outcomes = taskq.gather(list(expected), timeout=30, return_exceptions=True)
    records = scene.queue().records()
    kept: Results = {}
    for (result, value), outcome in zip(expected.items(), outcomes, strict=True):
        if result.wire_id in records:
            kept[result] = value
        else:
            # It was acknowledged by a master that died before it told its replicas; or it
            # ended, and somebody had heard of that.
            assert isinstance(outcome, MessageLost) or outcome == value
    print(f"{len(expected) - len(kept)} of {len(expected)} messages were lost")
    assert len(expected) - len(kept) <= most_lost
    return kept


@on_sentinel
def test_all_go_on_when_a_master_under_load_is_killed(scene: Scene, held: Any) -> None:
    """F30."""
    scene.worker("-p", "2", "-t", "4")
    until(scene.started)
    with Producer(scene) as producer:
        scene.topology.kill_primary()
        scene.note("the master was killed")
        until(producer.more(), 5)
        assert not producer.errors
    scene.go()
    expected = survivors(scene, producer.accepted)
    assert held.get(timeout=10) == [1, 1]
    check_after(scene, expected | {held: [1, 1]})


@on_sentinel
def test_all_go_on_when_an_operator_moves_the_master(scene: Scene) -> None:
    """F31: the old master acknowledges what nobody will know; each future says so."""
    scene.worker("-p", "2", "-t", "4")
    with Producer(scene) as producer:
        scene.topology.fleet.fail_over()
        until(lambda: scene.topology.fleet.replicas(scene.topology.primary) == 2, 20)
        scene.note("the master was moved")
        until(producer.more(), 5)
        assert not producer.errors
    check_after(scene, survivors(scene, producer.accepted, most_lost=100_000))


@on_sentinel
def test_all_go_on_when_all_sentinels_were_away(scene: Scene) -> None:
    """F33: while they are, who has a connection keeps it; who lost it waits."""
    scene.worker("-p", "2", "-t", "4")
    sentinels = scene.topology.fleet.sentinels
    with Producer(scene) as producer:
        for one in sentinels:
            one.kill()
        until(producer.more(), 5)
        with scene.topology.fleet.servers[0].client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        scene.note("lines were cut, and no sentinel tells of the master")
        let_pass(3)
        for one in sentinels:
            one.start()
        until(producer.more(), 5)
        assert not producer.errors
    check_after(scene, producer.accepted)
