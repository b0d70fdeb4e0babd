"""What a task raises, as its caller sees it."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

import taskq
from taskq import MaxRetriesExceeded, RemoteError, SerializationError, State, TaskQ
from taskq.testing import running_worker


class TwoArguments(Exception):
    """Pickles, and does not come back: its `args` are not what its constructor wants."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Rich(Exception):
    """Carries more than text."""

    def __init__(self, text: str, details: dict[str, Any]) -> None:
        super().__init__(text, details)
        self.details = details


class Mute(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        msg = "no words"
        raise RuntimeError(msg)


@dataclass(frozen=True)
class Frozen(Exception):
    """Does not let anybody set anything."""

    code: int


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    raise KeyError(depth)


class Deadly:
    """An argument whose reading ends the program that reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, (3,))


RAISED: dict[str, Any] = {
    "two": lambda: TwoArguments(4, "x"),
    "rich": lambda: Rich("text", {"a": [1, 2]}),
    "mute": Mute,
    "frozen": lambda: Frozen(7),
    "holds a lambda": lambda: ValueError(lambda: 1),
    "holds a file": lambda: ValueError(sys.stdout),
    "holds itself": lambda: ValueError("x" * 200_000),
    "group": lambda: ExceptionGroup("several", [ValueError(1), KeyError("k")]),
    "os": lambda: FileNotFoundError(2, "No such file", "name"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "system exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop": lambda: StopIteration(5),
    "timeout": lambda: TimeoutError("slow"),
    "ours": lambda: taskq.ResultTimeout("inner"),
}


@pytest.fixture(scope="module")
def shop(new_app: Any) -> Iterator[Any]:
    app: TaskQ = new_app()

    @app.task(name="throw")
    def throw(name: str) -> None:
        raised = RAISED[name]()
        raise raised

    @app.task(name="athrow")
    async def athrow(name: str) -> None:
        raised = RAISED[name]()
        raise raised

    @app.task(name="chained")
    def chained() -> None:
        try:
            deep(3)
        except KeyError as error:
            msg = "outer"
            raise ValueError(msg) from error

    @app.task(name="give")
    def give(what: str) -> Any:
        return {"lambda": lambda: 5, "lock": sys.stdout, "none": None}[what]

    @app.task(name="fine")
    def fine(x: Any = 1) -> Any:
        return x

    with running_worker(app, threads=2):
        yield SimpleNamespace(
            app=app, throw=throw, athrow=athrow, chained=chained, give=give, fine=fine
        )


@pytest.fixture(params=["throw", "athrow"])
def throw(request: pytest.FixtureRequest, shop: Any) -> Any:
    """A task that raises, a `def` and an `async def`."""
    return getattr(shop, request.param)


def test_the_tasks_own_exception_comes_back(throw: Any) -> None:
    error = throw.delay("rich").exception(timeout=5)
    assert type(error) is Rich
    assert error.details == {"a": [1, 2]}


def test_the_remote_traceback_is_its_cause(shop: Any) -> None:
    with pytest.raises(ValueError, match="outer") as caught:
        shop.chained.delay().get(timeout=5)
    text = "".join(traceback.format_exception(caught.value))
    assert "in deep" in text
    assert "in chained" in text
    assert "KeyError" in text
    assert "direct cause" in text
    assert "executor.py" not in str(caught.value.__cause__)


def test_every_reading_gives_a_fresh_exception(shop: Any) -> None:
    result = shop.throw.delay("rich")
    first, second = result.exception(timeout=5), result.exception()
    assert first is not second
    assert getattr(second, "__notes__", []) == getattr(first, "__notes__", [])


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("two", RemoteError, "TwoArguments: 4: x"),
        ("mute", Mute, ""),
        ("holds a lambda", ValueError, ""),
        ("holds a file", RemoteError, "ValueError"),
        ("holds itself", RemoteError, "ValueError: xxx"),
        ("group", ExceptionGroup, "several"),
        ("os", FileNotFoundError, "name"),
        ("unicode", UnicodeDecodeError, "bad"),
        ("system exit", RemoteError, "SystemExit: 3"),
        ("interrupt", RemoteError, "KeyboardInterrupt"),
        ("generator exit", RemoteError, "GeneratorExit"),
        ("timeout", TimeoutError, "slow"),
        ("ours", taskq.ResultTimeout, "inner"),
        ("frozen", RemoteError, "Frozen: 7"),
    ],
)
def test_whatever_is_raised_reaches_the_caller_and_the_worker_lives(
    shop: Any, throw: Any, name: str, kind: type[BaseException], text: str
) -> None:
    result = throw.delay(name)
    with pytest.raises(kind) as caught:
        result.get(timeout=5)
    if kind is not Mute:
        assert text in str(caught.value) + str(getattr(caught.value, "args", ""))
    assert result.status is State.FAILED
    assert isinstance(result.exception(), kind)
    assert shop.fine.delay().get(timeout=5) == 1


def test_stop_iteration_is_told(shop: Any) -> None:
    assert isinstance(shop.throw.delay("stop").exception(timeout=5), StopIteration)
    assert isinstance(shop.athrow.delay("stop").exception(timeout=5), RuntimeError)


NESTED = """
import asyncio, sys
from taskq import TaskQ
from taskq.testing import running_worker

app = TaskQ("nested", url="memory://")

@app.task
async def nested():
    async def leave():
        sys.exit(3)
    await asyncio.create_task(leave())

@app.task
async def after():
    return "still here"

@app.task
def thread():
    return "here too"

with running_worker(app, drain=1):
    print("nested:", type(nested.delay().exception(timeout=3)).__name__, flush=True)
    print(after.delay().get(timeout=3), flush=True)
    print(thread.delay().get(timeout=3), flush=True)
"""


def test_a_system_exit_inside_a_coroutine_of_a_task_does_not_end_the_worker() -> None:
    """Asyncio lets a SystemExit of any of its tasks out of the loop itself.

    In a process of its own: where this fails, the loop is left in pieces.
    """
    done = subprocess.run(
        [sys.executable, "-c", NESTED], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.splitlines() == ["nested: RemoteError", "still here", "here too"]


def test_a_cancelled_coroutine_is_a_failure_and_the_loop_lives(new_app: Any) -> None:
    app: TaskQ = new_app()

    @app.task
    async def gives_up() -> None:
        import asyncio

        raise asyncio.CancelledError

    @app.task
    async def after() -> str:
        return "still here"

    with running_worker(app, drain=1):
        error = gives_up.delay().exception(timeout=3)
        assert isinstance(error, RemoteError)
        assert "CancelledError" in str(error)
        assert after.delay().get(timeout=3) == "still here"


def test_an_argument_that_is_deadly_to_read_fails_its_message_alone(shop: Any) -> None:
    for _ in range(3):
        error = shop.fine.delay(Deadly()).exception(timeout=3)
        assert isinstance(error, (RemoteError, SerializationError))
    assert shop.fine.delay(7).get(timeout=3) == 7


def test_a_result_that_cannot_be_written_fails_the_message(shop: Any) -> None:
    error = shop.give.delay("lock").exception(timeout=5)
    assert isinstance(error, SerializationError)
    assert "result" in str(error)
    assert shop.give.delay("lambda").get(timeout=5)() == 5
    assert shop.give.delay("none").get(timeout=5) is None


def test_a_result_may_be_too_large(new_app: Any) -> None:
    app: TaskQ = new_app(max_result_bytes=10_000)

    @app.task
    def many(n: int) -> bytes:
        return b"x" * n

    with running_worker(app):
        assert len(many.delay(9000).get(timeout=5)) == 9000
        with pytest.raises(taskq.MessageTooLarge, match="max_result_bytes"):
            many.delay(20_000).get(timeout=5)


def test_asking_for_another_attempt_without_one_left_names_the_task(new_app: Any) -> None:
    app: TaskQ = new_app()

    @app.task(name="asks", max_retries=0)
    def asks() -> None:
        raise taskq.Retry

    with running_worker(app), pytest.raises(MaxRetriesExceeded, match="asks"):
        asks.delay().get(timeout=5)


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_without_pickle_builtin_exceptions_are_rebuilt_and_others_told(
    new_app: Any, serializer: str
) -> None:
    app: TaskQ = new_app(serializer=serializer)

    @app.task
    def throw(name: str) -> None:
        raised = RAISED[name]()
        raise raised

    with running_worker(app):
        rich = throw.delay("rich").exception(timeout=5)
        assert isinstance(rich, RemoteError)
        assert rich.type.endswith("Rich")
        assert "text" in rich.text
        assert "in throw" in rich.traceback
        system = throw.delay("os").exception(timeout=5)
        assert isinstance(system, FileNotFoundError)
        assert (system.errno, system.filename) == (2, "name")
        assert "in throw" in str(system.__cause__)
        decode = throw.delay("unicode").exception(timeout=5)
        assert isinstance(decode, UnicodeDecodeError)
        assert decode.object == b"\xff"
        unwritable = throw.delay("holds a lambda").exception(timeout=5)
        assert isinstance(unwritable, RemoteError)
        for name in ("system exit", "interrupt"):
            assert isinstance(throw.delay(name).exception(timeout=5), RemoteError)


def test_a_class_that_the_caller_cannot_import_is_told(
    new_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app: TaskQ = new_app()

    @app.task
    def throw() -> None:
        text = "text"
        raise Rich(text, {})

    with running_worker(app):
        result = throw.delay()
        until_over = app.result(result.id)
        assert isinstance(until_over.exception(timeout=5), Rich)
    monkeypatch.delattr(sys.modules[__name__], "Rich")
    error = result.exception()
    assert isinstance(error, RemoteError)
    assert "Rich" in error.type


def test_remote_errors_travel_on(shop: Any) -> None:
    import pickle

    error = shop.throw.delay("two").exception(timeout=5)
    again = pickle.loads(pickle.dumps(error))
    assert (again.type, again.text, str(again)) == (error.type, error.text, str(error))
