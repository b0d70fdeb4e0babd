"""Deaths of all kinds, in any order, against a model of who is charged and who is alone."""

from __future__ import annotations

import dataclasses
import itertools
import secrets

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from taskq.broker.claims import Blame
from tests.broker.drivers import Blocking, Driver
from tests.broker.queues import Queue, Worker
from tests.broker.test_blame import ALONE, loner
from tests.broker.test_reclaim import run_out
from tests.broker.test_stateful import PHASES
from tests.servers import Server

QUEUED, SCHEDULED, RUNNING, OVER = "queued", "scheduled", "running", "over"
BUDGET, ALONE_FROM, LOST_MOST = 3, 2, 20


@dataclasses.dataclass
class Known:
    """What the model knows of one message."""

    where: str = QUEUED
    holder: Worker | None = None
    crashes: int = 0
    suspect: int = 0
    # The letter it ended with.
    letter: bytes = b""


class Deaths(RuleBasedStateMachine):
    """Workers claim, end and die; three are ordinary, one takes suspects."""

    driver: Driver
    url: str

    @initialize()
    def open(self) -> None:
        self.queue = Queue(self.driver, self.url, f"t{secrets.token_hex(6)}")
        self.numbers = itertools.count(1)
        self.known: dict[str, Known] = {}
        self.workers = [self.queue.worker(), self.queue.worker(), loner(self.queue)]

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.clear()

    @rule(count=st.integers(1, 5))
    def enqueue(self, count: int) -> None:
        ids = [f"{next(self.numbers):032x}" for _ in range(count)]
        assert self.queue.enqueue(*(self.queue.message(id=id) for id in ids)) == "o" * count
        self.known |= {id: Known() for id in ids}

    @rule(at=st.integers(0, 2), threads=st.integers(1, 4))
    def claim(self, at: int, threads: int) -> None:
        worker = self.workers[at]
        alone = at == 2
        for id in worker.claim(1 if alone else threads):
            one = self.known[id]
            assert one.where == QUEUED
            assert (one.suspect >= ALONE_FROM) is alone, "who is alone is handed out alone"
            one.where, one.holder = RUNNING, worker

    @precondition(lambda self: self._held())
    @rule(data=st.data(), end=st.sampled_from("sfyb"))
    def finish(self, data: st.DataObject, end: str) -> None:
        id = data.draw(st.sampled_from(sorted(self._held())))
        one = self.known[id]
        worker = one.holder
        assert worker is not None
        if end == "y":
            assert worker.finish(worker.retry(id, 3_600_000)) == "k"
        else:
            ends = {"s": worker.succeeded, "f": worker.failed, "b": worker.released}
            assert worker.finish(ends[end](id)) == "k"
        one.holder = None
        if end == "b":
            one.where = QUEUED
        elif end == "y":
            one.where, one.suspect = SCHEDULED, 0
        else:
            one.where, one.letter = OVER, end.encode()

    @precondition(lambda self: self._held())
    @rule(data=st.data(), cause=st.sampled_from(["known", "limit", "unknown", "host", "ours"]))
    def die(self, data: st.DataObject, cause: str) -> None:
        busy = sorted({self.workers.index(one.holder) for one in self._held().values()})
        at = data.draw(st.sampled_from(busy))
        worker = self.workers[at]
        held = sorted(id for id, one in self._held().items() if one.holder is worker)
        ran = data.draw(st.lists(st.sampled_from(held), unique=True, min_size=1))
        letters: dict[str, str] = {}
        if cause in ("known", "limit"):
            letters = dict.fromkeys(ran, "i") | {ran[0]: "k" if cause == "known" else "t"}
        elif cause == "unknown":
            letters = dict.fromkeys(ran, "s")
        if cause == "host":
            run_out(worker)
            taken = self.queue.reclaim()
        else:
            blames = (
                Blame(letter, worker.fields[id], BUDGET, "why") for id, letter in letters.items()
            )
            taken = self.queue.reclaim(worker, *blames)
        assert taken == len(held)
        for id in held:
            self._died(self.known[id], "h" if cause == "host" else letters.get(id, "-"))
        self.workers[at] = loner(self.queue) if at == 2 else self.queue.worker()

    @precondition(lambda self: any(one.where == SCHEDULED for one in self.known.values()))
    @rule()
    def fall_due(self) -> None:
        self.queue.fall_due()
        self.workers[0].exchange()
        for one in self.known.values():
            if one.where == SCHEDULED:
                one.where = QUEUED

    @invariant()
    def everybody_is_where_they_belong(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.audit()
        queued = {id: one for id, one in self.known.items() if one.where == QUEUED}
        alone = {id for id, one in queued.items() if one.suspect >= ALONE_FROM}
        assert set(self.queue.ready()) == set(queued) - alone
        assert set(self.queue.ready(ALONE)) == alone
        for id, one in self.known.items():
            record = self.queue.record(id)
            if one.where == OVER:
                assert record.letter == one.letter
            else:
                assert (record.crashes, record.suspect) == (one.crashes, one.suspect)

    def _held(self) -> dict[str, Known]:
        return {id: one for id, one in self.known.items() if one.where == RUNNING}

    def _died(self, one: Known, letter: str) -> None:
        one.holder, one.where = None, QUEUED
        one.crashes += letter == "k"
        if letter == "t" or (letter == "k" and one.crashes >= BUDGET):
            one.where, one.letter = OVER, letter.encode()
            return
        known = max(ALONE_FROM - one.suspect, 0)
        one.suspect += {"k": known, "s": 2, "i": 1, "h": 1, "-": 0}[letter]
        if one.suspect >= LOST_MOST:
            one.where, one.letter = OVER, b"k"
        elif letter == "h" and one.suspect >= ALONE_FROM:
            one.where = SCHEDULED


def test_no_order_of_deaths_charges_the_innocent_or_loses_a_message(
    server: Server, namespace: str
) -> None:
    driver = Blocking(server.url)

    machine = type("Machine", (Deaths,), {"driver": driver, "url": server.url})
    rules = settings(
        max_examples=25,
        stateful_step_count=30,
        deadline=None,
        phases=PHASES,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    try:
        run_state_machine_as_test(machine, settings=rules)
    finally:
        driver.close()
