"""One call of a task, enqueued: its bytes, and the way to and from them.

    TQ 1 b 0f3a91c2 0192c4d1…(32 hex) 0000000000000 | tag (16) | envelope (msgpack array)

The header has a fixed width, so that Lua finds the id and the expiry by position and
parses nothing else. The tag covers header, envelope, app and queue. Nothing behind it is
read before it is verified. The whole format is a page: `docs/protocol.md`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from taskq.config import LARGEST_MESSAGE
from taskq.errors import ConfigError
from taskq.model.signing import LARGE, BadSignature, Seal, rest_of

MAGIC, VERSION = b"TQ", b"1"
_BEGINNING = MAGIC + VERSION
HEADER_BYTES = 57
BODY_AT = 73
ID_BYTES = 32
NEVER = b"0" * 13
# A body of more than this is copied once, into the message: fresh memory is dear. MessagePack
# has one beginning for all of that size: this, and their length in four bytes.
_BULKY, _BIN_32 = 0xFFFF, b"\xc6"
# The digit that begins with the bits 10, as RFC 9562 wants it, for any digit.
_VARIANTS = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}

# What follows the time in an id: which bits are drawn, and which say version 7 and that variant.
_TAIL_BYTES = 10
_DRAWN = bytes.fromhex("0fff3fffffffffffffff")
_FIXED = bytes.fromhex("70008000000000000000")
# Those of the next ids. Any thread pops; a forked child draws its own.
_tails: list[str] = []
_DRAWN_AT_ONCE = 256
os.register_at_fork(after_in_child=_tails.clear)

WIRE_ID = re.compile(r"[0-9a-f]{32}")


class Refused(Exception):
    """Bytes that are not a message for this queue; the text says why."""


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a worker needs to run a call. New fields go to the end, with a default."""

    task: str
    # Milliseconds since the epoch, by the producer's clock.
    enqueued_ms: int
    # As `serializers.dumps` named it.
    serializer: str
    # The serialised `(args, kwargs)`.
    body: bytes
    # The text given as `id=`; the id in the header is its digest.
    name: str | None = None
    # What this call sets apart from its task's own options; None leaves them.
    ignore_result: bool | None = None
    result_ttl_ms: int | None = None
    headers: dict[str, Any] | None = None
    # How long one attempt may run: then it is told so, and then its process is killed.
    timeout_ms: int | None = None
    hard_timeout_ms: int | None = None
    # Milliseconds since the epoch by which all must have ended, by Redis's clock.
    deadline_ms: int | None = None

    def __repr__(self) -> str:
        """Name the task, and show no argument or header."""
        return f"Envelope({self.task}, {len(self.body)} bytes of {self.serializer})"


class Message(msgspec.Struct, frozen=True, gc=False):
    """An envelope with the two fields of the header that Lua reads."""

    # 32 lowercase hex digits.
    id: str
    # Milliseconds since the epoch; 0 never.
    expires_ms: int
    envelope: Envelope


_FIELDS = Envelope.__struct_fields__
_pack = _encode_envelope = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode


def new_id(now_ms: int) -> str:
    """Return a new UUIDv7 (RFC 9562 section 5.7) as 32 hex digits: ordered by time."""
    try:
        tail = _tails.pop()
    except IndexError:
        tail = _draw()
    return f"{now_ms:012x}{tail}"


def new_ids(now_ms: int, count: int) -> list[str]:
    """Return so many new ids, as `new_id` makes them."""
    moment = f"{now_ms:012x}"
    return [moment + tail for tail in _drawn(count)]


def _draw() -> str:
    """Return what follows the time in an id, and keep more: each call of the system is dear."""
    tails = _drawn(_DRAWN_AT_ONCE)
    tail = tails.pop()
    _tails.extend(tails)
    return tail


def _drawn(count: int) -> list[str]:
    # All as one number: to set these bits in each by itself took half a microsecond.
    size = _TAIL_BYTES * count
    bits = int.from_bytes(os.urandom(size)) & int.from_bytes(_DRAWN * count)
    return (bits | int.from_bytes(_FIXED * count)).to_bytes(size).hex(" ", _TAIL_BYTES).split()


def renewed_id(id: str, moment_ms: int) -> str:
    """Return the id of a message sent in place of one that ended at that moment.

    Always the same, so that it cannot be enqueued twice: a UUIDv8, ordered by time.
    """
    text = f"{id}\0{moment_ms}".encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"taskq-renewed").hexdigest()
    return f"{moment_ms:012x}8{digest[:3]}{_VARIANTS[digest[3]]}{digest[4:19]}"


def check_name(name: object) -> str:
    """Return `name` if a message can be given it as its id."""
    if not isinstance(name, str) or not 1 <= len(name) <= 128 or not name.isprintable():
        msg = f"id must be 1 to 128 printable characters, not {name!r:.140}"
        raise ConfigError(msg)
    if "@" in name:
        msg = f"id {name!r}: '@' is kept for the queue"
        raise ConfigError(msg)
    # As in `config.check_name`.
    return str.__str__(name)


def id_of(app: str, name: object) -> str:
    """Return the id of a message that was given a name: BLAKE2b-128 of app and name."""
    text = f"{app}\0{check_name(name)}".encode()
    return hashlib.blake2b(text, digest_size=16, person=b"taskq-id").hexdigest()


def encode(message: Message, seal: Seal) -> bytes:
    """Return the signed bytes of a message."""
    one = message.envelope
    if len(one.body) > _BULKY:
        return encode_all(message, (message.id,), (one.serializer,), (one.body,), seal)[0]
    body = _encode_envelope(one)
    expires = b"%013d" % message.expires_ms if message.expires_ms else NEVER
    header = _BEGINNING + seal.mark(len(body)) + message.id.encode() + expires
    return header + seal.tag(header, body) + body


def encode_all(
    like: Message,
    ids: Iterable[str],
    serializers: Iterable[str],
    bodies: Iterable[bytes],
    seal: Seal,
) -> list[bytes]:
    """Return the signed bytes of messages that are like one but for id, serializer and body."""
    expires = b"%013d" % like.expires_ms if like.expires_ms else NEVER
    small, large = ((_BEGINNING + mark, tag) for mark, tag in seal.signers)
    known, before, behind = "", b"", b""
    raws: list[bytes] = []
    for id, serializer, body in zip(ids, serializers, bodies, strict=True):
        if serializer != known:
            before, behind = _around(like.envelope, serializer)
            known = serializer
        if len(body) > _BULKY:
            header, tag = large[0] + id.encode() + expires, large[1]
            opening = before + _BIN_32 + len(body).to_bytes(4)
            signed = tag(header, opening, body, behind)
            raws.append(b"".join((header, signed, opening, body, behind)))
            continue
        # No object for each message, and no field written twice: half of what `encode` takes.
        envelope = b"".join((before, _pack(body), behind))
        start, tag = small if len(envelope) <= LARGE else large
        header = start + id.encode() + expires
        raws.append(b"".join((header, tag(header, envelope), envelope)))
    return raws


def _around(like: Envelope, serializer: str) -> tuple[bytes, bytes]:
    """Return what stands before and behind the body in envelopes that differ in it alone."""
    empty = msgspec.structs.replace(like, serializer=serializer, body=b"")
    whole, fields = _encode_envelope(empty), msgspec.structs.astuple(empty)
    behind = b"".join(map(_pack, fields[_FIELDS.index("body") + 1 :]))
    return whole[: -len(_pack(b"") + behind)], behind


def decode(raw: bytes, seal: Seal) -> Message:
    """Return the message of verified bytes; raise as `open_envelope`."""
    envelope = open_envelope(raw, seal)
    try:
        return Message(raw[12:44].decode(), int(raw[44:57]), envelope)
    except ValueError as error:
        msg = f"unreadable header: {str(error)[:200]}"
        raise Refused(msg) from error


def open_envelope(raw: bytes, seal: Seal) -> Envelope:
    """Return what the bytes of a message hold, verified.

    Raises:
        Refused: not ours, of another version, unsigned, badly signed or unreadable.
        UnknownKey: signed with a key that this process does not hold.

    """
    if raw[:3] != _BEGINNING or not BODY_AT < len(raw) <= LARGEST_MESSAGE:
        raise Refused(_why_not(raw))
    try:
        body = rest_of(raw, BODY_AT)
        seal.verify(raw[3:12], raw[:HEADER_BYTES], body, raw[HEADER_BYTES:BODY_AT])
    except BadSignature as error:
        raise Refused(str(error)) from None
    try:
        return _decode_envelope(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        msg = f"unreadable envelope: {str(error)[:200]}"
        raise Refused(msg) from error


def _why_not(raw: bytes) -> str:
    """Return what is wrong with bytes that do not begin, or end, as a message does."""
    if len(raw) <= BODY_AT or raw[:2] != MAGIC:
        return "not a taskq message"
    if len(raw) > LARGEST_MESSAGE:
        return f"{len(raw):,} bytes are more than any message has"
    return f"unknown message version {raw[2:3]!r}"


def peek_id(raw: bytes) -> str | None:
    """Return the id in the header of unverified bytes, or None where there is none."""
    text = raw[12:44].decode("ascii", errors="replace")
    return text if raw[:2] == MAGIC and WIRE_ID.fullmatch(text) else None
