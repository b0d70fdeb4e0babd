"""How long the tasks take, and so how many messages may be claimed ahead of a free slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

# Only a task whose runs are this short, 19 of 20, is claimed ahead ...
QUICK_SECONDS = 0.001
# ... and of it what runs in this time. More would wait here while another slot is free.
AHEAD_SECONDS = 0.010
MOST_AHEAD = 500
_SAMPLES, _EVERY = 40, 20


class Meter:
    """Recent durations by task. Used by one thread at a time."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}
        # How many runs came since it was judged last.
        self._unjudged: dict[str, int] = {}
        self._ahead: dict[str, int] = {}

    def note(self, task: str, durations: Sequence[float]) -> None:
        """Add some runs, in seconds."""
        samples = self._samples.get(task)
        if samples is None:
            samples = self._samples[task] = deque(maxlen=_SAMPLES)
        samples.extend(durations)
        unjudged = self._unjudged[task] = self._unjudged.get(task, 0) + len(durations)
        if max(durations) > AHEAD_SECONDS:
            self._ahead.pop(task, None)
            self._unjudged[task] = 0
        elif unjudged >= _EVERY:
            self._unjudged[task] = 0
            self._judge(task, sorted(samples))

    def doubt(self) -> None:
        """Claim nothing ahead until more was measured: what was quick is not now."""
        self._ahead.clear()

    def caps(self, waiting: int) -> dict[str, int]:
        """Return how many messages of each quick task may come beyond the free slots.

        `waiting` of them are here already. One claim takes no more than half of what may
        be ahead: so while that half runs, the other one can be on its way.
        """
        return {
            task: min(most - waiting, (most + 1) // 2)
            for task, most in self._ahead.items()
            if most > waiting
        }

    def _judge(self, task: str, durations: list[float]) -> None:
        if durations[len(durations) * 19 // 20] > QUICK_SECONDS:
            self._ahead.pop(task, None)
            return
        median = max(durations[len(durations) // 2], 1e-5)
        self._ahead[task] = min(MOST_AHEAD, int(AHEAD_SECONDS / median))
