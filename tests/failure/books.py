"""The nine invariants: what must be true once a scenario is over, whatever was done in it.

Three accounts are compared that know nothing of each other: what the futures told, what
Redis keeps, and what the tasks wrote to the ledger.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import taskq
from taskq import ResultTimeout, State
from taskq.broker.records import Record, parse
from tests.eventually import until
from tests.failure.ledger import Run
from tests.failure.scene import LEASE, Fault, Scene

# How long messages may take to their ends once the last fault is over.
SETTLED_SECONDS = 30.0
# What a worker says when something went wrong that nobody foresaw. The traceback of a task
# stands below a line that says so.
SURPRISE = re.compile(
    r"^(?!.*\bin attempt \d+\b).*\n(?=Traceback)|a turn failed|cannot be recorded|unhandled",
    re.MULTILINE,
)
# What a queue may keep that has no TTL while a worker is alive.
LIVING = {"workers", "lanes", "waiting", "scheduled", "dead"}


@dataclasses.dataclass
class Account:
    """One message as all three know it."""

    name: str
    record: Record
    runs: list[Run]
    told: Any


class Books:
    """The accounts of the messages that were accepted, each with the value it must give."""

    def __init__(self, scene: Scene, expected: Mapping[Any, Any]) -> None:
        self._scene = scene
        self._expected = expected
        self._told: dict[str, Any] = {}
        self._faults: list[Fault] = []
        self.accounts: list[Account] = []

    def settle(self, seconds: float = SETTLED_SECONDS) -> None:
        """I1, I5: every message that was accepted ends in time, and its future says how."""
        results = list(self._expected)
        outcomes = taskq.gather(results, timeout=seconds, return_exceptions=True)
        self._told = {one.id: told for one, told in zip(results, outcomes, strict=True)}
        for one, told in zip(results, outcomes, strict=True):
            assert not isinstance(told, ResultTimeout), f"I1: {one.id} did not end"
            wanted = self._expected[one]
            if isinstance(wanted, type):
                assert isinstance(told, wanted), f"I5: {one.id}: {told!r}"
            else:
                assert told == wanted, f"I5: {one.id}: {told!r} instead of {wanted!r}"

    def check(self, *, runs: bool = True, quiet: bool = True) -> None:
        """Check the rest; `quiet`: nothing is on its way; `runs`: tasks wrote to the ledger."""
        records = self._quiescent() if quiet else self._scene.queue().records()
        ran, self._faults = self._scene.runs(), self._scene.all_faults()
        self.accounts = []
        for result in self._expected:
            assert result.wire_id in records, f"I1: {result.id} has no record"
            record = parse(records[result.wire_id][0])
            assert record.state.terminal, f"I1: {result.id} is {record.state}"
            self.accounts.append(
                Account(result.id, record, ran.get(result.id, []), self._told.get(result.id))
            )
        for one in self.accounts:
            self._check_state(one)
            if runs:
                self._check_runs(one)
        self._check_transitions()
        self._check_logs()

    def _quiescent(self) -> dict[str, tuple[bytes, int]]:
        """I4, I6: nothing is held or waits, each key but what is kept for people has a TTL."""
        queue = self._scene.queue()

        def still() -> bool:
            told = queue.survey()
            return not any(task.queued or task.running for task in told.tasks.values())

        until(still, SETTLED_SECONDS)
        queue.audit()
        left = queue.dump()
        held = [name for name in left if name.startswith(("ready:", "running:", "orphans"))]
        assert held == [], f"I4: {held}"
        endless = {name for name, (_, ttl, _) in left.items() if ttl == -1} - LIVING
        assert endless == set(), f"I6: {endless}"
        return {name[2:]: (raw, ttl) for name, (_, ttl, raw) in left.items() if name[:2] == "m:"}

    def _check_state(self, one: Account) -> None:
        """I5: what the future told is what the record says."""
        failed = isinstance(one.told, BaseException)
        if one.name in self._told:
            assert failed == (one.record.state is not State.SUCCEEDED), f"I5: {one}"

    def _check_runs(self, one: Account) -> None:
        """I2, I7: the outcome is that of a run, and no run was for nothing."""
        if one.record.letter not in b"sf":
            return
        claims = [(run.delivery, run.fence) for run in one.runs if run.ended is not None]
        assert (one.record.claims, one.record.fence) in claims, f"I2: no run gave this: {one}"
        hits = sum(any(fault.hit(run) for run in one.runs) for fault in self._faults)
        most = one.record.attempts + hits
        assert len(one.runs) <= most, (
            f"I7: {len(one.runs)} runs, {hits} faults: {one}\n{self._faults}"
        )

    def _check_transitions(self) -> None:
        """I3: no message had two ends under one master."""
        heard = self._scene.witness.heard
        double = {of: told for of, told in heard.items() if len(told) > 1}
        assert double == {}, "I3"

    def _check_logs(self) -> None:
        """I9: nothing went wrong that nobody foresaw."""
        for worker in self._scene.workers:
            found = SURPRISE.search("\n" + worker.log)
            assert found is None, f"I9: {found}:\n{worker.log}"


def check_after(scene: Scene, expected: Mapping[Any, Any], **options: bool) -> Books:
    """Settle the books of a scenario that is over, stop its workers, check it all."""
    books = Books(scene, expected)
    books.settle()
    for worker in scene.workers:
        if worker.process.poll() is None:
            assert worker.stop() == 0, f"I9:\n{worker.log}"
    books.check(**options)
    assert no_process_is_left(scene), "I6: processes"
    assert connections_left(scene) <= LEFT_OPEN, "I6: connections"
    return books


# The witness, the app's waiter, and what the app's broker keeps idle.
LEFT_OPEN = 2 + 16
PATIENCE = LEASE + 5


def no_process_is_left(scene: Scene) -> bool:
    """Tell whether all processes that ever ran a message have ended, at once or in a moment."""
    pids = {run.pid for runs in scene.runs().values() for run in runs}
    return bool(until(lambda: not any(map(is_alive, pids)), PATIENCE))


def is_alive(pid: int) -> bool:
    """Tell whether a process runs or is frozen."""
    told = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()[:1] not in ("", "Z")


def connections_left(scene: Scene) -> int:
    """Return how many clients the server has, but for the one that asks."""
    with scene.client() as client:
        return int(client.info("clients")["connected_clients"]) - 1
