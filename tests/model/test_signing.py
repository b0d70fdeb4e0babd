"""Bytes are ours when their tag says so: for one purpose, one app and one queue."""

from __future__ import annotations

import itertools

import pytest

from taskq.model.signing import (
    BLAKE2B,
    HMAC_SHA256,
    KEY_ID_BYTES,
    LARGE,
    NO_KEY_ID,
    TAG_BYTES,
    UNSIGNED,
    BadSignature,
    Domain,
    Keyring,
    Seal,
    UnknownKey,
    key_id,
    new_secret,
)

OLD, NEW, OTHER = (
    f"the {name} secret of the tests, long enough" for name in ("old", "new", "other")
)
HEADER, BODY = b"header", b"the body of a message"
LARGE_BODY = b"x" * (LARGE + 1)


def seal(*keys: str, domain: Domain = Domain.MESSAGE, app: str = "shop", queue: str = "q") -> Seal:
    return Keyring(keys).seal(domain, app, queue)


def check(signer: Seal, verifier: Seal, body: bytes = BODY) -> None:
    """Sign with one, verify with the other."""
    tag = signer.tag(HEADER, body)
    verifier.verify(signer.mark(len(body)), HEADER, body, tag)


@pytest.mark.parametrize("body", [b"", BODY, LARGE_BODY], ids=["empty", "small", "large"])
def test_what_was_signed_is_verified(body: bytes) -> None:
    check(seal(NEW), seal(NEW), body)


@pytest.mark.parametrize("body", [BODY, LARGE_BODY], ids=["small", "large"])
def test_a_tag_is_bound_to_purpose_app_and_queue(body: bytes) -> None:
    seals = [
        seal(NEW, domain=domain, app=app, queue=queue)
        for domain in Domain
        for app in ("shop", "shop2")
        for queue in ("q", "q2")
    ]
    tags = [one.tag(HEADER, body) for one in seals]
    assert len(set(tags)) == len(seals)
    for one, other in itertools.permutations(seals, 2):
        with pytest.raises(BadSignature):
            check(one, other, body)


def test_the_border_between_app_and_queue_counts() -> None:
    with pytest.raises(BadSignature):
        check(seal(NEW, app="a", queue="bc"), seal(NEW, app="ab", queue="c"))


@pytest.mark.parametrize("body", [BODY, LARGE_BODY], ids=["small", "large"])
def test_any_change_is_noticed(body: bytes) -> None:
    one = seal(NEW)
    algorithm, tag = one.mark(len(body))[:1], one.tag(HEADER, body)
    changed = [
        (b"Header", body, tag),
        (HEADER, body + b"x", tag),
        (HEADER, body[:-1], tag),
        (HEADER + body[:1], body[1:] + b"x", tag),
        (HEADER, body, tag[:-1]),
        (HEADER, body, tag + b"x"),
        (HEADER, body, b""),
        (HEADER, body, bytes(TAG_BYTES)),
        (HEADER, body, bytes([tag[0] ^ 1]) + tag[1:]),
    ]
    for header, other, wrong in changed:
        with pytest.raises(BadSignature):
            one.verify(algorithm + one.key_id, header, other, wrong)


class TestRotation:
    def test_the_first_key_signs_and_all_verify(self) -> None:
        rotating = seal(NEW, OLD)
        assert rotating.key_id == key_id(NEW)
        check(seal(OLD), rotating)
        check(seal(NEW), rotating)
        check(rotating, seal(NEW))

    def test_both_orders_understand_each_other(self) -> None:
        """As they must while half of the fleet has the new setting."""
        check(seal(NEW, OLD), seal(OLD, NEW))
        check(seal(OLD, NEW), seal(NEW, OLD))

    def test_a_retired_key_is_unknown_not_forged(self) -> None:
        with pytest.raises(UnknownKey, match=key_id(OLD).decode()):
            check(seal(OLD), seal(NEW))

    def test_a_known_key_with_a_bad_tag_is_forged(self) -> None:
        one = seal(NEW, OLD)
        for key in (OLD, NEW):
            with pytest.raises(BadSignature, match="bad signature"):
                one.verify(BLAKE2B + key_id(key), HEADER, BODY, bytes(TAG_BYTES))

    def test_a_tag_of_one_key_is_no_tag_of_another(self) -> None:
        one = seal(NEW, OLD)
        with pytest.raises(BadSignature):
            one.verify(BLAKE2B + key_id(OLD), HEADER, BODY, seal(NEW).tag(HEADER, BODY))


class TestUnsigned:
    def test_without_keys_nothing_is_signed(self) -> None:
        bare = seal()
        assert bare.key_id == NO_KEY_ID
        assert bare.mark(10)[:1] == bare.mark(LARGE + 1)[:1] == UNSIGNED
        check(bare, seal())

    def test_where_keys_exist_it_is_refused(self) -> None:
        with pytest.raises(BadSignature, match="unsigned"):
            check(seal(), seal(NEW))

    def test_where_none_exist_signed_bytes_are_refused(self) -> None:
        with pytest.raises(BadSignature, match="no key is set here"):
            check(seal(NEW), seal())


class TestAlgorithm:
    def test_changes_above_sixteen_kibibytes(self) -> None:
        one = seal(NEW)
        assert one.mark(LARGE)[:1] == BLAKE2B
        assert one.mark(LARGE + 1)[:1] == HMAC_SHA256
        assert LARGE == 16_384

    def test_both_tags_have_one_length(self) -> None:
        one = seal(NEW)
        assert len(one.tag(HEADER, BODY)) == len(one.tag(HEADER, LARGE_BODY)) == TAG_BYTES

    def test_another_than_it_was_signed_with_does_not_fit(self) -> None:
        one = seal(NEW)
        with pytest.raises(BadSignature):
            one.verify(HMAC_SHA256 + one.key_id, HEADER, BODY, one.tag(HEADER, BODY))
        with pytest.raises(BadSignature):
            one.verify(BLAKE2B + one.key_id, HEADER, LARGE_BODY, one.tag(HEADER, LARGE_BODY))

    def test_an_unknown_one_is_refused(self) -> None:
        one = seal(NEW)
        for letter in (b"x", b"B"):
            with pytest.raises(BadSignature, match="unknown algorithm"):
                one.verify(letter + one.key_id, HEADER, BODY, one.tag(HEADER, BODY))


class TestSecrecy:
    def test_no_repr_shows_a_key(self) -> None:
        keyring = Keyring([NEW, OLD])
        for shown in (repr(keyring), str(keyring), repr(keyring.seal(Domain.RESULT, "a", "b"))):
            assert "secret" not in shown

    def test_a_keyring_is_named_by_its_key_ids(self) -> None:
        assert repr(Keyring([NEW])) == f"Keyring(['{key_id(NEW).decode()}'])"

    def test_a_key_id_tells_keys_apart(self) -> None:
        ids = {key_id(key) for key in (OLD, NEW, OTHER)}
        assert len(ids) == 3
        assert {len(one) for one in ids} == {KEY_ID_BYTES}

    def test_a_new_secret_is_new(self) -> None:
        assert len({new_secret() for _ in range(100)}) == 100
        assert len(new_secret()) >= 32


def test_a_seal_serves_many_threads_and_messages() -> None:
    """Its hash states are copied, never used up."""
    one = seal(NEW)
    assert len({one.tag(HEADER, BODY) for _ in range(3)}) == 1
