"""Log lines of a worker: text for people, or JSON, one object a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from taskq.model import clock

TEXT = "%(asctime)s %(levelname)-7s %(worker)s %(message)s"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "worker"}


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
    handler.setFormatter(JSONFormatter() if log_format == "json" else logging.Formatter(TEXT))

    def name_worker(record: logging.LogRecord) -> bool:
        record.worker = worker
        return True

    handler.addFilter(name_worker)
    root.addHandler(handler)
    root.setLevel(level.upper())
