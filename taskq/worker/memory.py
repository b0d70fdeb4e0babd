"""How much memory processes use, and whether the system killed any for want of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG])(?:i?B)?", re.IGNORECASE)


def used(pid: int) -> int | None:
    """Return the bytes of memory in which a process resides; None if it is gone."""
    if PROC.is_dir():
        try:
            return int((PROC / str(pid) / "statm").read_bytes().split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):
            return None
    asked = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)],  # noqa: S607 - wherever it is
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(asked.stdout) << 10 if asked.stdout.strip().isdigit() else None


def kills() -> int:
    """Return how many processes were killed for want of memory: in this group, on this machine."""
    return _count(PROC / "vmstat") + _count(_group() / "memory.events")


def parse(text: str) -> int:
    """Return the bytes in a size like `512M`; `ValueError` for anything else."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        msg = f"{text!r}: give a size and its unit, like 512M or 2G"
        raise ValueError(msg)
    return size


def told(size: int) -> str:
    """Return a size for people."""
    return f"{size / (1 << 20):,.0f} MiB"


def _group() -> Path:
    """Return the folder of this process's control group, of the second version."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return PROC / "none"
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return Path("/sys/fs/cgroup", path.lstrip("/"))


def _count(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0
