"""The stages of a message in a worker, and the functions of taskq that each stands for."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of the work; what another stage does inside it is not counted here."""

    name: str
    # Each as `module:attribute.attribute`; their own time, less that of stages they call.
    places: Sequence[str]
    words: str


# All that a thread does while it has messages; the other stages are parts of it.
ROOT = Stage(
    "loop",
    ["taskq.worker.pools.threads:ThreadPool._run_all"],
    "takes messages from the buffer, one after the other",
)
STAGES = (
    ROOT,
    Stage(
        "open",
        ["taskq.worker.executor:Executor._open", "taskq.model.message:open_envelope"],
        "looks whether it starts in time, finds the task, makes the context",
    ),
    Stage("verify", ["taskq.model.signing:Seal.verify"], "computes the tag and compares it"),
    Stage("decode", ["taskq.model.message:_decode_envelope"], "reads the envelope, msgpack"),
    Stage("arguments", ["taskq.worker.executor:Executor._arguments"], "unpickles them"),
    Stage(
        "run",
        ["taskq.worker.executor:Executor.run"],
        "enters the context, calls the function, leaves",
    ),
    Stage(
        "judge",
        ["taskq.worker.judge:Judge.returned"],
        "pickles what was returned, makes the report",
    ),
    Stage("sign", ["taskq.model.outcome:sign"], "encodes the report, computes its tag"),
    Stage(
        "close",
        ["taskq.worker.executor:Executor._close"],
        "puts the outcome in the exchange's words, notes how long it took",
    ),
    Stage(
        "books",
        [
            "taskq.worker.books:Books.enter",
            "taskq.worker.books:Books.leave",
            "taskq.worker.outbox:Outbox.put",
            "taskq.worker.outbox:Outbox.take",
            "taskq.worker.port:Port.add",
        ],
        "what is held, what ended, what is to be sent",
    ),
    Stage(
        "pack",
        [
            "taskq.broker.claims:exchange",
            "taskq.broker.line:pack",
        ],
        "arguments of the script, as bytes",
    ),
    Stage(
        "send",
        ["redis.connection:AbstractConnection.send_packed_command"],
        "the system's call",
    ),
    Stage(
        "wait",
        ["redis._parsers.hiredis:_HiredisParser.read_from_socket"],
        "until Redis has answered, and the system's call",
    ),
    Stage(
        "parse",
        [
            "redis._parsers.hiredis:_HiredisParser.read_response",
            "redis.connection:AbstractConnection.read_response",
            "taskq.broker.claims:_exchanged",
        ],
        "the reply, into messages",
    ),
    Stage(
        "exchange",
        ["taskq.worker.exchange:Exchange.lead"],
        "whatever else belongs to a turn: whom to ask, how much room there is",
    ),
)


def found(place: str) -> tuple[Any, str, Callable[..., Any]]:
    """Return who holds a function, its name there, and the function; raise if it is gone."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for owner in owners:
        holder = getattr(holder, owner)
    return holder, name, getattr(holder, name)
