"""Which of the watched source files changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class FileWatch:
    """Remembers modification times."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}

    def watch(self, files: Iterable[str]) -> None:
        """Watch these files from now on, besides those watched already."""
        for file in files:
            self._times.setdefault(file, _modified(file))

    def changed(self) -> str | None:
        """Return a file that changed since the last call, if one did."""
        found = None
        for file, earlier in self._times.items():
            if (now := _modified(file)) != earlier:
                self._times[file] = now
                found = file
        return found


def _modified(file: str) -> int:
    try:
        return Path(file).stat().st_mtime_ns
    except OSError:  # gone: an editor is about to write it anew
        return 0
