"""Waiting for work without polling: a call that blocks on bells, and on nothing else.

A lost ring costs latency, never a message: every return, time-outs included, is followed
by a claim; of partitions, one of them is asked then.
"""

from __future__ import annotations

import logging
import selectors
import threading
from collections.abc import Sequence
from typing import Any, Protocol, cast

import msgspec

from taskq.broker import claims, keys
from taskq.broker.cluster import Lines, NodeLine
from taskq.broker.commands import Command
from taskq.broker.connection import Endpoint
from taskq.broker.line import Line
from taskq.errors import BrokerError
from taskq.model import clock

log = logging.getLogger("taskq.worker")

# How late a lost ring is made up for.
BLOCK_SECONDS = 2.5
# With partitions, a second for each, so that their number does not make idle workers busy:
# maintenance makes up for lost rings there.
_MOST_BLOCK = 10.0
# Where one call blocks and nobody selects on its line: well under the socket timeout of 5 s.
_MOST_CALL = 4.0
_AWAY_SECONDS = 0.3
# How long after its time a blocked call may be answered.
_SILENT_SECONDS = 2.0
_LEAST_SECONDS = 0.25
# So long may a node keep the others' bells from being heard.
_KICK_SECONDS = 0.5


class Claimer(Protocol):
    """Claims for a child that has nothing to do, as soon as a bell rings."""

    # Return the claim that is to stand behind the blocked call; None: not now.
    def reserve(self) -> Command[Any] | None: ...

    # Take the reply to it; return whether that was news.
    def redeem(self, line: Line) -> bool: ...


class Heard(msgspec.Struct, frozen=True):
    """Why the bell's call returned."""

    # The queue that was heard of; None where only this bell was woken, or time has passed.
    queue: str | None
    # Whether that queue wants something cancelled; else it may have work.
    summons: bool = False
    # Whether the time has passed, and no bell rang.
    nothing: bool = False
    # Whether the claim that stood behind the call has brought what there was.
    claimed: bool = False


class Bell:
    """Rings when a queue of this child may have work for a kind of slot that is free.

    One thread listens at a time.
    """

    def __init__(
        self,
        app: str,
        endpoint: Endpoint,
        queues: Sequence[str],
        digest: str,
        child: str,
        claimer: Claimer,
    ) -> None:
        self._posts = _posts(app, endpoint, queues, digest, child)
        self._claimer = claimer
        # What the blocked call listens for; None while none is blocked.
        self.listening: str | None = None
        # When one was blocked last that heard of work.
        self.listened_at = 0.0
        self._heeded: dict[str, str] = {}

    @property
    def kicks(self) -> list[Command[str]]:
        """What wakes this very bell: any of these."""
        return [post.kick for post in self._posts]

    def lacks(self, kinds: str, members: dict[str, str]) -> bool:
        """Whether a call is blocked that does not hear of all of this."""
        listening = self.listening
        return listening is not None and (
            any(kind not in listening for kind in kinds) or self._heeded != members
        )

    def listen(
        self, kinds: str, members: dict[str, str], paused: frozenset[str] = frozenset()
    ) -> Heard | None:
        """Block until a bell rings; None: something may have been missed, or Redis is away.

        Args:
            kinds: of slot, those with room.
            members: who this child is in each queue. By that it is called, whatever has
                room, to cancel something.
            paused: queues the work of which is left to others for some time.

        """
        self.listening, self._heeded = kinds, members
        try:
            if len(self._posts) > 1:
                return self._listen_to_all(kinds, members, paused)
            return self._posts[0].block(kinds, members, paused, self._claimer)
        except BrokerError as error:
            log.debug("the bell: %s", error)
            self.listening = None
            clock.sleep(_AWAY_SECONDS)
            return None
        finally:
            self.listening = None
            if kinds:
                self.listened_at = clock.monotonic()

    def claim(self) -> None:
        """Let a claim stand behind a call that is blocked, where there is one call for all."""
        if self.listening and len(self._posts) == 1:
            self._posts[0].claim(self._claimer)

    def close(self) -> None:
        """Close the connections. Nobody listens any more."""
        for post in self._posts:
            post.close()

    def _listen_to_all(
        self, kinds: str, members: dict[str, str], paused: frozenset[str]
    ) -> Heard | None:
        """Block until one of several nodes answers; the calls to the others stay blocked."""
        for post in self._posts:
            post.stand(kinds, members, paused)
        standing = [post for post in self._posts if post.asked]
        if not standing:
            clock.sleep(_AWAY_SECONDS)
            return None
        first = _first_to_answer(standing)
        if first is None:
            return None
        # The others come first next time, or one that answers again and again would drown them.
        self._posts = [*(post for post in self._posts if post is not first), first]
        return first.hear()


class Post:
    """The bells of the queues that are reached over one line."""

    def __init__(
        self, app: str, line: Line, queues: Sequence[str], digest: str, child: str, block: float
    ) -> None:
        self._app, self._line, self._queues, self._digest = app, line, queues, digest
        # For how many seconds a call blocks.
        self._block = block
        # The bells take turns to come first: the first that rings is heard.
        self._turn = 0
        # Wakes this very bell; in the slot of the first queue.
        self._own_key = keys.wake(app, queues[0], child)
        self.kick = claims.wake(keys.base(app, queues[0]), child)
        # While somebody listens: whether a call is blocked, and whether a claim stands behind it.
        # Guarded, and the sending too: whoever took the last turn may let one stand there.
        self._lock = threading.Lock()
        self._blocked = self._claims = False
        # Of a call that is blocked though nobody listens: key → queue, and until when it is.
        self.asked: dict[str, Heard] = {}
        self._until = 0.0
        # Until when a node that is away is left alone.
        self._away_until = 0.0
        # Ends a blocked call that does not hear of all it should.
        self._kicker: Line | None = None
        # The last answer of `_wanted`, and what it was for: from call to call it is the same.
        self._last_wanted: tuple[object, dict[str, Heard]] = None, {}

    def block(
        self, kinds: str, members: dict[str, str], paused: frozenset[str], claimer: Claimer
    ) -> Heard | None:
        """Block until a bell rings.

        Redis carries out what was sent behind a blocked call as soon as that call ends: a claim
        that stands there costs no way to the worker and back.
        """
        line, wanted = self._line, self._wanted(kinds, members, paused)
        words = ("BLPOP", *wanted, min(self._block, _MOST_CALL))
        claimed = False
        try:
            with self._lock:
                claim, self._blocked = claimer.reserve(), True
                self._claims = claim is not None
                if claim is None:
                    line.send(*words)
                else:
                    line.begin(claim, ahead=words)
            reply = line.receive()
            with self._lock:
                self._blocked = False
            if self._claims:
                claimed = claimer.redeem(line)
        except BaseException:
            with self._lock:
                self._blocked = False
            line.close()  # one of two replies may still come
            raise
        heard = Heard(None, nothing=True) if reply is None else wanted[reply[0].decode()]
        return msgspec.structs.replace(heard, claimed=True) if claimed else heard

    def claim(self, claimer: Claimer) -> None:
        """Let a claim stand behind a call that is blocked, if none does."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._blocked and not self._claims:
                self._claims = self._line.interject(claimer.reserve)
        finally:
            self._lock.release()

    def stand(self, kinds: str, members: dict[str, str], paused: frozenset[str]) -> None:
        """See to it that a call is blocked that hears of all of this; return at once."""
        wanted = self._wanted(kinds, members, paused)
        try:
            if not self.asked and clock.monotonic() >= self._away_until:
                # All end at the same time, so that one turn asks all queues.
                seconds = self._block - clock.monotonic() % self._block
                seconds += self._block if seconds < _LEAST_SECONDS else 0.0
                self._line.send("BLPOP", *wanted, f"{seconds:.3f}")
                self._until = clock.monotonic() + seconds + _SILENT_SECONDS
                self.asked = wanted
            elif self.asked and not wanted.keys() <= self.asked.keys():
                self._kicker = self._kicker or NodeLine(self._line.endpoint)
                self._kicker.until = clock.monotonic() + _KICK_SECONDS
                self._kicker.run(self.kick)
        except BrokerError as error:
            self._leave(error)

    def hear(self) -> Heard | None:
        """Take the answer to the call that was blocked."""
        asked, self.asked = self.asked, {}
        try:
            # Where none has come, none is waited for.
            self._line.until = clock.monotonic()
            reply = self._line.receive()
        except BrokerError as error:
            self._leave(error)
            return None
        return Heard(None, nothing=True) if reply is None else asked[reply[0].decode()]

    def left(self) -> float:
        """Return for how many seconds its answer may be waited for."""
        return self._until - clock.monotonic()

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or none will come any more."""
        return self.line.answered or self.left() <= 0

    @property
    def line(self) -> NodeLine:
        """The line, of which a selector can tell whether an answer has come."""
        return cast("NodeLine", self._line)

    def close(self) -> None:
        """Close the connections."""
        self._line.close()
        if self._kicker is not None:
            self._kicker.close()

    def _wanted(
        self, kinds: str, members: dict[str, str], paused: frozenset[str]
    ) -> dict[str, Heard]:
        """Return what is listened for, in this order, and what it means."""
        asked = kinds, members, paused
        if self._last_wanted[0] == asked:
            return self._last_wanted[1]
        wakes = {
            keys.wake(self._app, queue, members[queue]): Heard(queue, summons=True)
            for queue in self._queues
            if queue in members
        }
        self._turn = (self._turn + 1) % len(self._queues)
        bells = {
            keys.bell(self._app, queue, self._digest, kind): Heard(queue)
            for queue in (*self._queues[self._turn :], *self._queues[: self._turn])
            if queue not in paused
            for kind in kinds
        }
        self._last_wanted = asked, {self._own_key: Heard(None)} | wakes | bells
        return self._last_wanted[1]

    def _leave(self, error: BrokerError) -> None:
        log.debug("the bell: %s", error)
        self._line.close()
        self.asked = {}
        self._away_until = clock.monotonic() + _AWAY_SECONDS


def _posts(
    app: str, endpoint: Endpoint, queues: Sequence[str], digest: str, child: str
) -> list[Post]:
    lines, by_line = Lines(endpoint), dict[Line, list[str]]()
    for queue in queues:
        by_line.setdefault(lines.of(keys.base(app, queue)), []).append(queue)
    counts = keys.queues_of(queues)

    def block(some: Sequence[str]) -> float:
        most = max(counts[keys.queue_of(one)] for one in some)
        return min(max(BLOCK_SECONDS, float(most)), _MOST_BLOCK)

    return [Post(app, line, some, digest, child, block(some)) for line, some in by_line.items()]


def _first_to_answer(posts: Sequence[Post]) -> Post | None:
    """Return the first of these that has an answer; None where none comes in time."""
    ready = next((post for post in posts if post.answered), None)
    if ready is not None:
        return ready
    with selectors.DefaultSelector() as selector:
        for post in posts:
            selector.register(post.line.fileno(), selectors.EVENT_READ, post)
        chosen = selector.select(max(0.0, min(post.left() for post in posts)))
    # Without one, the one that was to answer first is asked for its answer next.
    return chosen[0][0].data if chosen else None
