"""Orders to cancel, carried out on what this child holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from taskq.broker import claims
from taskq.broker.claims import Order
from taskq.errors import BrokerError
from taskq.model import clock
from taskq.model.signing import Keyring
from taskq.worker.books import Slots
from taskq.worker.delivery import Delivery
from taskq.worker.port import Port
from taskq.worker.warrants import Warrants

# What must be cancelled and does not end is not looked for at each exchange.
_OBEY_SECONDS = 1.0


class Orders:
    """Asks what a queue wants to have cancelled, and does it. Used under the exchange's lock."""

    def __init__(self, app: str, keyring: Keyring, slots: Slots) -> None:
        self._warrants, self._slots = Warrants(app, keyring), slots
        # Called for a message whose process is to be ended.
        self.terminate: Callable[[Order], None] = lambda _order: None

    def summon(self, port: Port) -> bool:
        """Note that a queue has orders; return whether they are to be asked for now."""
        if clock.monotonic() - port.obeyed_at <= _OBEY_SECONDS:
            return False
        port.summoned = True
        return True

    def obey(self, port: Port, held: Mapping[bytes, Delivery]) -> None:
        """Cancel what the queue wants to have cancelled, as far as it is held, by its field.

        Raises:
            BrokerError: Redis is away; they are asked for again.

        """
        # First this: what comes while Redis answers may be missing in the answer.
        port.summoned = False
        try:
            told = port.reach.line.run(claims.orders(port.base, port.worker))
        except BrokerError:
            port.summoned = True
            raise
        port.obeyed_at = clock.monotonic()
        orders, unproven = self._warrants.proven(port.queue, told)
        for order in orders:
            delivery = held.get(order.field)
            if delivery is None:
                continue
            if delivery not in self._slots.cancelled:
                self._slots.cancelled[delivery] = order.reason
                self._slots.interrupt(delivery)
            if order.terminate:
                self.terminate(order)
        self._warrants.drop(port.reach.line, port.queue, port.worker, unproven)
