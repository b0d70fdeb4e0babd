"""A server of the test's own, and project folders on it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from tests.cli.conftest import Shell
from tests.servers import Server

KEY = "a secret that the security tests share and long enough"


@pytest.fixture
def own_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def shell(tmp_path: Path, own_server: Server) -> Iterator[Shell]:
    with Shell(tmp_path, own_server.url) as made:
        yield made


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., TaskQ]]:
    """Make apps on the shared server, each with a name of its own."""
    made: list[TaskQ] = []

    def new_app(name: str = "", **settings: Any) -> TaskQ:
        name = name or f"t{secrets.token_hex(6)}"
        made.append(TaskQ(name, **({"url": redis_url, "secret": KEY} | settings)))
        return made[-1]

    yield new_app
    for app in made:
        app.close()


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
