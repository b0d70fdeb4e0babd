"""enqueue.lua: new messages are queued, known ones are told apart, a refusal tears nothing."""

from __future__ import annotations

import pytest

from taskq.broker import commands, keys
from taskq.broker.commands import Lot
from taskq.errors import BrokerFull
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, MAIL, FullQueue, Queue, refusal


def test_a_new_message_is_queued(queue: Queue) -> None:
    one = queue.message()
    assert queue.enqueue(one) == "o"
    assert queue.call("LRANGE", f"ready:{ADD}", 0, -1) == [one.raw]
    assert queue.raw_record(one.message.id) == b"Q"
    assert queue.call("ZRANGE", "lanes", 0, -1, "WITHSCORES") == [ADD.encode(), b"5"]


def test_an_expiry_is_noted_in_the_record(queue: Queue) -> None:
    one = queue.message(expires_ms=4_102_444_800_000)
    queue.enqueue(one)
    assert queue.record(one.message.id).label == b"--------4102444800000"


def test_a_message_sent_again_is_known(queue: Queue) -> None:
    one, other = queue.messages(2)
    queue.enqueue(one)
    assert queue.enqueue(one, other) == "do"
    assert queue.ready() == [one.message.id, other.message.id]


def test_the_same_message_twice_in_one_call_is_queued_once(queue: Queue) -> None:
    one = queue.message(name="order-42")
    assert queue.enqueue(one, one) == "od"
    assert queue.ready() == [one.message.id]


def test_an_id_in_use_by_another_task_is_refused(queue: Queue) -> None:
    first = queue.message(ADD, name="order-42")
    assert queue.enqueue(first) == "o"
    assert queue.enqueue(queue.message(MAIL, name="order-42")) == "x"
    assert queue.enqueue(queue.message(ADD, name="order-42", body=b"other")) == "d"
    assert queue.call("LRANGE", f"ready:{ADD}", 0, -1) == [first.raw]
    assert queue.ready(MAIL) == []


def test_an_id_given_to_two_tasks_in_one_call_goes_to_the_first(queue: Queue) -> None:
    first, second = (queue.message(task, name="order-42") for task in (ADD, MAIL))
    assert queue.enqueue(first, second) == "ox"


@pytest.mark.parametrize("how", ["running", "succeeded", "scheduled"])
def test_an_id_stays_known_wherever_the_message_is(queue: Queue, how: str) -> None:
    one = queue.message(name="order-42", due="+60000" if how == "scheduled" else None)
    if how == "scheduled":
        queue.schedule(one)
    else:
        queue.enqueue(one)
        worker = queue.worker()
        [id] = worker.claim()
        if how == "succeeded":
            worker.finish(worker.succeeded(id))
    assert queue.enqueue(one) == "d"
    assert queue.enqueue(queue.message(MAIL, name="order-42")) == "x"
    assert queue.ready() == []


def test_each_lane_has_a_list_of_its_own(queue: Queue) -> None:
    outgoing = [
        queue.message(ADD), queue.message(ADD, priority=9), queue.message(MAIL, priority=0),
    ]  # fmt: skip
    assert queue.enqueue(*outgoing) == "ooo"
    lanes = [f"{MAIL}:0", ADD, f"{ADD}:9"]
    assert [lane.decode() for lane in queue.call("ZRANGE", "lanes", 0, -1)] == lanes
    assert [len(queue.ready(lane)) for lane in lanes] == [1, 1, 1]


def test_a_thousand_messages_travel_in_one_call(queue: Queue) -> None:
    outgoing = queue.messages(1000)
    assert queue.enqueue(*outgoing) == "o" * 1000
    assert queue.enqueue(*outgoing) == "d" * 1000
    assert queue.ready() == [one.message.id for one in outgoing]


def test_the_length_of_the_ready_list_is_the_backlog(queue: Queue, namespace: str) -> None:
    queue.queued(7)
    key = keys.ready(namespace, "default", ADD)
    assert queue.call("LLEN", key.removeprefix(queue.base)) == 7


def test_many_messages_are_sent_in_pages(queue: Queue) -> None:
    outgoing = queue.messages(2500)
    pages = list(commands.send(queue.base, outgoing))
    assert [len(page) for page, _ in pages] == [1000, 1000, 500]
    assert {queue.run(command) for _, command in pages} == {"o" * 1000, "o" * 500}
    assert queue.ready() == [one.message.id for one in outgoing]


def test_a_page_has_at_most_four_mebibytes(queue: Queue) -> None:
    outgoing = queue.messages(9, body=b"x" * 1_000_000)
    pages = list(commands.send(queue.base, outgoing))
    assert [len(page) for page, _ in pages] == [4, 4, 1]
    assert "".join(queue.run(command) for _, command in pages) == "o" * 9
    assert queue.ready() == [one.message.id for one in outgoing]


def test_a_message_larger_than_a_page_travels_alone(queue: Queue) -> None:
    small, large, last = queue.messages(2), queue.message(body=b"x" * 5_000_000), queue.message()
    pages = [page for page, _ in commands.send(queue.base, [*small, large, last])]
    assert pages == [small, [large], [last]]


def test_pages_keep_the_order_within_a_lane_and_part_the_scheduled(queue: Queue) -> None:
    adds, mails, later = queue.messages(3), queue.messages(3, MAIL), queue.message(due="+60000")
    mixed = [adds[0], mails[0], later, adds[1], mails[1], adds[2], mails[2]]
    pages = list(commands.send(queue.base, mixed))
    assert [page for page, _ in pages] == [[*adds, *mails], [later]]
    assert [queue.run(command) for _, command in pages] == ["o" * 6, "o"]
    assert queue.scheduled() == [later.message.id]


def test_lots_are_sent_as_their_messages_are(queue: Queue) -> None:
    adds, mails, later = queue.messages(3), queue.messages(3, MAIL), queue.messages(2)
    lots = [
        Lot(ADD, b"", None, [one.raw for one in adds[:2]]),
        Lot(MAIL, b"", None, [one.raw for one in mails]),
        Lot(ADD, b"", "+60000", [one.raw for one in later]),
        Lot(ADD, b"", None, [adds[2].raw]),
    ]
    pages = list(commands.send_lots(queue.base, lots))
    assert [page for page, _ in pages] == [[lots[0], lots[3], lots[1]], [lots[2]]]
    assert [queue.run(command) for _, command in pages] == ["o" * 6, "oo"]
    assert queue.ready() == [one.message.id for one in adds]
    assert queue.ready(MAIL) == [one.message.id for one in mails]
    assert queue.scheduled() == [one.message.id for one in later]


def test_neighbours_that_go_to_one_place_are_one_lot_to_redis(queue: Queue) -> None:
    raws, label = [one.raw for one in queue.messages(5)], b"--------4102444800000"
    lots = [Lot(ADD, one, None, [raw]) for one, raw in zip([b""] * 4 + [label], raws, strict=True)]
    assert commands.enqueue_lots(queue.base, lots).arguments == [
        ADD, b"", 4, *raws[:4], ADD, label, 1, raws[4],
    ]  # fmt: skip


def test_lots_of_more_than_four_mebibytes_go_apart(queue: Queue) -> None:
    lots = [Lot(ADD, b"", None, [one.raw]) for one in queue.messages(9, body=b"x" * 1_000_000)]
    assert [len(page) for page, _ in commands.send_lots(queue.base, lots)] == [4, 4, 1]


def test_the_bell_rings_once_for_each_group_that_knows_the_task(queue: Queue) -> None:
    threads, coroutines = queue.worker({ADD: "t"}), queue.worker({ADD: "c", CRAWL: "c"})
    stranger = queue.worker({MAIL: "t"})
    queue.queued(3)
    queue.queued(3)
    assert queue.call("LLEN", f"bell:{threads.digest}:t") == 1
    assert (queue.bells(threads), queue.bells(coroutines)) == ("t", "c")
    assert queue.bells(stranger) == ""


def test_a_known_message_rings_no_bell(queue: Queue) -> None:
    worker, one = queue.worker(), queue.message()
    queue.enqueue(one)
    assert queue.bells(worker) == "t"
    queue.enqueue(one)
    assert queue.bells(worker) == ""


def test_a_bell_that_nobody_hears_falls_silent(queue: Queue) -> None:
    worker = queue.worker()
    queue.queued()
    assert 0 < queue.call("PTTL", f"bell:{worker.digest}:t") <= 60_000


def test_a_lane_of_a_wrong_type_refuses_and_tears_nothing(queue: Queue) -> None:
    queue.call("SET", f"ready:{MAIL}", "in the way")
    # The good lane comes first: it must not be written either.
    page = [*queue.messages(2, ADD), queue.message(MAIL)]
    assert "WRONGTYPE" in refusal(queue, commands.enqueue(queue.base, page))
    assert queue.keys() == [f"ready:{MAIL}"]
    queue.call("DEL", f"ready:{MAIL}")
    assert queue.enqueue(*page) == "ooo"


class TestFullServer:
    """What a server at its `maxmemory` does; each test has one of its own."""

    def test_refuses_and_tears_nothing(self, full: FullQueue) -> None:
        known = full.message()
        full.enqueue(known)
        before = full.keys()
        full.fill()
        with pytest.raises(BrokerFull, match="maxmemory"):
            full.enqueue(*full.messages(2, ADD), *full.messages(2, MAIL))
        assert full.keys() == before
        full.audit()

    def test_still_says_what_it_knows(self, full: FullQueue) -> None:
        known = full.message()
        full.enqueue(known)
        full.fill()
        assert full.enqueue(known) == "d"

    def test_accepts_again_once_there_is_room(self, full: FullQueue) -> None:
        full.fill()
        one = full.message()
        with pytest.raises(BrokerFull):
            full.enqueue(one)
        full.make_room()
        assert full.enqueue(one) == "o"
        assert full.state(one.message.id) is State.QUEUED
