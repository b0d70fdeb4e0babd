"""The tree of exceptions: as it is drawn, catchable as people expect, and fit to travel."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from taskq import errors
from taskq.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    EnqueueUncertain,
    RemoteError,
    ResultTimeout,
    Retry,
    SerializationError,
    TaskQError,
)

CLASSES = [
    one
    for _, one in inspect.getmembers(errors, inspect.isclass)
    if one.__module__ == errors.__name__
]


def drawn() -> dict[str, str]:
    """Return each class in the drawing, with the one it stands under."""
    text = re.search(r"```\n(.*?)```", errors.__doc__ or "", re.DOTALL)
    assert text is not None
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in text.group(1).splitlines():
        name = re.search(r"[A-Z]\w+", line)
        assert name is not None
        while stack and stack[-1][0] >= name.start():
            stack.pop()
        parents[name.group()] = stack[-1][1] if stack else "Exception"
        stack.append((name.start(), name.group()))
    return parents


def test_the_tree_is_as_it_is_drawn() -> None:
    assert {one.__name__: one.__bases__[0].__name__ for one in CLASSES} == drawn()


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (ConfigError, ValueError),
        (SerializationError, ValueError),
        (BrokerUnavailable, ConnectionError),
        (EnqueueUncertain, ConnectionError),
        (ResultTimeout, TimeoutError),
    ],
)
def test_who_knows_python_catches_them(ours: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(ours, builtin)
    assert issubclass(ours, TaskQError)


def test_a_request_is_no_error() -> None:
    assert not issubclass(Retry, TaskQError)


def test_nothing_was_sent_unless_it_is_said() -> None:
    error = BrokerError("no")
    assert (list(error.sent), list(error.unsent)) == ([], [])


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_survives_a_pickle(kind: type[Exception]) -> None:
    """It may be what a task raised."""
    made = {
        "EnqueueUncertain": lambda: EnqueueUncertain("the message", "the id"),
        "RemoteError": lambda: RemoteError("shop.Error", "no", "frames"),
        "Retry": lambda: Retry(delay=5, exc=KeyError("k")),
    }.get(kind.__name__, lambda: kind("the message"))()
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is kind
    assert str(again) == str(made)
    for name in ("id", "type", "text", "traceback", "delay"):
        assert getattr(again, name, None) == getattr(made, name, None)


def test_a_remote_error_reads_as_one_line() -> None:
    assert str(RemoteError("shop.Error", "no", "frames")) == "shop.Error: no"
    assert str(RemoteError("shop.Error", "")) == "shop.Error"


def test_an_uncertain_enqueue_names_its_message() -> None:
    assert EnqueueUncertain("broken", "order-42").id == "order-42"


def test_every_class_says_what_it_means() -> None:
    assert [one.__name__ for one in CLASSES if not one.__doc__] == []
