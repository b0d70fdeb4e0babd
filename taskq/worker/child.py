"""A child: the process that imports the app and runs its tasks.

It says `hello` to the supervisor, or `failed` and why; then it obeys: `drain`,
`hand_back`. When the supervisor is gone, so is the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import selectors
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from taskq.broker import checkup, keys
from taskq.broker.layout import Finding
from taskq.client.app import TaskQ
from taskq.client.loader import load_app
from taskq.errors import BrokerError, BrokerUnavailable, TaskQError
from taskq.model import clock
from taskq.worker import courier, gate, logs
from taskq.worker.channel import Channel, Note
from taskq.worker.declaring import Declared
from taskq.worker.engine import Engine, Plan

log = logging.getLogger("taskq.worker")

# A child that cannot serve its app: the supervisor passes its reason on, once.
EXIT_FAILED = 2
_PR_SET_PDEATHSIG = 1
_CHECK_SECONDS = 1.0
# How long a start may wait for Redis to say how many partitions a queue has.
_LOOK_SECONDS = 2.0
_IDLE_CHECKS = 2
# Even an idle engine takes a turn each 2.5 s.
_TURN_SECONDS = 20.0


class Child:
    """One process's side of the conversation with the supervisor."""

    def __init__(self, channel: Channel, board: int, dump: int) -> None:
        self._channel = channel
        # Descriptors: of the board, and of the file for faulthandler's last words.
        self._board, self._dump = board, dump
        # With one slot only: how often it was found with nothing to do, in a row.
        self._idle = 0
        self._spent = False
        self._orders: dict[str, Any] = {}
        self._engine: Engine | None = None
        self._retrying = 0
        # Whether Redis could be looked at; the supervisor does so later otherwise.
        self._examined = True
        self._findings: list[Finding] = []
        # Written by signal handlers and by the draining thread, read by the main thread.
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)

    def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        notes = self._channel.receive()
        if not notes:
            return 0
        self._orders = notes[0]
        _die_with(os.getppid())
        self._listen_to_signals()
        try:
            self._engine = self._start()
        except Exception as error:  # noqa: BLE001 - told to the supervisor, in one line
            self._channel.send({"kind": "failed", "reason": _reason(error)})
            return EXIT_FAILED
        # Not before: an app that cannot be served is told of in one line.
        gate.tell(self._findings)
        # First this: what kills the child from now on is a message.
        self._channel.send(self._hello(self._engine))
        self._engine.start()
        return self._serve(self._engine)

    def _start(self) -> Engine:
        orders = self._orders
        app = load_app(orders["app"], orders["modules"])
        # After the app's own modules, which may have turned it on for another file.
        faulthandler.enable(self._dump)
        # The same: if they log in their way, so does the worker.
        logs.configure(orders["loglevel"], orders["log_format"], orders["name"])
        gate.check_place(app.access.endpoint)
        config = app.config
        if orders["first"]:
            self._examined = self._examine(app)
        threads = config.threads if orders["threads"] is None else orders["threads"]
        coroutines = config.coroutines if orders["coroutines"] is None else orders["coroutines"]
        plan = Plan(
            self._places(app), threads, coroutines, orders["name"], self._board, orders["alone"]
        )
        engine = Engine(app, plan)
        engine.exchange.orders.terminate = lambda order: self._tell_to_end(order.id.decode())
        engine.exchange.after_enrolling = lambda: self._tell_members(engine)
        if orders["burst"]:
            engine.exchange.handover.retrying = set()
            engine.exchange.after_turn = self._chained(
                engine.exchange.after_turn, self._tell_retrying
            )
        if orders["max_tasks"] is not None:
            engine.exchange.after_turn = self._chained(
                engine.exchange.after_turn, self._count_ended
            )
        engine.insist()
        engine.prepare()
        return engine

    def _places(self, app: TaskQ) -> tuple[str, ...]:
        """Return the places of all queues that are served.

        Raises:
            ConfigError: Redis knows of more partitions.

        """
        app.partitions.tell(self._orders["partitions"])
        queues = [app.check_queue(one) for one in self._orders["queues"] or app.queues]
        for queue in queues if self._examined else ():
            # Where Redis is away, or full, maintenance compares them later.
            with contextlib.suppress(BrokerError):
                # There may be more since the first child of this worker has looked.
                adopt = not self._orders["first"]
                app.partitions.open(queue, within=_LOOK_SECONDS, adopt=adopt)
        return tuple(place for queue in queues for place in app.partitions.places(queue))

    def _examine(self, app: TaskQ) -> bool:
        """Look at Redis before the first claim; return whether it could be reached."""
        self._findings = checkup.standing(app.access)
        allowed = app.config.allow_eviction
        try:
            self._findings += gate.examine(app.access.endpoint, allow_eviction=allowed)
        except BrokerUnavailable:
            return False
        return True

    def _hello(self, engine: Engine) -> Note:
        app, config = engine.app, engine.app.config
        return {
            "kind": "hello",
            "app": app.name,
            "url": app.access.endpoint.url,
            # It may ask for user and password.
            "provider": app.access.endpoint.provider is not None,
            "place": app.access.endpoint.place,
            # The supervisor verifies orders by them.
            "keys": app.access.keyring.keys,
            "queues": list(engine.plan.queues),
            "tasks": sorted(engine.kinds),
            "digest": engine.digest,
            "examined": self._examined,
            "allow_eviction": config.allow_eviction,
            "lease": config.lease,
            "schedules": Declared.by(engine.app, keys.queues_of(engine.plan.queues)).note(),
            "kept": [engine.kept.letters, engine.kept.age_ms],
            "max_crashes": config.max_crashes,
            "processes": config.processes,
            "shutdown_timeout": config.shutdown_timeout,
            "slots": f"{engine.plan.threads} threads, {engine.plan.coroutines} coroutines",
            "files": _source_files() if self._orders["reload"] else [],
        }

    def _serve(self, engine: Engine) -> int:
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._wake_out, selectors.EVENT_READ)
            while True:
                told = ("burst", "alone", "health")
                checks = any(self._orders[name] for name in told)
                timeout = _CHECK_SECONDS if checks else None
                ready = {key.fileobj for key, _ in selector.select(timeout)}
                if self._wake_out in ready:
                    words = os.read(self._wake_out, 4096)
                    if b"d" in words:
                        return self._end(engine)
                    self._drain(engine, engine.app.config.shutdown_timeout)
                if self._channel in ready:
                    notes = self._channel.receive()
                    if notes is None or any(note["kind"] == "hand_back" for note in notes):
                        return self._end(engine)
                    for note in notes:
                        self._obey(engine, note)
                if self._orders["burst"] and not ready:
                    self._prune_retrying(engine)
                if self._orders["health"] and not ready:
                    self._channel.send({"kind": "alive", "ago": engine.silence()})
                if self._orders["alone"] and not ready and self._has_nothing_to_do(engine):
                    return self._end(engine)

    def _obey(self, engine: Engine, note: Note) -> None:
        if note["kind"] == "drain":
            self._drain(engine, note["seconds"])
        elif note["kind"] == "cancel":
            engine.hear()
        elif note["kind"] == "credentials":
            if (provider := engine.app.access.endpoint.provider) is not None:
                courier.answer(provider, note, self._channel)
        elif note["kind"] == "forgotten":
            engine.doubt(note["queue"])
        elif note["kind"] == "ping":
            # An engine that stands still is no better than a process that does.
            if clock.monotonic() - engine.exchange.turned_at < _TURN_SECONDS:
                self._channel.send({"kind": "pong"})
        elif note["kind"] == "flush":
            # This process will be killed for one message: the others must lose nothing by it.
            engine.quiet()
            engine.exchange.lead()

    def _has_nothing_to_do(self, engine: Engine) -> bool:
        """Whether no suspect came for a while: who has one slot lives for those alone."""
        self._idle = 0 if engine.exchange.holding else self._idle + 1
        return self._idle >= _IDLE_CHECKS

    def _count_ended(self) -> None:
        engine, most = self._engine, self._orders["max_tasks"]
        if engine is not None and engine.exchange.handover.ended >= most and not self._spent:
            self._spent = True
            why = f"it ran {engine.exchange.handover.ended:,} messages"
            self._channel.send({"kind": "spent", "why": why})

    def _drain(self, engine: Engine, seconds: float) -> None:
        """Let what runs end, at most so long, in a thread: this one must go on listening."""

        def drain() -> None:
            engine.drain(seconds)
            os.write(self._wake_in, b"d")

        threading.Thread(target=drain, name="taskq-drain", daemon=True).start()

    def _end(self, engine: Engine) -> int:
        ended = engine.stop()
        self._channel.send({"kind": "bye"})
        if ended:
            return 0
        # A task's thread runs on: leaving in the usual way could wait for it.
        logging.shutdown()
        os._exit(0)

    def _tell_to_end(self, id: str) -> None:
        """Ask the supervisor to end this process: a message in it is to be terminated."""
        self._channel.send({"kind": "terminate", "id": id})

    def _tell_members(self, engine: Engine) -> None:
        self._channel.send({"kind": "members", "members": engine.exchange.members()})

    def _chained(self, earlier: Any, then: Any) -> Any:
        def after_turn() -> None:
            earlier()
            then()

        return after_turn

    def _tell_retrying(self) -> None:
        engine = self._engine
        count = len(engine.exchange.handover.retrying or ()) if engine else 0
        if self._retrying != count:
            self._retrying = count
            self._channel.send({"kind": "retrying", "count": self._retrying})

    def _prune_retrying(self, engine: Engine) -> None:
        """Forget the retries that another worker took."""
        retrying = engine.exchange.handover.retrying or set()
        ids = list(retrying)
        for port in engine.exchange.ports:
            if not ids:
                return
            names = [keys.record(engine.app.name, port.queue, one.decode()) for one in ids]
            try:
                records = engine.app.broker.call("MGET", *names)
            except BrokerError:
                return
            waiting = {
                one for one, raw in zip(ids, records, strict=True) if raw and raw[:1] == b"Y"
            }
            ids = [one for one in ids if one not in waiting]
        retrying.difference_update(ids)
        self._tell_retrying()

    def _listen_to_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, _note_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _note_signal(_number: int, _frame: object) -> None:
    """Do nothing: the wake-up descriptor has told the main thread already."""


def _die_with(parent: int) -> None:
    """End with the supervisor, even if this process is too busy to see its pipe close."""
    if sys.platform == "linux":
        # A C library without it, or a sandbox that refuses: the closing pipe must do.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TaskQError) else f"{type(error).__name__}: {text}"


def _source_files() -> list[str]:
    """Return the files whose change means other code: those of the user's own modules."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    own = (file for file in files if file and file.endswith(".py"))
    prefixes = tuple({sys.prefix, sys.base_prefix, str(Path(os.__file__).parent)})
    here = str(Path(__file__).parent.parent)
    return sorted(file for file in own if not file.startswith((*prefixes, here)))


def main() -> int:
    """Run a child; the arguments are descriptors: the channel, the board, the last words."""
    channel, board, dump = map(int, sys.argv[1:4])
    return Child(Channel(socket.socket(fileno=channel)), board, dump).run()


if __name__ == "__main__":
    sys.exit(main())
