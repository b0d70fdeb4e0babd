"""What the figures of a run depend on, in words."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from benchmarks import servers


def describe(url: str, python: str) -> dict[str, str]:
    """Return the machine, the interpreter and the server."""
    version = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    return {
        "processors": f"{os.cpu_count()}, {_processor()}",
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": version.strip(),
        "server": servers.describe(url),
        "load before the run": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size / 2**30:.0f} GiB"
