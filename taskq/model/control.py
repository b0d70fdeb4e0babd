"""The bytes of an order to cancel a message: a letter, a proof of who gave it, the reason.

Scripts read letter and reason, and pass on the proof. It covers the message's id and both;
it is in a domain of its own, so nothing else that an app signs is an order.
"""

from __future__ import annotations

from taskq.model.signing import KEY_ID_BYTES, TAG_BYTES, Seal

# The process that runs the message is to be ended; or the message is to be stopped in it.
TERMINATE, STOP = b"t", b"-"
# Algorithm, key id, tag.
PROOF_BYTES = 1 + KEY_ID_BYTES + TAG_BYTES
REASON_AT = 1 + PROOF_BYTES
_TAG_AT = REASON_AT - TAG_BYTES


def give(id: bytes, reason: bytes, seal: Seal, *, terminate: bool) -> bytes:
    """Return a signed order."""
    letter = TERMINATE if terminate else STOP
    return letter + seal.stamp(id + letter, reason) + reason


def verify(id: bytes, order: bytes, seal: Seal) -> None:
    """Return if this order was given for this message.

    Raises:
        UnknownKey: it names a key that is not held here.
        BadSignature: it is not ours, or was given for something else.

    """
    letter, mark = order[:1], order[1:_TAG_AT]
    seal.verify(mark, id + letter, order[REASON_AT:], order[_TAG_AT:REASON_AT])
