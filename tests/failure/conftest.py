"""Servers that a test may kill, and workers as users start them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shell
from tests.servers import Server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of this test alone, with its data on disk."""
    with Server(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def shell(tmp_path: Path, own_server: Server) -> Iterator[Shell]:
    made = Shell(tmp_path, own_server.url)
    yield made
    made.close()


@pytest.fixture
def app(shell: Shell) -> Iterator[Any]:
    made = shell.app()
    yield made
    made.close()
