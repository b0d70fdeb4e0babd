"""Apps for tests of the worker's parts, in one process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq import TaskQ

NewApp = Callable[..., TaskQ]


@pytest.fixture
def new_app() -> Iterator[NewApp]:
    """Make apps on `memory://`, or where `url=` says."""
    made: list[TaskQ] = []
    url = f"memory://{secrets.token_hex(4)}"

    def new_app(**settings: Any) -> TaskQ:
        app = TaskQ(f"t{secrets.token_hex(6)}", **({"url": url} | settings))
        made.append(app)
        return app

    yield new_app
    for app in made:
        app.close()
