"""`TaskQ`: the registry of tasks and the configuration. The object that users make."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from taskq.broker import commands, keys
from taskq.broker.access import Access, open_access
from taskq.broker.aio import AsyncBroker
from taskq.broker.commands import Command, Outgoing
from taskq.broker.connection import Interrupted
from taskq.broker.sync import Broker
from taskq.client.result import Result
from taskq.client.signature import Options, Signature
from taskq.client.task import BoundTaskDecorator, Task, TaskDecorator, TaskOptions
from taskq.client.waiter import Waiter
from taskq.config import Config, Settings, check_name, nearest
from taskq.errors import BrokerError, ConfigError, DuplicateMessage, EnqueueUncertain
from taskq.model.message import WIRE_ID, id_of
from taskq.model.signing import Domain, Seal

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Lifespan = Callable[["TaskQ"], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]

_apps: weakref.WeakValueDictionary[str, TaskQ] = weakref.WeakValueDictionary()


class TaskQ:
    """An app: tasks, and where their calls go. Making one opens no connection.

    Args:
        name: what its keys in Redis begin with; workers and producers share it.
        include: modules that a worker imports besides the app's own; `shop.jobs.*` is
            every module of that package.
        queues: queues to declare that no task names.
        lifespan: a context manager `fn(app)`, sync or async, entered by each worker
            process before it claims; what it yields is `ctx.state`.
        settings: see `taskq.config.Settings`; each is also a variable `TASKQ_<NAME>`.

    """

    def __init__(
        self,
        name: str,
        *,
        include: Sequence[str] = (),
        queues: Iterable[str] = (),
        lifespan: Lifespan | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self.name = check_name("app", name)
        self.include = (include,) if isinstance(include, str) else tuple(include)
        self.lifespan = lifespan
        self.tasks: dict[str, Task[..., Any]] = {}
        self._declared = [check_name("queue", queue) for queue in queues]
        self._settings = settings
        # Guards what is made at first use.
        self._lock = threading.RLock()
        self._config: Config | None = None
        self._seals: dict[tuple[Domain, str], Seal] = {}
        self._reset()
        _apps[name] = self

    def __repr__(self) -> str:
        return f"<TaskQ {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_find, (self.name,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, /, *, bind: Literal[True], **options: Unpack[TaskOptions]
    ) -> BoundTaskDecorator: ...
    @overload
    def task(
        self, /, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> TaskDecorator: ...
    def task(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        bind: bool = False,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Make a task of a function: `@app.task` or `@app.task(queue=..., retry=...)`.

        Raises:
            ConfigError: the name is taken by another function, or an option is wrong.
            TypeError: there is no such option.

        """
        if fn is None:
            return lambda fn: self._register(Task(self, fn, bind=bind, options=options))
        return self._register(Task(self, fn, bind=bind, options=options))

    def enqueue(self, signature: Signature[T]) -> Result[T]:
        """Send one message; `task.delay(...)` does this."""
        one, command = self._command(signature)
        try:
            verdict = self.broker.run(command)
        except Interrupted as error:
            raise _uncertain(error, signature, one) from error
        return self._result(signature, one, verdict)

    async def aenqueue(self, signature: Signature[T]) -> Result[T]:
        """Send one message; as `enqueue`, awaited."""
        one, command = self._command(signature)
        try:
            verdict = await self.abroker().run(command)
        except Interrupted as error:
            raise _uncertain(error, signature, one) from error
        return self._result(signature, one, verdict)

    def enqueue_many(self, calls: Iterable[Signature[T]], /) -> list[Result[T]]:
        """Send many messages, 1,000 in a round trip; all are checked before the first.

        Raises:
            BrokerError: half way; `error.sent` holds the results of what was accepted,
                `error.unsent` the signatures of the rest, safe to be sent again.

        """
        batch = _Batch(self, calls)
        for page, command in batch.pages():
            try:
                batch.accept(page, self.broker.run(command))
            except BrokerError as error:
                raise batch.torn(error) from error
        return batch.results()

    async def aenqueue_many(self, calls: Iterable[Signature[T]], /) -> list[Result[T]]:
        """Send many messages; as `enqueue_many`, awaited."""
        batch = _Batch(self, calls)
        for page, command in batch.pages():
            try:
                batch.accept(page, await self.abroker().run(command))
            except BrokerError as error:
                raise batch.torn(error) from error
        return batch.results()

    def send_task(
        self,
        name: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Result[Any]:
        """Enqueue a call of a task whose code is not here; nothing is checked but names."""
        return self.enqueue(self._unchecked(name, args, kwargs, options))

    async def asend_task(
        self,
        name: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Result[Any]:
        """Enqueue a call of a task whose code is not here; as `send_task`, awaited."""
        return await self.aenqueue(self._unchecked(name, args, kwargs, options))

    def result(self, id: str) -> Result[Any]:
        """Return the handle on the message at that address."""
        name, queue = keys.parse_address(id)
        return Result(self, name, queue)

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            broker, waiter, access = self._broker, self._waiter, self._access
            self._reset()
        if waiter is not None:
            waiter.close()
        if broker is not None:
            broker.close()
        if access is not None and access.server is not None:
            access.server.close()

    async def aclose(self) -> None:
        """Close the connections, those of the running event loop included."""
        abroker = self._abrokers.pop(asyncio.get_running_loop(), None)
        if abroker is not None:
            await abroker.close()
        await asyncio.to_thread(self.close)

    @property
    def config(self) -> Config:
        """The settings, read and checked at first use."""
        if self._config is None:
            with self._lock:
                self._config = self._config or Config.load(self._settings, os.environ)
        return self._config

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues a worker serves if it is not told others."""
        named = (task.call_options.queue for task in self.tasks.values())
        every = [
            self.config.default_queue,
            *self._declared,
            *(name for name in named if name),
        ]
        return tuple(dict.fromkeys(every))

    def check_queue(self, queue: str) -> str:
        """Return `queue` if it is declared; `ConfigError` names the nearest."""
        check_name("queue", queue)
        known = self.queues
        if queue not in known:
            msg = (
                f"nobody declared the queue {queue!r}{nearest(queue, frozenset(known))}. Known: "
                f"{', '.join(known)}. Declare it: TaskQ({self.name!r}, queues=[{queue!r}])"
            )
            raise ConfigError(msg)
        return queue

    # What follows is for the other parts of taskq.

    @property
    def access(self) -> Access:
        """Where Redis is, and the keys; found at first use."""
        if self._access is None:
            with self._lock:
                self._access = self._access or open_access(self.name, self.config)
        return self._access

    @property
    def broker(self) -> Broker:
        """The blocking driver."""
        if self._broker is None:
            with self._lock:
                deadline = self.config.enqueue_deadline
                self._broker = self._broker or Broker(self.access.endpoint, deadline)
        return self._broker

    def abroker(self) -> AsyncBroker:
        """Return the driver of the running event loop."""
        loop = asyncio.get_running_loop()
        broker = self._abrokers.get(loop)
        if broker is None:
            broker = AsyncBroker(self.access.endpoint, self.config.enqueue_deadline)
            self._abrokers[loop] = broker
        return broker

    @property
    def waiter(self) -> Waiter:
        """The subscriptions of this process."""
        if self._waiter is None:
            with self._lock:
                self._waiter = self._waiter or Waiter(self.access.endpoint)
        return self._waiter

    def seal(self, domain: Domain, queue: str) -> Seal:
        """Return what signs and verifies one kind of bytes of a queue."""
        seal = self._seals.get((domain, queue))
        if seal is None:
            seal = self.access.keyring.seal(domain, self.name, queue)
            self._seals[domain, queue] = seal
        return seal

    def wire_id(self, name: str) -> str:
        """Return the id in Redis of a message: 32 hex digits as they are, else a digest."""
        return name if isinstance(name, str) and WIRE_ID.fullmatch(name) else id_of(self.name, name)

    def point_at(self, url: str | None) -> str | None:
        """Use another Redis from now on; return the URL used so far. For tests."""
        self.close()
        with self._lock:
            earlier = self.config.url
            self._config = dataclasses.replace(self.config, url=url)
            self._seals.clear()
        return earlier

    def _reset(self) -> None:
        self._access: Access | None = None
        self._broker: Broker | None = None
        self._waiter: Waiter | None = None
        self._abrokers: weakref.WeakKeyDictionary[Any, AsyncBroker] = weakref.WeakKeyDictionary()

    def _register(self, task: Task[..., Any]) -> Task[..., Any]:
        known = self.tasks.get(task.name)
        if known is not None and known.origin != task.origin:
            msg = (
                f"two functions under one task name {task.name!r}: {'.'.join(known.origin)} and "
                f"{'.'.join(task.origin)}; give one of them another name="
            )
            raise ConfigError(msg)
        self.tasks[task.name] = task
        return task

    def _unchecked(
        self,
        name: str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> Signature[Any]:
        known = Options.__dataclass_fields__
        for option in options:
            if option not in known:
                msg = f"unknown option {option!r}{nearest(option, known)}"
                raise TypeError(msg)
        task = check_name("task", name)
        return Signature(self, task, tuple(args), dict(kwargs or {}), Options(**options))

    def _command(self, signature: Signature[Any]) -> tuple[Outgoing, Command[str]]:
        one = signature.outgoing()
        base = keys.base(self.name, queue_of(signature))
        build = commands.enqueue if one.due is None else commands.schedule
        return one, build(base, (one,))

    def _result(self, signature: Signature[T], one: Outgoing, verdict: str) -> Result[T]:
        name = one.message.envelope.name or one.message.id
        if verdict == "x":
            msg = f"the id {name!r} is in use by a message of another task than {signature.task}"
            raise DuplicateMessage(msg)
        stored = not one.message.envelope.ignore_result
        return Result(self, name, queue_of(signature), task=signature.task, stored=stored)


class _Batch:
    """Many messages on their way, in the order in which they were given."""

    def __init__(self, app: TaskQ, calls: Iterable[Signature[Any]]) -> None:
        self._app = app
        self._calls = list(calls)
        self._outgoing = [signature.outgoing() for signature in self._calls]
        self._verdicts: dict[int, str] = {}

    def pages(self) -> Iterable[tuple[Sequence[Outgoing], Command[str]]]:
        """Return the commands that send them, queue by queue."""
        queues: dict[str, list[Outgoing]] = {}
        for signature, one in zip(self._calls, self._outgoing, strict=True):
            queues.setdefault(queue_of(signature), []).append(one)
        for queue, group in queues.items():
            yield from commands.send(keys.base(self._app.name, queue), group)

    def accept(self, page: Sequence[Outgoing], verdicts: str) -> None:
        """Note what Redis said to a page."""
        self._verdicts.update(zip(map(id, page), verdicts, strict=True))

    def results(self) -> list[Result[Any]]:
        """Return the handles, in the order of the calls."""
        return [self._one(*pair) for pair in zip(self._calls, self._outgoing, strict=True)]

    def torn(self, error: BrokerError) -> BrokerError:
        """Return the error with what was sent and what was not."""
        pairs = list(zip(self._calls, self._outgoing, strict=True))
        unsent = [(call, one) for call, one in pairs if id(one) not in self._verdicts]
        if isinstance(error, Interrupted):
            error = _uncertain(error, *unsent[0])
        error.sent = [self._one(*pair) for pair in pairs if id(pair[1]) in self._verdicts]
        error.unsent = [call.fixed(one) for call, one in unsent]
        return error

    def _one(self, call: Signature[Any], one: Outgoing) -> Result[Any]:
        return self._app._result(call, one, self._verdicts[id(one)])  # noqa: SLF001


def queue_of(signature: Signature[Any]) -> str:
    """Return the queue a signature goes to."""
    return signature.options.queue or signature.app.config.default_queue


def _uncertain(error: Interrupted, signature: Signature[Any], one: Outgoing) -> EnqueueUncertain:
    name = one.message.envelope.name or one.message.id
    address = keys.address(name, queue_of(signature))
    msg = (
        f"{error}; Redis may or may not have accepted {signature.task} {address}: enqueueing it "
        f"again with options(id={name!r}) is safe"
    )
    return EnqueueUncertain(msg, name)


def _find(name: str) -> TaskQ:
    try:
        return _apps[name]
    except KeyError:
        msg = f"no app named {name!r} is loaded in this process"
        raise ConfigError(msg) from None
