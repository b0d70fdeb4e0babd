"""Somebody who sends without end, and what became of all that was accepted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

import taskq
from taskq import MessageLost, Result
from tests.eventually import until
from tests.failure.books import check_after
from tests.failure.scene import Scene

Results = dict[Any, Any]


class Producer:
    """Sends messages until it is told to end, each as one accepted call."""

    def __init__(self, scene: Scene, app: Any = None) -> None:
        self._scene, self._app = scene, app or scene.app
        self.accepted: Results = {}
        self.errors: list[BaseException] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: len(self.accepted) > 50)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(30)

    def more(self, count: int = 50) -> Callable[[], bool]:
        """Return whether so many more were accepted since now."""
        enough = len(self.accepted) + count
        return lambda: bool(self.errors) or len(self.accepted) >= enough

    def _send_on(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            try:
                sent = self._app.send_task("proj.note", (number,))
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
                return
            self.accepted[self._scene.app.result(sent.id)] = number


# After a failover writes resume in 5 s; twice that is for a machine that is busy.
RESUME_SECONDS = 10
# So many may the death of a master cost.
MOST_LOST = 300
# How long before it, or after it, may be made what is lost: replicas are behind, clocks differ.
NEAR_SECONDS = 5


def survivors(
    scene: Scene, expected: Results, most_lost: int = MOST_LOST, seconds: float = 30
) -> Results:
    """Wait for all ends; return what the new master knows: the rest says that it was lost."""
    outcomes = taskq.gather(list(expected), timeout=seconds, return_exceptions=True)
    records = scene.queue().records()
    kept: Results = {}
    for (result, value), outcome in zip(expected.items(), outcomes, strict=True):
        if result.wire_id in records:
            kept[result] = value
        else:
            # It was acknowledged by a master that died before it told its replicas; or it
            # ended, and somebody had heard of that.
            as_meant = isinstance(outcome, value) if isinstance(value, type) else outcome == value
            assert isinstance(outcome, MessageLost) or as_meant
            assert near_a_fault(scene, result), f"{result.id} was lost, and no master was"
    print(f"{len(expected) - len(kept)} of {len(expected)} messages were lost")
    assert len(expected) - len(kept) <= most_lost
    return kept


def near_a_fault(scene: Scene, result: Result[Any]) -> bool:
    """Tell whether a message was made about when something hit all; of a named one nobody knows."""
    if result.id != result.wire_id:
        return True
    # A UUIDv7 begins with the wall time in ms.
    made = int(result.wire_id[:12], 16) / 1000 - time.time() + time.monotonic()
    return any(
        one.began - NEAR_SECONDS < made < one.ended + NEAR_SECONDS
        for one in scene.faults
        if not one.pids
    )


def outlive_a_master(scene: Scene, held: Result[Any]) -> None:
    """Kill the master under load, while a message runs: writes resume in time, and all ends."""
    scene.worker("-p", "2", "-t", "4")
    until(scene.started)
    with Producer(scene) as producer:
        with scene.during("the master was killed"):
            scene.topology.kill_primary()
        replaced = time.monotonic()
        until(producer.more(), 30)
        assert not producer.errors
        took = time.monotonic() - replaced
        print(f"50 calls were accepted {took:.2f} s after there was another master")
        assert took < RESUME_SECONDS
    scene.go()
    expected = survivors(scene, producer.accepted)
    assert held.get(timeout=10) == [1, 1]
    check_after(scene, expected | {held: [1, 1]})
