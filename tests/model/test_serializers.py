"""Values to bytes and back, by each serializer; code by value where it must be."""

from __future__ import annotations

import datetime as dt
import os
import pickle
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from taskq.config import SERIALIZERS
from taskq.errors import SerializationError
from taskq.model import serializers
from taskq.model.serializers import BY_VALUE, JSON, MSGPACK, PICKLE

ROOT = Path(__file__).parents[2]
PLAIN: list[Any] = [
    None, True, 0, -1, 2**53, 1.5, "", "text ✓ \x00", [], [1, [2]], {}, {"a": {"b": None}},
]  # fmt: skip


class Point:
    """Importable from here, so a pickle names it only."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    def __hash__(self) -> int:
        return hash(self.x)


class Unpicklable:
    def __reduce__(self) -> str:
        msg = "never"
        raise TypeError(msg)


class Unloadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("not a number",))


def back(serializer: str, value: object) -> Any:
    how, data = serializers.dumps(serializer, value)
    return serializers.loads(how, data)


@pytest.mark.parametrize("serializer", SERIALIZERS)
class TestEach:
    @pytest.mark.parametrize("value", PLAIN, ids=repr)
    def test_plain_values_come_back(self, serializer: str, value: object) -> None:
        again = back(serializer, value)
        assert (again, type(again)) == (value, type(value))

    def test_arguments_come_back(self, serializer: str) -> None:
        args, kwargs = back(serializer, ((1, "a"), {"b": [2]}))
        assert (tuple(args), kwargs) == ((1, "a"), {"b": [2]})

    def test_it_names_itself(self, serializer: str) -> None:
        assert serializers.dumps(serializer, [1])[0] == serializer

    def test_what_cannot_be_written_is_an_error_of_ours(self, serializer: str) -> None:
        with pytest.raises(SerializationError, match=f"Unpicklable cannot be .*{serializer}"):
            serializers.dumps(serializer, Unpicklable())

    def test_what_cannot_be_read_is_an_error_of_ours(self, serializer: str) -> None:
        for data in (b"", b"\xff\xff", b"\xc1", b"{{"):
            with pytest.raises(SerializationError, match=f"{serializer} cannot be read here"):
                serializers.loads(serializer, data)

    def test_its_error_is_short(self, serializer: str) -> None:
        with pytest.raises(SerializationError) as raised:
            serializers.dumps(serializer, {("x" * 10_000, Unpicklable()): 1})
        assert len(str(raised.value)) < 400


class TestMsgpack:
    def test_bytes_come_back(self) -> None:
        assert back(MSGPACK, b"\x00\xff") == b"\x00\xff"

    def test_an_integer_may_be_too_large(self) -> None:
        with pytest.raises(SerializationError):
            serializers.dumps(MSGPACK, 2**70)


class TestJson:
    def test_it_is_json(self) -> None:
        assert serializers.dumps(JSON, {"a": [1, None]}) == (JSON, b'{"a":[1,null]}')

    def test_text_that_is_none_is_refused(self) -> None:
        with pytest.raises(SerializationError):
            serializers.dumps(JSON, "\udce9")


class TestPickle:
    @pytest.mark.parametrize(
        "value",
        [
            Point(3), {1, 2}, b"bytes", (1, (2,)), Decimal("1.10"), 2**100, float("inf"),
            dt.datetime(2026, 1, 2, tzinfo=dt.UTC), dt.timedelta(days=1), Path("/x"),
            frozenset({Point(1)}), os.path.join, {1: {2: "x"}}, "\udce9",
        ],
        ids=lambda value: type(value).__name__,
    )  # fmt: skip
    def test_python_values_come_back(self, value: object) -> None:
        again = back(PICKLE, value)
        assert (again, type(again)) == (value, type(value))

    def test_plain_pickle_is_used_where_it_does(self) -> None:
        """It is three times as fast, and readable by another minor version of Python."""
        for value in (Point(1), [1, "a", Point(2)], print, Point):
            how, data = serializers.dumps(PICKLE, value)
            assert how == PICKLE
            assert data == pickle.dumps(value, 5)

    def test_a_lambda_goes_by_value(self) -> None:
        how, data = serializers.dumps(PICKLE, lambda x: x + 1)
        assert how == BY_VALUE == f"cloudpickle-3.{sys.version_info.minor}"
        assert serializers.loads(how, data)(1) == 2

    def test_so_does_a_closure(self) -> None:
        step = 10

        def add(x: int) -> int:
            return x + step

        assert back(PICKLE, [add])[0](1) == 11

    def test_so_does_a_local_class(self) -> None:
        class Local:
            value = 7

        assert back(PICKLE, Local()).value == 7

    def test_so_does_what_its_owner_registered(self) -> None:
        module = sys.modules[__name__]
        cloudpickle.register_pickle_by_value(module)
        try:
            how, data = serializers.dumps(PICKLE, Point(1))
            assert how == BY_VALUE
            assert serializers.loads(how, data).x == 1
        finally:
            cloudpickle.unregister_pickle_by_value(module)

    def test_text_that_speaks_of_a_script_comes_back_all_the_same(self) -> None:
        assert back(PICKLE, "it was in __main__") == "it was in __main__"

    def test_an_error_in_reading_is_ours(self) -> None:
        how, data = serializers.dumps(PICKLE, Unloadable())
        with pytest.raises(SerializationError, match="invalid literal"):
            serializers.loads(how, data)

    def test_code_of_another_python_is_named_as_such(self) -> None:
        with pytest.raises(SerializationError, match=r"written by 3\.9, read by 3\."):
            serializers.loads("cloudpickle-3.9", b"\x80\x05broken")


def test_a_class_of_a_script_goes_by_value(tmp_path: Path) -> None:
    """Here it is `__main__.Order`; in a worker `__main__` is another program."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from taskq.model import serializers
            class Order:
                def __init__(self, number):
                    self.number = number
                def total(self):
                    return vat(self.number)
            def vat(number):
                return number * 2
            how, data = serializers.dumps("pickle", (Order(21), vat))
            sys.stdout.write(how + " " + data.hex())
        """)
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environ, capture_output=True, check=True)
    how, data = done.stdout.decode().split()
    assert how == BY_VALUE
    order, vat = serializers.loads(how, bytes.fromhex(data))
    assert (order.total(), vat(1)) == (42, 2)
