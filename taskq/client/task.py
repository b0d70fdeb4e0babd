"""A task: the decorated function and its options. Call it, delay it, sign it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    Unpack,
    overload,
)

from taskq.client.naming import default_name, importable_module
from taskq.client.parameters import Parameters
from taskq.client.result import Result
from taskq.client.signature import Alike, CallOptions, Options, Signature, check_known
from taskq.config import MOST_CRASHES, Seconds, check_name
from taskq.model.context import Context
from taskq.model.retry import RetryOptions, policy_of

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
R_co = TypeVar("R_co", covariant=True)
Coro: TypeAlias = Coroutine[Any, Any, T]


class TaskOptions(RetryOptions, total=False):
    """The keywords of `@app.task`, besides `bind`, typed."""

    name: str
    queue: str
    priority: int
    serializer: str
    ignore_result: bool
    result_ttl: Seconds
    expires: Seconds
    deadline: Seconds
    timeout: Seconds
    hard_timeout: Seconds
    durability: str
    soft_time_limit: Seconds
    time_limit: Seconds
    max_crashes: int


class TaskDecorator(Protocol):
    """What `@app.task(...)` returns."""

    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


class BoundTaskDecorator(Protocol):
    """What `@app.task(bind=True, ...)` returns: callers do not see the context."""

    def __call__(self, fn: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...


class Task(Generic[P, R_co]):
    """A function that workers can run. Pickles by its name.

    `R_co` is what a plain call returns: a coroutine for an `async def`.
    """

    def __init__(
        self, app: TaskQ, fn: Callable[..., R_co], *, bind: bool, options: TaskOptions
    ) -> None:
        check_known("task option", options, TaskOptions.__annotations__)
        self.app = app
        self.fn = fn
        self.bind = bind
        self.name = check_name("task", options.get("name") or default_name(fn))
        # Where the function is defined: a redefinition there replaces the task.
        self.origin = (importable_module(fn.__module__), getattr(fn, "__qualname__", repr(fn)))
        self.coroutine = inspect.iscoroutinefunction(fn)
        self.retry_policy = policy_of(options)
        known = CallOptions.__annotations__
        own: Any = {name: value for name, value in options.items() if name in known}
        self.call_options = Options.of(own)
        # For the worker. Seconds; and how many processes one message may kill, 0: the setting.
        self.limits = self.call_options.limits
        self.max_crashes = check_crashes(options.get("max_crashes"))
        # Whether none of these is set.
        self.plain = self.limits == (None, None) and not self.max_crashes
        self.parameters = Parameters(self.name, fn, bind=bind)
        functools.update_wrapper(self, fn, updated=())
        self.__signature__ = self.parameters.signature

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        registered = self.app.tasks.get(self.name)
        if registered is not None and registered.call_options == self.call_options:
            return (_unpickle, (self.app, self.name))
        return (_unpickle, (self.app, self.name, self.call_options))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the function here and now."""
        if self.bind:
            queue = self.call_options.queue or "default"
            local = Context("local", self.name, queue, coroutine=self.coroutine)
            return self.fn(local, *args, **kwargs)
        return self.fn(*args, **kwargs)

    @overload
    def delay(self: Task[P, Coro[T]], /, *args: P.args, **kwargs: P.kwargs) -> Result[T]: ...
    @overload
    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> Result[R_co]: ...
    def delay(self, /, *args: Any, **kwargs: Any) -> Result[Any]:
        """Enqueue a call.

        Raises:
            TypeError: the arguments do not fit the function.
            SerializationError: they cannot be written.
            BrokerUnavailable: Redis did not accept it within `enqueue_deadline`; if it
                may have, or too few replicas did, `EnqueueUncertain`, with the id
                under which to try again.

        """
        return self.app.enqueue(self._sign(args, kwargs))

    @overload
    async def adelay(self: Task[P, Coro[T]], /, *args: P.args, **kwargs: P.kwargs) -> Result[T]: ...
    @overload
    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> Result[R_co]: ...
    async def adelay(self, /, *args: Any, **kwargs: Any) -> Result[Any]:
        """Enqueue a call; as `delay`, awaited."""
        return await self.app.aenqueue(self._sign(args, kwargs))

    @overload
    def apply_async(
        self: Task[P, Coro[T]],
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[CallOptions],
    ) -> Result[T]: ...
    @overload
    def apply_async(
        self,
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[CallOptions],
    ) -> Result[R_co]: ...
    def apply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Result[Any]:
        """Enqueue a call, in Celery's spelling: `options(**options).delay(...)`."""
        return self.app.enqueue(self._applied(args, kwargs, options))

    @overload
    async def aapply_async(
        self: Task[P, Coro[T]],
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[CallOptions],
    ) -> Result[T]: ...
    @overload
    async def aapply_async(
        self,
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[CallOptions],
    ) -> Result[R_co]: ...
    async def aapply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Result[Any]:
        """Enqueue a call; as `apply_async`, awaited."""
        return await self.app.aenqueue(self._applied(args, kwargs, options))

    @overload
    def s(self: Task[P, Coro[T]], /, *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...
    @overload
    def s(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R_co]: ...
    def s(self, /, *args: Any, **kwargs: Any) -> Signature[Any]:
        """Return the call, not yet sent. Wrong arguments are a `TypeError` here."""
        return self._sign(args, kwargs)

    @overload
    def map(self: Callable[[A], Coro[T]], items: Iterable[A], /) -> list[Result[T]]: ...  # type: ignore[misc]  # a Task is such a Callable
    @overload
    def map(self: Callable[[A], T], items: Iterable[A], /) -> list[Result[T]]: ...
    def map(self: Any, items: Iterable[Any], /) -> list[Result[Any]]:
        """Enqueue one call for each item, 1,000 in a round trip."""
        task: Task[..., Any] = self
        return task.app.enqueue_many(task.alike((item,) for item in items))

    @overload
    async def amap(self: Callable[[A], Coro[T]], items: Iterable[A], /) -> list[Result[T]]: ...  # type: ignore[misc]  # a Task is such a Callable
    @overload
    async def amap(self: Callable[[A], T], items: Iterable[A], /) -> list[Result[T]]: ...
    async def amap(self: Any, items: Iterable[Any], /) -> list[Result[Any]]:
        """Enqueue one call for each item; as `map`, awaited."""
        task: Task[..., Any] = self
        return await task.app.aenqueue_many(task.alike((item,) for item in items))

    @overload
    def starmap(self: Task[P, Coro[T]], calls: Iterable[tuple[Any, ...]], /) -> list[Result[T]]: ...
    @overload
    def starmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[R_co]]: ...
    def starmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[Any]]:
        """Enqueue one call for each tuple of arguments."""
        return self.app.enqueue_many(self.alike(calls))

    @overload
    async def astarmap(
        self: Task[P, Coro[T]], calls: Iterable[tuple[Any, ...]], /
    ) -> list[Result[T]]: ...
    @overload
    async def astarmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[R_co]]: ...
    async def astarmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[Any]]:
        """Enqueue one call for each tuple of arguments; as `starmap`, awaited."""
        return await self.app.aenqueue_many(self.alike(calls))

    def options(self, **options: Unpack[CallOptions]) -> Task[P, R_co]:
        """Return this task with options for the next call; see `Options` for the units.

        Raises:
            ConfigError: an undeclared queue, or options that exclude each other.
            TypeError, ValueError: a value of another kind or out of range.

        """
        queue = options.get("queue")
        if queue is not None:
            self.app.check_queue(queue)
        return self.with_options(self.call_options.merged(Options.of(options)))

    def with_options(self, options: Options) -> Task[P, R_co]:
        """Return this task with these options in the place of its own, checked before."""
        twin: Task[P, R_co] = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.call_options = options
        return twin

    def alike(self, calls: Iterable[tuple[Any, ...]]) -> Alike[Any]:
        """Return calls of positional arguments, not yet sent."""
        one = Signature[Any](self.app, self.name, (), {}, self.call_options)
        return Alike(one, self.parameters.checked(calls))

    def _applied(
        self, args: Iterable[Any], kwargs: Mapping[str, Any] | None, options: CallOptions
    ) -> Signature[Any]:
        task: Task[..., Any] = self.options(**options)
        return task.s(*tuple(args), **dict(kwargs or {}))

    def _sign(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature[Any]:
        self.parameters.check(args, kwargs)
        return Signature(self.app, self.name, args, kwargs, self.call_options)


def check_crashes(value: object) -> int:
    """Return the option `max_crashes`; 0 where it is not given."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"max_crashes must be an int, not {type(value).__name__}"
        raise TypeError(msg)
    if not 1 <= value <= MOST_CRASHES:
        msg = f"max_crashes must be 1 to {MOST_CRASHES}, not {value}"
        raise ValueError(msg)
    return value


def _unpickle(app: TaskQ, name: str, options: Options | None = None) -> Task[..., Any]:
    task = app.tasks[name]
    return task if options is None else task.with_options(options)
