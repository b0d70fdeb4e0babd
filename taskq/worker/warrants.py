"""Orders to cancel, verified before anybody obeys them.

Whoever can write to Redis can put an order there; who holds no key of the app cannot prove
it. Such an order is dropped from Redis, so that it does not come again each time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from taskq.broker import claims, keys
from taskq.broker.claims import Order
from taskq.broker.line import Line
from taskq.model import clock, control
from taskq.model.signing import BadSignature, Domain, Keyring, Seal, UnknownKey

log = logging.getLogger("taskq.worker")

# More in one call would keep Redis from others.
_MOST = 500
_TELL_SECONDS = 60.0


class Warrants:
    """Tells orders of the app from those of others. Used by one thread at a time."""

    def __init__(self, app: str, keyring: Keyring) -> None:
        self._app, self._keyring = app, keyring
        self._seals: dict[str, Seal] = {}
        # When to tell again of a key that is not held.
        self._tell_at = 0.0

    def proven(self, queue: str, orders: Iterable[Order]) -> tuple[list[Order], list[Order]]:
        """Return the orders that were given for this queue, and those to be dropped."""
        good: list[Order] = []
        bad: list[Order] = []
        for order in orders:
            (good if self._verifies(queue, order) else bad).append(order)
        return good, bad

    def drop(self, line: Line, queue: str, worker: bytes, orders: list[Order]) -> None:
        """Take orders that are not proven out of Redis; each is counted once.

        Raises:
            BrokerError: Redis is away; they will come again.

        """
        for first in range(0, len(orders), _MOST):
            page = orders[first : first + _MOST]
            line.run(claims.disobey(keys.base(self._app, queue), worker, page))

    def _verifies(self, queue: str, order: Order) -> bool:
        seal = self._seals.get(queue)
        if seal is None:
            seal = self._seals[queue] = self._keyring.seal(Domain.CONTROL, self._app, queue)
        try:
            control.verify(order.id, order.signed, seal)
        except UnknownKey as error:
            if (now := clock.monotonic()) >= self._tell_at:
                self._tell_at = now + _TELL_SECONDS
                log.error(
                    "%s: an order to cancel is %s, and is not obeyed; is TASKQ_SECRET the same "
                    "everywhere?", queue, error,
                )  # fmt: skip
            return False
        except BadSignature as error:
            # Maintenance tells people, once a minute: whoever forges can forge many.
            log.debug("%s: an order to cancel is not obeyed: %s", queue, error)
            return False
        return True
