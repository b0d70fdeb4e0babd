"""Many results at once: in the order given, or as they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import taskq
from taskq import ResultTimeout, TaskQ, as_completed
from taskq.broker.connection import Endpoint
from taskq.client.waiter import Wait, Waiter
from taskq.testing import running_worker
from tests.servers import Server


@pytest.fixture(scope="module")
def shop(new_app: Any) -> Iterator[Any]:
    app: TaskQ = new_app(queues=["mail"])
    gates = {name: threading.Event() for name in "abcdef"}

    @app.task(name="square")
    def square(x: int) -> int:
        return x * x

    @app.task(name="fail")
    def fail(x: int) -> int:
        raise ValueError(x)

    @app.task(name="hold")
    def hold(name: str) -> str:
        assert gates[name].wait(20)
        return name

    with running_worker(app, threads=4):
        yield SimpleNamespace(app=app, square=square, fail=fail, hold=hold, gates=gates)
        for gate in gates.values():
            gate.set()


def test_values_come_in_the_order_of_the_results(shop: Any) -> None:
    held = shop.hold.delay("a")
    quick = shop.square.map([1, 2, 3])
    threading.Timer(0.1, shop.gates["a"].set).start()
    assert taskq.gather([held, *quick], timeout=5) == ["a", 1, 4, 9]
    assert taskq.gather([]) == []
    assert list(as_completed([])) == []


def test_any_iterable_of_results_will_do(shop: Any) -> None:
    assert taskq.gather((one for one in shop.square.map([1, 2])), timeout=5) == [1, 4]


def test_one_result_may_stand_in_several_places(shop: Any) -> None:
    result = shop.square.delay(3)
    again = shop.app.result(result.id)
    other = shop.square.delay(4)
    assert taskq.gather([result, other, result, again], timeout=5) == [9, 16, 9, 9]
    assert taskq.gather([again, result], timeout=5) == [9, 9]
    assert len(list(as_completed([result, shop.app.result(other.id), result], timeout=5))) == 3


def test_the_first_failure_in_the_order_given_is_raised(shop: Any) -> None:
    results = [shop.square.delay(1), shop.fail.delay(7), shop.fail.delay(8)]
    with pytest.raises(ValueError, match="7"):
        taskq.gather(results, timeout=5)


def test_failures_can_stand_among_the_values(shop: Any) -> None:
    results = [shop.square.delay(2), shop.fail.delay(7)]
    value, error = taskq.gather(results, timeout=5, return_exceptions=True)
    assert value == 4
    assert isinstance(error, ValueError)


def test_a_timeout_names_what_is_missing(shop: Any) -> None:
    done, held = shop.square.delay(2), shop.hold.delay("b")
    with pytest.raises(ResultTimeout, match=held.id):
        taskq.gather([done, held], timeout=0.3)
    with pytest.raises(ResultTimeout):
        taskq.gather([done, held], timeout=0.1, return_exceptions=True)
    shop.gates["b"].set()
    assert taskq.gather([done, held], timeout=5) == [4, "b"]


def test_results_come_as_they_end(shop: Any) -> None:
    results = [shop.hold.delay(name) for name in "cd"]
    order = []
    shop.gates["d"].set()
    for result in as_completed(results, timeout=5):
        order.append(result.get())
        shop.gates["c"].set()
    assert order == ["d", "c"]


def test_results_come_as_they_end_to_who_awaits_them(shop: Any, awaited: Any) -> None:
    async def story() -> list[str]:
        results = [await shop.hold.adelay(name) for name in "ef"]
        order = []
        shop.gates["f"].set()
        async for result in as_completed(results, timeout=5):
            order.append(await result)
            shop.gates["e"].set()
        return order

    assert awaited(story(), shop.app) == ["f", "e"]


def test_who_stops_half_way_can_go_on_later(shop: Any) -> None:
    results = shop.square.map(range(30))
    for _ in as_completed(results, timeout=5):
        break
    assert taskq.gather(results, timeout=5) == [x * x for x in range(30)]
    assert shop.app.waiter._waits == {}


def test_awaited_gathering_knows_the_same_words(shop: Any, awaited: Any) -> None:
    async def story() -> None:
        results = [await shop.square.adelay(2), await shop.fail.adelay(7)]
        value, error = await taskq.agather(results, timeout=5, return_exceptions=True)
        assert value == 4
        assert isinstance(error, ValueError)
        with pytest.raises(ValueError, match="7"):
            await taskq.agather(results)
        assert await taskq.agather([]) == []
        with pytest.raises(ResultTimeout):
            await taskq.agather([shop.app.send_task("nobody")], timeout=0.1)

    awaited(story(), shop.app)


def test_results_of_several_queues_can_be_gathered(shop: Any) -> None:
    results = [shop.square.options(queue="mail").delay(5), shop.square.delay(6)]
    assert taskq.gather(results, timeout=5) == [25, 36]


def test_results_of_several_apps_are_refused_and_not_waited_for_in_the_wrong_place(
    shop: Any, new_app: Any
) -> None:
    other: TaskQ = new_app()
    with pytest.raises(ValueError, match="one app"):
        taskq.gather([shop.square.delay(5), other.send_task("nobody")], timeout=5)


def test_what_one_node_confirms_is_read_again_though_another_is_away(server: Server) -> None:
    wait = Wait()
    there, away = (Waiter(Endpoint(server.url)) for _ in range(2))
    for one in (there, away):
        one.subscribe([b"done"], wait)
    there.rest(wait, 20)
    assert (wait.missed, list(wait.unconfirmed)) == (True, [away])
    away.rest(wait, 20)
    assert not wait.unconfirmed
    for one in (there, away):
        one.close()


def test_ten_thousand_results_share_one_connection(new_redis_app: Any, server: Server) -> None:
    app: TaskQ = new_redis_app()

    @app.task
    def same(x: int) -> int:
        return x

    with server.client() as client:

        def subscribers() -> int:
            """Count those who wait for results; a worker listens to its schedules alone."""
            return sum(int(one["sub"]) > 1 for one in client.client_list(_type="pubsub"))

        before = subscribers()
        results = same.map(range(10_000))
        counts: set[int] = set()
        seen = threading.Event()

        def count() -> None:
            while not seen.wait(0.01):
                counts.add(subscribers() - before)

        counter = threading.Thread(target=count)
        counter.start()
        with running_worker(app, threads=4):
            started = time.monotonic()
            values = taskq.gather(results, timeout=50)
            took = time.monotonic() - started
        seen.set()
        counter.join()
        assert values == list(range(10_000))
        assert max(counts) == 1
        assert took < 30
