"""Slots for `async def` tasks: one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from taskq.model import clock
from taskq.worker.delivery import START_SECONDS, Delivery, Done, given_back
from taskq.worker.outbox import Outbox

log = logging.getLogger("taskq.worker")


class LoopSlot:
    """One message on the event loop, and the way to raise an exception in its task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.current: Delivery | None = None
        self.task: asyncio.Task[None] | None = None
        self._loop = loop
        self._guarded = False
        self._pending: type[BaseException] | None = None

    def guard(self, coroutine: Any) -> Guarded:
        """Let any exception be raised in a coroutine; unguarded it can only be cancelled."""
        self._guarded = True
        return Guarded(coroutine, self)

    def interrupt(self, delivery: Delivery, exception: type[BaseException]) -> bool:
        """Raise `exception` where the task awaits; where it is not guarded, cancel it."""
        if self.current is not delivery:
            return False
        try:
            self._loop.call_soon_threadsafe(self._interrupt, delivery, exception)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def take(self) -> type[BaseException] | None:
        """Return what is to be raised in place of the cancellation that carries it."""
        exception, self._pending = self._pending, None
        if exception is not None and self.task is not None:
            self.task.uncancel()
        return exception

    def _interrupt(self, delivery: Delivery, exception: type[BaseException]) -> None:
        if self.current is not delivery or self.task is None:
            return
        if self._guarded and not issubclass(exception, asyncio.CancelledError):
            self._pending = exception
        self.task.cancel()


class Guarded:
    """An awaitable round a coroutine, which turns a cancellation into another exception."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], slot: LoopSlot) -> None:
        self._coroutine = coroutine
        self._slot = slot

    def __await__(self) -> Guarded:
        """Return itself: it is the iterator, too."""
        return self

    def __iter__(self) -> Guarded:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Go on to the next thing to wait for."""
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Go on; what the task awaited may have swallowed the cancellation."""
        exception = self._slot.take()
        if exception is not None:
            return self._coroutine.throw(exception())
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise in the coroutine what is pending, else what the loop says."""
        exception = self._slot.take()
        if exception is not None:
            return self._coroutine.throw(exception())
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """End the coroutine."""
        self._coroutine.close()


class CoroutinePool:
    """Runs messages on an event loop; user code has the loop to itself."""

    def __init__(
        self,
        size: int,
        run: Callable[[Delivery, LoopSlot], Coroutine[Any, Any, Done]],
        outbox: Outbox,
        send: Callable[[], None],
    ) -> None:
        self.size = size
        # Claimed and not started. Extended by the exchange, popped by the loop.
        self.buffer: deque[Delivery] = deque()
        self._run = run
        self._outbox = outbox
        self.loop = asyncio.new_event_loop()
        # Send what ended, now, without waiting for the reply.
        self._send = send
        # Whether something ended since that was done last.
        self._ended = False
        # Called when the loop goes on after it was kept; see `kept`.
        self.freed: Callable[[], None] = lambda: None
        # Since when the loop has not come to the messages given to it; None: it has.
        self._behind_since: float | None = None
        self._stopped = False
        # Keeps the running asyncio tasks alive; the loop itself holds them weakly.
        self._running: set[LoopSlot] = set()
        self._thread = threading.Thread(target=self._serve, name="taskq-loop", daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Start claimed messages: one call into the loop for all of them."""
        self.buffer.extend(deliveries)
        if self._behind_since is None:
            self._behind_since = clock.monotonic()
        self.loop.call_soon_threadsafe(self._spawn)

    @property
    def kept(self) -> bool:
        """Whether a task keeps the loop to itself: what is given to it now would only wait."""
        since = self._behind_since
        return since is not None and clock.monotonic() - since > START_SECONDS

    def call(self, coroutine: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """Run a coroutine on the loop and wait for it, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def interrupt(self, key: tuple[str, bytes], exception: type[BaseException]) -> bool:
        """Raise `exception` in the task of a message; return whether it was running."""
        for slot in list(self._running):
            current = slot.current
            if current is not None and current.key == key:
                return slot.interrupt(current, exception)
        return False

    def stop(self, seconds: float) -> bool:
        """Cancel what runs and end the loop; return whether it ended in time."""
        if self._thread.is_alive():
            # Closed: told to stop before, its thread is at its last steps.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._cancel)
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _spawn(self) -> None:
        try:
            self._fill()
        finally:
            # Behind the first steps of all these.
            self.loop.call_soon(self._catch_up)

    def _fill(self) -> None:
        """Start what there is a slot for."""
        started: list[tuple[LoopSlot, Delivery]] = []
        while self.buffer and len(self._running) < self.size and not self._stopped:
            try:
                delivery = self.buffer.popleft()
            except IndexError:  # it was given back
                break
            slot = LoopSlot(self.loop)
            self._running.add(slot)
            # One message may be started by the end of another, and is to know nothing of that.
            context = contextvars.Context()
            slot.task = self.loop.create_task(self._one(delivery, slot), context=context)
            started.append((slot, delivery))
        if started:
            # Behind the first steps of all these.
            self.loop.call_soon(self._give_back, started)

    def _give_back(self, started: Iterable[tuple[LoopSlot, Delivery]]) -> None:
        """Give back what a task of the app cancelled before its first step: none of it ran."""
        for slot, delivery in started:
            if slot in self._running and slot.task is not None and slot.task.done():
                self._outbox.put(given_back(delivery))
                self._leave(slot)

    def _catch_up(self) -> None:
        kept, self._behind_since = self.kept, None
        self._go_on()
        if kept:
            self.freed()

    async def _one(self, delivery: Delivery, slot: LoopSlot) -> None:
        try:
            try:
                done = await self._run(delivery, slot)
            except Exception:
                log.exception("something left the slot of a message; the message goes back")
                done = given_back(delivery)
            # Not quietly: whatever else is on the loop may keep it before it comes to send this.
            self._outbox.put(done)
        finally:
            self._leave(slot)

    def _leave(self, slot: LoopSlot) -> None:
        self._running.discard(slot)
        # Those that end at their first step go to Redis together, and so do those that were
        # waiting for the same moment.
        if not self._ended:
            self._ended = True
            if self._behind_since is None:
                self.loop.call_soon(self._go_on, context=contextvars.Context())

    def _go_on(self) -> None:
        """Send what ended, if something did, then start what waited for its slot."""
        if self._ended:
            self._ended = False
            try:
                self._send()
            finally:
                self._fill()

    def _run_loop(self) -> None:
        try:
            self.loop.run_forever()
        except BaseException:
            # A SystemExit in an asyncio task that a message's task had started.
            log.exception("something left the event loop of the tasks; it goes on")

    def _cancel(self) -> None:
        for slot in self._running:
            if slot.task is not None:
                slot.task.cancel()
        if not self._stopped:
            self._stopped = True
            # Once: a second time would end the wait for those that are being cancelled.
            self.loop.call_soon(self.loop.stop)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self._stopped:
                self._run_loop()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()
