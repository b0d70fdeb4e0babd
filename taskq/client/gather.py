"""Waiting for many results: in the order given, or as they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Generic, Literal, TypeVar, overload

from taskq.client.drive import follow_async, follow_sync
from taskq.client.result import Result
from taskq.config import Seconds

T = TypeVar("T")


class Completed(Generic[T]):
    """Results in the order in which they end; for `for` and for `async for`."""

    def __init__(
        self, results: Iterable[Result[T]], timeout: Seconds | None, *, in_task: bool
    ) -> None:
        self._results = list(results)
        self._timeout = timeout
        self._in_task = in_task

    def __iter__(self) -> Iterator[Result[T]]:
        if self._results:
            app = self._results[0].app
            yield from follow_sync(app, self._results, self._timeout, in_task=self._in_task)

    async def __aiter__(self) -> AsyncIterator[Result[T]]:
        if self._results:
            app = self._results[0].app
            async for result in follow_async(app, self._results, self._timeout):
                yield result


def as_completed(
    results: Iterable[Result[T]], *, timeout: Seconds | None = None, in_task: bool = False
) -> Completed[T]:
    """Return the results as they end, by `for` or `async for`.

    Raises:
        ResultTimeout: while iterating, when `timeout` seconds have passed.

    """
    return Completed(results, timeout, in_task=in_task)


@overload
def gather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = ...,
    return_exceptions: Literal[False] = False,
    in_task: bool = ...,
) -> list[T]: ...
@overload
def gather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = ...,
    return_exceptions: bool,
    in_task: bool = ...,
) -> list[T | BaseException]: ...
def gather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = None,
    return_exceptions: bool = False,
    in_task: bool = False,
) -> list[Any]:
    """Return what the tasks returned, in the order given.

    The first that failed, in that order, is raised; with `return_exceptions=True` the
    exceptions stand in the list.

    Raises:
        ResultTimeout: some are not over after `timeout` seconds.

    """
    wanted = list(results)
    for one in wanted:
        one.check_stored()
    if wanted:
        for _ in follow_sync(wanted[0].app, wanted, timeout, in_task=in_task):
            pass
    return [_value_of(one, return_exceptions=return_exceptions) for one in wanted]


@overload
async def agather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = ...,
    return_exceptions: Literal[False] = False,
) -> list[T]: ...
@overload
async def agather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = ...,
    return_exceptions: bool,
) -> list[T | BaseException]: ...
async def agather(
    results: Iterable[Result[T]],
    *,
    timeout: Seconds | None = None,
    return_exceptions: bool = False,
) -> list[Any]:
    """Return what the tasks returned; as `gather`, awaited."""
    wanted = list(results)
    for one in wanted:
        one.check_stored()
    if wanted:
        async for _ in follow_async(wanted[0].app, wanted, timeout):
            pass
    return [_value_of(one, return_exceptions=return_exceptions) for one in wanted]


def _value_of(result: Result[Any], *, return_exceptions: bool) -> Any:
    try:
        return result.outcome()
    except BaseException as error:
        if return_exceptions:
            return error
        raise
