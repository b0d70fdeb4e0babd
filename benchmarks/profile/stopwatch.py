"""Times functions from outside, each less what was timed inside it and less the watch itself."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.profile.stages import ROOT, STAGES, found

SAMPLES, CALLS = 9, 20_000


@dataclasses.dataclass
class Share:
    """What one stage took: nanoseconds of its own, its calls, and timed calls inside it."""

    own: int = 0
    calls: int = 0
    inner_calls: int = 0


class Stacks(threading.local):
    """For each thread, what is being timed: nanoseconds and calls of what is inside."""

    def __init__(self) -> None:
        self.open: list[list[int]] = []


class Stopwatch:
    """Counts what happens inside the root, in any thread; everything else goes on untimed."""

    def __init__(self) -> None:
        self.shares = {stage.name: Share() for stage in STAGES}
        self._stacks = Stacks()

    def install(self) -> None:
        """Put the watch round every function of the stages, for the rest of this process."""
        for stage in STAGES:
            for place in stage.places:
                holder, name, function = found(place)
                setattr(holder, name, self.around(stage.name, function))

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        share, stacks, now = self.shares[stage], self._stacks, time.perf_counter_ns
        root = stage == ROOT.name

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            stack = stacks.open
            if not stack and not root:
                return function(*args, **kwargs)
            inside = [0, 0]
            stack.append(inside)
            begun = now()
            try:
                return function(*args, **kwargs)
            finally:
                took = now() - begun
                stack.pop()
                share.own += took - inside[0]
                share.calls += 1
                share.inner_calls += inside[1]
                if stack:
                    stack[-1][0] += took
                    stack[-1][1] += 1

        return timed

    def nanoseconds(self) -> dict[str, float]:
        """Return the time of each stage, without what the watch itself took."""
        inside, outside = cost()
        return {
            name: max(0.0, one.own - inside * one.calls - outside * one.inner_calls)
            for name, one in self.shares.items()
        }


@functools.cache
def cost() -> tuple[float, float]:
    """Return nanoseconds by which a timed call seems, and is, longer than a plain one.

    The first are in the call's own time, the others in that of its caller.
    """
    samples = [_sample() for _ in range(SAMPLES)]
    inside = statistics.median(one[0] for one in samples)
    return inside, statistics.median(one[1] for one in samples)


def _sample() -> tuple[float, float]:
    watch = Stopwatch()
    nothing = watch.around("run", _nothing)
    empty, plain = _repeated(None), _repeated(_nothing)
    whole: list[int] = []
    watch.around(ROOT.name, lambda: whole.append(_repeated(nothing)))()
    # What the function itself takes is its own time, watched or not.
    inside = max(0, watch.shares["run"].own - (plain - empty))
    return inside / CALLS, max(0, whole[0] - plain - inside) / CALLS


def _repeated(call: Callable[[], None] | None) -> int:
    begun = time.perf_counter_ns()
    for _ in range(CALLS):
        if call is not None:
            call()
    return time.perf_counter_ns() - begun


def _nothing() -> None:
    return
