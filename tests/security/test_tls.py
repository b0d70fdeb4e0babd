"""`rediss://` is verified by default: the authority, the host's name, the dates."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from taskq import BrokerError, TaskQ
from taskq.broker.line import Line
from taskq.testing import running_worker
from tests.authority import Authority
from tests.fleets import SERVICE
from tests.security.conftest import KEY
from tests.servers import HOST, Server, free_port

pytestmark = pytest.mark.slow


class TLSDoor:
    """Takes TLS off in front of a plain server, and notes what came through."""

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self._server, self._context = server, context
        self._listener = socket.create_server((HOST, 0))
        self._open: list[socket.socket] = []
        self.passed = bytearray()
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def url(self, host: str, query: str = "") -> str:
        return f"rediss://{host}:{self.port}/0{query}"

    def close(self) -> None:
        """Cut every line, and wait until whoever held it has closed it."""
        _end(self._listener)
        self._threads[0].join()  # from here on nobody comes in
        self._listener.close()
        for thread in self._threads:
            while thread.is_alive():
                for one in self._open:
                    _end(one)
                thread.join(0.05)

    def _begin(self, work: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.settimeout(5)  # for the handshake
            self._begin(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        with (
            suppress(OSError),
            self._context.wrap_socket(peer, server_side=True) as inside,
            socket.create_connection((HOST, self._server.port)) as outside,
        ):
            inside.settimeout(None)
            self._open += (inside, outside)
            back = threading.Thread(target=_pump, args=(outside, inside, None), daemon=True)
            back.start()
            _pump(inside, outside, self.passed)
            back.join()


def _pump(source: socket.socket, sink: socket.socket, note: bytearray | None) -> None:
    with suppress(OSError, ValueError):
        while data := source.recv(65_536):
            if note is not None:
                note += data
            sink.sendall(data)
    for one in (source, sink):
        _end(one)


def _end(one: socket.socket) -> None:
    """End the line for both sides; a thread that reads it goes on."""
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture
def door(server: Server, authority: Authority, request: pytest.FixtureRequest) -> Iterator[TLSDoor]:
    """A door for `localhost`, or for the names and days that a test asks for."""
    names, days = getattr(request, "param", ("DNS:localhost,IP:127.0.0.1", "2"))
    door = TLSDoor(server, authority.context(names, days))
    yield door
    door.close()


def with_task(app: TaskQ) -> Any:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return add


def refused(app: TaskQ) -> str:
    with pytest.raises(BrokerError) as caught:
        with_task(app).delay(1, 2)
    return str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_whom_a_named_authority_vouches_for_is_served(
    new_app: Any, door: TLSDoor, authority: Authority, host: str
) -> None:
    app = new_app(url=door.url(host, f"?ssl_ca_certs={authority.pem}"))
    add = with_task(app)

    async def awaited() -> int:
        async with app:
            return await (await add.adelay(3, 4)).aget(timeout=5)

    with running_worker(app):
        assert add.delay(1, 2).get(timeout=5) == 3
        assert asyncio.run(awaited()) == 7
    assert b"EVALSHA" in door.passed


def test_nobody_sends_on_a_line_on_which_another_thread_waits(
    new_app: Any, door: TLSDoor, authority: Authority
) -> None:
    """OpenSSL forbids it; on a plain socket it is done."""
    app = new_app(url=door.url("localhost", f"?ssl_ca_certs={authority.pem}"))
    line = Line(app.access.endpoint)
    line.connect()
    assert not line.interject(lambda: pytest.fail("it was asked for"))
    line.close()


def test_whom_nobody_vouches_for_hears_nothing(new_app: Any, door: TLSDoor) -> None:
    """Told at once, not after the deadline: time does not mend it."""
    text = refused(new_app(url=door.url("localhost"), enqueue_deadline=60))
    assert "CERTIFICATE_VERIFY_FAILED" in text
    assert "ssl_ca_certs=" in text
    assert door.passed == b""


def test_nor_does_whom_another_authority_vouches_for(
    new_app: Any, door: TLSDoor, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    url = door.url("localhost", f"?ssl_ca_certs={other.pem}")
    assert "CERTIFICATE_VERIFY_FAILED" in refused(new_app(url=url, enqueue_deadline=60))
    assert door.passed == b""


@pytest.mark.parametrize("scheme", ["rediss+sentinel", "rediss+cluster"])
def test_it_is_told_at_once_though_others_are_away(
    new_app: Any, door: TLSDoor, scheme: str
) -> None:
    ports = [free_port(), door.port, free_port()]
    url = f"{scheme}://{','.join(f'{HOST}:{port}' for port in ports)}/"
    if scheme == "rediss+sentinel":
        url += SERVICE
    app = new_app(url=url, enqueue_deadline=100_000)

    async def awaited() -> None:
        async with app:
            await with_task(app).adelay(1, 2)

    told = [refused(app)]
    with pytest.raises(BrokerError) as caught:
        asyncio.run(awaited())
    for text in (*told, str(caught.value)):
        assert "the certificate is not trusted" in text
        assert "CERTIFICATE_VERIFY_FAILED" in text
        assert "ssl_ca_certs=" in text
    assert door.passed == b""


@pytest.mark.parametrize("door", [("DNS:redis.example.com", "2")], indirect=True)
def test_nor_does_a_host_of_another_name(new_app: Any, door: TLSDoor, authority: Authority) -> None:
    query = f"?ssl_ca_certs={authority.pem}"
    for host in ("localhost", "127.0.0.1"):
        assert "mismatch" in refused(new_app(url=door.url(host, query), enqueue_deadline=60))
    app = new_app(url=door.url("localhost", query), enqueue_deadline=60)

    async def awaited() -> None:
        async with app:
            await with_task(app).adelay(1, 2)

    with pytest.raises(BrokerError, match="mismatch"):
        asyncio.run(awaited())
    assert door.passed == b""


def test_a_worker_that_cannot_verify_sends_no_message_and_says_why(
    door: TLSDoor, shell_of: Any, tmp_path: Path
) -> None:
    shell = shell_of(tmp_path, door.url("localhost"))
    worker = shell.start("worker", "proj", "-p", "1")
    worker.says("CERTIFICATE_VERIFY_FAILED")
    done = shell.type("doctor", "-A", "proj")
    assert done.returncode == 1
    assert "ssl_ca_certs=" in done.stdout
    assert worker.stop() == 0
    assert door.passed == b""


def test_no_verification_must_be_asked_for(new_app: Any, door: TLSDoor) -> None:
    app = new_app(url=door.url("localhost", "?ssl_cert_reqs=none"))
    add = with_task(app)
    with running_worker(app):
        assert add.delay(1, 2).get(timeout=5) == 3


def test_an_app_on_tls_needs_a_key_unless_the_host_is_this_one(door: TLSDoor) -> None:
    app = TaskQ("shop", url=door.url("redis.example.com"))
    with pytest.raises(ValueError, match="TASKQ_SECRET"):
        _ = app.access
    assert TaskQ("shop", url=door.url("localhost"), secret=KEY).access.keyring is not None
