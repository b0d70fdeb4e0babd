"""Zombies that fall to a container's first process: what tasks started and left behind."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection

_PR_GET_CHILD_SUBREAPER = 37


def is_init() -> bool:
    """Return whether orphans of this process's descendants become its own children."""
    if os.getpid() == 1:
        return True
    if sys.platform != "linux":
        return False
    answer = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    except (AttributeError, OSError):  # a C library without it
        return False
    return not failed and bool(answer.value)


def reap(own: Collection[int]) -> None:
    """Reap the children that have ended and are not our `own`: those are asked for by pid."""
    while hasattr(os, "waitid"):  # not on macOS, where nobody is a subreaper
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # none at all
            return
        if ended is None or ended.si_pid in own:
            # One of our own hides those behind it: until it is reaped, a moment later.
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
