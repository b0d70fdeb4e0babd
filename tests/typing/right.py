"""What people write, and the types they get. For type checkers; it is never run."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from tenacity import (
    retry_if_exception_message,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random,
)

from taskq import (
    Cancellation,
    Cancelled,
    Context,
    DeadLetter,
    Result,
    Retry,
    RetryPolicy,
    Schedule,
    Signature,
    Snapshot,
    State,
    TaskQ,
    agather,
    as_completed,
    current,
    gather,
)


@contextmanager
def database(app: TaskQ) -> Generator[str, None, None]:
    yield app.name


@asynccontextmanager
async def session(app: TaskQ) -> AsyncGenerator[str, None]:
    yield app.name


app = TaskQ("shop", include=["shop.emails"], queues=["low"], lifespan=database)
other = TaskQ("other", lifespan=session, lease=timedelta(seconds=5), threads=4, secret=None)
TaskQ("mine", credentials=lambda: "password")
TaskQ("mine", credentials=lambda: ("user", "password"))


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(queue="payments", priority=7, result_ttl=timedelta(days=1), retry=3)
async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return url.encode() if timeout else b""


@app.task(bind=True)
def crawl(ctx: Context, site: str, depth: int = 1) -> int:
    if ctx.attempt > depth:
        raise Retry(delay=timedelta(seconds=5))
    return len(site)


@app.task(bind=True, autoretry_for=[OSError], retry_backoff=True, max_retries=None)
async def stream(ctx: Context, site: str) -> list[str]:
    return [ctx.id, site]


@app.task(autoretry_for=OSError)
def tidy() -> None:
    current().retry(countdown=1)


@app.task(retry=RetryPolicy(on=(OSError, ValueError), stop=stop_after_attempt(3)))
def find(key: str) -> str | None:
    return key or None


@app.task(
    retry=RetryPolicy(
        on=retry_if_exception_message("busy"),
        stop=stop_after_attempt(3) | stop_after_delay(60),
        wait=wait_fixed(1) + wait_random(0, 1),
    )
)
def join(*parts: str, between: str = "") -> str:
    return between.join(parts)


@app.task(bind=False, name="shop.raw")
def raw(value: Any) -> Any:
    return value


@app.periodic(cron="*/5 * * * *", timezone="Europe/Berlin", overlap="skip", catch_up="all")
@app.task
def sync(x: int = 0) -> int:
    return x


@app.periodic(every=timedelta(minutes=5), args=("site",), kwargs={"depth": 2}, jitter=30)
@app.task(bind=True)
async def visit(ctx: Context, site: str, depth: int = 1) -> bytes:
    return f"{ctx.id}{site}{depth}".encode()


def double(number: float) -> float:
    return 2 * number


doubled = app.task(double)


async def plain_calls() -> None:
    assert_type(add(1, y=2), int)
    assert_type(await fetch("url", timeout=2), bytes)
    assert_type(crawl("site", depth=2), int)
    assert_type(await stream("site"), list[str])
    assert_type(join("a", "b", between="-"), str)
    assert_type(doubled(1), float)
    assert_type(current(), Context)


async def one_call() -> None:
    assert_type(add.delay(1), Result[int])
    assert_type(fetch.delay("url", timeout=2), Result[bytes])
    assert_type(crawl.delay("site", depth=2), Result[int])
    assert_type(stream.delay("site"), Result[list[str]])
    assert_type(tidy.delay(), Result[None])
    assert_type(find.delay(key="a"), Result[str | None])
    assert_type(join.delay("a", "b", between="-"), Result[str])
    assert_type(raw.delay(1), Result[Any])
    assert_type(doubled.delay(1), Result[float])
    assert_type(await add.adelay(1, 2), Result[int])
    assert_type(await fetch.adelay("url"), Result[bytes])
    assert_type(await crawl.adelay("site"), Result[int])
    assert_type(await stream.adelay("site"), Result[list[str]])


def half(number: Result[float]) -> float:
    """Takes a result of int as well: it is covariant."""
    return number.get() / 2


async def results() -> None:
    result = fetch.delay("url")
    assert_type(result.get(), bytes)
    assert_type(result.get(timeout=timedelta(seconds=5), in_task=True), bytes)
    assert_type(await result, bytes)
    assert_type(await result.aget(timeout=5), bytes)
    assert_type(await (await add.adelay(1)), int)
    assert_type(result.id, str)
    assert_type(result.exception(), BaseException | None)
    assert_type(result.status, State)
    assert_type(await result.aready(), bool)
    assert_type(result.snapshot(), Snapshot)
    assert_type(await result.asnapshot(), Snapshot)
    assert_type(app.result(result.id), Result[Any])
    assert_type(half(add.delay(1)), float)


async def with_options() -> None:
    soon = datetime.now(UTC)
    assert_type(add.options(queue="low", priority=1).delay(1), Result[int])
    assert_type(await fetch.options(eta=soon, expires=soon).adelay("url"), Result[bytes])
    assert_type(crawl.options(countdown=5, id="order-42").delay("site"), Result[int])
    assert_type(add.options(headers={"a": 1}, result_ttl=60).map([1, 2]), list[Result[int]])
    assert_type(add.options(serializer="json").options(ignore_result=True)(1), int)
    assert_type(add.apply_async((2, 3), countdown=10), Result[int])
    assert_type(fetch.apply_async(["url"], {"timeout": 2}), Result[bytes])
    assert_type(await fetch.aapply_async(args=("url",), queue="low"), Result[bytes])
    assert_type(app.send_task("shop.add", args=(2, 3), queue="low"), Result[Any])
    assert_type(await app.asend_task("shop.add", (2, 3)), Result[Any])


async def many_calls() -> None:
    assert_type(add.map([1, 2]), list[Result[int]])
    assert_type(add.map(range(3)), list[Result[int]])
    assert_type(fetch.map(["url"]), list[Result[bytes]])
    assert_type(crawl.map(["site"]), list[Result[int]])
    assert_type(await add.amap([1, 2]), list[Result[int]])
    assert_type(await stream.amap(["site"]), list[Result[list[str]]])
    assert_type(add.starmap([(1, 2), (3,)]), list[Result[int]])
    assert_type(fetch.starmap([("url",)]), list[Result[bytes]])
    assert_type(await crawl.astarmap([("site", 2)]), list[Result[int]])
    assert_type(await stream.astarmap([("site",)]), list[Result[list[str]]])


async def signatures() -> None:
    assert_type(add.s(1, 2), Signature[int])
    assert_type(fetch.s("url"), Signature[bytes])
    assert_type(crawl.s("site"), Signature[int])
    assert_type(stream.s("site"), Signature[list[str]])
    assert_type(app.enqueue(fetch.s("url")), Result[bytes])
    assert_type(app.enqueue_many([add.s(1), crawl.s("site")]), list[Result[int]])
    assert_type(await app.aenqueue_many([fetch.s("url")]), list[Result[bytes]])
    mixed: list[Result[int | bytes]] = app.enqueue_many([add.s(1), fetch.s("url")])
    assert_type(gather(mixed), list[int | bytes])


async def waits() -> None:
    results = fetch.map(["url"])
    assert_type(gather(results, timeout=5), list[bytes])
    assert_type(gather([add.delay(1), crawl.delay("site")]), list[int])
    assert_type(gather(results, return_exceptions=True), list[bytes | BaseException])
    assert_type(await agather(results), list[bytes])
    assert_type(await agather(results, return_exceptions=True), list[bytes | BaseException])
    for result in as_completed(results, timeout=5):
        assert_type(result, Result[bytes])
    async for result in as_completed(results):
        assert_type(result, Result[bytes])
        assert_type(await result, bytes)


async def cancelling() -> None:
    assert_type(add.delay(1).cancel(), Cancellation)
    assert_type(add.delay(1).cancel("why", terminate=True), Cancellation)
    assert_type(await fetch.delay("url").acancel(reason="why"), Cancellation)
    assert_type(Cancelled("text", "why").reason, str)


async def dead_letters() -> None:
    assert_type(app.dead.list(queue="low", task="add", limit=5), list[DeadLetter])
    assert_type(await app.dead.alist(), list[DeadLetter])
    assert_type(app.dead.get("id"), DeadLetter)
    assert_type((await app.dead.aget("id")).reason, str)
    assert_type(app.dead.retry("id").id, str)
    assert_type((await app.dead.aretry("id")).id, str)
    assert_type(app.dead.purge("id", queue="low"), int)
    assert_type(await app.dead.apurge(task="add"), int)


async def schedules() -> None:
    soon = datetime.now(UTC)
    assert_type(sync.delay(1), Result[int])
    assert_type(visit.delay("site"), Result[bytes])
    assert_type(app.schedules.add("a", add.s(1), cron="@daily", end=soon, window=60), Schedule)
    assert_type(await app.schedules.aadd("a", fetch.s("url"), every=60, start=soon), Schedule)
    assert_type(app.schedules.list(queue="low"), list[Schedule])
    assert_type(await app.schedules.alist(), list[Schedule])
    assert_type(app.schedules.get("a").next_at, datetime | None)
    assert_type((await app.schedules.aget("a")).fired, int)
    app.schedules.pause("a", note="why")
    await app.schedules.aresume("a")
    assert_type(app.schedules.run_now("a"), Result[Any])
    assert_type(await app.schedules.abackfill("a", soon, soon), list[Result[Any]])
    assert_type(app.schedules.next("a", n=2), list[datetime])


async def closing() -> None:
    with app as same:
        assert_type(same, TaskQ)
    async with other as same:
        assert_type(same, TaskQ)
