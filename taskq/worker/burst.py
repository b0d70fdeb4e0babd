"""When a `--burst` worker has nothing left to do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from taskq.broker import keys, queries
from taskq.broker.cluster import Lines
from taskq.broker.connection import Endpoint
from taskq.errors import BrokerError

log = logging.getLogger("taskq.worker")

_EVERY_SECONDS = 0.2
# A running task may enqueue to a queue that was just found empty, and end before its own
# is looked at: only the second look of two in a row is believed.
_LOOKS = 2


class BurstWatch:
    """A thread that looks whether anything is queued, running or due."""

    def __init__(
        self,
        app: str,
        endpoint: Endpoint,
        queues: Iterable[str],
        tasks: Iterable[str],
        retries: Callable[[], int],
    ) -> None:
        self._app, self._queues, self._tasks = app, list(queues), set(tasks)
        self._retries = retries
        self._lines = Lines(endpoint)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="taskq-burst", daemon=True)
        # Whether all is done; read by the supervisor.
        self.idle = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def refresh(self, queues: Iterable[str], tasks: Iterable[str]) -> None:
        """Take over what new children say of the app."""
        self._queues, self._tasks = list(queues), set(tasks)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(10)

    def _look_on(self) -> None:
        looks = 0
        while not self.idle and not self._stopped.wait(_EVERY_SECONDS):
            try:
                looks = looks + 1 if self._nothing_left() else 0
            except BrokerError as error:
                log.debug("burst: %s", error)
                looks = 0
            self.idle = looks >= _LOOKS
        self._lines.close()

    def _nothing_left(self) -> bool:
        if self._retries():
            return False
        for queue in self._queues:
            survey = self._lines.run(queries.survey(keys.base(self._app, queue), queue))
            # A task that this worker does not know can wait for ever.
            queued = any(task.queued for name, task in survey.tasks.items() if name in self._tasks)
            running = any(task.running for task in survey.tasks.values())
            if queued or running or survey.due:
                return False
        return True
