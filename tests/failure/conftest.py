"""Stages for scenarios, servers that a test may kill, and workers as users start them."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shell
from tests.failure.scene import Scene
from tests.failure.topology import TOPOLOGIES
from tests.servers import Server

NewScene = Callable[..., Scene]
HERE = Path(__file__).parent


# Before `-m` is looked at.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of this test alone, with its data on disk."""
    with Server(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def shell(tmp_path: Path, own_server: Server) -> Iterator[Shell]:
    with Shell(tmp_path, own_server.url) as made:
        yield made


@pytest.fixture
def app(shell: Shell) -> Iterator[Any]:
    made = shell.app()
    yield made
    made.close()


@pytest.fixture
def patient() -> None:
    """For tests that are long: no stacks are to be printed after the usual seconds."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> str:
    """One server, where a scenario does not say `on("sentinel")` or others of `TOPOLOGIES`."""
    return str(getattr(request, "param", "single"))


@pytest.fixture
def new_scene(topology: str, tmp_path: Path) -> Iterator[NewScene]:
    """Make stages: `proxied=True` puts a failing line before each server."""
    made: list[Scene] = []

    def new_scene(*, proxied: bool = False, **options: str | int) -> Scene:
        folder = tmp_path / f"scene-{len(made)}"
        folder.mkdir()
        made.append(Scene(folder, TOPOLOGIES[topology](proxied=proxied, **options)))
        return made[-1]

    yield new_scene
    for scene in made:
        scene.tell()
        scene.close()
        scene.topology.close()


@pytest.fixture
def scene(new_scene: NewScene) -> Scene:
    return new_scene()
