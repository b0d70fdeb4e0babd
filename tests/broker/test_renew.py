"""renew.lua: a lease goes on while its worker is a member, and never comes back."""

from __future__ import annotations

from taskq.broker import claims
from tests.broker.queues import LEASE_MS, FullQueue, Queue, Worker


def test_a_member_is_renewed(queue: Queue) -> None:
    worker = queue.worker()
    queue.call("ZADD", "workers", 1, worker.id)
    assert worker.renew() == "ok"
    assert lease_left(worker) > LEASE_MS - 1000


def test_a_late_renewal_of_a_member_counts(queue: Queue) -> None:
    worker = queue.worker()
    [id] = queue.queued()
    worker.claim()
    queue.call("ZADD", "workers", 1, worker.id)  # it ran out, and nobody has looked yet
    assert worker.renew() == "ok"
    assert queue.reclaim() == 0
    assert worker.finish(worker.succeeded(id)) == "k"


def test_an_exchange_renews_as_well(queue: Queue) -> None:
    worker = queue.worker()
    queue.call("ZADD", "workers", 1, worker.id)
    worker.claim()
    assert lease_left(worker) > LEASE_MS - 1000


def test_who_is_no_member_is_told_so_and_stays_none(queue: Queue) -> None:
    worker = queue.worker()
    queue.reclaim(worker)
    before = queue.keys()
    assert worker.renew() == "lost"
    assert worker.exchange(threads=1).word == "lost"
    assert queue.call("ZSCORE", "workers", worker.id) is None
    assert queue.keys() == before


def test_a_stranger_is_lost(queue: Queue) -> None:
    assert queue.run(claims.renew(queue.base, b"0" * 32, LEASE_MS, "digest")).word == "lost"
    assert queue.keys() == []


def test_what_its_group_needs_is_kept(queue: Queue) -> None:
    worker = queue.worker()
    for key in ("groups", "names", f"known:{worker.digest}"):
        queue.call("PEXPIRE", key, 5000)
    worker.renew()
    for key in ("groups", "names", f"known:{worker.digest}"):
        left = queue.call("PTTL", key)
        assert left == -1 or left > 5000, key


def test_its_group_is_heard_of_again(queue: Queue) -> None:
    worker = queue.worker()
    queue.call("ZREM", "groups", worker.digest)
    worker.renew()
    assert int(queue.call("ZSCORE", "groups", worker.digest)) > queue.now_ms + LEASE_MS
    queue.queued()
    assert queue.bells(worker) == "t"


def test_a_member_whose_tasks_are_forgotten_is_renewed_and_told_so(queue: Queue) -> None:
    worker = queue.worker()
    queue.call("DEL", f"known:{worker.digest}")
    queue.call("ZADD", "workers", 1, worker.id)
    assert worker.renew() == "unknown"
    assert lease_left(worker) > LEASE_MS - 1000
    worker.enrol()
    assert worker.renew() == "ok"


def test_a_lease_is_renewed_on_a_full_server(full: FullQueue) -> None:
    worker = full.worker()
    full.fill()
    assert worker.renew() == "ok"


def lease_left(worker: Worker) -> int:
    queue = worker.queue
    return int(queue.call("ZSCORE", "workers", worker.id)) - queue.now_ms
