"""Values to bytes and back: pickle (cloudpickle where needed), JSON or MessagePack.

Bytes reach `loads` only after their signature was verified.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

import cloudpickle
import msgspec

from taskq.errors import SerializationError

PICKLE, JSON, MSGPACK = "pickle", "json", "msgpack"
# Code pickled by value is bytecode: it runs only on the minor version that wrote it.
BY_VALUE = f"cloudpickle-{sys.version_info[0]}.{sys.version_info[1]}"

_PROTOCOL = 5
# A class or function of a script is pickled by reference to `__main__` or `__mp_main__`,
# and the worker's own `__main__` is another program: those go by value.
_SCRIPT = b"main__"
# STACK_GLOBAL, by which protocol 5 refers to any class or function. Without it there is none.
_GLOBAL = 0x93

_json_encode = msgspec.json.Encoder().encode
_json_decode = msgspec.json.Decoder().decode
_msgpack_encode = msgspec.msgpack.Encoder().encode
_msgpack_decode = msgspec.msgpack.Decoder().decode


def dumps(serializer: str, value: Any) -> tuple[str, bytes]:
    """Return how `value` was written (`loads` wants it back), and its bytes.

    Raises:
        SerializationError: `value` cannot be written so.

    """
    try:
        if serializer == PICKLE:
            # Here and not in a function of its own: most values that are written at all.
            try:
                data = pickle.dumps(value, _PROTOCOL)
            except Exception:  # noqa: BLE001 - a lambda, a closure, a local class: by value
                return _pickle_by_value(value)
            if _GLOBAL in data and (_SCRIPT in data or cloudpickle.list_registry_pickle_by_value()):
                return _pickle_by_value(value)
            return PICKLE, data
        if serializer == JSON:
            return JSON, _json_encode(value)
        return MSGPACK, _msgpack_encode(value)
    except Exception as error:
        msg = f"{type(value).__name__} cannot be written as {serializer}: {_short(error)}"
        raise SerializationError(msg) from error


def loads(serializer: str, data: bytes) -> Any:
    """Return the value that `dumps` wrote.

    Raises:
        SerializationError: the bytes cannot be read here.

    """
    try:
        if serializer == PICKLE:
            return pickle.loads(data)  # noqa: S301 - verified bytes only
        if serializer == JSON:
            return _json_decode(data)
        if serializer == MSGPACK:
            return _msgpack_decode(data)
        return pickle.loads(data)  # noqa: S301 - the same, of code by value
    except Exception as error:
        msg = f"{serializer} cannot be read here: {_short(error)}"
        if serializer.startswith("cloudpickle-") and serializer != BY_VALUE:
            msg += f" (code written by {serializer[12:]}, read by {BY_VALUE[12:]})"
        raise SerializationError(msg) from error


def _pickle_by_value(value: Any) -> tuple[str, bytes]:
    data: bytes = cloudpickle.dumps(value, _PROTOCOL)  # pyright: ignore[reportUnknownMemberType] - it has no types
    return BY_VALUE, data


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
