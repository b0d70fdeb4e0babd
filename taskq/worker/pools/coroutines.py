"""Slots for `async def` tasks: one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from taskq.worker.delivery import Delivery, Done, take_back

log = logging.getLogger("taskq.worker")


class CoroutinePool:
    """Runs messages on an event loop; user code has the loop to itself."""

    def __init__(
        self,
        size: int,
        run: Callable[[Delivery], Coroutine[Any, Any, Done]],
        ended: Callable[[Done], None],
    ) -> None:
        self.size = size
        # Claimed and not started. Extended by the exchange, emptied by the loop.
        self.buffer: deque[Delivery] = deque()
        self._run = run
        self._ended = ended
        self.loop = asyncio.new_event_loop()
        self._stopped = False
        # Keeps the running asyncio tasks alive; the loop itself holds them weakly.
        self._running: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._serve, name="taskq-loop", daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Start claimed messages: one call into the loop for all of them."""
        self.buffer.extend(deliveries)
        self.loop.call_soon_threadsafe(self._spawn)

    def call(self, coroutine: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """Run a coroutine on the loop and wait for it, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def stop(self, seconds: float) -> bool:
        """Cancel what runs and end the loop; return whether it ended in time."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._cancel)
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _spawn(self) -> None:
        for delivery in take_back(self.buffer):
            task = self.loop.create_task(self._one(delivery))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _one(self, delivery: Delivery) -> None:
        self._ended(await self._run(delivery))

    def _run_loop(self) -> None:
        try:
            self.loop.run_forever()
        except BaseException:
            # A SystemExit in an asyncio task that a message's task had started.
            log.exception("something left the event loop of the tasks; it goes on")

    def _cancel(self) -> None:
        self._stopped = True
        for task in self._running:
            task.cancel()
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
