"""enrol.lua: a child becomes a member, and its group is heard of."""

from __future__ import annotations

from tests.broker.queues import ADD, LEASE_MS, FullQueue, Queue


def test_membership_is_the_lease(queue: Queue) -> None:
    before = queue.now_ms
    worker = queue.worker()
    expiry = int(queue.call("ZSCORE", "workers", worker.id))
    assert before + LEASE_MS <= expiry <= queue.now_ms + LEASE_MS


def test_the_tasks_of_the_group_are_known(queue: Queue) -> None:
    worker = queue.worker({ADD: "t", "t.crawl": "c"})
    known = queue.call("HGETALL", f"known:{worker.digest}")
    assert dict(zip(known[::2], known[1::2], strict=True)) == {b"t.add": b"t", b"t.crawl": b"c"}
    assert queue.call("ZRANGE", "groups", 0, -1) == [worker.digest.encode()]
    assert queue.call("HGET", "names", worker.id) == f"{worker.digest} host:1".encode()


def test_enrolling_again_changes_nothing_but_the_lease(queue: Queue) -> None:
    worker = queue.worker()
    queue.queued(3)
    worker.claim(2)
    before = queue.call("HGETALL", f"running:{worker.id.decode()}")
    assert worker.enrol() == "ok"
    assert queue.call("HGETALL", f"running:{worker.id.decode()}") == before
    assert queue.call("ZCARD", "workers") == 1
    # The numbers go on where they were: a repeat is still known as one.
    assert worker.again().word == "ok"
    assert len(worker.again().claimed) == 2


def test_workers_of_one_group_share_its_bell(queue: Queue) -> None:
    first, second = queue.worker(), queue.worker()
    second.digest = first.digest
    second.enrol()
    queue.queued()
    assert queue.bells(first) == "t"
    assert queue.bells(second) == ""


def test_a_worker_may_know_thousands_of_tasks(queue: Queue) -> None:
    worker = queue.worker({f"t.n{number}": "t" for number in range(2500)})
    assert queue.call("HLEN", f"known:{worker.digest}") == 2500
    [id] = queue.queued(1, "t.n2499")
    assert worker.claim() == [id]


def test_a_worker_may_know_nothing(queue: Queue) -> None:
    queue.queued()
    assert queue.worker({}).claim() == []


def test_a_worker_starts_on_a_full_server(full: FullQueue) -> None:
    [id] = full.queued()
    full.fill()
    assert full.worker().claim() == [id]
    full.audit()
