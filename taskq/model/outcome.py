"""What one attempt led to, and the signed report of it that a future reads.

An attempt that was made is `Finished` (succeeded, or failed for good) or `RetryIn`.
"""

from __future__ import annotations

import builtins
import pickle
import traceback as tracebacks
from typing import TypeAlias

import msgspec

from taskq.errors import RemoteError, ResultTampered, SerializationError, SoftTimeLimitExceeded
from taskq.model import serializers
from taskq.model.signing import (
    KEY_ID_BYTES,
    TAG_BYTES,
    BadSignature,
    Body,
    Seal,
    UnknownKey,
    rest_of,
)

MAX_TEXT = 8 << 10
MAX_TRACEBACK = 64 << 10
# How many attempts' errors a message carries, newest first, and how long each may be.
MAX_ERRORS = 10
SHORT_TEXT = 200

_MARK_BYTES = 1 + KEY_ID_BYTES
_PREFIX_BYTES = _MARK_BYTES + TAG_BYTES


class AttemptError(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How one attempt failed, in a line."""

    attempt: int
    # Milliseconds since the epoch, by Redis's clock.
    at_ms: int
    type: str
    text: str

    def __repr__(self) -> str:
        """Name the exception; its words may say what an argument was."""
        return f"AttemptError({self.attempt}, {self.type})"


class History(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a retrying message remembers of its earlier attempts."""

    first_started_ms: int
    # Seconds spent waiting between attempts.
    idle: float
    # Newest first.
    errors: tuple[AttemptError, ...] = ()


class Failure(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An exception as data, and its pickle where it survives one."""

    type: str
    text: str
    traceback: str
    # How `value` was written; empty where the exception travels in words only.
    serializer: str = ""
    value: bytes = b""
    # The names and arguments of a builtin exception, for rebuilding without pickle.
    builtin: str = ""
    args: bytes = b""

    def __repr__(self) -> str:
        """Name the exception; its words may say what an argument was."""
        return f"Failure({self.type})"


class Report(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The recorded outcome of a message. Instants are milliseconds by Redis's clock."""

    task: str
    enqueued_ms: int
    started_ms: int
    finished_ms: int
    worker: str
    attempt: int
    delivery: int
    # None where the task failed.
    serializer: str | None = None
    value: bytes = b""
    failure: Failure | None = None
    errors: tuple[AttemptError, ...] = ()
    name: str | None = None

    def __repr__(self) -> str:
        """Say how it ended, and show no value."""
        return f"Report({self.task}, attempt {self.attempt}, {self.failure or self.serializer})"


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The attempt was the last one."""

    # None: it succeeded, and nobody wants to know more.
    report: Report | None
    ttl_ms: int


class RetryIn(msgspec.Struct, frozen=True, gc=False):
    """The attempt failed; another one is due."""

    delay_ms: int
    history: History


Outcome: TypeAlias = Finished | RetryIn

_encode = msgspec.msgpack.Encoder().encode
_decode_report = msgspec.msgpack.Decoder(Report).decode
_decode_history = msgspec.msgpack.Decoder(History).decode


def sign(value: Report | History, seal: Seal, bound_to: bytes) -> bytes:
    """Return the signed bytes of a report or a history.

    A report is bound to its id and the claim it was made under, a history to its id.
    """
    body = _encode(value)
    return seal.stamp(bound_to, body) + body


def read_report(data: bytes, seal: Seal, bound_to: bytes) -> Report:
    """Return the report in signed bytes; raise `ResultTampered` if they are not ours."""
    try:
        return _decode_report(_verified(data, seal, bound_to))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        msg = f"unreadable outcome: {str(error)[:200]}"
        raise ResultTampered(msg) from error


def read_history(data: bytes, seal: Seal, bound_to: bytes) -> History | None:
    """Return the history in signed bytes; None if there is none, or it is not ours."""
    if not data:
        return None
    try:
        return _decode_history(_verified(data, seal, bound_to))
    except (ResultTampered, msgspec.DecodeError, ValueError, RecursionError):
        return None


def _verified(data: bytes, seal: Seal, bound_to: bytes) -> Body:
    body = rest_of(data, _PREFIX_BYTES)
    tag = data[_MARK_BYTES:_PREFIX_BYTES]
    try:
        seal.verify(data[:_MARK_BYTES], bound_to, body, tag)
    except (BadSignature, UnknownKey) as error:
        raise ResultTampered(str(error)) from None
    return body


def describe(error: BaseException, serializer: str) -> Failure:
    """Return an exception as data, written so that `revive` gives it back."""
    kind = type(error)
    text = _text_of(error)
    frames = _unicode("".join(_frames(error)))[-MAX_TRACEBACK:]
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if serializer != serializers.PICKLE:
        builtin, args = _builtin(error)
        return Failure(name, text, frames, builtin=builtin, args=args)
    # Who waits must not be ended by another process's SystemExit or CancelledError.
    how, value = _pickled(error) if isinstance(error, Exception) else ("", b"")
    return Failure(name, text, frames, how, value)


def revive(failure: Failure) -> BaseException:
    """Return the exception to raise for a failure, its remote traceback as the cause."""
    error: BaseException = RemoteError(failure.type, failure.text, failure.traceback)
    try:
        if failure.value:
            error = serializers.loads(failure.serializer, failure.value)
        elif failure.builtin:
            args = serializers.loads(serializers.MSGPACK, failure.args)
            error = _ALLOWED[failure.builtin](*args)
    except Exception:  # noqa: BLE001 - of its constructor
        # Its class cannot be imported here, or wants other arguments: words must do.
        error = RemoteError(failure.type, failure.text, failure.traceback)
    # Past the exception's own __setattr__, which may refuse.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(failure.traceback))
    return error


class RemoteTraceback(Exception):
    """Carries the traceback of the worker into the one printed here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def attempt_error(attempt: int, error: BaseException, at_ms: int) -> AttemptError:
    """Return the one-line form of an attempt's error."""
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return AttemptError(attempt, at_ms, name, _text_of(error)[:SHORT_TEXT])


def next_history(
    history: History | None, error: AttemptError, started_ms: int, delay: float
) -> History:
    """Return a history with one more failed attempt and the wait that follows it."""
    earlier = history or History(started_ms, 0.0)
    return History(
        earlier.first_started_ms,
        earlier.idle + delay,
        (error, *earlier.errors)[:MAX_ERRORS],
    )


def _unicode(text: str) -> str:
    """Return text that can be written: a file name may hold half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _text_of(error: BaseException) -> str:
    try:
        return _unicode(str(error)[:MAX_TEXT])[:MAX_TEXT]
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may do anything
        return f"<its __str__ raised {type(broken).__name__}>"


def _frames(error: BaseException) -> list[str]:
    """Return the traceback from the task's own frame on."""
    own = error.__traceback__.tb_next if error.__traceback__ else None
    return tracebacks.format_exception(type(error), error, own or error.__traceback__)


def _pickled(error: BaseException) -> tuple[str, bytes]:
    """Return the pickle of an exception if it survives the way back, else nothing."""
    try:
        how, value = serializers.dumps(serializers.PICKLE, error)
        back = pickle.loads(value)  # noqa: S301 - written one line above
    except Exception:  # noqa: BLE001 - celery#6990: dumps works and loads raises
        return "", b""
    same = isinstance(back, BaseException) and len(value) <= MAX_TRACEBACK
    return (how, value) if same else ("", b"")


def _builtin(error: BaseException) -> tuple[str, bytes]:
    name = type(error).__name__
    if _ALLOWED.get(name) is not type(error):
        return "", b""
    try:
        # Not `args` alone: an OSError keeps its file names apart from them.
        args = serializers.dumps(serializers.MSGPACK, error.__reduce__()[1])[1]
    except (SerializationError, TypeError, IndexError):
        return "", b""
    return (name, args) if len(args) <= MAX_TEXT else ("", b"")


_ALLOWED: dict[str, type[BaseException]] = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, BaseExceptionGroup)
}
_ALLOWED["SoftTimeLimitExceeded"] = SoftTimeLimitExceeded
