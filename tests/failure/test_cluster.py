"""F34: masters that die, slots that move, a cluster that restarts, under load."""

from __future__ import annotations

from typing import Any

import pytest

import taskq
from taskq.broker import keys
from tests.eventually import until
from tests.failure.books import check_after
from tests.failure.producer import Producer, outlive_a_master
from tests.failure.scene import Scene

on_cluster = pytest.mark.parametrize("topology", ["cluster"], indirect=True)


def queue_elsewhere(scene: Scene) -> str:
    """Return a queue that is on another node than `default`."""
    cluster = scene.topology.fleet
    here = cluster.owner(scene.base())
    names = (f"q{number}" for number in range(100))
    return next(one for one in names if cluster.owner(keys.base(scene.shell.name, one)) is not here)


@pytest.mark.alone
@on_cluster
def test_all_go_on_when_a_master_of_a_cluster_is_killed(scene: Scene) -> None:
    outlive_a_master(scene, scene.send("hold", str(scene.folder)))


@on_cluster
def test_what_is_on_other_nodes_goes_on_while_one_is_away(scene: Scene) -> None:
    """Nobody takes its place: its replica is killed first."""
    other, cluster = queue_elsewhere(scene), scene.topology.fleet
    worker = scene.worker("-p", "1", "-t", "4", QUEUES=other)
    first = [scene.send("note", 1), scene.send("note", 2, queue=other)]
    assert taskq.gather(first, timeout=10) == [1, 2]
    master = scene.topology.primary
    (replica,) = (one for one in cluster.nodes if cluster.master_of(one) is master)
    # It holds the interpreter: only its supervisor can keep its lease.
    held = scene.send("grip", 6, queue=other)
    until(lambda: any(run.ended is None for runs in scene.runs().values() for run in runs))
    # Who would take over what the first one does not keep.
    scene.worker("-p", "1", "-t", "1", "-Q", other, QUEUES=other)
    for node in (replica, master):
        node.kill()
    values = list(range(100))
    sent: list[Any] = [scene.send("note", value, queue=other) for value in values]
    assert taskq.gather(sent, timeout=10) == values
    assert held.get(timeout=10) == [1, 1]
    assert "lost" not in worker.log
    for node in (master, replica):
        node.start()
    late = scene.send("note", "late")
    assert late.get(timeout=20) == "late"
    assert worker.stop() == 0


@on_cluster
def test_no_error_reaches_anybody_while_slots_are_moved(scene: Scene) -> None:
    """The queue goes round the cluster, key by key, while messages flow."""
    scene.worker("-p", "2", "-t", "4")
    held = scene.send("hold", str(scene.folder))
    until(scene.started)
    with Producer(scene) as producer, scene.during("slots were moved"):
        for _ in range(4):
            scene.topology.fleet.move(scene.base())
            until(producer.more(200), 10)
            assert not producer.errors
    scene.go()
    check_after(scene, producer.accepted | {held: [1, 1]})


@on_cluster
def test_no_error_reaches_anybody_while_slots_are_moved_at_once(scene: Scene) -> None:
    scene.worker("-p", "2", "-t", "4")
    with Producer(scene) as producer, scene.during("slots were moved"):
        for _ in range(3):
            if not scene.topology.fleet.move_at_once(scene.base()):
                pytest.skip("these servers move slots key by key alone; Valkey 9 does it at once")
            until(producer.more(200), 10)
            assert not producer.errors
    check_after(scene, producer.accepted)


@on_cluster
def test_nothing_is_lost_when_an_operator_moves_a_master(scene: Scene) -> None:
    scene.worker("-p", "2", "-t", "4")
    with Producer(scene) as producer, scene.during("masters were moved"):
        for _ in range(2):
            scene.topology.fleet.fail_over(scene.base())
            scene.topology.fleet.settle()
            until(producer.more(), 30)
            assert not producer.errors
    check_after(scene, producer.accepted)


@on_cluster
def test_all_go_on_when_all_of_a_cluster_was_restarted(scene: Scene) -> None:
    scene.worker("-p", "1", "-t", "4")
    cluster = scene.topology.fleet
    with Producer(scene) as producer:
        with scene.during("all nodes were killed"):
            for node in cluster.nodes:
                node.kill()
            for node in cluster.nodes:
                node.start()
            cluster.settle()
        until(producer.more(), 15)
        assert not producer.errors
    check_after(scene, producer.accepted)
