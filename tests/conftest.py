"""What every test may ask for: a server, an app name of its own, a clean environment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleets import Cluster, SentinelSet
from tests.servers import Server, find_binaries, start_cluster_of_one

# Looked up before any test cleans the environment: a variable may name one.
BINARIES = find_binaries()


# A shell that runs the tests in the background has them, and what they start, ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


def pytest_report_header() -> str:
    return f"redis servers: {', '.join(BINARIES) or 'none'}"


_LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow and "not slow" in slow[0].config.option.markexpr:
        stash = slow[0].config.stash
        stash[_LEFT_OUT] = stash.get(_LEFT_OUT, 0) + len(slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # One process of several: each chooses from all tests, the one that started them tells.
    if output := getattr(session.config, "workeroutput", None):
        output["left_out"] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Nothing is left out in silence."""
    if count := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} slow tests were left out: make test-all runs them")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let what is marked `alone` wait until the other processes of this run stand still."""
    with contextlib.ExitStack() as locks:
        if hasattr(item.config, "workerinput"):
            # What they have in common; pytest removes it in time.
            folder = Path(item.config.option.basetemp).parent
            alone = item.get_closest_marker("alone") is not None
            # Whoever waits for the second keeps the first, so that nobody overtakes it.
            with _lock(folder / "next", fcntl.LOCK_EX):
                locks.enter_context(
                    _lock(folder / "now", fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
                )
        return (yield)


@contextlib.contextmanager
def _lock(path: Path, kind: int) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, kind)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server that all tests share, each in its `namespace`: never flush or stop it."""
    with Server() as running:
        yield running


@pytest.fixture
def seed() -> int:
    """What a scenario's chances follow from; `FAILURE_SEED` repeats an earlier one."""
    chosen = int(os.environ.get("FAILURE_SEED") or random.randrange(1 << 32))
    print(f"FAILURE_SEED={chosen}")  # pytest shows it where the test fails
    return chosen


@pytest.fixture(scope="session")
def redis_url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="session")
def cluster_node() -> Iterator[Server]:
    """A shared cluster of one node; the rules of `server` hold."""
    node = start_cluster_of_one()
    yield node
    node.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A shared cluster of three masters; the rules of `server` hold."""
    with Cluster() as running:
        yield running


@pytest.fixture(scope="session")
def sentinels() -> Iterator[SentinelSet]:
    """A shared master with its replicas and sentinels; the rules of `server` hold."""
    with SentinelSet(down_after_ms=5_000) as running:
        yield running


@pytest.fixture(scope="session", params=list(BINARIES.values()), ids=list(BINARIES))
def binary(request: pytest.FixtureRequest) -> Path:
    """Each server binary found, in turn, for tests that start a `Server(binary)`."""
    path: Path = request.param
    return path


@pytest.fixture
def namespace() -> str:
    """An app name that no other test uses; it stands in every key and id."""
    name = f"t{secrets.token_hex(6)}"
    print(f"namespace: {name}")  # pytest shows it where the test fails
    return name


@pytest.fixture(scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, state_home: Path) -> None:
    """Keep a developer's settings out of the tests, and our key files out of their home."""
    for name in [name for name in os.environ if name.startswith("TASKQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(state_home))
