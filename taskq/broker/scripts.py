"""The Lua scripts: their text, their header contracts and their SHA.

A script names the pieces of `lua/lib/` that it uses; its text is its own and, of those, what
it mentions. A line `-- here: <piece>` stands for a piece of the script itself, with its locals.
A line `-- seldom: <pieces>` stands for a function that makes what these define, when it is
called for the first time: `seldom().bury(…)`. For Lua makes each function of a script anew at
each call, and finds what that refers to in a list of all that the others do: with sixty
functions this was half of what a call of one message took.
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
    "due",
    "counts",
    "records",
    "cancels",
    "lanes",
    "scheduled",
    "recall",
    "schedules",
    "dead",
    "running",
    "leases",
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


# A part is what a blank line and the comments before it set apart: mostly one definition.
_PARTS = re.compile(r"(?<=\n\n)(?=(?:--.*\n)*local )")
_DEFINED = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_NO_CODE = re.compile(r"'[^'\n]*'|--.*$", re.MULTILINE)
_CALLED_SELDOM = re.compile(r"\bseldom\(\)\.(\w+)")

_SELDOM = """\
local rare
local function seldom()
  if rare then return rare end
{}
  rare = {{{}}}
  return rare
end"""


def _joined(name: str, more: set[str]) -> Script:
    """Return a script with the pieces that it uses, and more where it uses the clock."""
    own = source(name)
    used = re.search(r"^-- use: (.*)$", own, re.MULTILINE)
    wanted = {*used.group(1).split()} if used else set[str]()
    if "clock" in wanted:
        wanted |= more
    own = re.sub(
        r"^-- here: (\w+)$", lambda here: source(f"lib/{here[1]}"), own, flags=re.MULTILINE
    )
    found = re.search(r"^-- seldom: (.*)$", own, re.MULTILINE)
    if found:
        names = sorted(set(_CALLED_SELDOM.findall(own)))
        inside = _mentioned(found[1].split(), set(names))
        # What the pieces inside define, they do not take from outside.
        words = _words(_CALLED_SELDOM.sub("", own)) | _words(inside) - _defined(inside)
        made = ", ".join(f"{one} = {one}" for one in names)
        own = own.replace(found[0], _SELDOM.format(inside, made))
    else:
        words = _words(own)
    # A chunk of its own for each piece would cost a function call; `do` blocks would hide
    # the locals. So the pieces are joined as they are.
    text = _mentioned([piece for piece in _LIBRARY_ORDER if piece in wanted], words) + own
    return Script(
        name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode()
    )


def _mentioned(pieces: list[str], words: set[str]) -> str:
    """Return what pieces define, less the parts that define nothing that is mentioned."""
    text = "".join(source(f"lib/{piece}") + "\n" for piece in pieces)
    words, kept = set(words), list[str]()
    # From the end: what uses a local stands behind it.
    for part in reversed(_PARTS.split(text)):
        if not words.isdisjoint(_defined(part)):
            words |= _words(part)
            kept.append(part)
    return "".join(reversed(kept))


def _defined(text: str) -> set[str]:
    return {name for names in _DEFINED.findall(text) for name in names.split(", ")}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", _NO_CODE.sub("", text)))


def source(name: str) -> str:
    """Return the text of a file in `lua/`."""
    return resources.files("taskq.broker").joinpath(f"lua/{name}.lua").read_text(encoding="utf-8")


def names() -> list[str]:
    """Return the names of all scripts."""
    folder = resources.files("taskq.broker").joinpath("lua")
    return sorted(file.name[:-4] for file in folder.iterdir() if file.name.endswith(".lua"))
