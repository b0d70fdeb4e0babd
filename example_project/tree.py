"""The files of a tree, by the rule of a command that anyone can type."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def python_files(root: Path) -> list[str]:
    """Return what `find root -type f -name '*.py'` prints, sorted.

    Hidden files and directories count; symbolic links do not, nor are they followed.
    """
    found: list[str] = []
    for folder, _, names in os.walk(root):
        paths = (Path(folder, name) for name in names if name.endswith(".py"))
        found += [str(path) for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def find_command(root: Path) -> str:
    """Return the command whose number must be ours."""
    return f"find {shlex.quote(str(root))} -type f -name '*.py' | wc -l"
