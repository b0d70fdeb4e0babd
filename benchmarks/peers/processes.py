"""Worker and producer processes of a peer: started in its environment, ended by their ids."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from benchmarks import processors
from benchmarks.peers import environments
from benchmarks.peers.peer import Peer, Place

STOP_SECONDS = 10.0
PRODUCER_SECONDS = 60.0


class FailedError(Exception):
    """A process ended, or stands still; the text is fit for the report."""


class Workers:
    """The worker processes of one measurement."""

    def __init__(self, started: list[subprocess.Popen[bytes]], log: IO[bytes]) -> None:
        self._started = started
        self._log = log

    def pids(self) -> list[int]:
        """Return those of the processes, and of all below them."""
        return [pid for one in self._started for pid in processors.family(one.pid)]

    def check(self) -> None:
        """Raise, with the last that was said, if one ended."""
        for one in self._started:
            if one.poll() is not None:
                msg = f"a worker ended with {one.returncode}: {self.said()}"
                raise FailedError(msg)

    def said(self) -> str:
        """Return the last line of the log."""
        self._log.seek(0)
        return environments.last_line(self._log.read().decode(errors="replace"))


@contextlib.contextmanager
def workers(
    peer: Peer, place: Place, processes: int, task: str, variables: Mapping[str, str]
) -> Iterator[Workers]:
    """Run the worker's commands until the block ends."""
    env = environments.environment(peer.project, {**place.variables(), **variables})
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="tqp-") as folder:
        try:
            for words in peer.commands(processes, task):
                path = environments.program(peer.project, words[0])
                started.append(_start([str(path), *words[1:]], env, folder, log))
            yield Workers(started, log)
        finally:
            for one in started:
                _end(one)


def _start(
    words: list[str], env: Mapping[str, str], folder: str, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=folder,
        start_new_session=True,  # a group of its own, which we can end whole
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and its children: what it ran is done, and its server is emptied next."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


def produce(
    peer: Peer, place: Place, action: str, variables: Mapping[str, str], **order: Any
) -> dict[str, float]:
    """Run a producer to its end; return what it measured."""
    path = environments.program(peer.project)
    words = [str(path), "-m", "benchmarks.peers.producer", action, json.dumps(order)]
    env = environments.environment(peer.project, {**place.variables(), **variables})
    # An empty folder: Python looks for modules where it is started, before its own.
    with tempfile.TemporaryDirectory(prefix="tqp-") as folder:
        try:
            done = subprocess.run(
                words,
                env=env,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                timeout=PRODUCER_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            msg = f"the producer was not done after {PRODUCER_SECONDS:.0f} s"
            raise FailedError(msg) from error
    if done.returncode:
        msg = f"the producer failed: {environments.last_line(done.stderr)}"
        raise FailedError(msg)
    return dict(json.loads(done.stdout.splitlines()[-1]))
