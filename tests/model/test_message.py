"""A message and its bytes: what was written long ago must still be read, what was changed never."""

from __future__ import annotations

import functools
import itertools
import operator
import re
import uuid

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskq.errors import ConfigError
from taskq.model import clock, message
from taskq.model.message import BODY_AT, HEADER_BYTES, Envelope, Message, Refused
from taskq.model.signing import Domain, Keyring, Seal, UnknownKey

SECRET = "a golden secret of the tests, for ever and ever"
ID = "0192c4d1a2b37c4d8e5f60718293a4b5"
LARGE = b"x" * 20_000

# Written by version 1. What is in Redis somewhere must be read by all versions to come:
# these bytes are never to be changed.
GOLDEN = bytes.fromhex(
    "545131626234643030316333303139326334643161326233376334643865356636303731383239336134623534"
    "313032343434383030303030ac68a0e08e21097f36a55feb00afa2e898a873686f702e616464cf0000019b76daa8"
    "00a46a736f6ec40a5b5b322c335d2c7b7d5da86f726465722d3432c2cdea6081a57472616365a3616263"
)
GOLDEN_LIMITED = bytes.fromhex(
    "5451316262346430303163333031393263346431613262333763346438653566363037313832393361346235"
    "34313032343434383030303030b74c855193020b5b19b1e1698abcf6369aa873686f702e616464cf0000019b"
    "76daa800a46a736f6ec40a5b5b322c335d2c7b7d5da86f726465722d3432c2cdea6081a57472616365a36162"
    "63cd7530cd9c40"
)
GOLDEN_DEADLINE = bytes.fromhex(
    "5451316262346430303163333031393263346431613262333763346438653566363037313832393361346235"
    "3431303234343438303030303019c21007d8a6f4be4ea3e584603420559ba873686f702e616464cf0000019b"
    "76daa800a46a736f6ec40a5b5b322c335d2c7b7d5da86f726465722d3432c2cdea6081a57472616365a36162"
    "63cd7530cd9c40cf000003bb2cc3d800"
)
GOLDEN_SHORT = bytes.fromhex(
    "545131626234643030316333303139326334643161326233376334643865356636303731383239336134623530"
    "3030303030303030303030306474f0eb50e3aee3b3d19d5afdba3de994a873686f702e616464cf0000019b76daa8"
    "00a46a736f6ec40a5b5b322c335d2c7b7d5d"
)
GOLDEN_LARGE = bytes.fromhex(
    "545131686234643030316333303139326334643161326233376334643865356636303731383239336134623530"
    "3030303030303030303030306a5bd1e35d4b0de081c46c1f49e9e5b6"
)


@pytest.fixture
def seal() -> Seal:
    return seal_of()


def seal_of(app: str = "shop", queue: str = "default", secret: str = SECRET) -> Seal:
    return Keyring([secret]).seal(Domain.MESSAGE, app, queue)


def a_message(body: bytes = b"[[2,3],{}]", **fields: object) -> Message:
    return Message(ID, 4102444800000, Envelope("shop.add", 1767225600000, "json", body, **fields))  # type: ignore[arg-type]


class TestRoundTrip:
    @given(
        id=st.uuids(),
        expires_ms=st.integers(0, 9_999_999_999_999),
        body=st.binary(max_size=100),
        name=st.none() | st.text(max_size=20),
        headers=st.none() | st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=3),
    )
    @example(id=uuid.UUID(int=0), expires_ms=0, body=b"\x00", name=None, headers=None)
    def test_anything(
        self,
        id: uuid.UUID,
        expires_ms: int,
        body: bytes,
        name: str | None,
        headers: dict[str, int] | None,
    ) -> None:
        envelope = Envelope("t.x", 1, "pickle", body, name, None, 5, headers)
        one = Message(id.hex, expires_ms, envelope)
        raw = message.encode(one, seal_of())
        assert message.decode(raw, seal_of()) == one
        assert message.peek_id(raw) == id.hex

    def test_a_large_one(self, seal: Seal) -> None:
        one = a_message(LARGE)
        raw = message.encode(one, seal)
        assert raw[3:4] == b"h"
        assert message.decode(raw, seal) == one

    def test_unsigned_where_that_was_asked_for(self) -> None:
        bare = Keyring(()).seal(Domain.MESSAGE, "shop", "default")
        one = a_message()
        raw = message.encode(one, bare)
        assert raw[3:12] == b"u00000000"
        assert message.decode(raw, bare) == one

    def test_the_header_has_its_fields_where_lua_reads_them(self, seal: Seal) -> None:
        raw = message.encode(a_message(), seal)
        assert raw[12:44] == ID.encode()
        assert raw[44:57] == b"4102444800000"
        assert len(raw[:HEADER_BYTES]) == 57
        assert BODY_AT == HEADER_BYTES + 16


class TestManyAtOnce:
    @pytest.mark.parametrize("secret", [SECRET, None])
    def test_they_have_the_bytes_that_each_has_alone(self, secret: str | None) -> None:
        seal = Keyring([secret] if secret else []).seal(Domain.MESSAGE, "shop", "default")
        fields = {"name": "order-42", "headers": {"trace": [1, "b"]}, "timeout_ms": 30_000}
        # Around the size from which another algorithm signs.
        sizes = [0, 1, 255, 256, *range(16_250, 16_390), 70_000]
        calls = [("json" if size % 3 else "cloudpickle-3.11", b"x" * size) for size in sizes]
        ids = message.new_ids(clock.now_ms(), len(calls))
        alone = [
            Message(id, 4102444800000, Envelope("shop.add", 1767225600000, how, body, **fields))  # type: ignore[arg-type]
            for id, (how, body) in zip(ids, calls, strict=True)
        ]
        raws = message.encode_all(a_message(**fields), ids, *zip(*calls, strict=True), seal)
        assert raws == [message.encode(one, seal) for one in alone]

    @pytest.mark.parametrize("size", [65_535, 65_536, 1 << 20])
    def test_a_bulky_one_is_written_as_any_other(self, seal: Seal, size: int) -> None:
        one = a_message(b"x" * size, name="order-42", headers={"trace": "abc"}, timeout_ms=5)
        raw = message.encode(one, seal)
        assert raw[BODY_AT:] == msgspec.msgpack.encode(one.envelope)
        assert message.decode(raw, seal) == one

    def test_one_without_an_expiry_and_with_a_deadline(self, seal: Seal) -> None:
        envelope = Envelope("shop.add", 5, "pickle", b"body", deadline_ms=1_700_000_000_000)
        one = Message(ID, 0, envelope)
        assert message.encode_all(one, [ID], ["pickle"], [b"body"], seal) == [
            message.encode(one, seal)
        ]


class TestOldBytes:
    def test_a_golden_message_is_read_for_ever(self, seal: Seal) -> None:
        assert message.decode(GOLDEN, seal) == a_message(
            name="order-42", ignore_result=False, result_ttl_ms=60_000, headers={"trace": "abc"}
        )

    def test_and_one_with_the_first_fields_alone(self, seal: Seal) -> None:
        one = message.decode(GOLDEN_SHORT, seal)
        assert one == Message(ID, 0, Envelope("shop.add", 1767225600000, "json", b"[[2,3],{}]"))

    def test_and_a_large_one(self, seal: Seal) -> None:
        one = Message(ID, 0, Envelope("shop.add", 1767225600000, "json", LARGE))
        body = msgspec.msgpack.encode(["shop.add", 1767225600000, "json", LARGE, *[None] * 4])
        assert message.decode(GOLDEN_LARGE + body, seal) == one

    def test_what_is_written_now_is_the_same(self, seal: Seal) -> None:
        one = a_message(
            name="order-42",
            ignore_result=False,
            result_ttl_ms=60_000,
            headers={"trace": "abc"},
            timeout_ms=30_000,
            hard_timeout_ms=40_000,
        )
        assert message.decode(GOLDEN_LIMITED, seal) == one
        latest = msgspec.structs.replace(one.envelope, deadline_ms=4_102_444_800_000)
        one = msgspec.structs.replace(one, envelope=latest)
        assert message.encode(one, seal) == GOLDEN_DEADLINE
        assert message.decode(GOLDEN_DEADLINE, seal) == one

    @pytest.mark.parametrize("length", range(4, 12))
    def test_envelopes_of_fewer_fields_have_defaults_for_the_rest(
        self, seal: Seal, length: int
    ) -> None:
        full = ["shop.add", 1, "json", b"body", "name", True, 5, {"a": 1}, 30_000, 40_000, 50_000]
        one = message.decode(signed(full[:length], seal), seal)
        given = dict(zip(Envelope.__struct_fields__, full[:length], strict=False))
        assert one.envelope == Envelope(**given)

    def test_fields_of_a_later_version_are_passed_over(self, seal: Seal) -> None:
        later = ["shop.add", 1, "json", b"body", *[None] * 7, "new", {"newer": 1}]
        assert message.decode(signed(later, seal), seal).envelope.task == "shop.add"


class TestForeignBytes:
    def test_any_changed_byte_is_noticed(self, seal: Seal) -> None:
        for at in range(len(GOLDEN)):
            for bit in (0x01, 0x20, 0x80):
                changed = bytearray(GOLDEN)
                changed[at] ^= bit
                # Within its name the key is merely unknown.
                wanted = UnknownKey if 4 <= at < 12 else Refused
                with pytest.raises(wanted):
                    message.decode(bytes(changed), seal)

    def test_a_truncated_one(self, seal: Seal) -> None:
        for length in range(len(GOLDEN)):
            with pytest.raises(Refused):
                message.decode(GOLDEN[:length], seal)

    def test_a_longer_one(self, seal: Seal) -> None:
        with pytest.raises(Refused, match="bad signature"):
            message.decode(GOLDEN + b"\x00", seal)

    @pytest.mark.parametrize("raw", [b"", b"TQ", b"XX" + GOLDEN[2:], b"\x80\x04." * 50])
    def test_what_is_no_message(self, seal: Seal, raw: bytes) -> None:
        with pytest.raises(Refused, match="not a taskq message"):
            message.decode(raw, seal)

    def test_a_version_that_is_not_known(self, seal: Seal) -> None:
        with pytest.raises(Refused, match="version b'2'"):
            message.decode(GOLDEN[:2] + b"2" + GOLDEN[3:], seal)

    @pytest.mark.parametrize(("app", "queue"), [("shop", "other"), ("other", "default")])
    def test_one_of_another_place(self, app: str, queue: str) -> None:
        with pytest.raises(Refused, match="bad signature"):
            message.decode(GOLDEN, seal_of(app, queue))

    def test_a_result_is_no_message(self) -> None:
        with pytest.raises(Refused):
            message.decode(GOLDEN, Keyring([SECRET]).seal(Domain.RESULT, "shop", "default"))

    def test_a_key_that_is_not_known_is_told_apart(self) -> None:
        with pytest.raises(UnknownKey):
            message.decode(GOLDEN, seal_of(secret="another secret of the tests, also long"))

    def test_unsigned_where_keys_exist(self, seal: Seal) -> None:
        bare = Keyring(()).seal(Domain.MESSAGE, "shop", "default")
        with pytest.raises(Refused, match="unsigned"):
            message.decode(message.encode(a_message(), bare), seal)

    @pytest.mark.parametrize(
        "body",
        [b"\xc1", b"\x91\xa1x", b"\x90", b"\xa1x", b"\x80", b"\x94\x01\x02\x03\x04"],
        ids=["invalid", "short", "empty", "text", "map", "types"],
    )
    def test_a_signed_envelope_that_is_none(self, seal: Seal, body: bytes) -> None:
        with pytest.raises(Refused, match="unreadable envelope"):
            message.decode(signed(body, seal), seal)

    @pytest.mark.parametrize("field", ["id", "expires"])
    def test_an_unsigned_header_that_is_none(self, field: str) -> None:
        bare = Keyring(()).seal(Domain.MESSAGE, "shop", "default")
        raw = message.encode(a_message(), bare)
        broken = {
            "id": raw[:12] + b"\xff" * 32 + raw[44:],
            "expires": raw[:44] + b"not a number!" + raw[57:],
        }
        with pytest.raises(Refused):
            message.decode(broken[field], bare)

    @given(st.binary(max_size=200))
    def test_no_bytes_do_more_than_be_refused(self, raw: bytes) -> None:
        with pytest.raises((Refused, UnknownKey)):
            message.decode(raw, seal_of())
        message.peek_id(raw)

    @given(st.binary(max_size=100))
    def test_nor_behind_a_good_header(self, rest: bytes) -> None:
        with pytest.raises((Refused, UnknownKey)):
            message.decode(GOLDEN[:HEADER_BYTES] + rest, seal_of())


class TestPeek:
    def test_there_is_an_id(self) -> None:
        assert message.peek_id(GOLDEN) == ID

    @pytest.mark.parametrize(
        "raw", [b"", GOLDEN[:43], b"XQ" + GOLDEN[2:], GOLDEN[:12] + b"\xff" * 32 + GOLDEN[44:]]
    )
    def test_there_is_none(self, raw: bytes) -> None:
        assert message.peek_id(raw) is None


class TestIds:
    def test_a_new_one_is_a_uuid_of_version_seven(self) -> None:
        before = clock.now_ms()
        text = message.new_id(clock.now_ms())
        one = uuid.UUID(text)
        assert message.WIRE_ID.fullmatch(text)
        assert (one.version, one.variant) == (7, uuid.RFC_4122)
        assert before <= one.int >> 80 <= clock.now_ms()

    def test_they_are_ordered_by_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        instants = itertools.count(1_700_000_000_000, 1)
        monkeypatch.setattr(clock, "now_ms", lambda: next(instants))
        made = [message.new_id(clock.now_ms()) for _ in range(100)]
        assert made == sorted(made)

    def test_many_at_once_are_as_one_is(self) -> None:
        made = [uuid.UUID(text) for text in message.new_ids(1_700_000_000_000, 3_000)]
        assert {(one.version, one.variant, one.int >> 80) for one in made} == {
            (7, uuid.RFC_4122, 1_700_000_000_000)
        }
        assert len({*made}) == 3_000
        # All that is not fixed is drawn.
        drawn = [one.int for one in made]
        free = functools.reduce(operator.or_, drawn) ^ functools.reduce(operator.and_, drawn)
        assert free == 0x0FFF_3FFF_FFFF_FFFF_FFFF

    def test_no_two_are_the_same(self) -> None:
        assert len({message.new_id(clock.now_ms()) for _ in range(10_000)}) == 10_000

    def test_a_renewed_one_follows_from_the_earlier_and_the_moment(self) -> None:
        """So what is sent twice in its place is sent once."""
        first = message.renewed_id(ID, 1_700_000_000_000)
        one = uuid.UUID(first)
        assert first == message.renewed_id(ID, 1_700_000_000_000)
        assert message.WIRE_ID.fullmatch(first)
        assert (one.version, one.variant) == (8, uuid.RFC_4122)
        assert one.int >> 80 == 1_700_000_000_000
        others = {message.renewed_id(ID, 1_700_000_000_001), message.renewed_id(first, 1)}
        assert first not in others

    def test_a_name_has_one_id_in_each_app(self) -> None:
        assert message.id_of("shop", "order-42") == message.id_of("shop", "order-42")
        assert message.id_of("shop", "order-42") != message.id_of("shop", "order-43")
        assert message.id_of("shop", "order-42") != message.id_of("shop2", "order-42")
        assert message.id_of("shop", "1x") != message.id_of("shop1", "x")
        assert re.fullmatch(r"[0-9a-f]{32}", message.id_of("shop", "Bestellung № 42"))

    def test_a_name_keeps_its_id_for_ever(self) -> None:
        assert message.id_of("shop", "order-42") == "c44f5c697faaa13c7eb911ccc7619244"

    @pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "a\x00b", 42, None, b"x", "a@b"])
    def test_what_cannot_be_a_name(self, name: object) -> None:
        with pytest.raises(ConfigError, match="id"):
            message.id_of("shop", name)


def signed(envelope: list[object] | bytes, seal: Seal) -> bytes:
    """Return well-signed bytes around any envelope."""
    body = envelope if isinstance(envelope, bytes) else msgspec.msgpack.encode(envelope)
    header = b"TQ1" + seal.mark(len(body))[:1] + seal.key_id + ID.encode() + b"%013d" % 0
    return header + seal.tag(header, body) + body
