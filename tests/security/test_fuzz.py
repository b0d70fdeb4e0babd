"""S1, S6: whatever bytes come, the decoders answer with their own errors, and in little memory.

100,000 cases, seeded: `TASKQ_FAULT_SEED` replays a run. Half of them are forged, and must not
be parsed at all; half carry a good tag over nonsense, as a program with the key could write.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import secrets
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from taskq.errors import RemoteError, ResultTampered
from taskq.model import message, outcome, serializers
from taskq.model.message import HEADER_BYTES, Envelope, Message, Refused
from taskq.model.outcome import AttemptError, Failure, History, Report
from taskq.model.signing import Domain, Keyring, Seal, UnknownKey

CASES = 25_000
# Bytes; the largest fuzzed message.
LIMIT = 1 << 20
ID = "0123456789abcdef" * 2
BOUND = ID.encode() + b"w" * 32 + b"0" * 10


@pytest.fixture
def dice() -> random.Random:
    seed = os.environ.get("TASKQ_FAULT_SEED") or secrets.token_hex(8)
    print(f"TASKQ_FAULT_SEED={seed}")  # pytest shows it where the test fails
    return random.Random(seed)


@pytest.fixture(autouse=True)
def _nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_: Any, **__: Any) -> None:
        pytest.fail("something was unpickled")

    monkeypatch.setattr(pickle, "loads", loads)
    monkeypatch.setattr(serializers.pickle, "loads", loads)


def sealed(domain: Domain) -> Seal:
    return Keyring(["k" * 32]).seal(domain, "app", "queue")


def body_of(dice: random.Random, good: bytes) -> bytes:
    """Return nonsense: bytes by chance, good ones damaged, lengths that lie, deep nests."""
    kind = dice.randrange(6)
    if kind == 0:
        return dice.randbytes(dice.choice((0, 1, 2, 5, 40, 300)))
    if kind == 1:
        at = dice.randrange(len(good))
        return good[:at] + dice.randbytes(dice.randrange(1, 5)) + good[at:]
    if kind == 2:
        damaged = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            damaged[dice.randrange(len(good))] = dice.randrange(256)
        return bytes(damaged)
    if kind == 3:
        return good[: dice.randrange(len(good))]
    if kind == 4:
        # array, map, str and bin of up to 4 GiB, with nothing behind them
        word = dice.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"))
        lie = word + struct.pack(">I", dice.choice((1 << 20, 1 << 31, (1 << 32) - 1)))
        at = dice.randrange(len(good))
        return good[:at] + lie + good[at + 1 :]
    return good[:-1] + dice.choice((b"\x91", b"\x81\xa1x")) * dice.choice((10, 100, 2000))


def forged(dice: random.Random, raw: bytes) -> bytes:
    """Return bytes that no key holder wrote."""
    kind = dice.randrange(5)
    if kind == 0:
        return dice.randbytes(dice.choice((0, 1, 56, 57, 72, 73, 74, 500)))
    if kind == 1:
        return raw[: dice.randrange(len(raw))]
    if kind == 2:
        return raw + dice.randbytes(dice.randrange(1, 9))
    if kind == 3:
        # A good header, with any tag and body.
        return raw[:HEADER_BYTES] + dice.randbytes(16) + dice.randbytes(dice.randrange(1, 200))
    damaged = bytearray(raw)
    at = dice.randrange(len(raw))
    damaged[at] ^= dice.randrange(1, 256)
    return bytes(damaged)


@pytest.fixture
def measured() -> Iterator[Callable[[], int]]:
    """Return the most memory that was taken since the last call, in bytes."""
    tracemalloc.start()

    def peak() -> int:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return most

    yield peak
    tracemalloc.stop()


def a_message(body: bytes = b"\x80\x05pickled") -> Envelope:
    return Envelope("shop.add", 1_700_000_000_000, "pickle", body, "order", headers={"a": [1]})


def a_report(value: bytes = b"\x80\x05pickled") -> Report:
    failure = Failure("x.Y", "text", "trace", "pickle", value, "OSError", b"\x92\x01\xa1x")
    errors = (AttemptError(1, 5, "x.Y", "text"),)
    return Report("shop.add", 1, 2, 3, "w", 1, 1, "pickle", value, failure, errors, "order")


@pytest.mark.slow
def test_forged_messages_are_refused_before_they_are_parsed(
    dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = sealed(Domain.MESSAGE)
    good = [message.encode(Message(ID, 0, a_message(b"x" * n)), seal) for n in (1, 300, 20_000)]
    monkeypatch.setattr(message, "_decode_envelope", lambda _: pytest.fail("it was parsed"))
    told = {Refused: 0, UnknownKey: 0}
    for _ in range(CASES):
        raw = forged(dice, dice.choice(good))
        with pytest.raises((Refused, UnknownKey)) as caught:
            message.decode(raw, seal)
        told[caught.type] += 1
        assert len(str(caught.value)) < 500
        peeked = message.peek_id(raw)
        assert peeked is None or message.WIRE_ID.fullmatch(peeked)
    assert min(told.values()) > 0


@pytest.mark.slow
def test_forged_results_are_refused_before_they_are_parsed(
    dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = sealed(Domain.RESULT)
    good = [outcome.sign(a_report(b"x" * n), seal, BOUND) for n in (1, 300, 20_000)]
    history = outcome.sign(History(1, 2.0), seal, ID.encode())
    for decoder in ("_decode_report", "_decode_history"):
        monkeypatch.setattr(outcome, decoder, lambda _: pytest.fail("it was parsed"))
    for _ in range(CASES):
        raw = forged(dice, dice.choice(good))
        with pytest.raises(ResultTampered) as caught:
            outcome.read_report(raw, seal, BOUND)
        assert len(str(caught.value)) < 500
        assert outcome.read_history(forged(dice, history), seal, ID.encode()) is None


@pytest.mark.slow
def test_nonsense_under_a_good_tag_is_refused(
    dice: random.Random, measured: Callable[[], int]
) -> None:
    """The length of an array says nothing about what is allocated for it."""
    seal = sealed(Domain.MESSAGE)
    encoded = msgspec.msgpack.encode(a_message())
    header = message.encode(Message(ID, 0, a_message()), seal)[:HEADER_BYTES]
    read = 0
    for number in range(CASES):
        body = body_of(dice, encoded)
        raw = header + seal.tag(header, body) + body
        with contextlib.suppress(Refused):
            message.decode(raw, seal)
            read += 1
        if number % 100 == 0:
            assert measured() < LIMIT
    assert 0 < read < CASES


@pytest.mark.slow
def test_nonsense_in_signed_results_is_refused(
    dice: random.Random, measured: Callable[[], int]
) -> None:
    """What can be read is revived without a pickle: as an exception, whatever it says."""
    seal = sealed(Domain.RESULT)
    encoded = msgspec.msgpack.encode(a_report())
    past = msgspec.msgpack.encode(History(1, 2.0, (AttemptError(1, 5, "x.Y", "text"),)))
    read = 0
    for number in range(CASES):
        body = body_of(dice, encoded)
        with contextlib.suppress(ResultTampered):
            report = outcome.read_report(seal.stamp(BOUND, body) + body, seal, BOUND)
            read += 1
            if report.failure is not None:
                words = msgspec.structs.replace(report.failure, value=b"")
                assert isinstance(outcome.revive(words), Exception)
        body = body_of(dice, past)
        outcome.read_history(seal.stamp(ID.encode(), body) + body, seal, ID.encode())
        if number % 100 == 0:
            assert measured() < LIMIT
    assert 0 < read < CASES


@pytest.mark.parametrize("size", [LIMIT, 4 * LIMIT])
def test_a_large_one_costs_less_than_twice_its_size(size: int, measured: Callable[[], int]) -> None:
    seal = sealed(Domain.MESSAGE)
    raw = message.encode(Message(ID, 0, a_message(b"x" * (size - 200))), seal)
    assert size - 200 < len(raw) <= size
    before = tracemalloc.get_traced_memory()[0]
    measured()
    message.decode(raw, seal)
    assert measured() - before < 2 * size
    bad = raw[:-1] + b"y"
    measured()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(Refused, match="bad signature"):
        message.decode(bad, seal)
    assert measured() - before < 2 * size


def test_what_is_larger_than_any_message_is_not_even_hashed(
    monkeypatch: pytest.MonkeyPatch, measured: Callable[[], int]
) -> None:
    seal = sealed(Domain.MESSAGE)
    monkeypatch.setattr(Seal, "verify", lambda *_: pytest.fail("it was hashed"))
    raw = b"TQ1b" + bytes(message.LARGEST_MESSAGE)
    before = tracemalloc.get_traced_memory()[0]
    measured()
    with pytest.raises(Refused, match="more than any message"):
        message.decode(raw, seal)
    assert measured() - before < LIMIT


@pytest.mark.parametrize(
    ("builtin", "args"),
    [
        ("system", ["touch x"]), ("eval", ["1"]), ("os.system", ["x"]), ("object", []),
        ("exec", ["1"]), ("__import__", ["os"]), ("SystemExit", [1]), ("KeyboardInterrupt", []),
        ("UnicodeEncodeError", ["a", "b", 2**63, 1, "c"]), ("OSError", 5), ("KeyError", {"a": 1}),
        ("BaseExceptionGroup", ["x", []]), ("ValueError", "abc"),
    ],
    ids=str,
)  # fmt: skip
def test_no_class_and_no_function_is_looked_up_by_its_name(builtin: str, args: Any) -> None:
    """S7, CVE-2021-23727: a failure that names `os.system` called it."""
    failure = Failure("os.system", "text", "", builtin=builtin, args=msgspec.msgpack.encode(args))
    error = outcome.revive(failure)
    assert isinstance(error, (RemoteError, OSError, KeyError, ValueError))
    assert not isinstance(error, (SystemExit, KeyboardInterrupt))
