"""Message authentication: a keyring whose first key signs and all of whose keys verify.

The tag is keyed BLAKE2b, or HMAC-SHA256 for more than 16 KiB, where the processor's own
SHA instructions win. Each tag is bound to a domain (message, result, control or schedule), an
app and a queue, so that no signed bytes mean anything in another place.

Sources: BLAKE2 `person` parameter, RFC 7693 section 2.5 and the BLAKE2X notes; HMAC,
RFC 2104. Key rotation as in itsdangerous: newest signs, all verify.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from enum import StrEnum
from hmac import compare_digest
from typing import Protocol, TypeAlias

TAG_BYTES = 16
KEY_ID_BYTES = 8
# Where HMAC-SHA256 becomes the faster of the two.
LARGE = 16 << 10
BLAKE2B, HMAC_SHA256, UNSIGNED = b"b", b"h", b"u"
NO_KEY_ID = b"0" * KEY_ID_BYTES

# What is signed besides a header.
Body: TypeAlias = bytes | memoryview


class Tagger(Protocol):
    """Returns the tag over a header and what follows it, which may be in pieces."""

    def __call__(self, header: bytes, body: Body, *rest: Body) -> bytes: ...


class Domain(StrEnum):
    """What signed bytes are; none can be replayed as another."""

    MESSAGE = "taskq-message"
    RESULT = "taskq-result"
    CONTROL = "taskq-control"
    SCHEDULE = "taskq-schedule"


class UnknownKey(Exception):
    """The bytes name a key this keyring does not hold: a rotation in progress."""


class BadSignature(Exception):
    """The tag does not fit: not signed by us, or changed since."""


def rest_of(raw: bytes, at: int) -> Body:
    """Return what follows a place; large bytes are looked at where they are, not copied."""
    return raw[at:] if len(raw) <= LARGE else memoryview(raw)[at:]


def new_secret() -> str:
    """Return a new signing key: 64 hex characters."""
    return secrets.token_hex(32)


def key_id(secret: str) -> bytes:
    """Return the public name of a key: eight hex digits of its digest."""
    return (
        hashlib.blake2b(secret.encode(), digest_size=4, person=b"taskq-key-id").hexdigest().encode()
    )


class Keyring:
    """The keys of an app. Without keys it signs nothing and accepts only unsigned bytes."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        """Name the keys, never show them."""
        return f"Keyring({[key_id(key).decode() for key in self._keys]})"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys themselves, for another process of this worker."""
        return self._keys

    def seal(self, domain: Domain, app: str, queue: str) -> Seal:
        """Return the signer and verifier of one domain of one queue."""
        return Seal(self._keys, domain, f"{app}\0{queue}\0".encode())


class Seal:
    """Signs and verifies the bytes of one domain of one queue."""

    def __init__(self, keys: Sequence[str], domain: Domain, scope: bytes) -> None:
        # By mark: the algorithm's letter and the key's id.
        self._taggers: dict[bytes, Tagger] = {}
        for key in keys:
            small, large = _taggers(key, domain, scope)
            self._taggers |= {BLAKE2B + key_id(key): small, HMAC_SHA256 + key_id(key): large}
        self.key_id = key_id(keys[0]) if keys else NO_KEY_ID
        self._marks = [word + self.key_id for word in (BLAKE2B, HMAC_SHA256)]
        self._small, self._large = (self._taggers.get(mark, _no_tag) for mark in self._marks)
        if not keys:
            self._marks = [UNSIGNED + NO_KEY_ID] * 2

    @property
    def signers(self) -> tuple[tuple[bytes, Tagger], tuple[bytes, Tagger]]:
        """Mark and tagger for a body up to `LARGE`, and for a larger one."""
        return (self._marks[0], self._small), (self._marks[1], self._large)

    def mark(self, size: int) -> bytes:
        """Return how a body of `size` bytes is signed: the algorithm's letter, the key's id."""
        return self._marks[size > LARGE]

    def tag(self, header: bytes, body: bytes) -> bytes:
        """Return the tag over `header` and `body`, 16 bytes."""
        return (self._small if len(body) <= LARGE else self._large)(header, body)

    def stamp(self, header: bytes, body: bytes) -> bytes:
        """Return all that is needed to verify: the mark and the tag."""
        if len(body) <= LARGE:
            return self._marks[0] + self._small(header, body)
        return self._marks[1] + self._large(header, body)

    def verify(self, mark: bytes, header: bytes, body: Body, tag: bytes) -> None:
        """Return if `tag` is right.

        Raises:
            UnknownKey: `mark` names no key here.
            BadSignature: anything else; unsigned bytes included where keys exist.

        """
        tagger = self._taggers.get(mark)
        if tagger is None:
            self._check_unsigned(mark[:1], mark[1:])
        elif not compare_digest(tagger(header, body), tag):
            msg = "bad signature"
            raise BadSignature(msg)

    def _check_unsigned(self, algorithm: bytes, key: bytes) -> None:
        """Return if a mark without a tagger is right: that of unsigned bytes, and no key is set."""
        if algorithm == UNSIGNED or not self._taggers:
            if algorithm == UNSIGNED and not self._taggers:
                return
            what = "unsigned" if algorithm == UNSIGNED else "signed, and no key is set here"
            raise BadSignature(what)
        if not any(known[1:] == key for known in self._taggers):
            msg = f"signed with the unknown key {key!r}"
            raise UnknownKey(msg)
        msg = f"unknown algorithm {algorithm!r}"
        raise BadSignature(msg)


def _taggers(key: str, domain: Domain, scope: bytes) -> tuple[Tagger, Tagger]:
    secret = hashlib.blake2b(key.encode(), digest_size=32, person=b"taskq-derive").digest()
    small = hashlib.blake2b(scope, key=secret, digest_size=TAG_BYTES, person=domain.encode())
    large = hmac.new(secret, domain.encode() + b"\0" + scope, hashlib.sha256)

    def blake2b(header: bytes, body: Body, *rest: Body) -> bytes:
        state = small.copy()
        state.update(header + body)
        for piece in rest:
            state.update(piece)
        return state.digest()

    def hmac_sha256(header: bytes, body: Body, *rest: Body) -> bytes:
        state = large.copy()
        for piece in (header, body, *rest):
            state.update(piece)
        return state.digest()[:TAG_BYTES]

    return blake2b, hmac_sha256


def _no_tag(header: bytes, body: Body, *rest: Body) -> bytes:  # noqa: ARG001 - the shape of a tagger
    return bytes(TAG_BYTES)
