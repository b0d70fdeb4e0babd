"""reclaim.lua with `members`, widen.lua: partitions are looked after by who asks them rarely."""

from __future__ import annotations

import pytest

from taskq.broker import claims, commands
from tests.broker.queues import ADD, LEASE_MS, MAIL, TICK_MS, FullQueue, Queue, Worker


def tend(queue: Queue, *workers: Worker) -> list[Worker]:
    """Return who was forgotten."""
    members, digest = [one.id for one in workers], workers[0].digest
    command = claims.reclaim(queue.base, LEASE_MS, TICK_MS, digest=digest, members=members)
    told = queue.run(command).forgotten
    return [one for one in workers if one.id in told]


class TestLeases:
    def test_those_of_the_members_named_are_renewed(self, queue: Queue) -> None:
        mine, other = queue.worker(), queue.worker()
        for one in (mine, other):
            queue.call("ZADD", "workers", 1, one.id)
        tend(queue, mine)
        assert int(queue.call("ZSCORE", "workers", mine.id)) > queue.now_ms + LEASE_MS - 1000
        assert queue.call("ZSCORE", "workers", other.id) is None

    def test_who_is_no_member_becomes_none_and_is_named(self, queue: Queue) -> None:
        worker, other = queue.worker(), queue.worker()
        queue.reclaim(worker)
        assert tend(queue, worker, other) == [worker]
        assert queue.call("ZSCORE", "workers", worker.id) is None

    def test_those_whose_tasks_are_forgotten_are_renewed_and_named(self, queue: Queue) -> None:
        workers = queue.worker(), queue.worker()
        assert tend(queue, *workers) == []
        queue.call("DEL", f"known:{workers[0].digest}")
        queue.call("ZADD", "workers", 1, workers[0].id)
        assert tend(queue, *workers) == list(workers)
        assert int(queue.call("ZSCORE", "workers", workers[0].id)) > queue.now_ms
        workers[0].enrol()
        assert tend(queue, *workers) == []

    def test_what_their_group_needs_is_kept(self, queue: Queue) -> None:
        worker = queue.worker()
        for key in ("groups", "names", f"known:{worker.digest}"):
            queue.call("PEXPIRE", key, 5000)
        tend(queue, worker)
        for key in ("groups", "names", f"known:{worker.digest}"):
            assert queue.call("PTTL", key) > 5000, key

    def test_it_is_done_on_a_full_server(self, full: FullQueue) -> None:
        worker = full.worker()
        full.call("ZADD", "workers", 1, worker.id)
        full.fill()
        tend(full, worker)
        assert int(full.call("ZSCORE", "workers", worker.id)) > full.now_ms


class TestBells:
    def test_one_that_was_lost_rings_again(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued()
        queue.queued(task=MAIL, priority=9)
        assert queue.bells(worker) != ""
        tend(queue, worker)
        rung = queue.bells(worker)
        assert {worker.kinds[ADD], worker.kinds[MAIL]} == set(rung)

    def test_many_lanes_that_are_less_urgent_hide_none(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.enqueue(*(queue.message(f"t.n{number}", priority=1) for number in range(150)))
        queue.queued()
        queue.bells(worker)
        tend(queue, worker)
        assert queue.bells(worker) == worker.kinds[ADD]

    def test_where_nothing_waits_none_rings(self, queue: Queue) -> None:
        worker = queue.worker()
        tend(queue, worker)
        assert queue.bells(worker) == ""

    def test_they_ring_where_nobody_watches_for_what_is_due(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.schedule(queue.message(due="+60000"))
        worker.claim()  # it watches from now on
        queue.bells(worker)
        tend(queue, worker)
        assert queue.bells(worker) == ""
        queue.call("DEL", "timer")
        tend(queue, worker)
        assert queue.bells(worker) == worker.kinds[ADD]

    def test_without_members_none_rings(self, queue: Queue) -> None:
        """Who serves a queue with one partition asks it all the time."""
        worker = queue.worker()
        queue.queued()
        queue.bells(worker)
        queue.reclaim()
        assert queue.bells(worker) == ""


class TestNumber:
    def widen(self, queue: Queue, partitions: int) -> int:
        return queue.run(commands.widen(queue.base, partitions))

    def test_it_only_grows(self, queue: Queue) -> None:
        assert [self.widen(queue, count) for count in (1, 4, 2, 8, 1)] == [1, 4, 4, 8, 8]
        assert queue.call("PTTL", "partitions") == -1

    def test_one_partition_is_not_written_down(self, queue: Queue) -> None:
        assert self.widen(queue, 1) == 1
        assert queue.keys() == []

    @pytest.mark.parametrize("garbage", ["", "x", "-1", "1e3", "0x10", "999", " 8"])
    def test_what_is_no_number_counts_as_one(self, queue: Queue, garbage: str) -> None:
        queue.call("SET", "partitions", garbage)
        assert self.widen(queue, 1) == 1
        assert self.widen(queue, 3) == 3
        assert queue.call("GET", "partitions") == b"3"

    def test_a_key_of_another_type_counts_as_one(self, queue: Queue) -> None:
        queue.call("LPUSH", "partitions", "8")
        assert self.widen(queue, 2) == 2

    def test_it_grows_on_a_full_server(self, full: FullQueue) -> None:
        full.fill()
        assert self.widen(full, 4) == 4
