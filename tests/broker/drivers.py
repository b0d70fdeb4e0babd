"""Both drivers behind one face, and the three places they are pointed at."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from taskq.broker.cluster import open_abroker, open_broker
from taskq.broker.commands import Command
from taskq.broker.connection import Endpoint
from taskq.broker.credentials import Provider
from taskq.broker.scripts import Script

T = TypeVar("T")

DEADLINE = 5.0


class Driver(Protocol):
    """What a test does with Redis, whichever driver carries it out."""

    def run(self, command: Command[T]) -> T: ...
    def run_many(self, commands: Sequence[Command[T]]) -> list[Any]: ...
    def call(self, *arguments: Any) -> Any: ...
    def close(self) -> None: ...


class Blocking:
    """What `open_broker` makes."""

    def __init__(
        self, url: str, deadline: float = DEADLINE, provider: Provider | None = None
    ) -> None:
        self._broker = open_broker(Endpoint(url, provider), deadline)

    def run(self, command: Command[T]) -> T:
        return self._broker.run(command)

    def run_many(self, commands: Sequence[Command[T]]) -> list[Any]:
        return list(self._broker.run_each(commands))

    def run_into(self, told: list[Any], commands: Sequence[Command[T]]) -> None:
        """Run many; what came before an error stands in `told`."""
        told.extend(self._broker.run_each(commands))

    def call(self, *arguments: Any) -> Any:
        return self._broker.call(*arguments)

    def close(self) -> None:
        self._broker.close()


async def all_of(replies: AsyncIterator[T]) -> list[T]:
    return [reply async for reply in replies]


async def into(told: list[Any], replies: AsyncIterator[Any]) -> None:
    async for reply in replies:
        told.append(reply)  # noqa: PERF401 - an error may follow


class Awaited:
    """What `open_abroker` makes, on an event loop of its own."""

    def __init__(
        self, url: str, deadline: float = DEADLINE, provider: Provider | None = None
    ) -> None:
        self._runner = asyncio.Runner()
        self._broker = open_abroker(Endpoint(url, provider), deadline)

    def run(self, command: Command[T]) -> T:
        return self._runner.run(self._broker.run(command))

    def run_many(self, commands: Sequence[Command[T]]) -> list[Any]:
        return self._runner.run(all_of(self._broker.run_each(commands)))

    def run_into(self, told: list[Any], commands: Sequence[Command[T]]) -> None:
        """Run many; what came before an error stands in `told`."""
        self._runner.run(into(told, self._broker.run_each(commands)))

    def call(self, *arguments: Any) -> Any:
        return self._runner.run(self._broker.call(*arguments))

    def close(self) -> None:
        self._runner.run(self._close())
        self._runner.close()

    async def _close(self) -> None:
        await self._broker.close()
        await asyncio.get_running_loop().shutdown_asyncgens()


DRIVERS: dict[str, type[Blocking | Awaited]] = {"sync": Blocking, "aio": Awaited}


class OneSlot:
    """A driver whose scripts may touch one slot only.

    A cluster of one node owns every slot, so nothing would stop a script that touches two.
    A script that begins with `#!lua` is stopped at the first key in another slot.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def run(self, command: Command[T]) -> T:
        return self._driver.run(_strict(command))

    def run_many(self, commands: Sequence[Command[T]]) -> list[Any]:
        return self._driver.run_many([_strict(command) for command in commands])

    def call(self, *arguments: Any) -> Any:
        return self._driver.call(*arguments)

    def close(self) -> None:
        self._driver.close()


def _strict(command: Command[T]) -> Command[T]:
    return msgspec.structs.replace(command, script=_with_shebang(command.script))


@functools.cache
def _with_shebang(script: Script) -> Script:
    text = "#!lua\n" + script.text
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()
    return Script(script.name, text, sha)
