"""F30, F31, F33: failovers by sentinels, under load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from taskq import Result
from tests.eventually import let_pass, until
from tests.failure.books import check_after
from tests.failure.producer import Producer, outlive_a_master, survivors
from tests.failure.scene import Scene

on_sentinel = pytest.mark.parametrize("topology", ["sentinel"], indirect=True)


@pytest.fixture
def held(scene: Scene) -> Iterator[Any]:
    """A message that runs, and goes on to run, whatever happens to Redis meanwhile."""
    held = scene.send("hold", str(scene.folder))
    yield held
    scene.go()


def known_to_the_master(scene: Scene, result: Result[Any]) -> bool:
    """Tell whether a message was not acknowledged by the one before."""
    return result.wire_id in scene.queue().records()


@on_sentinel
def test_all_go_on_when_a_master_under_load_is_killed(scene: Scene, held: Any) -> None:
    """F30."""
    outlive_a_master(scene, held)


@on_sentinel
def test_all_go_on_when_an_operator_moves_the_master(scene: Scene) -> None:
    """F31: the old master acknowledges what nobody will know; each future says so.

    It would go on for some ten seconds; but the sentinels tell, and it is left.
    """
    scene.worker("-p", "2", "-t", "4")
    with Producer(scene) as producer:
        with scene.during("the master was moved"):
            scene.topology.fleet.fail_over()
            until(lambda: known_to_the_master(scene, scene.send("note", "after")), 6)
            until(lambda: scene.topology.fleet.replicas(scene.topology.primary) == 2, 20)
        until(producer.more(), 30)
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
        until(producer.more(), 30)
        with scene.topology.fleet.servers[0].client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        scene.note("lines were cut, and no sentinel tells of the master")
        let_pass(3)
        for one in sentinels:
            one.start()
        until(producer.more(), 30)
        assert not producer.errors
    check_after(scene, producer.accepted)
