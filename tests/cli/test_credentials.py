"""Commands and a worker of an app whose password changes while they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.model import clock
from tests.cli.conftest import SECRET, Shell
from tests.cli.test_health import ask
from tests.eventually import until
from tests.servers import HOST, Server, free_port

PROJECT = """
from pathlib import Path
from taskq import TaskQ

FILE = Path(__file__).parent / "password"
app = TaskQ("{name}", credentials=lambda: ("ann", FILE.read_text()))


@app.task
def add(x, y):
    return x + y
"""


class Kept:
    """A server that lets in one user, and a project that reads the password from a file."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.shell = Shell(folder, f"redis://{HOST}:{server.port}/0")
        self.shell.write("proj.py", PROJECT.format(name=self.shell.name))
        self.file = folder / "password"
        self.change("first-not-to-be-shown")
        self.app = TaskQ(
            self.shell.name,
            url=self.shell.environment["TASKQ_URL"],
            secret=SECRET,
            credentials=lambda: ("ann", self.file.read_text(encoding="ascii")),
        )

    def change(self, password: str) -> None:
        """Change the password, and end all connections that were let in by another."""
        self.file.write_text(password, encoding="ascii")
        with self.server.client() as client:
            rules = ("on", "resetpass", f">{password}", "~*", "&*", "+@all")
            client.execute_command("ACL", "SETUSER", "ann", *rules)
            client.client_kill_filter(_type="normal", skipme=True)
            client.client_kill_filter(_type="pubsub", skipme=True)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with Server(requirepass="that-of-the-default-user") as server:
        kept = Kept(server, tmp_path)
        with kept.shell, kept.app:
            yield kept


def test_a_worker_and_its_supervisor_get_in_by_the_new_one(kept: Kept) -> None:
    port = free_port()
    worker = kept.shell.worker("proj", "-p", "2", "--health-port", str(port), TASKQ_LEASE="3")

    def supervisor_got_in_since(then: float) -> bool:
        """Tell whether a round of its maintenance ended; it has no code of the app."""
        asked = clock.monotonic()
        ago: float | None = ask(port)[1]["redis"]
        return ago is not None and asked - ago > then

    assert kept.app.send_task("proj.add", (2, 3)).get(timeout=60) == 5
    until(lambda: supervisor_got_in_since(0), 60)
    kept.change("second-not-to-be-shown")
    # Of a round that was at its end meanwhile.
    changed = clock.monotonic() + 0.2
    assert kept.app.send_task("proj.add", (3, 4)).get(timeout=60) == 7
    until(lambda: supervisor_got_in_since(changed), 60)
    assert worker.stop() == 0
    assert "not-to-be-shown" not in worker.log


def test_each_command_does(kept: Kept) -> None:
    assert kept.shell.say("call", "-A", "proj", "add", "2", "3").returncode == 0
    done = kept.shell.say("doctor", "-A", "proj")
    assert (done.returncode, done.stdout.splitlines()[-1][:8]) == (0, "0 errors")
    kept.file.write_text("wrong-not-to-be-shown", encoding="ascii")
    done = kept.shell.say("doctor", "-A", "proj")
    assert (done.returncode, "refused user or password" in done.stdout) == (1, True)
    assert "not-to-be-shown" not in done.stdout + done.stderr
    kept.file.unlink()
    done = kept.shell.say("doctor", "-A", "proj")
    assert (done.returncode, "raised FileNotFoundError" in done.stdout) == (1, True)


def test_a_worker_whose_provider_returns_nonsense_says_so_and_ends(kept: Kept) -> None:
    kept.shell.write("proj.py", f'from taskq import TaskQ\napp = TaskQ("{kept.shell.name}", '
                                "credentials=lambda: 5)\n")  # fmt: skip
    worker = kept.shell.start("worker", "proj", "-p", "1")
    worker.says("returned neither a password nor (user, password), but int")
    worker.stop()
