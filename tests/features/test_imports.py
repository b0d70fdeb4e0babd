"""What an import does, and does not; what things are called; what travels by its name."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import taskq
from taskq import ConfigError, TaskQ
from taskq.testing import running_worker

ROOT = Path(taskq.__file__).parent.parent
QUIET = """
import sys, threading
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)
import taskq
from taskq.testing import running_worker
app = taskq.TaskQ("quiet", url="redis://:x@10.255.255.1:6379", include=["a"], queues=["mail"])

@app.task
def add(x, y): return x + y

@app.task(bind=True, queue="low", retry=3, priority=7)
async def wait(ctx, x): return x

call = add.options(countdown=5).s(1, 2)
print(add(1, 2), repr(app), repr(add), repr(call), add.name, app.tasks.keys())
print("opened:", opened, "threads:", threading.active_count())
"""
NAMED = """
from taskq import TaskQ
app = TaskQ("named", url="memory://")

@app.task
def plain(): ...

class Place:
    @app.task
    def inside(): ...

def factory():
    @app.task
    def made(): ...
    return made

@app.task(name="my.own")
def own(): ...

if __name__ == "__main__":
    factory()
    print(*sorted(app.tasks))
"""


def run(*words: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_to_import_and_to_define_opens_nothing() -> None:
    assert run("-c", QUIET).splitlines()[-1] == "opened: [] threads: 1"


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["jobs.py"], "jobs"),
        (["./jobs.py"], "jobs"),
        (["-m", "jobs"], "jobs"),
        (["shop/work.py"], "work"),
        (["-m", "shop.work"], "shop.work"),
        (["-m", "shop"], "shop"),
        (["-c", "import jobs; jobs.factory(); print(*sorted(jobs.app.tasks))"], "jobs"),
        (["-c", NAMED], "interactive"),
    ],
    ids=lambda one: " ".join(one)[:20] if isinstance(one, list) else None,
)
def test_a_task_is_called_as_a_worker_would_import_it(
    tmp_path: Path, words: list[str], module: str
) -> None:
    """A script's `__main__` is another program's somebody else: it is never in a name."""
    for file in ("jobs.py", "shop/__init__.py", "shop/work.py", "shop/__main__.py"):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if path.stem == "__init__" else NAMED)
    names = [f"{module}.{name}" for name in ("Place.inside", "factory.made", "plain")]
    assert run(*words, folder=tmp_path).split() == sorted(["my.own", *names])


def test_a_script_that_is_imported_again_is_the_same_code(tmp_path: Path) -> None:
    """Run by its path, and imported by a module that it imports itself."""
    (tmp_path / "base.py").write_text(
        "from taskq import TaskQ\napp = TaskQ('twice', url='memory://')\n"
    )
    (tmp_path / "script.py").write_text(
        "from base import app\n"
        "@app.task\ndef work(): ...\n"
        "if __name__ == '__main__':\n    import script\n    print(*app.tasks)\n"
    )
    assert run("script.py", folder=tmp_path).split() == ["script.work"]


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app()
    return made


def test_what_has_no_name_needs_one(app: TaskQ) -> None:
    with pytest.raises(ConfigError, match="name="):
        app.task(lambda: 1)
    assert app.task(name="nameless")(lambda: 1).name == "nameless"


def test_two_functions_under_one_name_are_an_error(app: TaskQ) -> None:
    @app.task(name="same")
    def first() -> int:
        return 1

    with pytest.raises(ConfigError, match=r"'same'.*first.*second.*name="):

        @app.task(name="same")
        def second() -> None: ...

    assert app.tasks["same"] is first
    assert TaskQ("other").task(name="same")(print) is not first


def test_the_same_definition_again_replaces(app: TaskQ) -> None:
    """A cell of a notebook is run again, with better code in it."""

    def cell(answer: int) -> Any:
        @app.task
        def work() -> int:
            return answer

        return work

    first, second = cell(1), cell(2)
    assert first.name == second.name
    assert app.tasks[second.name] is second
    with running_worker(app):
        assert first.delay().get(timeout=5) == 2


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "reloaded_base.py").write_text(
        "from taskq import TaskQ\napp = TaskQ('reloaded', url='memory://reloaded')\n"
    )
    (tmp_path / "reloaded_jobs.py").write_text(
        "from reloaded_base import app\n@app.task\ndef work(): return 1\n"
    )
    yield importlib.import_module("reloaded_jobs")
    for name in ("reloaded_jobs", "reloaded_base"):
        sys.modules.pop(name, None)


def test_a_module_may_be_loaded_again(module: Any, tmp_path: Path) -> None:
    first = module.work
    (tmp_path / "reloaded_jobs.py").write_text(
        "from reloaded_base import app\n@app.task\ndef work(): return 'better'\n"
    )
    importlib.reload(module)
    assert module.work is not first
    assert list(module.app.tasks) == ["reloaded_jobs.work"]
    with running_worker(module.app):
        assert first.delay().get(timeout=5) == "better"
    module.app.close()


def test_an_app_and_its_tasks_travel_by_their_names(app: TaskQ) -> None:
    @app.task
    def work(x: int) -> int:
        return x

    for one in (app, work):
        data = pickle.dumps(one)
        assert len(data) < 200
        assert pickle.loads(data) is one
    call = pickle.loads(pickle.dumps(work.s(5)))
    with running_worker(app):
        assert app.enqueue(call).get(timeout=5) == 5


def test_a_task_keeps_its_options_on_the_way(app: TaskQ) -> None:
    @app.task(name="work")
    def work() -> None: ...

    later = pickle.loads(pickle.dumps(work.options(countdown=60, priority=9)))
    assert (later.call_options.countdown, later.call_options.priority) == (60, 9)


def test_a_task_may_be_an_argument(app: TaskQ) -> None:
    @app.task
    def square(x: int) -> int:
        return x * x

    @app.task
    def apply(task: Any, x: int) -> Any:
        return task, task(x), app

    with running_worker(app):
        task, value, same_app = apply.delay(square, 5).get(timeout=5)
    assert (task, value, same_app) == (square, 25, app)


def test_what_is_not_loaded_here_is_told() -> None:
    gone = TaskQ("gone-app", url="memory://")

    @gone.task(name="work")
    def work() -> None: ...

    data, task = pickle.dumps(gone), pickle.dumps(work)
    del gone.tasks["work"]
    with pytest.raises((ConfigError, LookupError), match="work"):
        pickle.loads(task)
    del gone, work
    with pytest.raises(ConfigError, match="'gone-app'"):
        pickle.loads(data)


def test_a_task_looks_like_its_function(app: TaskQ) -> None:
    @app.task(bind=True)
    def work(ctx: taskq.Context, x: int) -> int:
        """Do it."""
        return x

    import inspect

    assert (work.__name__, work.__doc__, work.__module__) == ("work", "Do it.", __name__)
    assert str(inspect.signature(work)) == "(x: 'int') -> 'int'"
