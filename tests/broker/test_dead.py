"""Dead letters: what ended badly is kept, capped, listed, sent again and thrown away."""

from __future__ import annotations

import pytest

from taskq.broker import commands, queries
from taskq.broker.claims import Blame, Kept
from taskq.broker.commands import Outgoing
from taskq.broker.queries import Letter
from taskq.errors import BrokerError
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, DAY_MS, MAIL, FullQueue, Queue, Worker
from tests.eventually import until

# As many letters as are wanted, each a millisecond older than the one before.
MANY_DEAD = """
for i = 1, tonumber(ARGV[2]) do
  redis.call('ZADD', KEYS[1] .. 'dead', string.format('%.0f', ARGV[1] - i), 'old-' .. i)
  redis.call('HSET', KEYS[1] .. 'dead:m', 'old-' .. i, ARGV[3])
end
"""
OLD = b"005" + ADD.encode() + b"00000001r" + b"bytes"


@pytest.fixture
def worker(queue: Queue) -> Worker:
    return queue.worker()


def dies(queue: Queue, worker: Worker, *outgoing: Outgoing) -> list[str]:
    """Let messages fail for good; return their ids."""
    queue.enqueue(*outgoing)
    ids = worker.claim(100, 100)
    assert worker.finish(*(worker.failed(id, b"report of " + id.encode()) for id in ids))
    return ids


def anew(queue: Queue, letter: Letter) -> Outgoing:
    """Return the message that is to be sent in place of a dead letter."""
    return queue.message(id="%032x" % (int(letter.id, 16) + 1))


def revive(queue: Queue, letter: Letter, one: Outgoing) -> str:
    return queue.run(commands.revive(queue.base, letter.id, letter.died, letter.lane, one.raw))


class TestBurial:
    def test_what_failed_is_kept_with_its_message_and_its_report(
        self, queue: Queue, worker: Worker
    ) -> None:
        one = queue.message(MAIL, priority=3, body=b"\x00bytes")
        before = queue.now_ms
        [id] = dies(queue, worker, one)
        letter = queue.letters()[id]
        assert (letter.lane, letter.message, letter.record) == (
            f"{MAIL}:3", one.raw, queue.record(id),
        )  # fmt: skip
        assert letter.record.tail == b"report of " + id.encode()
        assert before <= int(letter.died) <= queue.now_ms

    def test_the_letter_outlives_the_record(self, queue: Queue, worker: Worker) -> None:
        [id] = dies(queue, worker, queue.message())
        queue.call("DEL", f"m:{id}")
        queue.pass_a_day()
        assert queue.letters()[id].record.tail == b"report of " + id.encode()

    def test_a_success_leaves_none(self, queue: Queue, worker: Worker) -> None:
        [id] = queue.queued()
        worker.claim()
        worker.finish(worker.succeeded(id))
        assert queue.letters() == {}

    def test_a_failure_among_successes_costs_them_nothing(
        self, queue: Queue, worker: Worker
    ) -> None:
        ids = queue.queued(50)
        worker.claim()
        ends = [
            worker.failed(id) if at % 7 == 0 else worker.succeeded(id) for at, id in enumerate(ids)
        ]
        assert worker.finish(*ends) == "k" * 50
        assert sorted(queue.letters()) == ids[::7]
        assert {queue.state(id) for id in ids[1:7]} == {State.SUCCEEDED}

    def test_a_failure_that_comes_late_is_kept_once_its_bytes_are_met(
        self, queue: Queue, worker: Worker
    ) -> None:
        [id] = queue.queued()
        worker.claim()
        late = worker.failed(id)
        queue.reclaim(worker)
        assert worker.exchange(late).verdicts == "k"
        assert queue.worker().claim() == []
        assert queue.letters()[id].record == queue.record(id)

    def test_a_failure_that_comes_while_its_retry_waits_is_kept(
        self, queue: Queue, worker: Worker
    ) -> None:
        one = queue.message()
        queue.enqueue(one)
        worker.claim()
        late = worker.failed(one.message.id)
        worker.finish(worker.retry(one.message.id, 60_000))
        assert worker.finish(late) == "k"
        assert queue.letters()[one.message.id].message == one.raw

    def test_copies_of_the_bytes_are_not_kept_again(self, queue: Queue, worker: Worker) -> None:
        one = queue.message()
        [id] = dies(queue, worker, one)
        [before] = queue.letters().values()
        queue.call("LPUSH", f"ready:{ADD}", one.raw)
        queue.call("ZADD", "lanes", 5, ADD)
        queue.call("ZADD", "pass:5", 0, ADD)
        assert worker.claim() == []
        assert queue.letters() == {id: before}

    def test_a_second_death_under_one_id_replaces_the_first(
        self, queue: Queue, worker: Worker
    ) -> None:
        one = queue.message(name="order-42")
        [id] = dies(queue, worker, one)
        queue.call("DEL", f"m:{id}")
        assert dies(queue, worker, queue.message(name="order-42", body=b"second")) == [id]
        [letter] = queue.letters().values()
        assert b"second" in letter.message

    @pytest.mark.parametrize("letter", ["k", "t"])
    def test_what_its_worker_died_of_leaves_one_in_the_lane_of_its_task(
        self, queue: Queue, worker: Worker, letter: str
    ) -> None:
        one = queue.message(priority=9)
        queue.enqueue(one)
        [id] = worker.claim()
        queue.reclaim(worker, Blame(letter, worker.fields[id], 1, "by SIGSEGV"))
        found = queue.letters()[id]
        assert (found.lane, found.message, found.record) == (one.lane, one.raw, queue.record(id))
        assert (found.record.letter, found.record.tail) == (letter.encode(), b"by SIGSEGV")

    def test_a_suspect_leaves_one_in_the_lane_of_its_task(self, queue: Queue) -> None:
        """While it was handed out alone it waited in another one."""
        [id] = queue.queued()
        first, alone = queue.worker(), queue.worker({f"!{ADD}": "t"})
        first.claim()
        queue.reclaim(first, Blame("s", first.fields[id]))
        assert alone.claim() == [id]
        alone.finish(alone.failed(id))
        assert queue.letters()[id].lane == ADD

    def test_it_works_on_a_full_server(self, full: FullQueue) -> None:
        worker = full.worker()
        [id] = full.queued()
        worker.claim()
        end = worker.failed(id)
        full.fill()
        assert worker.finish(end) == "k"
        assert list(full.letters()) == [id]


class TestCaps:
    def test_they_are_so_many_at_most_and_the_oldest_go(self, queue: Queue, worker: Worker) -> None:
        worker.kept = Kept(letters=3)
        ids: list[str] = []
        for _ in range(5):
            ids += dies(queue, worker, queue.message())
            # Of two in one millisecond neither is the older.
            until(lambda died=queue.now_ms: queue.now_ms > died)  # type: ignore[misc]
        assert set(queue.letters()) == set(ids[2:])
        assert queue.call("HLEN", "dead:m") == 3

    def test_ten_thousand_unless_told_otherwise(self, queue: Queue, worker: Worker) -> None:
        queue.evaluate(MANY_DEAD, queue.now_ms, 10_000, OLD)
        [id] = dies(queue, worker, queue.message())
        assert queue.call("ZCARD", "dead") == queue.call("HLEN", "dead:m") == 10_000
        assert queue.call("HEXISTS", "dead:m", id) == 1
        assert queue.call("HEXISTS", "dead:m", "old-10000") == 0

    def test_a_lowered_cap_is_reached_in_portions(self, queue: Queue, worker: Worker) -> None:
        """Redis's Lua takes no ten thousand arguments at once."""
        queue.evaluate(MANY_DEAD, queue.now_ms, 9_500, OLD)
        worker.kept = Kept(letters=10)
        counts = []
        while not counts or counts[-1] > 10:
            dies(queue, worker, queue.message())
            counts.append(queue.call("ZCARD", "dead"))
        assert counts[0] == 8_501
        assert len(counts) == 10

    def test_none_are_kept_where_none_are_wanted(self, queue: Queue, worker: Worker) -> None:
        worker.kept = Kept(letters=0)
        [id] = dies(queue, worker, queue.message())
        assert queue.state(id) is State.FAILED
        assert not {"dead", "dead:m"} & set(queue.keys())

    def test_the_old_go_with_the_next_burial(self, queue: Queue, worker: Worker) -> None:
        now = queue.now_ms
        queue.call("ZADD", "dead", now - 90 * DAY_MS - 1, "old", now - 80 * DAY_MS, "new")
        queue.call("HSET", "dead:m", "old", OLD, "new", OLD)
        [id] = dies(queue, worker, queue.message())
        assert set(queue.call("HKEYS", "dead:m")) == {b"new", id.encode()}

    def test_all_go_when_none_was_buried_for_so_long(self, queue: Queue, worker: Worker) -> None:
        worker.kept = Kept(age_ms=3_600_000)
        dies(queue, worker, queue.message())
        for key in ("dead", "dead:m"):
            assert 0 < queue.call("PTTL", key) <= 3_600_000

    def test_what_is_too_old_is_not_listed(self, queue: Queue) -> None:
        queue.call("ZADD", "dead", queue.now_ms - 61_000, "old", queue.now_ms, "new")
        queue.call("HSET", "dead:m", "old", OLD, "new", OLD)
        page, _ = queue.run(queries.letters(queue.base, 60_000, 0, 10))
        assert [one.id for one in page] == [b"new"]


class TestLetters:
    def test_the_newest_come_first_in_pages(self, queue: Queue) -> None:
        queue.evaluate(MANY_DEAD, queue.now_ms, 25, OLD)
        found, skip = [], 0
        for expected in (10, 20, None):
            page, skip = queue.run(queries.letters(queue.base, DAY_MS, skip or 0, 10))
            found += page
            assert skip == expected
        assert [one.id.decode() for one in found] == [f"old-{at}" for at in range(1, 26)]

    def test_large_ones_come_in_smaller_pages(self, queue: Queue) -> None:
        queue.evaluate(MANY_DEAD, queue.now_ms, 10, OLD + b"x" * (1 << 20))
        page, skip = queue.run(queries.letters(queue.base, DAY_MS, 0, 10))
        assert len(page) == skip == 4
        assert len(queue.letters()) == 10

    def test_one_of_an_id(self, queue: Queue, worker: Worker) -> None:
        ids = dies(queue, worker, queue.message(), queue.message())
        page, skip = queue.run(queries.letters(queue.base, DAY_MS, 0, 1, ids[0].encode()))
        assert ([one.id.decode() for one in page], skip) == ([ids[0]], None)

    @pytest.mark.parametrize(
        "raw", [b"", b"x", b"0", b"005", b"9" * 30, b"001x00000200r" + b"-" * 300]
    )
    def test_a_broken_one_breaks_no_list(self, queue: Queue, raw: bytes) -> None:
        queue.call("ZADD", "dead", queue.now_ms, "broken", queue.now_ms, "whole")
        queue.call("HSET", "dead:m", "broken", raw, "whole", OLD)
        found = queue.letters()
        assert found["whole"].message == b"bytes"
        assert found["broken"].record.letter == b"r"


class TestRevive:
    def test_the_message_is_queued_and_the_letter_is_gone(
        self, queue: Queue, worker: Worker
    ) -> None:
        [id] = dies(queue, worker, queue.message(priority=9))
        letter = queue.letters()[id]
        one = anew(queue, letter)
        assert revive(queue, letter, one) == "o"
        assert queue.letters() == {}
        assert queue.ready(f"{ADD}:9") == [one.message.id]
        assert worker.claim() == [one.message.id]
        assert queue.state(id) is State.FAILED

    def test_a_repeat_queues_nothing_more(self, queue: Queue, worker: Worker) -> None:
        [id] = dies(queue, worker, queue.message())
        letter = queue.letters()[id]
        one = anew(queue, letter)
        assert [revive(queue, letter, one) for _ in range(3)] == ["o", "d", "d"]
        assert queue.ready() == [one.message.id]

    def test_nor_does_one_that_comes_when_all_is_forgotten(
        self, queue: Queue, worker: Worker
    ) -> None:
        [id] = dies(queue, worker, queue.message())
        letter = queue.letters()[id]
        one = anew(queue, letter)
        revive(queue, letter, one)
        worker.claim()
        worker.finish(worker.succeeded(one.message.id))
        queue.call("DEL", f"m:{one.message.id}")
        assert revive(queue, letter, one) == "no"
        assert queue.ready() == []

    def test_a_letter_of_another_death_is_left(self, queue: Queue, worker: Worker) -> None:
        [id] = dies(queue, worker, queue.message())
        letter = queue.letters()[id]
        queue.call("ZADD", "dead", int(letter.died) + 1, id)
        assert revive(queue, letter, anew(queue, letter)) == "no"
        assert list(queue.letters()) == [id]

    def test_a_worker_is_woken(self, queue: Queue, worker: Worker) -> None:
        [id] = dies(queue, worker, queue.message())
        queue.bells(worker)
        letter = queue.letters()[id]
        revive(queue, letter, anew(queue, letter))
        assert queue.bells(worker) == "t"

    def test_an_expiry_goes_into_the_record(self, queue: Queue, worker: Worker) -> None:
        [id] = dies(queue, worker, queue.message())
        letter = queue.letters()[id]
        one = queue.message(expires_ms=4_102_444_800_000)
        revive(queue, letter, one)
        assert queue.record(one.message.id).label == one.label

    def test_a_full_server_refuses_and_keeps_the_letter(self, full: FullQueue) -> None:
        worker = full.worker()
        [id] = dies(full, worker, full.message())
        letter = full.letters()[id]
        full.fill()
        with pytest.raises(BrokerError):
            revive(full, letter, anew(full, letter))
        assert list(full.letters()) == [id]
        assert full.ready() == []


class TestDiscard:
    def discard(self, queue: Queue, task: str = "") -> int:
        total, skip = 0, 0
        while skip is not None:
            count, skip = queue.run(commands.discard(queue.base, skip, task))
            total += count
        return total

    def test_all(self, queue: Queue, worker: Worker) -> None:
        dies(queue, worker, *queue.messages(3), queue.message(CRAWL))
        assert self.discard(queue) == 4
        assert queue.letters() == {}

    def test_of_a_task_at_any_priority(self, queue: Queue, worker: Worker) -> None:
        ids = dies(
            queue, worker, queue.message(ADD), queue.message(ADD, priority=9), queue.message(MAIL)
        )
        mail = [id for id in ids if queue.letters()[id].lane == MAIL]
        assert self.discard(queue, ADD) == 2
        assert list(queue.letters()) == mail

    def test_those_named(self, queue: Queue, worker: Worker) -> None:
        first, second = dies(queue, worker, *queue.messages(2))
        ids = [first.encode(), b"nobody"]
        assert queue.run(commands.discard(queue.base, 0, ids=ids)) == (1, None)
        assert list(queue.letters()) == [second]

    def test_thousands_in_pages(self, queue: Queue, worker: Worker) -> None:
        queue.evaluate(MANY_DEAD, queue.now_ms, 1_700, OLD)
        [id] = dies(queue, worker, queue.message(MAIL))
        assert self.discard(queue, "t.nobody") == 0
        assert self.discard(queue, ADD) == 1_700
        assert list(queue.letters()) == [id]

    def test_it_works_on_a_full_server(self, full: FullQueue) -> None:
        dies(full, full.worker(), full.message())
        full.fill()
        assert self.discard(full) == 1
