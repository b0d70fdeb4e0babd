"""How an attempt ended, as data: exceptions come back whole, or in words, and never run loose."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import pickle
import traceback
from typing import Any

import msgspec
import pytest

from taskq.config import SERIALIZERS
from taskq.errors import RemoteError, ResultTampered, SoftTimeLimitExceeded
from taskq.model import outcome
from taskq.model.outcome import (
    MAX_ERRORS,
    MAX_TEXT,
    MAX_TRACEBACK,
    SHORT_TEXT,
    AttemptError,
    Failure,
    History,
    Report,
)
from taskq.model.signing import Domain, Keyring, Seal

SECRET = "a golden secret of the tests, for ever and ever"
BOUND = b"0192c4d1a2b37c4d8e5f60718293a4b5" + b"a" * 32 + b"0000000001"
# Written by version 1, never to be changed.
GOLDEN = bytes.fromhex(
    "6262346430303163334865e1c8b5b9d246bf92050f4323d7159ca873686f702e616464010203a6686f73743a3102"
    "03a46a736f6ec40135c091940102aa56616c75654572726f72a26e6fa86f726465722d3432"
)
REPORT = Report(
    "shop.add", 1, 2, 3, "host:1", 2, 3,
    serializer="json", value=b"5",
    errors=(AttemptError(1, 2, "ValueError", "no"),), name="order-42",
)  # fmt: skip


class TwoArguments(Exception):
    """Its pickle is written and cannot be read: `args` holds one of its two arguments."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Rich(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(code, why)
        self.extra = {"code": code}


class Holding(Exception):
    """It holds what cannot be pickled at all."""

    def __init__(self) -> None:
        super().__init__("holding")
        self.held = (item for item in ())


class Closed(Exception):
    """It takes no attributes, as a frozen one does."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Wordless(Exception):
    def __str__(self) -> str:
        msg = "no words"
        raise RuntimeError(msg)


class NotText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - users do such things


def raised(error: BaseException) -> BaseException:
    """Return the error with a traceback, as the executor gets it."""
    try:
        raise error  # noqa: TRY301 - for the traceback
    except BaseException as caught:  # noqa: BLE001 - all kinds are given
        return caught


def round_trip(error: BaseException, serializer: str = "pickle") -> BaseException:
    failure = outcome.describe(raised(error), serializer)
    data = msgspec.msgpack.encode(failure)
    return outcome.revive(msgspec.msgpack.decode(data, type=Failure))


@pytest.fixture
def seal() -> Seal:
    return seal_of()


def seal_of(app: str = "shop", queue: str = "default", domain: Domain = Domain.RESULT) -> Seal:
    return Keyring([SECRET]).seal(domain, app, queue)


class TestPickled:
    def test_an_exception_comes_back_whole(self) -> None:
        again = round_trip(Rich(7, "no"))
        assert isinstance(again, Rich)
        assert (again.args, again.extra) == ((7, "no"), {"code": 7})

    def test_the_remote_traceback_is_its_cause(self) -> None:
        again = round_trip(Rich(7, "no"))
        shown = "".join(traceback.format_exception(again))
        assert "Rich: (7, 'no')" in str(again.__cause__)
        assert "direct cause" in shown

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("no"), KeyError("k"), OSError(2, "gone", "f.txt"), StopIteration(5),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            ExceptionGroup("both", [ValueError("a"), KeyError("b")]), Exception(),
        ],
        ids=lambda error: type(error).__name__,
    )  # fmt: skip
    def test_builtin_ones_too(self, error: Exception) -> None:
        again = round_trip(error)
        assert type(again) is type(error)
        assert str(again) == str(error)

    def test_a_local_class_comes_by_value(self) -> None:
        class Local(Exception):
            pass

        again = round_trip(Local("here"))
        assert (type(again).__name__, str(again)) == ("Local", "here")

    def test_one_that_cannot_be_pickled_comes_in_words(self) -> None:
        again = round_trip(Holding())
        assert isinstance(again, RemoteError)
        assert again.type.endswith("Holding")
        assert again.text == "holding"

    def test_one_whose_pickle_cannot_be_read_comes_in_words(self) -> None:
        """pickle.dumps works on it, pickle.loads raises a TypeError."""
        assert pickle.dumps(TwoArguments(7, "no"))
        again = round_trip(TwoArguments(7, "no"))
        assert isinstance(again, RemoteError)
        assert str(again).endswith("TwoArguments: no")

    def test_one_that_is_too_large_comes_in_words(self) -> None:
        again = round_trip(ValueError("x" * 2 * MAX_TRACEBACK))
        assert isinstance(again, RemoteError)
        assert len(again.text) == MAX_TEXT

    def test_one_whose_class_is_not_here_comes_in_words(self) -> None:
        failure = Failure("shop.Error", "no", "", "pickle", b"cno.such.module\nError\n.")
        again = outcome.revive(failure)
        assert isinstance(again, RemoteError)
        assert (again.type, again.text) == ("shop.Error", "no")

    def test_one_that_takes_no_attributes_is_raised_too(self) -> None:
        assert isinstance(round_trip(Closed("no")), (Closed, RemoteError))


class TestInWords:
    @pytest.mark.parametrize("serializer", ["json", "msgpack"])
    @pytest.mark.parametrize(
        "error",
        [ValueError("no"), KeyError("k"), ZeroDivisionError("division by zero"), OSError(2, "gone"),
         UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), TimeoutError()],
        ids=lambda error: type(error).__name__,
    )  # fmt: skip
    def test_builtin_exceptions_are_rebuilt(self, serializer: str, error: Exception) -> None:
        failure = outcome.describe(raised(error), serializer)
        assert (failure.serializer, failure.value) == ("", b"")  # nothing to unpickle
        again = outcome.revive(failure)
        assert type(again) is type(error)
        assert again.args == error.args

    @pytest.mark.parametrize("serializer", ["json", "msgpack"])
    def test_others_are_remote_errors(self, serializer: str) -> None:
        again = round_trip(Rich(7, "no"), serializer)
        assert isinstance(again, RemoteError)
        assert again.type == f"{__name__}.Rich"
        assert "raise error" in again.traceback

    def test_a_namesake_of_a_builtin_is_another(self) -> None:
        impostor = type("ValueError", (Exception,), {})
        assert isinstance(round_trip(impostor("no"), "json"), RemoteError)

    def test_arguments_that_are_no_plain_values(self) -> None:
        again = round_trip(ValueError(object()), "json")
        assert isinstance(again, RemoteError)
        assert again.text.startswith("<object object")

    def test_only_exceptions_are_rebuilt(self) -> None:
        for name in ("SystemExit", "KeyboardInterrupt", "eval", "type", "BaseException", "x"):
            failure = Failure(name, "no", "", builtin=name, args=b"\x91\x01")
            assert isinstance(outcome.revive(failure), RemoteError)

    def test_arguments_that_do_not_fit(self) -> None:
        failure = Failure(
            "UnicodeDecodeError", "no", "", builtin="UnicodeDecodeError", args=b"\x90"
        )
        assert isinstance(outcome.revive(failure), RemoteError)


@pytest.mark.parametrize("serializer", SERIALIZERS)
class TestAnySerializer:
    @pytest.mark.parametrize(
        "error",
        [
            SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(),
            BaseExceptionGroup("both", [SystemExit(1), ValueError("x")]),
        ],
        ids=lambda error: type(error).__name__,
    )  # fmt: skip
    def test_what_would_end_the_caller_comes_in_words(
        self, serializer: str, error: BaseException
    ) -> None:
        again = round_trip(error, serializer)
        assert isinstance(again, RemoteError)
        assert again.type.endswith(type(error).__name__)

    def test_huge_texts_are_cut(self, serializer: str) -> None:
        failure = outcome.describe(raised(Rich(1, "x" * 1_000_000)), serializer)
        assert len(failure.text) <= MAX_TEXT
        assert len(failure.traceback) <= MAX_TRACEBACK
        assert len(msgspec.msgpack.encode(failure)) < 3 * MAX_TRACEBACK

    def test_so_is_a_long_chain_of_causes(self, serializer: str) -> None:
        error = ValueError("0")
        for number in range(3000):
            error, cause = ValueError(str(number)), error
            error.__cause__ = cause
        assert len(outcome.describe(raised(error), serializer).traceback) <= MAX_TRACEBACK

    def test_a_cause_that_is_its_own_ends(self, serializer: str) -> None:
        error = ValueError("a")
        error.__cause__ = error
        assert outcome.describe(raised(error), serializer).text == "a"

    @pytest.mark.parametrize("error", [Wordless(), NotText()], ids=["raises", "no text"])
    def test_one_without_words(self, serializer: str, error: Exception) -> None:
        failure = outcome.describe(raised(error), serializer)
        assert failure.text.startswith("<its __str__ raised")

    def test_text_that_is_not_unicode_can_be_recorded(self, serializer: str, seal: Seal) -> None:
        """As in the name of a file that `os.fsdecode` read."""
        failure = outcome.describe(raised(ValueError("caf\udce9")), serializer)
        line = outcome.attempt_error(1, ValueError("caf\udce9"), 2)
        report = msgspec.structs.replace(REPORT, failure=failure, errors=(line,))
        data = outcome.sign(report, seal, BOUND)
        again = outcome.read_report(data, seal, BOUND)
        assert again.failure is not None
        assert again.failure.text.startswith("caf")

    def test_the_traceback_begins_in_the_task(self, serializer: str) -> None:
        def task() -> None:
            msg = "no"
            raise ValueError(msg)

        try:
            task()
        except ValueError as error:
            frames = outcome.describe(error, serializer).traceback
        assert "in task" in frames
        assert "in test_the_traceback" not in frames


class TestReport:
    def test_comes_back(self, seal: Seal) -> None:
        data = outcome.sign(REPORT, seal, BOUND)
        assert outcome.read_report(data, seal, BOUND) == REPORT

    def test_a_large_one(self, seal: Seal) -> None:
        report = msgspec.structs.replace(REPORT, value=b"x" * 100_000)
        data = outcome.sign(report, seal, BOUND)
        assert data[:1] == b"h"
        assert outcome.read_report(data, seal, BOUND) == report

    def test_a_golden_one_is_read_for_ever(self, seal: Seal) -> None:
        assert outcome.read_report(GOLDEN, seal, b"bound") == REPORT

    @pytest.mark.parametrize("length", range(7, 12))
    def test_one_of_fewer_fields(self, seal: Seal, length: int) -> None:
        full = ["shop.add", 1, 2, 3, "host:1", 2, 3, "json", b"5", None, [], "order-42"]
        body = msgspec.msgpack.encode(full[:length])
        data = seal.mark(len(body))[:1] + seal.key_id + seal.tag(BOUND, body) + body
        assert outcome.read_report(data, seal, BOUND).task == "shop.add"

    def test_any_changed_byte_is_noticed(self, seal: Seal) -> None:
        data = outcome.sign(REPORT, seal, BOUND)
        for at in range(len(data)):
            changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            with pytest.raises(ResultTampered):
                outcome.read_report(changed, seal, BOUND)

    def test_a_truncated_one(self, seal: Seal) -> None:
        data = outcome.sign(REPORT, seal, BOUND)
        for length in range(len(data)):
            with pytest.raises(ResultTampered):
                outcome.read_report(data[:length], seal, BOUND)

    def test_it_belongs_to_one_message_and_one_claim(self, seal: Seal) -> None:
        data = outcome.sign(REPORT, seal, BOUND)
        for other in (b"f" + BOUND[1:], BOUND[:-1] + b"2", BOUND[:32], b""):
            with pytest.raises(ResultTampered):
                outcome.read_report(data, seal, other)

    def test_it_belongs_to_one_queue_and_is_no_message(self, seal: Seal) -> None:
        data = outcome.sign(REPORT, seal, BOUND)
        places = itertools.product(("shop", "x"), ("default", "x"), Domain)
        for app, queue, domain in places:
            if (app, queue, domain) != ("shop", "default", Domain.RESULT):
                with pytest.raises(ResultTampered):
                    outcome.read_report(data, seal_of(app, queue, domain), BOUND)

    def test_one_by_an_unknown_key_is_tampered_with(self, seal: Seal) -> None:
        other = Keyring(["another secret of the tests, also long"])
        data = outcome.sign(REPORT, other.seal(Domain.RESULT, "shop", "default"), BOUND)
        with pytest.raises(ResultTampered, match="unknown key"):
            outcome.read_report(data, seal, BOUND)

    def test_a_signed_one_that_is_none(self, seal: Seal) -> None:
        for body in (b"", b"\xc1", b"\x90", b"\xa1x"):
            data = seal.mark(len(body))[:1] + seal.key_id + seal.tag(BOUND, body) + body
            with pytest.raises(ResultTampered, match="unreadable"):
                outcome.read_report(data, seal, BOUND)

    def test_a_history_is_no_report(self, seal: Seal) -> None:
        data = outcome.sign(History(1, 2.0), seal, BOUND)
        with pytest.raises(ResultTampered):
            outcome.read_report(data, seal, BOUND)


class TestHistory:
    def test_comes_back(self, seal: Seal) -> None:
        history = History(1, 2.5, (AttemptError(1, 2, "ValueError", "no"),))
        data = outcome.sign(history, seal, BOUND[:32])
        assert outcome.read_history(data, seal, BOUND[:32]) == history

    def test_there_is_none(self, seal: Seal) -> None:
        assert outcome.read_history(b"", seal, BOUND) is None

    @pytest.mark.parametrize("data", [b"x", b"b" * 100, GOLDEN])
    def test_one_that_is_not_ours_is_forgotten(self, seal: Seal, data: bytes) -> None:
        assert outcome.read_history(data, seal, BOUND) is None

    def test_it_belongs_to_one_message(self, seal: Seal) -> None:
        data = outcome.sign(History(1, 2.0), seal, BOUND[:32])
        assert outcome.read_history(data, seal, b"f" * 32) is None

    def test_it_begins_with_the_first_attempt(self) -> None:
        error = AttemptError(1, 5, "ValueError", "no")
        assert outcome.next_history(None, error, 100, 2.5) == History(100, 2.5, (error,))

    def test_it_grows_newest_first_and_adds_the_waits_up(self) -> None:
        history = None
        for attempt in range(1, 4):
            error = AttemptError(attempt, attempt, "ValueError", "no")
            history = outcome.next_history(history, error, 100 * attempt, 1.5)
        assert history is not None
        assert (history.first_started_ms, history.idle) == (100, 4.5)
        assert [error.attempt for error in history.errors] == [3, 2, 1]

    def test_it_keeps_the_last_ten(self) -> None:
        history = None
        for attempt in range(1, 100):
            error = outcome.attempt_error(attempt, ValueError("x" * 1000), 1)
            history = outcome.next_history(history, error, 1, 0.0)
        assert history is not None
        assert [error.attempt for error in history.errors] == list(range(99, 99 - MAX_ERRORS, -1))
        assert {len(error.text) for error in history.errors} == {SHORT_TEXT}

    def test_an_error_is_named_as_people_name_it(self) -> None:
        builtin = outcome.attempt_error(2, KeyError("k"), 7)
        assert builtin == AttemptError(2, 7, "KeyError", "'k'")
        assert outcome.attempt_error(1, Rich(1, "x"), 7).type == f"{__name__}.Rich"


def test_the_allowed_builtins_are_exceptions_only() -> None:
    for name, kind in outcome._ALLOWED.items():
        assert kind is getattr(builtins, name, SoftTimeLimitExceeded)
        assert issubclass(kind, Exception)
        assert not issubclass(kind, BaseExceptionGroup)


def test_a_revived_exception_carries_nothing_of_the_last_one() -> None:
    failure = outcome.describe(raised(ValueError("no")), "json")
    first: Any = outcome.revive(failure)
    first.add_note("seen")
    assert not hasattr(outcome.revive(failure), "__notes__")
