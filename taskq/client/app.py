"""`TaskQ`: the registry of tasks and the configuration. The object that users make."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, ParamSpec, Self, TypeAlias, TypeVar, Unpack, overload

from taskq.broker import keys
from taskq.broker.access import Access, open_access
from taskq.broker.aio import AsyncBroker
from taskq.broker.cluster import open_abroker, open_broker
from taskq.broker.credentials import Credentials, Provider
from taskq.broker.sync import Broker
from taskq.client import sending
from taskq.client.dead import DeadLetters
from taskq.client.mould import Mould
from taskq.client.partitions import Partitions
from taskq.client.periodic import Periodic, PeriodicDecorator, PeriodicOptions
from taskq.client.result import Result
from taskq.client.schedules import Schedules
from taskq.client.signature import CallOptions, Options, Signature
from taskq.client.spread import Spread
from taskq.client.task import BoundTaskDecorator, Task, TaskDecorator, TaskOptions
from taskq.client.waiter import Waiter
from taskq.client.waiters import open_waiter
from taskq.config import Config, Settings, check_name, nearest, replicas
from taskq.errors import ConfigError
from taskq.model.message import WIRE_ID, id_of
from taskq.model.queues import Queue
from taskq.model.signing import Domain, Seal

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Lifespan: TypeAlias = Callable[
    ["TaskQ"], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
]

_apps: weakref.WeakValueDictionary[str, TaskQ] = weakref.WeakValueDictionary()


class TaskQ:
    """An app: tasks, and where their calls go. Making one opens no connection.

    Args:
        name: what its keys in Redis begin with; workers and producers share it.
        include: modules that a worker imports besides the app's own; `shop.jobs.*` is
            every module of that package.
        queues: queues to declare that no task names, or that have several partitions:
            `["low", Queue("emails", partitions=8)]`.
        lifespan: a context manager `fn(app)`, sync or async, entered by each worker
            process before it claims; what it yields is `ctx.state`.
        credentials: a function that returns (user, password), or a password, or redis's
            `CredentialProvider`; asked at each new connection, where the URL has neither.
        settings: see `taskq.config.Settings`; each is also a variable `TASKQ_<NAME>`.

    """

    def __init__(
        self,
        name: str,
        *,
        include: Sequence[str] = (),
        queues: Iterable[Queue | str] = (),
        lifespan: Lifespan | None = None,
        credentials: Credentials | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self.name = check_name("app", name)
        self.include = (include,) if isinstance(include, str) else tuple(include)
        self.lifespan = lifespan
        self._provider = None if credentials is None else Provider(credentials)
        self.tasks: dict[str, Task[..., Any]] = {}
        # What `@app.periodic` declared, by the names of the schedules.
        self.periodic_calls: dict[str, Periodic] = {}
        # How many partitions each queue has.
        self.partitions = Partitions(self, queues)
        self._settings = settings
        # Guards what is made at first use.
        self._lock = threading.RLock()
        self._config: Config | None = None
        self._seals: dict[tuple[Domain, str], Seal] = {}
        # The mould of the last call of each task; for `sending`.
        self.moulds: dict[str, Mould | Spread] = {}
        self._abrokers: weakref.WeakKeyDictionary[Any, AsyncBroker] = weakref.WeakKeyDictionary()
        self._reset()
        _apps[name] = self

    def _reset(self) -> None:
        self._access: Access | None = None
        self._broker: Broker | None = None
        self._waiter: Waiter | None = None
        self.partitions.forget()

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

        def decorate(fn: Callable[..., Any]) -> Task[..., Any]:
            return self._register(Task(self, fn, bind=bind, options=options))

        return decorate if fn is None else decorate(fn)

    def periodic(self, **options: Unpack[PeriodicOptions]) -> PeriodicDecorator:
        """Call a task again and again: `@app.periodic(cron="0 7 * * mon")` above `@app.task`.

        Workers that import the module make the schedule and vouch for it. Its arguments
        are `args=` and `kwargs=`, its name the task's unless `name=` is given.

        Raises:
            ConfigError, ValueError, TypeError: a rule that cannot work, or a name in use.

        """

        def decorate(task: Task[P, R], /) -> Task[P, R]:
            self._declare(Periodic.of(task, options))
            return task

        return decorate

    def enqueue(self, signature: Signature[T]) -> Result[T]:
        """Send one message; `task.delay(...)` does this."""
        return sending.send(self, signature)

    async def aenqueue(self, signature: Signature[T]) -> Result[T]:
        """Send one message; as `enqueue`, awaited."""
        return await sending.asend(self, signature)

    def enqueue_many(self, calls: Iterable[Signature[T]], /) -> list[Result[T]]:
        """Send many messages, 1,000 in a round trip; all are checked before the first.

        Raises:
            BrokerError: half way; `error.sent` holds the results of what was accepted,
                `error.unsent` the signatures of the rest, safe to be sent again.

        """
        return sending.send_many(self, calls)

    async def aenqueue_many(self, calls: Iterable[Signature[T]], /) -> list[Result[T]]:
        """Send many messages; as `enqueue_many`, awaited."""
        return await sending.asend_many(self, calls)

    def send_task(
        self,
        name: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Result[Any]:
        """Enqueue a call of a task whose code is not here; nothing is checked but names."""
        return self.enqueue(self._unchecked(name, args, kwargs, options))

    async def asend_task(
        self,
        name: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Result[Any]:
        """Enqueue a call of a task whose code is not here; as `send_task`, awaited."""
        return await self.aenqueue(self._unchecked(name, args, kwargs, options))

    def result(self, id: str) -> Result[Any]:
        """Return the handle on the message at that address."""
        name, place = keys.parse_address(id)
        return Result(self, name, place, self.wire_id(name))

    @property
    def dead(self) -> DeadLetters:
        """The messages that failed for the last time or were refused."""
        return DeadLetters(self)

    @property
    def schedules(self) -> Schedules:
        """The calls that are made periodically."""
        return Schedules(self)

    def close(self) -> None:
        """Close the connections, but those of event loops. A later call opens new ones."""
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
        await self.leave_loop()
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
        every = (self.config.default_queue, *self.partitions.names, *filter(None, named))
        return tuple(dict.fromkeys(every))

    def check_queue(self, queue: str) -> str:
        """Return `queue` if it is declared; `ConfigError` names the nearest."""
        queue = check_name("queue", queue)
        known = self.queues
        if queue not in known:
            msg = (
                f"nobody declared the queue {queue!r}; known are {', '.join(known)}, and "
                f"TaskQ({self.name!r}, queues=[{queue!r}]) declares it"
                f"{nearest(queue, frozenset(known))}"
            )
            raise ConfigError(msg)
        return queue

    # What follows is for the other parts of taskq.

    @property
    def access(self) -> Access:
        """Where Redis is, and the keys; found at first use."""
        if self._access is None:
            with self._lock:
                self._access = self._access or open_access(self.name, self.config, self._provider)
        return self._access

    @property
    def broker(self) -> Broker:
        """The blocking driver."""
        if self._broker is None:
            with self._lock:
                deadline = self.config.enqueue_deadline
                self._broker = self._broker or open_broker(self.access.endpoint, deadline)
        return self._broker

    def abroker(self) -> AsyncBroker:
        """Return the driver of the running event loop."""
        loop = asyncio.get_running_loop()
        broker = self._abrokers.get(loop)
        if broker is None:
            # What is left of a driver may refer to its loop, so that nothing else would drop it.
            for ended in [one for one in list(self._abrokers) if one.is_closed()]:
                del self._abrokers[ended]
            broker = open_abroker(self.access.endpoint, self.config.enqueue_deadline)
            self._abrokers[loop] = broker
        return broker

    @property
    def waiter(self) -> Waiter:
        """The subscriptions of this process."""
        if self._waiter is None:
            with self._lock:
                self._waiter = self._waiter or open_waiter(self.access.endpoint)
        return self._waiter

    def seal(self, domain: Domain, queue: str) -> Seal:
        """Return what signs and verifies one kind of bytes of a queue."""
        seal = self._seals.get((domain, queue))
        if seal is None:
            seal = self.access.keyring.seal(domain, self.name, queue)
            self._seals[domain, queue] = seal
        return seal

    def replicas(self, task: str) -> int:
        """Return how many replicas must have a message of a task, where no call says."""
        known = self.tasks.get(task)
        return self.awaited_replicas(known.call_options.durability if known else None)

    def awaited_replicas(self, durability: str | None) -> int:
        """Return how many replicas a message must reach by what was said of it, else by default.

        Raises:
            ConfigError: there can be none.

        """
        count = replicas(durability or self.config.durability)
        if count and self.access.endpoint.memory:
            msg = (
                f"memory:// has no replicas, and durability asks for {count}: without a server "
                f"say 'replicas:0', in code or as TASKQ_DURABILITY"
            )
            raise ConfigError(msg)
        return count

    def wire_id(self, name: object) -> str:
        """Return the id in Redis of a message: 32 hex digits as they are, else a digest."""
        return name if isinstance(name, str) and WIRE_ID.fullmatch(name) else id_of(self.name, name)

    async def leave_loop(self) -> None:
        """Close the connections of the running event loop."""
        abroker = self._abrokers.pop(asyncio.get_running_loop(), None)
        if abroker is not None:
            await abroker.close()

    def renew_lock(self) -> None:
        """Take a new lock, after a fork."""
        self._lock = threading.RLock()

    def point_at(
        self, url: str | None, provider: Provider | None = None
    ) -> tuple[str | None, Provider | None]:
        """Use another Redis from now on; return how to come back to this one. For tests."""
        self.close()
        with self._lock:
            earlier = self.config.url, self._provider
            self._provider = provider
            self._config = dataclasses.replace(self.config, url=url)
            self._seals.clear()
            self.moulds.clear()
            self._abrokers.clear()
        return earlier

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

    def _declare(self, periodic: Periodic) -> None:
        known = self.periodic_calls.get(periodic.name)
        call = periodic.call
        if call.app is not self:
            msg = f"{call.task} is of the app {call.app.name!r}: declare its schedules there"
            raise ConfigError(msg)
        # What is defined again is another function, under the same names.
        if known is not None and (
            known.origin != periodic.origin or known.task.fn is periodic.task.fn
        ):
            msg = (
                f"two schedules under one name {periodic.name!r}, of {known.call.task} and "
                f"{call.task}: give one of them another name="
            )
            raise ConfigError(msg)
        self.periodic_calls[periodic.name] = periodic

    def _unchecked(
        self,
        name: str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any] | None,
        options: CallOptions,
    ) -> Signature[Any]:
        task = check_name("task", name)
        return Signature(self, task, tuple(args), dict(kwargs or {}), Options.of(options))


def _after_fork() -> None:
    """Free the child process of locks that another thread of its parent held."""
    for app in list(_apps.values()):
        app.renew_lock()


os.register_at_fork(after_in_child=_after_fork)


def _find(name: str) -> TaskQ:
    try:
        return _apps[name]
    except KeyError:
        msg = f"no app named {name!r} is loaded in this process"
        raise ConfigError(msg) from None
