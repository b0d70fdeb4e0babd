"""Slots for `def` tasks: threads that take from one buffer.

The thread that finds the buffer empty sends what is finished and claims more for all of
them. So a stream of short messages runs on one thread, without a hand-over for each; the
others are woken where there is work that keeps a thread busy. One that has nothing to do
listens for work, and runs itself what that brings: a call on an idle worker is answered
by one thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

from taskq.model import clock
from taskq.worker.delivery import Delivery, Done
from taskq.worker.outbox import Outbox

log = logging.getLogger("taskq.worker")


class ThreadPool:
    """Threads that run at most `size` messages; one more, so that one can always listen."""

    def __init__(
        self,
        size: int,
        run: Callable[[Delivery], Done],
        outbox: Outbox,
        lead: Callable[[], None],
        listen: Callable[[], None],
    ) -> None:
        self.size = size
        # Claimed and not started. Extended by the exchange, popped by the threads.
        self.buffer: deque[Delivery] = deque()
        self._run = run
        self._outbox = outbox
        self._lead = lead
        self._listen = listen
        # Guards the next three; the tokens wake exactly the threads that were counted out.
        self._lock = threading.Lock()
        self._busy = 0
        self._idle = 0
        self._listener: threading.Thread | None = None
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False
        # What waited longest at the last call of `help`.
        self._first: Delivery | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"taskq-slot-{number}", daemon=True)
            for number in range(1, size + 2)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, deliveries: Sequence[Delivery], quick: int) -> None:
        """Take claimed messages, of which so many are quick; wake threads for them.

        One thread runs all the quick ones: to wake more would cost more than it saves. If
        it is the caller, it need not be woken; but with a message that is not quick it
        cannot listen, so another one must.
        """
        self.buffer.extend(deliveries)
        slow, caller = len(deliveries) - quick, threading.current_thread()
        wake = slow + bool(quick)
        if caller in self._threads:
            wake -= 1
            if slow and self._listener in (None, caller):
                wake += 1
        self._wake(wake)

    def help(self) -> None:
        """Wake idle threads if nothing has moved since the last call: a quick task is slow."""
        try:
            first = self.buffer[0]
        except IndexError:
            first = None
        if first is not None and first is self._first:
            self._wake(len(self.buffer))
        self._first = first
        if self._listener is None:
            self._wake(1)

    @property
    def unwatched(self) -> bool:
        """Whether nobody listens for work, though somebody could."""
        return bool(self._idle) and self._listener is None

    def stop(self) -> None:
        """Let each thread end after its message; does not wait for them."""
        self._stopped = True
        self._wake(len(self._threads))

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
            if self._take_place():
                self._run_all()
            self._rest()

    def _take_place(self) -> bool:
        """Become one of the `size` that run, if there is something to run."""
        with self._lock:
            free = bool(self.buffer) and self._busy < self.size
            self._busy += free
            return free

    def _run_all(self) -> None:
        """Run messages until there are none: not even after a turn."""
        while not self._stopped:
            try:
                delivery = self.buffer.popleft()
            except IndexError:
                self._lead()
                with self._lock:
                    if not self.buffer:
                        self._busy -= 1
                        return
            else:
                done = self._run(delivery)
                # With nothing left to run, this very thread sends it.
                self._outbox.put(done, quiet=not self.buffer)

    def _rest(self) -> None:
        """Listen for work and claim it; or, if another thread listens, wait to be woken."""
        with self._lock:
            if self._stopped or (self.buffer and self._busy < self.size):
                return
            listens = self._listener is None
            if listens:
                self._listener = threading.current_thread()
            else:
                self._idle += 1
        if not listens:
            self._tokens.get()
            return
        try:
            self._listen()
        finally:
            self._listener = None
