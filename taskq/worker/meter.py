"""How long the tasks take, and so how many messages may be claimed ahead of a free slot."""

from __future__ import annotations

from collections import deque

# Only a task whose runs are this short, 19 of 20, is claimed ahead ...
QUICK_SECONDS = 0.001
# ... and of it what runs in this time. More would wait here while another slot is free.
AHEAD_SECONDS = 0.005
MOST_AHEAD = 500
_SAMPLES, _LEAST_SAMPLES, _EVERY = 40, 20, 20


class Meter:
    """Recent durations by task. Used by one thread at a time."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}
        self._counts: dict[str, int] = {}
        self._ahead: dict[str, int] = {}

    def note(self, task: str, duration: float) -> None:
        """Add one run, in seconds."""
        samples = self._samples.get(task)
        if samples is None:
            samples = self._samples[task] = deque(maxlen=_SAMPLES)
        samples.append(duration)
        count = self._counts[task] = self._counts.get(task, 0) + 1
        if duration > AHEAD_SECONDS:
            self._ahead.pop(task, None)
        elif count % _EVERY == 0 and len(samples) >= _LEAST_SAMPLES:
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
