"""A task: the decorated function and its options. Call it, delay it, sign it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    overload,
)

from taskq.client.result import Result
from taskq.client.signature import Options, Signature
from taskq.config import Seconds, check_name, nearest
from taskq.errors import ConfigError
from taskq.model.context import Context
from taskq.model.retry import ErrorTypes, RetryPolicy, policy_of

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
R_co = TypeVar("R_co", covariant=True)
Coro: TypeAlias = Coroutine[Any, Any, T]

_UNSET: Any = object()
_RETRY_OPTIONS = (
    "retry",
    "autoretry_for",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
    "max_retries",
    "default_retry_delay",
)
_CALL_OPTIONS = (
    "queue",
    "priority",
    "serializer",
    "ignore_result",
    "result_ttl",
    "expires",
)


class TaskOptions(TypedDict, total=False):
    """The keywords of `@app.task`, besides `bind`."""

    name: str
    queue: str
    priority: int
    serializer: str
    ignore_result: bool
    result_ttl: Seconds
    expires: Seconds
    # Either `retry=` ...
    retry: int | RetryPolicy | None
    # ... or Celery's names for the same thing.
    autoretry_for: ErrorTypes
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    max_retries: int | None
    default_retry_delay: Seconds


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
        self, app: TaskQ, fn: Callable[..., Any], *, bind: bool, options: TaskOptions
    ) -> None:
        _check_options(options)
        self.app = app
        self.fn = fn
        self.bind = bind
        self.name = check_name("task", options.get("name") or default_name(fn))
        # Where the function is defined: a redefinition there replaces the task.
        self.origin = (fn.__module__, getattr(fn, "__qualname__", repr(fn)))
        self.coroutine = inspect.iscoroutinefunction(fn)
        self.retry_policy = policy_of(options)
        own: dict[str, Any] = {name: options.get(name) for name in _CALL_OPTIONS}
        self.call_options = Options(**own)
        self._take_signature()
        functools.update_wrapper(self, fn, updated=())
        self.__signature__ = self._signature

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickle, (self.app, self.name))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the function here and now."""
        if self.bind:
            queue = self.call_options.queue or "default"
            local = Context("local", self.name, queue, coroutine=self.coroutine)
            return self.fn(local, *args, **kwargs)  # type: ignore[no-any-return]
        return self.fn(*args, **kwargs)  # type: ignore[no-any-return]

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
                may have, `EnqueueUncertain`, with the id under which to try again.

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
        **options: Any,
    ) -> Result[T]: ...
    @overload
    def apply_async(
        self,
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Any,
    ) -> Result[R_co]: ...
    def apply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Result[Any]:
        """Enqueue a call, in Celery's spelling: `options(**options).delay(...)`."""
        return self.app.enqueue(self.options(**options)._sign(tuple(args), dict(kwargs or {})))

    @overload
    async def aapply_async(
        self: Task[P, Coro[T]],
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Any,
    ) -> Result[T]: ...
    @overload
    async def aapply_async(
        self,
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Any,
    ) -> Result[R_co]: ...
    async def aapply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Result[Any]:
        """Enqueue a call; as `apply_async`, awaited."""
        signature = self.options(**options)._sign(tuple(args), dict(kwargs or {}))
        return await self.app.aenqueue(signature)

    @overload
    def s(self: Task[P, Coro[T]], /, *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...
    @overload
    def s(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R_co]: ...
    def s(self, /, *args: Any, **kwargs: Any) -> Signature[Any]:
        """Return the call, not yet sent. Wrong arguments are a `TypeError` here."""
        return self._sign(args, kwargs)

    @overload
    def map(self: Callable[[A], Coro[T]], items: Iterable[A], /) -> list[Result[T]]: ...  # type: ignore[misc]
    @overload
    def map(self: Callable[[A], T], items: Iterable[A], /) -> list[Result[T]]: ...
    def map(self: Any, items: Iterable[Any], /) -> list[Result[Any]]:
        """Enqueue one call for each item, 1,000 in a round trip."""
        return self.app.enqueue_many(self.s(item) for item in items)  # type: ignore[no-any-return]

    @overload
    async def amap(self: Callable[[A], Coro[T]], items: Iterable[A], /) -> list[Result[T]]: ...  # type: ignore[misc]
    @overload
    async def amap(self: Callable[[A], T], items: Iterable[A], /) -> list[Result[T]]: ...
    async def amap(self: Any, items: Iterable[Any], /) -> list[Result[Any]]:
        """Enqueue one call for each item; as `map`, awaited."""
        return await self.app.aenqueue_many(self.s(item) for item in items)  # type: ignore[no-any-return]

    @overload
    def starmap(self: Task[P, Coro[T]], calls: Iterable[tuple[Any, ...]], /) -> list[Result[T]]: ...
    @overload
    def starmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[R_co]]: ...
    def starmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[Any]]:
        """Enqueue one call for each tuple of arguments."""
        return self.app.enqueue_many(self._sign(tuple(args), {}) for args in calls)

    @overload
    async def astarmap(
        self: Task[P, Coro[T]], calls: Iterable[tuple[Any, ...]], /
    ) -> list[Result[T]]: ...
    @overload
    async def astarmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[R_co]]: ...
    async def astarmap(self, calls: Iterable[tuple[Any, ...]], /) -> list[Result[Any]]:
        """Enqueue one call for each tuple of arguments; as `starmap`, awaited."""
        return await self.app.aenqueue_many(self._sign(tuple(args), {}) for args in calls)

    def options(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        countdown: Seconds | None = None,
        eta: datetime | None = None,
        expires: Seconds | datetime | None = None,
        id: str | None = None,
        serializer: str | None = None,
        ignore_result: bool | None = None,
        result_ttl: Seconds | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Task[P, R_co]:
        """Return this task with options for the next call; see `Options` for the units.

        Raises:
            ConfigError: an undeclared queue, or options that exclude each other.
            TypeError, ValueError: a value of another kind or out of range.

        """
        if queue is not None:
            self.app.check_queue(queue)
        given = Options(
            queue,
            priority,
            countdown,
            eta,
            expires,
            id,
            serializer,
            ignore_result,
            result_ttl,
            headers,
        )
        twin: Task[P, R_co] = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.call_options = self.call_options.merged(given)
        return twin

    def _sign(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature[Any]:
        # Most calls are positional and of a fitting number: no need to bind those.
        if kwargs or not self._fewest <= len(args) <= self._most:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                msg = f"{self.name}: {error}"
                raise TypeError(msg) from None
        return Signature(self.app, self.name, args, kwargs, self.call_options)

    def _take_signature(self) -> None:
        signature = inspect.signature(self.fn)
        parameters = list(signature.parameters.values())
        if self.bind:
            if not parameters or parameters[0].kind not in _POSITIONAL:
                msg = f"{self.name}: bind=True needs a first parameter for the Context"
                raise ConfigError(msg)
            parameters = parameters[1:]
        self._signature = signature.replace(parameters=parameters)
        positional = [one for one in parameters if one.kind in _POSITIONAL]
        # The names of the positional parameters, for the texts of errors.
        self.parameters = tuple(one.name for one in positional)
        keyword_only = any(
            one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters
        )
        variadic = any(one.kind is one.VAR_POSITIONAL for one in parameters)
        self._fewest: float = sum(one.default is one.empty for one in positional)
        self._most: float = float("inf") if variadic else len(positional)
        if keyword_only:
            self._fewest = float("inf")


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def default_name(fn: Callable[..., Any]) -> str:
    """Return `module.qualname`, the module by the name under which a worker imports it."""
    name = getattr(fn, "__qualname__", "").replace(".<locals>", "")
    if not name or "<" in name:
        msg = f"{fn!r} has no name of its own: give the task one with name="
        raise ConfigError(msg)
    return f"{importable_module(fn.__module__)}.{name}"


def importable_module(module: str) -> str:
    """Return the name of a module; that of a script run as `__main__` as others see it."""
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules[module]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if file is None:
        return "interactive"
    path = Path(file).resolve().with_suffix("")
    root = Path(sys.path[0] or ".").resolve()
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return ".".join(inside.parts)


def _check_options(options: TaskOptions) -> None:
    known = set(TaskOptions.__annotations__)
    for name in options:
        if name not in known:
            msg = f"unknown task option {name!r}{nearest(name, known)}"
            raise TypeError(msg)


def _unpickle(app: TaskQ, name: str) -> Task[..., Any]:
    return app.tasks[name]
