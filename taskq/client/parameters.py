"""Parameters: what the arguments of a call must fit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from taskq.errors import ConfigError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Parameters:
    """The parameters of a task, as its callers see them: without the context of `bind=True`."""

    def __init__(self, task: str, fn: Callable[..., Any], *, bind: bool) -> None:
        self._task = task
        signature = inspect.signature(fn)
        parameters = list(signature.parameters.values())
        if bind:
            if not parameters or parameters[0].kind not in _POSITIONAL:
                msg = f"{task}: bind=True needs a first parameter for the Context"
                raise ConfigError(msg)
            parameters = parameters[1:]
        self.signature = signature.replace(parameters=parameters)
        positional = [one for one in parameters if one.kind in _POSITIONAL]
        # Of the positional parameters, for the texts of errors.
        self.names = tuple(one.name for one in positional)
        # How many positional arguments fit without a closer look.
        self._fewest: float = sum(one.default is one.empty for one in positional)
        self._most: float = len(positional)
        if any(one.kind is one.VAR_POSITIONAL for one in parameters):
            self._most = math.inf
        if any(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters):
            self._fewest = math.inf

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `TypeError` where a call does not fit."""
        # Most calls are positional and of a fitting number: no need to bind those.
        if kwargs or not self._fewest <= len(args) <= self._most:
            try:
                self.signature.bind(*args, **kwargs)
            except TypeError as error:
                msg = f"{self._task}: {error}"
                raise TypeError(msg) from None

    def checked(self, calls: Iterable[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
        """Return the positional arguments of many calls; `TypeError` where one does not fit."""
        fewest, most = self._fewest, self._most
        for call in calls:
            args = tuple(call)
            if not fewest <= len(args) <= most:
                self.check(args, {})
            yield args
