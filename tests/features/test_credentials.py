"""An app that asks a provider for user and password, where a test points it elsewhere."""

from __future__ import annotations

import pytest

from taskq import TaskQ
from taskq.errors import BrokerUnavailable
from taskq.testing import running_worker
from tests.features.conftest import SECRET
from tests.servers import HOST, free_port


def test_pointed_at_memory_it_does_without_and_asks_again_afterwards(namespace: str) -> None:
    asked: list[str] = []

    def login() -> str:
        asked.append("password")
        raise LookupError

    url = f"redis://{HOST}:{free_port()}"
    with TaskQ(namespace, url=url, secret=SECRET, credentials=login, enqueue_deadline=0.2) as app:

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            return x + y

        with running_worker(app, url=f"memory://{namespace}"):
            assert add.delay(2, 3).get(timeout=60) == 5
        assert not asked
        assert app.access.endpoint.provider is not None
        with pytest.raises(BrokerUnavailable):
            add.delay(2, 3)
