"""To wait awake for what comes soon, and to leave that where it does not."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from taskq.broker import commands, sockets
from taskq.broker.connection import Endpoint
from taskq.broker.sockets import Spin
from taskq.broker.sync import Broker


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, socket.socket]]:
    """A connection, and the other end of it; on a machine with processors enough."""
    monkeypatch.setattr(sockets, "_processors", lambda: 2)
    here, there = socket.socketpair()
    with here, there:
        yield SimpleNamespace(_sock=here), there


def test_what_is_there_is_seen(pair: Any) -> None:
    connection, there = pair
    spin = Spin()
    for _ in range(3):
        there.send(b"x")
        assert spin.wait(connection)
        connection._sock.recv(1)


def test_the_end_is_seen(pair: Any) -> None:
    connection, there = pair
    there.close()
    assert Spin().wait(connection)


def test_after_a_wait_in_vain_calls_are_let_pass_twice_as_many_each_time(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, there = pair
    looks: list[float] = []
    spin = Spin()
    monkeypatch.setattr(sockets.clock, "monotonic", lambda: looks.append(0.0) or len(looks))
    waits = []
    for _ in range(2000):
        before = len(looks)
        assert not spin.wait(connection)
        waits.append(len(looks) > before)
    tried = [number for number, wait in enumerate(waits) if wait]
    between = [later - earlier - 1 for earlier, later in itertools.pairwise(tried)]
    assert between[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]
    assert set(between[10:]) == {256}
    there.send(b"x")
    while not spin.wait(connection):
        pass
    connection._sock.recv(1)
    # It was worth it: only one is let pass after the next wait in vain.
    assert not spin.wait(connection)
    there.send(b"x")
    assert [spin.wait(connection) for _ in range(2)] == [False, True]


def test_no_socket_or_one_of_tls_is_left_alone(pair: Any) -> None:
    class Wrapped(socket.socket):
        pass

    connection, there = pair
    there.send(b"x")
    other = Wrapped(fileno=connection._sock.detach())
    with other:
        assert not Spin().wait(SimpleNamespace(_sock=other))
    assert not Spin().wait(SimpleNamespace(_sock=None))
    assert not Spin().wait(None)


def test_one_that_was_closed_just_now_is_waited_for_in_vain(pair: Any) -> None:
    connection, _ = pair
    connection._sock.close()
    assert not Spin().wait(connection)


def test_a_producer_that_is_alone_waits_so_and_two_do_not(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Any] = []
    monkeypatch.setattr(Spin, "wait", lambda _self, connection: waits.append(connection))
    broker = Broker(Endpoint(redis_url), 5)
    command = commands.forget("{nobody}:", "0" * 32)
    broker.run(command)
    assert len(waits) == 1
    with broker._line():  # another thread's
        broker.run(command)
    assert len(waits) == 1
    broker.close()
