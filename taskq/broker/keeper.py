"""The keeper runs one directory's embedded server for as long as somebody uses it.

It is a process of its own, since the server must outlive whoever asked for it first, and
imports the standard library's light half only: `embedded` runs this file by its path,
without site-packages, in 20 ms and 11 MB. That is also why it counts its pauses instead
of reading taskq's clock.

Three lock files tell who is there. A flock goes with its last process, so `kill -9`
leaves nothing behind that has to be recognized as stale:

    users        shared: a process uses the server;  exclusive: the keeper is stopping it
    keeper.lock  exclusive: a keeper is there (its pid is the file's text)
    server.lock  exclusive: a server is there; it inherited the lock from its keeper

`server.lock` is what keeps a second server away from the same append-only file when the
keeper was killed, or the server hangs. A new keeper adopts such a server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys

USERS = "users"
KEEPER_LOCK = "keeper.lock"
SERVER_LOCK = "server.lock"
SERVER_PID = "server.pid"
SERVER_LOG = "server.log"

UP, LOADING, DOWN = "up", "loading", "down"

POLL_SECONDS = 0.005
# Data is not at stake: a server that is killed has given its writes to the kernel.
STOP_SECONDS = 5.0
# From its start to its socket a server needs 50 ms on an idle machine.
NO_SOCKET_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 5.0
CALM_TICKS = 10  # a server that lived through these is no longer failing


def open_lock(path: str) -> int:
    """Open a lock file, made if it is missing; no program started later inherits it."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take(lock: int, how: int) -> bool:
    """Take an open lock, `fcntl.LOCK_SH` or `LOCK_EX`, if that needs no waiting."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def grab(path: str, how: int) -> int | None:
    """Return the file, opened and locked, or None if somebody else's lock forbids it."""
    lock, taken = open_lock(path), False
    try:
        taken = take(lock, how)
    finally:
        if not taken:
            os.close(lock)
    return lock if taken else None


def dial(address: str) -> tuple[str, socket.socket | None]:
    """Ask the server behind a socket how it is; with UP comes the open connection."""
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(1.0)
        link.connect(address)
        link.sendall(b"PING\r\n")
        reply = link.recv(64)
    except OSError:
        reply = b""
    # A server that runs a long script answers BUSY: it is there.
    if reply.startswith((b"+PONG", b"-BUSY")):
        return UP, link
    link.close()
    return (LOADING if reply.startswith(b"-LOADING") else DOWN), None


def server_pid(directory: str) -> int:
    """Return what the pid file says, 0 if there is none.

    The server writes it before it listens, so after UP it is there and right.
    """
    try:
        with open(os.path.join(directory, SERVER_PID), encoding="ascii") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return 0


def command_line(binary: str, directory: str, address: str) -> list[str]:
    """Return the server's arguments: private, durable, never dropping data by itself."""
    options = {
        "port": "0",
        "unixsocket": address,
        "unixsocketperm": "700",
        "dir": directory,
        "pidfile": os.path.join(directory, SERVER_PID),
        "logfile": os.path.join(directory, SERVER_LOG),
        "appendonly": "yes",
        "appendfsync": "everysec",
        # A power loss tears the last record; starting without it beats not starting.
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [binary, *(word for name in options for word in ("--" + name, options[name]))]


class Keeper:
    """Starts, watches, restarts and at last stops one server."""

    def __init__(self, directory: str, address: str, binary: str, linger: float) -> None:
        self.directory = directory
        self.address = address
        self.command = command_line(binary, directory, address)
        self.linger = linger
        self.tick = min(1.0, max(0.02, linger / 10))
        self.users = open_lock(os.path.join(directory, USERS))
        self.server = open_lock(os.path.join(directory, SERVER_LOCK))
        self.process: subprocess.Popen[bytes] | None = None  # None: adopted
        self.deaths = 0
        self.ending = False  # set by a signal

    def run(self) -> None:
        """Keep a server running until nobody uses it, or the first one cannot start."""
        link = self.start()
        while link is not None and self.watch(link):
            link = self.restart()

    def start(self) -> socket.socket | None:
        """Return a connection to the server, started if there is none; None: in vain."""
        spawned, missing = False, 0
        while True:
            if not self.running():
                if spawned or not self.spawn():
                    return None  # it died before it answered, or cannot run at all
                spawned = True
            state, link = dial(self.address)
            if link is not None:
                return link
            if self.ending or (state == DOWN and self.alone()):
                self.kill()
                return None
            missing = 0 if os.path.exists(self.address) else missing + 1
            if missing * POLL_SECONDS > NO_SOCKET_SECONDS:
                self.kill()  # its socket was deleted: out of reach for all
            pause(POLL_SECONDS)

    def spawn(self) -> bool:
        """Start a server that holds the server's lock from now on."""
        if self.process is not None:
            self.process.wait()
        lock = grab(os.path.join(self.directory, SERVER_LOCK), fcntl.LOCK_EX)
        if lock is None:
            return False
        try:
            self.clean()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(lock,),
            )
        except OSError as error:
            print(f"cannot run {self.command[0]}: {error}", file=sys.stderr, flush=True)
            return False
        finally:
            os.close(lock)
        return True

    def clean(self) -> None:
        """Delete what only a crashed server leaves: its pid, half a new append-only file.

        The latter would fill the disk if it was each time for memory that it died.
        """
        for name in os.listdir(self.directory):
            if name == SERVER_PID or name.startswith("temp-rewriteaof-"):
                os.unlink(os.path.join(self.directory, name))

    def watch(self, link: socket.socket) -> bool:
        """Return True when the server is gone and still wanted, False when all is over."""
        ticks, idle = 0, 0
        with link:
            while True:
                lost = bool(select.select([link], [], [], self.tick)[0]) and ended(link)
                if self.abandoned():
                    self.kill()
                    return False
                alone = self.alone()
                idle = idle + 1 if alone else 0
                # The first look that finds nobody begins the time, hence the one less.
                over = lost or (idle - 1) * self.tick >= self.linger
                if self.ending or (alone and over):
                    self.stop(link)
                    return False
                if lost:
                    return True
                if not os.path.exists(self.address):
                    self.stop(link)  # nobody can reach it: have it bind anew
                    return not alone
                if alone:
                    fcntl.flock(self.users, fcntl.LOCK_UN)
                ticks += 1
                if ticks == CALM_TICKS:
                    self.deaths = 0

    def restart(self) -> socket.socket | None:
        """Start the server as often as it takes, ever slower; None: no longer wanted."""
        while True:
            pause(min(LONGEST_PAUSE_SECONDS, 0.05 * (2**self.deaths - 1)))
            self.deaths = min(self.deaths + 1, 10)
            if self.ending or self.alone():
                return None
            if link := self.start():
                return link

    def alone(self) -> bool:
        """Lock out newcomers if there is no user; they wait until we let go or end."""
        return take(self.users, fcntl.LOCK_EX)

    def abandoned(self) -> bool:
        """Tell whether the directory was deleted or replaced under the server.

        Others may run a new server there by now. Ours is killed, since an orderly
        shutdown would delete the socket of that one.
        """
        try:
            there = os.stat(os.path.join(self.directory, USERS))
        except (FileNotFoundError, NotADirectoryError):
            return True
        return not os.path.samestat(there, os.fstat(self.users))

    def stop(self, link: socket.socket) -> None:
        """Have the server write everything and end; kill it if it does not."""
        with contextlib.suppress(OSError):  # it ended by itself
            link.sendall(b"SHUTDOWN\r\n")
        for _ in range(int(STOP_SECONDS / POLL_SECONDS)):
            if not self.running():
                return
            pause(POLL_SECONDS)
        self.kill()

    def running(self) -> bool:
        """Tell whether a server, ours or an adopted one, holds its lock."""
        if not take(self.server, fcntl.LOCK_EX):
            return True
        fcntl.flock(self.server, fcntl.LOCK_UN)
        return False

    def kill(self) -> None:
        """End the server at once, whoever started it."""
        if not self.running():
            return  # and the pid in the file may be another's by now
        if self.process is not None:
            self.process.kill()
        elif pid := server_pid(self.directory):
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
        while self.running():
            pause(POLL_SECONDS)


def pause(seconds: float) -> None:
    """Sleep."""
    select.select([], [], [], seconds)


def ended(link: socket.socket) -> bool:
    """Tell whether the other end of a readable connection is closed."""
    try:
        return not link.recv(4096)
    except OSError:
        return True


def main(directory: str, address: str, binary: str, linger: str, lock: str) -> None:
    """Leave whoever started us, then keep until the end. `lock` is a locked descriptor."""
    if os.fork():
        return  # our child is nobody's child now, and so will the server be
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    keeper = Keeper(directory, address, binary, float(linger))

    def end(_number: int, _frame: object) -> None:
        keeper.ending = True

    signal.signal(signal.SIGTERM, end)
    os.ftruncate(int(lock), 0)
    os.write(int(lock), f"{os.getpid()}\n".encode())
    try:
        keeper.run()
    finally:
        # Said aloud: a process forked while this lock was passed to us may share it.
        fcntl.flock(int(lock), fcntl.LOCK_UN)


if __name__ == "__main__":
    main(*sys.argv[1:])
