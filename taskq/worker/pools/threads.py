"""Slots for `def` tasks: threads that take from one buffer.

The thread that finds the buffer empty sends what is finished and claims more for all of
them. So a stream of short messages runs on one thread, without a hand-over for each; the
others are woken where there is work that keeps a thread busy.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable

from taskq.model import clock
from taskq.worker.delivery import Delivery, Done
from taskq.worker.outbox import Outbox

log = logging.getLogger("taskq.worker")


class ThreadPool:
    """`size` threads that run messages."""

    def __init__(
        self,
        size: int,
        run: Callable[[Delivery], Done],
        outbox: Outbox,
        lead: Callable[[], None],
    ) -> None:
        self.size = size
        # Claimed and not started. Extended by the exchange, popped by the threads.
        self.buffer: deque[Delivery] = deque()
        self._run = run
        self._outbox = outbox
        self._lead = lead
        # Guards `_idle`; the tokens wake exactly the threads that were counted out.
        self._lock = threading.Lock()
        self._idle = 0
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False
        # What waited longest at the last call of `help`.
        self._first: Delivery | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"taskq-slot-{number}", daemon=True)
            for number in range(1, size + 1)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, deliveries: Iterable[Delivery], wake: int) -> None:
        """Take claimed messages; wake at most `wake` idle threads for them."""
        self.buffer.extend(deliveries)
        self._wake(wake - (threading.current_thread() in self._threads))

    def help(self) -> None:
        """Wake idle threads if nothing has moved since the last call: a quick task is slow."""
        try:
            first = self.buffer[0]
        except IndexError:
            return
        if first is self._first:
            self._wake(len(self.buffer))
        self._first = first

    def stop(self) -> None:
        """Let each thread end after its message; does not wait for them."""
        self._stopped = True
        self._wake(self.size)

    def join(self, seconds: float) -> bool:
        """Wait for the threads; return whether all have ended."""
        deadline = clock.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - clock.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _wake(self, most: int) -> None:
        with self._lock:
            count = max(0, min(most, self._idle))
            self._idle -= count
        for _ in range(count):
            self._tokens.put(None)

    def _work(self) -> None:
        while not self._stopped:
            try:
                delivery = self.buffer.popleft()
            except IndexError:
                self._rest()
            else:
                done = self._run(delivery)
                # With nothing left to run, this very thread sends it.
                self._outbox.put(done, quiet=not self.buffer)

    def _rest(self) -> None:
        """Send and claim; where that brings nothing, wait to be woken."""
        self._lead()
        with self._lock:
            if self.buffer or self._stopped:
                return
            self._idle += 1
        self._tokens.get()
