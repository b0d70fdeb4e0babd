"""Orders to cancel as bytes: what is signed, and what they are bound to."""

from __future__ import annotations

import hashlib

import pytest

from taskq.model import control
from taskq.model.signing import BadSignature, Domain, Keyring, Seal, UnknownKey

SECRET, OTHER = "s" * 32, "o" * 32
ID, WHY = b"0190163d8694739ba9e3d1fd7ee64b64", b"nobody wants it"


def seal_of(*keys: str, app: str = "shop", queue: str = "default", domain: str = "control") -> Seal:
    return Keyring(keys).seal(Domain(f"taskq-{domain}"), app, queue)


SEAL = seal_of(SECRET)
ORDER = control.give(ID, WHY, SEAL, terminate=True)


def test_its_layout_and_its_tag_are_as_the_protocol_says() -> None:
    key = hashlib.blake2b(SECRET.encode(), digest_size=32, person=b"taskq-derive").digest()
    mac = hashlib.blake2b(b"shop\0default\0", key=key, digest_size=16, person=b"taskq-control")
    mac.update(ID + b"t" + WHY)
    assert b"tb" + SEAL.key_id + mac.digest() + WHY == ORDER
    assert control.REASON_AT == 26


@pytest.mark.parametrize("terminate", [True, False])
@pytest.mark.parametrize("reason", [b"", WHY, b"\0\xff", b"x" * 20_000])
def test_what_was_given_is_verified(reason: bytes, *, terminate: bool) -> None:
    order = control.give(ID, reason, SEAL, terminate=terminate)
    assert order[:1] == (b"t" if terminate else b"-")
    assert order[control.REASON_AT :] == reason
    control.verify(ID, order, SEAL)
    control.verify(ID, order, seal_of(OTHER, SECRET))


def test_each_byte_of_it_counts() -> None:
    for at in range(len(ORDER)):
        changed = ORDER[:at] + bytes([ORDER[at] ^ 1]) + ORDER[at + 1 :]
        with pytest.raises((BadSignature, UnknownKey)):
            control.verify(ID, changed, SEAL)
        with pytest.raises((BadSignature, UnknownKey)):
            control.verify(ID, ORDER[:at], SEAL)


@pytest.mark.parametrize(
    "place",
    [{"app": "shops"}, {"queue": "mail"}, {"domain": "message"}, {"domain": "result"}],
)
def test_it_is_of_its_app_its_queue_and_its_domain(place: dict[str, str]) -> None:
    with pytest.raises(BadSignature):
        control.verify(ID, ORDER, seal_of(SECRET, **place))


def test_it_is_of_its_message() -> None:
    for other in (b"f" * 32, ID[:-1], b"", ID + b"t"):
        with pytest.raises(BadSignature):
            control.verify(other, ORDER, SEAL)


def test_a_key_that_is_not_held_is_told_apart() -> None:
    with pytest.raises(UnknownKey):
        control.verify(ID, ORDER, seal_of(OTHER))


def test_unsigned_ones_count_where_no_key_is_set_and_nowhere_else() -> None:
    bare = control.give(ID, WHY, seal_of(), terminate=False)
    control.verify(ID, bare, seal_of())
    with pytest.raises(BadSignature, match="unsigned"):
        control.verify(ID, bare, SEAL)
    with pytest.raises(BadSignature):
        control.verify(ID, ORDER, seal_of())
