"""The line that fails: it does what it is told, to the command it is told, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskq.broker import claims, keys
from taskq.broker.claims import Finish, Room
from taskq.broker.connection import Endpoint
from taskq.broker.line import Line
from taskq.errors import Interrupted
from tests.failure.proxy import Act, Proxy, Request
from tests.servers import Server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def line(proxy: Proxy) -> Iterator[Line]:
    line = Line(Endpoint(proxy.url))
    yield line
    line.close()


def test_what_it_passes_on_is_what_was_sent(line: Line, namespace: str) -> None:
    large = b"\r\n$*" * 50_000
    assert line.call("SET", namespace, large, "PX", 5000) in (b"OK", True)
    assert line.call("GET", namespace) == large
    assert line.call("MGET", namespace, f"{namespace}-none") == [large, None]
    assert line.call("EVAL", "return {1, {'a', {}}, false}", 0) == [1, [b"a", []], None]


@pytest.mark.parametrize(
    ("act", "done"), [(Act.LOSE_REQUEST, 0), (Act.CUT_REPLY, 1)], ids=["request", "reply"]
)
def test_one_command_is_cut_once(
    proxy: Proxy, line: Line, namespace: str, act: Act, done: int
) -> None:
    proxy.on("incr", act)
    line.call("PING")
    with pytest.raises(Interrupted):
        line.call("INCR", namespace)
    assert line.call("INCR", namespace) == done + 1
    line.call("DEL", namespace)


def test_a_reply_that_is_swallowed_leaves_the_line_open(
    proxy: Proxy, line: Line, namespace: str
) -> None:
    proxy.on("incr", Act.SWALLOW_REPLY)
    line.send("INCR", namespace)
    line.send("GET", namespace)
    assert line.receive() == b"1"
    line.call("DEL", namespace)


def test_every_request_is_seen_by_its_name(proxy: Proxy, line: Line) -> None:
    seen: list[Request] = []
    proxy.watch = seen.append
    line.call("EVAL", "return ARGV[1]", 0, "x")
    assert [(one.name, one.words[-1]) for one in seen] == [("eval", b"x")]


def test_only_those_who_listen_are_cut_off(proxy: Proxy, server: Server, namespace: str) -> None:
    deaf, listening = Line(Endpoint(proxy.url)), Line(Endpoint(proxy.url))
    deaf.call("PING")
    listening.call("SUBSCRIBE", namespace)
    assert proxy.reset(subscribed=True) == 1
    with pytest.raises(Interrupted):
        listening.receive()
    assert deaf.call("PING") in (b"PONG", True)
    deaf.close()


def test_what_is_held_up_comes_when_it_flows_again(proxy: Proxy, line: Line) -> None:
    line.call("PING")
    proxy.flow.clear()
    line.send("ECHO", "late")
    proxy.flow.set()
    assert line.receive() == b"late"


def test_it_knows_which_exchanges_carry_ends(line: Line, proxy: Proxy, namespace: str) -> None:
    """As the failpoints do, which look at the same place."""
    seen: list[int] = []
    proxy.watch = lambda request: seen.append(request.ends)
    base, worker = keys.base(namespace, "default"), b"0" * 32
    for finishes in ([], [Finish("b", b"1" * 42)]):
        exchange = claims.exchange(base, worker, b"%010d" % 1, "none", 15_000, finishes, Room())
        assert line.run(exchange).word == "lost"
    assert seen[0] == 0
    assert seen[-1] == 1
