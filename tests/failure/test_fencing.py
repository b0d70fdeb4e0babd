"""`ctx.fence` keeps a worker that wakes too late from writing over its successor."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

from tests.eventually import let_pass, until

PAGE = (Path(__file__).parents[2] / "docs" / "fencing.md").read_text(encoding="utf-8")
SLOW = """

@app.task(bind=True)
def slow(ctx: Context, folder: str) -> bool:
    import pathlib, threading
    pathlib.Path(folder, f"started-{ctx.delivery}").touch()
    while not pathlib.Path(folder, f"go-{ctx.delivery}").exists():
        threading.Event().wait(0.02)
    written = write(ctx.id, ctx.fence, "ann", ctx.delivery)
    pathlib.Path(folder, f"wrote-{ctx.delivery}-{written}").touch()
    return written
"""


def test_the_write_of_a_worker_that_was_frozen_is_refused(
    shell: Any, app: Any, tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n# bank.py\n(.*?)```", PAGE, re.DOTALL)
    shell.write("proj.py", code.replace('"bank"', f'"{shell.name}"') + SLOW)
    first = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1")
    result = app.send_task("proj.slow", (str(tmp_path),))
    until((tmp_path / "started-1").exists)
    second = shell.worker("proj", "-p", "1", "-t", "1", TASKQ_LEASE="1")
    (child,) = first.children()
    os.kill(child, signal.SIGSTOP)
    until((tmp_path / "started-2").exists, 8)
    (tmp_path / "go-2").touch()
    assert result.get(timeout=30) is True
    # The first one wakes, with all its work done but the write.
    (tmp_path / "go-1").touch()
    os.kill(child, signal.SIGCONT)
    let_pass(1.5)
    assert sorted(path.name for path in tmp_path.glob("wrote-*-True")) == ["wrote-2-True"]
    with sqlite3.connect(shell.folder / "bank.db") as database:
        rows = database.execute("SELECT account, cents FROM payments").fetchall()
    database.close()
    assert rows == [("ann", 2)]
    assert first.stop() == 0
    assert second.stop() == 0
