"""Text from elsewhere (Redis, tasks, errors), made fit to be shown in a line."""

from __future__ import annotations


def printable(text: object) -> str:
    """Return text with its control characters written out, and no line breaks."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text)
    )
