"""What a child died of: told to people, and charged to messages that it ran."""

from __future__ import annotations

import logging

from taskq.broker.claims import Blame
from taskq.worker import memory
from taskq.worker.blame import Cause, charges
from taskq.worker.board import STARTED
from taskq.worker.maintenance import Member
from taskq.worker.process import ChildProcess

log = logging.getLogger("taskq.worker")


class Inquest:
    """Held over each child that has ended."""

    def __init__(self) -> None:
        # How many processes the system had killed for want of memory, at the last one.
        self._starved = memory.kills()

    def hold(self, child: ChildProcess, code: int, most: int) -> dict[Member, list[Blame]]:
        """Log how it ended; return whom its death is charged to, for each of its leases.

        `most` crashes are allowed to a message whose task says nothing.
        """
        starved, self._starved = self._starved, memory.kills()
        death = child.death(code, starved=self._starved > starved)
        found = charges(child.board.entries(STARTED), death)
        if death.cause is not Cause.OURS and not child.failed:
            log.error("child %d ended %s", child.pid, death.words)
            if dump := child.dump():
                log.error("its last words:\n%s", dump)
        return {
            (queue, worker): [
                charge.blame(death, most)
                for charge in found
                if child.queue_of(charge.entry) == queue
            ]
            for queue, worker in child.members.items()
        }
