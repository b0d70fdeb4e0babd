"""Every way to call a task, by a producer that blocks and by one that awaits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

import taskq
from taskq import Context, Result, Signature, TaskQ
from taskq.testing import running_worker


@pytest.fixture(scope="module")
def shop(new_app: Any) -> Iterator[Any]:
    """An app with a worker, for all the tests here."""
    app: TaskQ = new_app(queues=["low"])

    @app.task
    def add(x: int, y: int = 10) -> int:
        return x + y

    @app.task
    async def double(x: int) -> int:
        return 2 * x

    @app.task(bind=True)
    def who(ctx: Context, greeting: str) -> str:
        return f"{greeting} {ctx.id}"

    @app.task
    def options_only(*, size: int) -> int:
        return size

    @app.task
    def everything(first: Any, /, *rest: Any, **named: Any) -> list[Any]:
        return [first, list(rest), named]

    with running_worker(app, threads=3):
        yield SimpleNamespace(
            app=app, add=add, double=double, who=who, sized=options_only, everything=everything
        )


def test_a_call_travels(shop: Any) -> None:
    result = shop.add.delay(2, 3)
    assert isinstance(result, Result)
    assert result.get(timeout=5) == 5


def test_a_call_to_an_async_task_travels_as_well(shop: Any) -> None:
    assert shop.double.delay(21).get(timeout=5) == 42


def test_a_plain_call_runs_here_and_now(shop: Any) -> None:
    assert shop.add(2, 3) == 5
    assert asyncio.run(shop.double(4)) == 8


def test_a_plain_call_of_a_bound_task_gets_a_local_context(shop: Any) -> None:
    assert shop.who("hello") == "hello local"


def test_a_worker_passes_the_context_to_a_bound_task(shop: Any) -> None:
    result = shop.who.delay("hello")
    assert result.get(timeout=5) == f"hello {result.id}"


@pytest.mark.parametrize(
    ("args", "kwargs", "total"),
    [((1,), {}, 11), ((1, 2), {}, 3), ((1,), {"y": 4}, 5), ((), {"x": 1, "y": 1}, 2)],
)
def test_arguments_come_by_place_or_by_name(
    shop: Any, args: tuple[int, ...], kwargs: dict[str, int], total: int
) -> None:
    assert shop.add.delay(*args, **kwargs).get(timeout=5) == total
    assert shop.add.apply_async(args, kwargs).get(timeout=5) == total


def test_every_kind_of_parameter_survives(shop: Any) -> None:
    assert shop.sized.delay(size=3).get(timeout=5) == 3
    result = shop.everything.delay(1, 2, 3, first=4, self=5)
    assert result.get(timeout=5) == [1, [2, 3], {"first": 4, "self": 5}]


def test_celery_spelling_takes_the_options_beside_the_arguments(shop: Any) -> None:
    result = shop.add.apply_async((1, 2), queue="low", headers={"k": "v"})
    assert result.id.endswith("@low")
    assert result.get(timeout=5) == 3


def test_map_passes_one_item_and_starmap_unpacks(shop: Any) -> None:
    assert taskq.gather(shop.add.map(range(5)), timeout=5) == [10, 11, 12, 13, 14]
    assert taskq.gather(shop.add.starmap([(1, 2), (3,), [4, 5]]), timeout=5) == [3, 13, 9]
    assert shop.add.map(iter(())) == []


def test_a_map_may_be_larger_than_one_round_trip(shop: Any) -> None:
    results = shop.add.map(range(2500))
    assert len({result.id for result in results}) == 2500
    assert taskq.gather(results, timeout=30) == [x + 10 for x in range(2500)]


def test_signatures_of_several_tasks_go_together_and_keep_their_order(shop: Any) -> None:
    calls = [shop.add.s(1, 2), shop.double.s(5), shop.add.options(queue="low").s(3, y=4)]
    assert all(isinstance(call, Signature) for call in calls)
    assert taskq.gather(shop.app.enqueue_many(calls), timeout=5) == [3, 10, 7]
    assert shop.app.enqueue(shop.add.s(1, 1)).get(timeout=5) == 2


def test_calls_of_one_lane_start_in_the_order_in_which_they_were_given(new_app: Any) -> None:
    app: TaskQ = new_app()
    seen: list[int] = []
    note = app.task(name="note")(seen.append)
    ways = [
        note.options(expires=90),
        note,
        note.options(headers={"b": 1}, expires=60),
        note.options(priority=5, result_ttl=90),
    ]
    calls = [ways[number % 4].s(number) for number in range(60)]
    calls[30:] = [note.options(id=f"named-{number}").s(number) for number in range(30, 60)]
    sent = app.enqueue_many(calls)
    with running_worker(app, threads=1):
        taskq.gather(sent, timeout=60)
    assert seen == list(range(60))


def test_large_calls_among_small_ones_take_more_round_trips_and_keep_their_order(
    new_app: Any,
) -> None:
    app: TaskQ = new_app()
    seen: list[int] = []

    @app.task
    def note(number: int, data: str) -> int:
        seen.append(number)
        return len(data)

    sizes = [900_000 if number % 3 else number for number in range(12)]
    calls = [note.s(number, "x" * size) for number, size in enumerate(sizes)]
    sent = app.enqueue_many(calls)
    with running_worker(app, threads=1):
        assert taskq.gather(sent, timeout=60) == sizes
    assert seen == list(range(12))


def test_a_signature_can_be_sent_again_and_is_another_message(shop: Any) -> None:
    call = shop.add.s(1, 1)
    first, second = shop.app.enqueue_many([call, call])
    assert first.id != second.id
    assert taskq.gather([first, second], timeout=5) == [2, 2]


def test_a_producer_without_the_code_sends_by_name(shop: Any, new_app: Any) -> None:
    name = shop.add.name
    assert shop.app.send_task(name, args=(2, 3)).get(timeout=5) == 5
    assert shop.app.send_task(name, (2,), {"y": 4}, queue="low").get(timeout=5) == 6
    with pytest.raises(TypeError, match=r"countdow.*countdown"):
        shop.app.send_task(name, (2,), countdow=4)


def test_every_call_has_an_awaited_twin(shop: Any, awaited: Any) -> None:
    async def story() -> list[Any]:
        add, app = shop.add, shop.app
        results = [
            await add.adelay(1, 2),
            await add.aapply_async((3,), {"y": 4}),
            *await add.amap([0, 1]),
            *await add.astarmap([(1, 1)]),
            *await app.aenqueue_many([add.s(5, 5), shop.double.s(6)]),
            await app.asend_task(add.name, (7, 7)),
            await app.aenqueue(add.s(8, 8)),
        ]
        return [await result for result in results]

    assert awaited(story(), shop.app) == [3, 7, 10, 11, 2, 10, 12, 14, 16]


def test_event_loops_may_follow_one_another(shop: Any, awaited: Any) -> None:
    async def story(x: int) -> int:
        result = await shop.add.adelay(x, 1)
        return int(await result.aget(timeout=5))

    assert [awaited(story(x), shop.app) for x in range(3)] == [1, 2, 3]


def test_event_loops_may_run_side_by_side_with_threads(shop: Any, awaited: Any) -> None:
    async def story(start: int) -> list[int]:
        results = await asyncio.gather(*(shop.add.adelay(start, y) for y in range(20)))
        return list(await taskq.agather(results, timeout=20))

    def blocking(start: int) -> list[int]:
        return taskq.gather([shop.add.delay(start, y) for y in range(20)], timeout=20)

    with ThreadPoolExecutor(6) as pool:
        loops = [pool.submit(awaited, story(start), shop.app) for start in (100, 200, 300)]
        threads = [pool.submit(blocking, start) for start in (400, 500, 600)]
        got = [one.result(30) for one in (*loops, *threads)]
    assert got == [[start + y for y in range(20)] for start in range(100, 700, 100)]


def test_many_threads_share_one_app(shop: Any) -> None:
    """More threads than connections: each gets its own answer."""
    wrong: list[tuple[int, int]] = []

    def produce(start: int) -> None:
        for x in range(start, start + 15):
            got = shop.add.delay(x, x).get(timeout=20)
            if got != 2 * x:
                wrong.append((x, got))

    threads = [threading.Thread(target=produce, args=(1000 * n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_an_awaited_call_that_is_cancelled_leaves_the_app_usable(shop: Any, awaited: Any) -> None:
    async def story() -> list[int]:
        for pause in range(30):
            call = asyncio.create_task(shop.add.adelay(1, 1))
            for _ in range(pause % 7):
                await asyncio.wait([call], timeout=0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        results = [await shop.add.adelay(x, x) for x in range(5)]
        return list(await taskq.agather(results, timeout=5))

    assert awaited(story(), shop.app) == [0, 2, 4, 6, 8]


def test_a_signature_belongs_to_its_app(shop: Any, new_app: Any) -> None:
    """Another app's key of another queue would sign it: no worker could ever run it."""
    other = new_app()
    call = shop.add.s(1, 2)
    try:
        result = other.enqueue(call)
    except (ValueError, TypeError):
        return
    assert result.get(timeout=5) == 3
