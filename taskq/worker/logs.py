"""Log lines of a worker: text for people, or JSON, one object a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from taskq.model import clock
from taskq.model.words import printable

TEXT = "%(asctime)s %(levelname)-7s %(worker)s %(message)s"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "worker"}


class TextFormatter(logging.Formatter):
    """One line a record, whatever came from Redis or from a task; a traceback has its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name there
        """Return the line, control characters written out."""
        return printable(super().formatMessage(record))


class JSONFormatter(logging.Formatter):
    """One JSON object a record; what `extra=` gave stands beside the standard fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, Any] = {
            "time": clock.instant(int(record.created * 1000)).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "worker": getattr(record, "worker", None),
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


def configure(level: str, log_format: str, worker: str) -> None:
    """Log to stderr, unless the root logger has a handler already."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter(TEXT))

    def name_worker(record: logging.LogRecord) -> bool:
        record.worker = worker
        return True

    handler.addFilter(name_worker)
    root.addHandler(handler)
    root.setLevel(level.upper())
