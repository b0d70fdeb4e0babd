"""Slots for `def` tasks: threads that take from one buffer.

The thread that finds the buffer empty sends what is finished and claims more for all of
them. So a stream of short messages runs on one thread, without a hand-over for each; the
others are woken where there is work that keeps a thread busy. One that has nothing to do
listens for work, and runs itself what that brings: a call on an idle worker is answered
by one thread.
"""

from __future__ import annotations

import ctypes
import logging
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence

from taskq.model import clock
from taskq.worker.delivery import Delivery, Done, given_back
from taskq.worker.outbox import Outbox

log = logging.getLogger("taskq.worker")

_DEAF_SECONDS = 0.3
# After which what Python tells of a destructor has been told, and its thread is in the task again.
_AGAIN_SECONDS = 0.01


_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in_thread.argtypes = (ctypes.c_ulong, ctypes.py_object)


class ThreadSlot:
    """One thread's place, and the way to raise an exception in the task that runs there.

    The slot leaves its message without the lock, then looks whether it was touched; an
    interrupt touches it, then looks what runs. So one of them always sees the other, and
    an uninterrupted message costs no lock.
    """

    def __init__(self, work: Callable[[ThreadSlot], None], name: str) -> None:
        self.current: Delivery | None = None
        self.touched = False
        # What it was interrupted with last.
        self.raised: type[BaseException] | None = None
        self.thread = threading.Thread(target=work, args=(self,), name=name, daemon=True)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def interrupt(self, delivery: Delivery, exception: type[BaseException]) -> bool:
        """Raise `exception` in the task as soon as its thread runs Python code."""
        with self._lock:
            touched, self.touched = self.touched, True
            if self.current is not delivery:
                self.touched = touched
                return False
            self.raised = exception
            _raise_in_thread(self.thread.ident or 0, exception)
            return True

    def leave(self) -> None:
        """Wait until the interrupt is over, and take back what has not arrived."""
        with self._lock:
            _raise_in_thread(threading.get_ident(), ctypes.py_object())


class ThreadPool:
    """Threads that run at most `size` messages; one more, so that one can always listen."""

    def __init__(
        self,
        size: int,
        run: Callable[[Delivery, ThreadSlot], Done],
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
        # How many times threads began to listen; and at the last call of `help`.
        self._listened = self._heard = 0
        self._slots = [
            ThreadSlot(self._work, f"taskq-slot-{number}") for number in range(1, size + 2)
        ]

    def start(self) -> None:
        """Start the threads."""
        for slot in self._slots:
            slot.start()

    def interrupt(self, key: tuple[str, bytes], exception: type[BaseException]) -> bool:
        """Raise `exception` in the task of a message; return whether it was running.

        It arrives when the task runs Python code: not before a call into C has returned.
        """
        for slot in self._slots:
            current = slot.current
            if current is not None and current.key == key:
                return slot.interrupt(current, exception)
        return False

    def insist(self) -> None:
        """Interrupt again where an interrupt met a destructor, out of which Python lets none.

        For a process of our own: what Python tells of it is told to all.
        """
        before = sys.unraisablehook

        def told(lost: sys.UnraisableHookArgs) -> None:
            if not self._again(lost.exc_type):
                before(lost)

        sys.unraisablehook = told

    def put(self, deliveries: Sequence[Delivery], quick: int) -> None:
        """Take claimed messages, of which so many are quick; wake threads for them.

        One thread runs all the quick ones: to wake more would cost more than it saves. If
        it is the caller, it need not be woken; but with a message that is not quick it
        cannot listen, so another one must.
        """
        self.buffer.extend(deliveries)
        slow, caller = len(deliveries) - quick, threading.current_thread()
        wake = slow + bool(quick)
        if any(slot.thread is caller for slot in self._slots):
            wake -= 1
            if slow and self._listener in (None, caller):
                wake += 1
        self._wake(wake)

    def help(self) -> None:
        """Wake idle threads if nothing has moved since the last call: a quick task is slow.

        And one to listen, if nobody did since then.
        """
        try:
            first = self.buffer[0]
        except IndexError:
            first = None
        if first is not None and first is self._first:
            self._wake(len(self.buffer))
        self._first = first
        if self._listener is None and self._listened == self._heard:
            self._wake(1)
        self._heard = self._listened

    @property
    def unwatched(self) -> bool:
        """Whether nobody listens for work, though somebody could."""
        return bool(self._idle) and self._listener is None

    def stop(self) -> None:
        """Let each thread end after its message; does not wait for them."""
        self._stopped = True
        self._wake(len(self._slots))

    def join(self, seconds: float) -> bool:
        """Wait for the threads; return whether all have ended."""
        deadline = clock.monotonic() + seconds
        threads = [slot.thread for slot in self._slots]
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - clock.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _again(self, lost: type[BaseException]) -> bool:
        """Interrupt this thread again, from another one, if it is a slot that lost this."""
        for slot in self._slots:
            delivery = slot.current
            if slot.thread is threading.current_thread() and delivery and slot.raised is lost:
                again = threading.Timer(_AGAIN_SECONDS, slot.interrupt, (delivery, lost))
                again.daemon = True
                again.start()
                return True
        return False

    def _wake(self, most: int) -> None:
        with self._lock:
            count = max(0, min(most, self._idle))
            self._idle -= count
        for _ in range(count):
            self._tokens.put(None)

    def _work(self, slot: ThreadSlot) -> None:
        while not self._stopped:
            if self._take_place():
                self._run_all(slot)
            if slot.touched:
                # Interrupted in the midst of whatever: a new thread has nothing half done.
                fresh = ThreadSlot(self._work, slot.thread.name)
                self._slots[self._slots.index(slot)] = fresh
                fresh.start()
                return
            self._rest()

    def _take_place(self) -> bool:
        """Become one of the `size` that run, if there is something to run."""
        with self._lock:
            free = bool(self.buffer) and self._busy < self.size
            self._busy += free
            return free

    def _run_all(self, slot: ThreadSlot) -> None:
        """Run messages until there are none, not even after a turn; or until interrupted."""
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
                try:
                    done = self._run(delivery, slot)
                except BaseException:
                    log.exception("something left the slot of a message; the message goes back")
                    done, slot.touched = given_back(delivery), True
                # With nothing left to run, this very thread sends it.
                self._outbox.put(done, quiet=not self.buffer and not slot.touched)
                if slot.touched:
                    with self._lock:
                        self._busy -= 1
                    return

    def _rest(self) -> None:
        """Listen for work and claim it; or, if another thread listens, wait to be woken."""
        with self._lock:
            if self._stopped or (self.buffer and self._busy < self.size):
                return
            listens = self._listener is None
            if listens:
                self._listener = threading.current_thread()
                self._listened += 1
            else:
                self._idle += 1
        if not listens:
            self._tokens.get()
            return
        try:
            self._listen()
        except Exception:
            # A defect must not make the worker deaf.
            log.exception("listening for work failed")
            clock.sleep(_DEAF_SECONDS)
        finally:
            self._listener = None
