"""The Lua scripts: their text, their header contracts and their SHA.

A script names the pieces of `lua/lib/` that it uses; its text is those and its own. A line
`-- here: <piece>` stands for a piece of the script itself, with its locals.
"""

from __future__ import annotations

import functools
import hashlib
import re
from importlib import resources

import msgspec

_LIBRARY_ORDER = (
    "core",
    "clock",
    "ahead",
    "counts",
    "records",
    "cancels",
    "lanes",
    "scheduled",
    "recall",
    "schedules",
    "dead",
    "running",
)


class Script(msgspec.Struct, frozen=True):
    """One state change, ready to be sent."""

    name: str
    text: str
    sha: bytes


@functools.cache
def load(name: str) -> Script:
    """Return the script of that name."""
    return _joined(name, set())


@functools.cache
def load_ahead(name: str) -> Script:
    """Return the same script with a test's clock, which may be ahead of Redis's own."""
    return _joined(name, {"ahead"})


def _joined(name: str, more: set[str]) -> Script:
    """Return a script with the pieces that it uses, and more where it uses the clock."""
    own = source(name)
    used = re.search(r"^-- use: (.*)$", own, re.MULTILINE)
    wanted = {*used.group(1).split()} if used else set[str]()
    if "clock" in wanted:
        wanted |= more
    parts = [source(f"lib/{piece}") for piece in _LIBRARY_ORDER if piece in wanted]
    # A chunk of its own for each piece would cost a function call; `do` blocks would hide
    # the locals. So the pieces are joined as they are.
    own = re.sub(
        r"^-- here: (\w+)$", lambda here: source(f"lib/{here[1]}"), own, flags=re.MULTILINE
    )
    text = "\n".join([*parts, own])
    return Script(
        name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()
    )


def source(name: str) -> str:
    """Return the text of a file in `lua/`."""
    return resources.files("taskq.broker").joinpath(f"lua/{name}.lua").read_text(encoding="utf-8")


def names() -> list[str]:
    """Return the names of all scripts."""
    folder = resources.files("taskq.broker").joinpath("lua")
    return sorted(file.name[:-4] for file in folder.iterdir() if file.name.endswith(".lua"))
