"""The message being run, as the running task sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from datetime import datetime
from typing import Any, NoReturn

import msgspec

from taskq.config import Seconds, seconds
from taskq.errors import Retry


class Context(msgspec.Struct):
    """What a task may know of its own message; `bind=True` passes it, `current()` finds it.

    A plain call of a bound task, outside a worker, gets a local one: id "local".
    """

    id: str
    task: str
    queue: str
    # This run, counted from 1.
    attempt: int = 1
    # This hand-over to a worker process, counted from 1.
    delivery: int = 1
    # Grows with every claim of this message: write it beside your data, refuse a smaller.
    fence: int = 0
    headers: dict[str, Any] = {}
    # What the app's `lifespan` yielded in this process.
    state: Any = None
    # Whether the task is an `async def`: its waits must be awaited.
    coroutine: bool = False
    # When this attempt is to have ended: its time limit, by this machine's clock, or the
    # deadline of the message, whichever comes first; None: never.
    deadline: datetime | None = None
    # The deadline of the message, in milliseconds since the epoch; what the task enqueues
    # inherits it. 0: none.
    deadline_ms: int = 0

    def __repr__(self) -> str:
        """Name the message, and show neither headers nor state."""
        return f"Context({self.task}[{self.id}], attempt {self.attempt})"

    def retry(
        self,
        exc: BaseException | None = None,
        countdown: Seconds | None = None,
        eta: datetime | None = None,
    ) -> NoReturn:
        """End this attempt and ask for another one.

        Args:
            exc: what the future raises when no attempt is left.
            countdown: seconds to wait; with neither it nor `eta` the policy decides.
            eta: an aware datetime to wait for.

        Raises:
            Retry: always; let it pass.

        """
        delay = None if countdown is None else seconds("countdown", countdown)
        raise Retry(delay=delay, eta=eta, exc=exc)


_current: ContextVar[Context] = ContextVar("taskq_context")


def current() -> Context:
    """Return the context of the task that is calling.

    Raises:
        LookupError: no task is running here.

    """
    try:
        return _current.get()
    except LookupError:
        msg = "no task is running here"
        raise LookupError(msg) from None


def running() -> Context | None:
    """Return the context of the task that is calling, or None outside one."""
    return _current.get(None)


# Make a context the current one of this thread or asyncio task, and undo that by the token.
enter: Callable[[Context], Token[Context]] = _current.set
leave: Callable[[Token[Context]], None] = _current.reset
