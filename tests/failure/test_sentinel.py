"""F30, F31, F33: failovers by sentinels, under load."""

from __future__ import annotations

import time
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


@pytest.mark.alone
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
def test_what_a_master_takes_that_was_frozen_and_replaced_does_not_count(scene: Scene) -> None:
    """F32: thawed, it acknowledges what nobody will know; where replicas must, it cannot."""
    scene.worker("-p", "2", "-t", "4")
    fleet, old = scene.topology.fleet, scene.topology.primary
    durable = scene.shell.app(durability="replicas:2", enqueue_deadline=90)
    with Producer(scene) as plain, Producer(scene, durable) as careful:
        began = time.monotonic()
        old.pause()
        new = fleet.wait_for_another(old)
        old.resume()
        until(lambda: fleet.replicas(new) == 2, 30)
        scene.note("the master was frozen, and replaced", began=began)
        for producer in (plain, careful):
            until(producer.more(), 20)
            assert not producer.errors
    durable.close()
    kept = survivors(scene, careful.accepted, most_lost=0)
    check_after(scene, kept | survivors(scene, plain.accepted, most_lost=100_000))


@on_sentinel
def test_what_all_replicas_have_outlives_a_master_that_an_operator_moves(scene: Scene) -> None:
    """F31, with durability."""
    scene.worker("-p", "2", "-t", "4")
    fleet = scene.topology.fleet
    durable = scene.shell.app(durability="replicas:2", enqueue_deadline=90)
    with Producer(scene, durable) as producer:
        began = time.monotonic()
        fleet.fail_over()
        until(lambda: fleet.replicas(scene.topology.primary) == 2, 30)
        scene.note("the master was moved", began=began)
        until(producer.more(), 20)
        assert not producer.errors
    durable.close()
    check_after(scene, survivors(scene, producer.accepted, most_lost=0))


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
