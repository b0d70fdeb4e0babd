"""A server that is not there: workers wait for it, quietly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.eventually import let_pass
from tests.servers import Server


def test_a_worker_waits_for_a_server_that_is_not_there_yet(
    shell: Any, app: Any, own_server: Server
) -> None:
    own_server.stop()
    worker = shell.start("worker", "proj", "-p", "1")
    worker.says("Redis cannot be reached")
    assert "hunter2" not in worker.log
    own_server.start()
    assert app.send_task("proj.add", (2, 2)).get(timeout=30) == 4
    assert worker.stop() == 0


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_an_outage_costs_no_processor(shell: Any, app: Any, own_server: Server) -> None:
    worker = shell.worker("proj", "-p", "1")
    app.send_task("proj.add", (2, 2)).get(timeout=30)
    own_server.stop()
    let_pass(1)
    (child,) = worker.children()

    def burnt() -> int:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = burnt()
    let_pass(2)
    assert burnt() - before < 0.2 * 2 * os.sysconf("SC_CLK_TCK")
    own_server.start()
