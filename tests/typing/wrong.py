"""What nobody should write. For type checkers; it is never run.

Both checkers must refuse every line that carries their comments: one that is accepted
makes its comment a superfluous one, and that is an error.
"""

from collections.abc import AsyncGenerator
from datetime import timedelta

from taskq import Context, Result, RetryPolicy, TaskQ, agather, as_completed, gather
from tests.typing.right import add, app, crawl, fetch, find, join, stream


async def arguments() -> None:
    add("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.delay("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.delay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.delay(1, 2, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.delay(1, z=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.delay(x="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.adelay("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.adelay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.s("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.s(1, 2, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fetch.delay(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    fetch.delay("url", 2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await fetch.adelay("url", timeout="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    join.delay("a", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    join.delay("a", between=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    find.s(key=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def context_is_hidden(ctx: Context) -> None:
    crawl(ctx, "site")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    crawl.delay(ctx, "site")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    crawl.delay(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    crawl.delay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await stream(ctx, "site")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    stream.delay(ctx, "site")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await stream.adelay(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await stream.adelay()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def many_calls() -> None:
    add.map(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    add.map(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch.map([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    crawl.map([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await add.amap(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await stream.amap([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    add.starmap([1, 2])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await fetch.astarmap(["url"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    app.enqueue_many([1, 2])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.enqueue_many(add.s(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.enqueue(add)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def options() -> None:
    add.options(queue=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.options(countdown="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(eta=10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(headers={1: 2})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    add.options(queue="low").delay("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.apply_async(2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.apply_async((2, 3), countdwn=10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await add.aapply_async((2, 3), priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.send_task(add)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.send_task("shop.add", colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def results() -> None:
    text: str = add.delay(1).get()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    texts: Result[str] = add.delay(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    content: str = await fetch.delay("url")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    add.delay(1).get(timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.delay(1).get()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    add.delay(1).upper()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    number: int = gather(fetch.map(["url"]))[0]  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    numbers: list[int] = await agather(fetch.map(["url"]))  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    whole: list[int] = gather(add.map([1]), return_exceptions=True)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    gather([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gather(add.delay(1))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    for result in as_completed(fetch.map(["url"])):
        number = result.get()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    async for result in as_completed(fetch.map(["url"])):
        number = await result  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(text, texts, content, number, numbers, whole)


@app.task(bind=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_context() -> None: ...


@app.task(bind=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def another_context(ctx: int) -> None:
    print(ctx)


@app.task(queue=1)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def number_as_queue() -> None: ...


@app.task(colour="red")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
def unknown_option() -> None: ...


@app.task(retry="3")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def retry_as_text() -> None: ...


@app.task(autoretry_for="OSError")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def errors_as_text() -> None: ...


@app.task(retry=RetryPolicy(on="OSError"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def policy_of_text() -> None: ...


@app.task(retry=RetryPolicy(wait=5))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wait_as_number() -> None: ...


@app.periodic(cron=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
@app.task
def number_as_cron() -> None: ...


@app.periodic(evry=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
@app.task
def unknown_word() -> None: ...


@app.periodic(every=5, overlap="skp")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
@app.task
def unknown_policy() -> None: ...


@app.periodic(every=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_task() -> None: ...


async def lifespan(app: TaskQ) -> AsyncGenerator[str, None]:
    yield app.name


app.task(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
TaskQ()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
TaskQ("shop", lese=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
TaskQ("shop", lease="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskQ("shop", threads=timedelta(seconds=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskQ("shop", credentials="password")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskQ("shop", lifespan=lifespan)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
