"""Apps on a real server and on `memory://`, and what their tests have in common."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from taskq import TaskQ
from tests.cli.conftest import Shell
from tests.fleets import Cluster, SentinelSet

T = TypeVar("T")
NewApp = Callable[..., TaskQ]
Awaited = Callable[[Coroutine[Any, Any, Any]], Any]

SECRET = "a secret that all the feature tests share"


@pytest.fixture(scope="module")
def _bare_environment() -> Iterator[None]:
    """Do for what lives as long as a module what `_clean_environment` does for a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TASKQ_")]:
            patch.delenv(name)
        yield


def _factory(url: str) -> Iterator[NewApp]:
    made: list[TaskQ] = []

    def new_app(**settings: Any) -> TaskQ:
        name = f"t{secrets.token_hex(6)}"
        app = TaskQ(name, **({"url": url, "secret": SECRET} | settings))
        made.append(app)
        return app

    yield new_app
    closing = [threading.Thread(target=app.close) for app in made]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "url" in metafunc.fixturenames:
        more = [pytest.param(name, marks=pytest.mark.slow) for name in ("sentinels", "cluster")]
        metafunc.parametrize("url", ["redis", "memory", *more], indirect=True, scope="module")


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest, redis_url: str) -> str:
    """Where the apps of `new_app` are: the shared server, this very process, several servers."""
    if request.param in ("sentinels", "cluster"):
        fleet: SentinelSet | Cluster = request.getfixturevalue(request.param)
        return fleet.url
    return redis_url if request.param == "redis" else f"memory://{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def new_app(url: str, _bare_environment: None) -> Iterator[NewApp]:
    """Make apps, each with a name of its own, on a real server and on `memory://`."""
    yield from _factory(url)


@pytest.fixture(scope="module")
def new_redis_app(redis_url: str, _bare_environment: None) -> Iterator[NewApp]:
    """Make apps as `new_app` does, on the real server alone."""
    yield from _factory(redis_url)


@pytest.fixture
def awaited() -> Iterator[Awaited]:
    """Run a coroutine in an event loop of its own, and close the app's connections there."""

    def run(coroutine: Coroutine[Any, Any, T], app: TaskQ | None = None) -> T:
        async def whole() -> T:
            try:
                return await coroutine
            finally:
                if app is not None:
                    await app.abroker().close()

        return asyncio.run(whole())

    return run


@pytest.fixture
def shell_of() -> Iterator[Callable[[Path, str], Shell]]:
    """Make project folders, in which commands are typed."""
    made: list[Shell] = []

    def shell_of(folder: Path, url: str) -> Shell:
        made.append(Shell(folder, url))
        return made[-1]

    yield shell_of
    for shell in made:
        shell.close()
