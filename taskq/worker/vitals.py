"""How a worker is: the signs of life of its parts, and a port that tells them over HTTP.

A process that exists proves nothing. So each sign is noted by the loop it speaks of: the
supervisor's own, the turns of each child, the rounds of maintenance.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from taskq.model import clock

_REQUEST_SECONDS = 5.0


class Vitals:
    """When each part last gave a sign of life. Written by the supervisor's main thread."""

    def __init__(self, worker: str, patience: float) -> None:
        self._worker = worker
        # Seconds of silence after which a part counts as dead.
        self._patience = patience
        self.state = "starting"
        self.loop_at = clock.monotonic()
        # The last good round of maintenance; it may be silent for `redis_pause` in between.
        self.redis_at: float | None = None
        self.redis_pause = 0.0
        # By number, so that a child which dies again and again is a silent one.
        self.children: dict[int, float] = {}
        # Pids of children that were stopped by a signal.
        self.frozen: list[int] = []

    def report(self) -> dict[str, Any]:
        """Return what is to be told, as JSON has it. Called by other threads."""
        now = clock.monotonic()
        problems = list(self._problems(now))
        return {
            "healthy": not problems,
            "worker": self._worker,
            "state": self.state,
            "problems": problems,
            # Seconds since the last sign of life.
            "supervisor": round(now - self.loop_at, 1),
            "redis": None if self.redis_at is None else round(now - self.redis_at, 1),
            "children": {
                str(number): round(now - at, 1) for number, at in dict(self.children).items()
            },
        }

    def _problems(self, now: float) -> list[str]:
        found: list[str] = []
        if self.state == "starting":
            found.append("the app is not loaded yet")
        if now - self.loop_at > self._patience:
            found.append("the supervisor's loop is stuck")
        if self.redis_at is None:
            found.append("Redis was not reached yet")
        elif now - self.redis_at > self._patience + self.redis_pause:
            found.append(f"Redis was not reached for {now - self.redis_at:.0f} s")
        if self.state == "serving":
            found += [
                f"child {number} gave no sign of life for {now - at:.0f} s"
                for number, at in sorted(dict(self.children).items())
                if now - at > self._patience
            ]
            found += [f"the child process {pid} is stopped by a signal" for pid in self.frozen]
        return found


class HealthServer:
    """Answers GET with 200 or 503 and the report, on threads of its own."""

    def __init__(self, host: str, port: int, report: Callable[[], dict[str, Any]]) -> None:
        """Bind the port.

        Raises:
            OSError: it cannot be bound.

        """

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_SECONDS

            def do_GET(self) -> None:
                told = report()
                body = json.dumps(told).encode() + b"\n"
                self.send_response(200 if told["healthy"] else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def version_string(self) -> str:
                return "taskq"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                """Say nothing: it is asked every few seconds."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True

    def start(self) -> None:
        """Answer from now on, until the process ends."""
        threading.Thread(
            target=self._server.serve_forever, name="taskq-health", daemon=True
        ).start()
