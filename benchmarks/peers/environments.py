"""A virtual environment for each project, made when it is first needed."""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".bench"
REQUIREMENTS = Path(__file__).parent / "requirements"
# ardiq and blitzq need 3.12; for the newest of all, not everybody has wheels.
WANTED = ("3.13", "3.12", "3.14")
INSTALL_SECONDS = 600


class NotInstalledError(Exception):
    """A project's environment cannot be made, or lacks what it is for."""


def interpreter() -> str:
    """Return the Python that all of them run on, the tasks too."""
    for version in WANTED:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
        for candidate in (f"python{version}", *map(str, pyenv)):
            found = shutil.which(candidate)
            if found and _works(found):
                return found
    return sys.executable


def _works(python: str) -> bool:
    words = [python, "-c", "import ensurepip, venv"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def program(project: str, name: str = "python") -> Path:
    """Return a program of this environment."""
    return FOLDER / project / "bin" / name


def make(projects: Iterable[str], python: str) -> dict[str, str]:
    """Make what is missing, some at a time; return why, for those that cannot be made."""
    failed: dict[str, str] = {}

    def attempt(project: str) -> None:
        try:
            _make(project, python)
        except NotInstalledError as error:
            failed[project] = str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(attempt, projects))
    return failed


def _make(project: str, python: str) -> None:
    file = REQUIREMENTS / f"{project}.txt"
    stamp = FOLDER / project / "made"
    wanted = _digest(python, file.read_text(encoding="utf-8"))
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    _run([python, "-m", "venv", "--clear", str(FOLDER / project)])
    pip = [str(program(project)), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    _run([*pip, "-r", str(file)])
    stamp.write_text(wanted, encoding="utf-8")


def _digest(python: str, requirements: str) -> str:
    """Return what an environment was made from: where this checkout is one, what it needs."""
    ours = (ROOT / "setup.cfg").read_text(encoding="utf-8") if "-e ." in requirements else ""
    return hashlib.sha256(f"{python}\n{requirements}\n{ours}".encode()).hexdigest()


def _run(words: list[str]) -> None:
    try:
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(str(error)) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise NotInstalledError(last_line("\n".join(said[-1:]) or done.stderr))


def last_line(text: str) -> str:
    """Return the last line that says something, without anybody's paths."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return anonymous(lines[-1][:300]) if lines else "it said nothing"


def anonymous(text: str) -> str:
    """Leave out where this checkout and the home folder are."""
    for place, mark in ((ROOT, "."), (Path.home(), "~")):
        # Not a folder beside it, whose name begins alike.
        text = re.sub(rf"{re.escape(str(place))}(?![\w-])", mark, text)
    return re.sub(r"(?<![\w.])/(home|root|Users)/", "~/", text)


def versions(project: str, names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of these distributions that are installed there."""
    code = f"from {__name__} import installed; installed()"
    done = subprocess.run(
        [str(program(project)), "-c", code, *names],
        env=environment(project, {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def installed() -> None:
    """Print the versions of the distributions in the arguments; run in an environment."""
    there = {one.name.lower(): one.version for one in importlib.metadata.distributions()}
    print(json.dumps({name: there[name] for name in sys.argv[1:] if name in there}))


def environment(project: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables under which this project's processes run: none that configure it."""
    ours = ("TASKQ_", "CELERY_", "RQ_", "BENCH_", "PYTHON", "PYENV_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **kept,
        "PATH": f"{FOLDER / project / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        **variables,
    }
