"""`python -m example_project [PATH]`: measure a tree of Python files, print a report."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from example_project.app import FileReport, app, checksum, licences, longest, measure, memory
from example_project.tree import find_command, python_files
from example_project.workers import OwnWorker, WorkerFailed, own_worker
from taskq import Result, ResultError, ResultTimeout, ScheduleError, TaskQError, as_completed

T = TypeVar("T")

# Nobody waits longer for a call of this program, so it must not start later either.
EXPIRES_SECONDS = 600
# How often we look whether our worker still runs.
LOOK_SECONDS = 5.0
FILES_A_SCAN = 100
PURGE = "taskq -A example_project.app purge -Q default"

console = Console()


def main() -> int:
    options = _options()
    root = options.path.resolve()
    paths = python_files(root)
    if not paths:
        console.print(f"no Python files in {root}", markup=False, highlight=False)
        return 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(app)
        worker = None
        if not options.no_worker:
            worker = stack.enter_context(own_worker(options.processes))
        failed = report(root, paths, worker)
        return _complain(failed, worker) if failed else 0


def report(root: Path, paths: Sequence[str], worker: OwnWorker | None) -> list[Exception]:
    """Measure the files and print what was found; return what failed."""
    begun = time.perf_counter()
    calls = measure.options(expires=EXPIRES_SECONDS).map(paths)
    reports, failed = gather_with_bar("measuring", calls, worker)
    elapsed = time.perf_counter() - begun
    _print_longest(root, reports)
    _print_totals(root, reports, elapsed)
    failed += _sum(reports, worker) + _scan(reports, worker)
    _print_memory()
    return failed


def gather_with_bar(
    title: str, results: Sequence[Result[T]], worker: OwnWorker | None
) -> tuple[list[T], list[Exception]]:
    """Return what the tasks returned and what they raised, showing how far they are."""
    values: list[T] = []
    errors: list[Exception] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=len(results))
        for result in _as_they_end(results, worker):
            try:
                values.append(result.get())
            except Exception as error:  # noqa: BLE001 - whatever the task raised
                errors.append(error)
            progress.advance(bar)
    return values, errors


def _as_they_end(results: Iterable[Result[T]], worker: OwnWorker | None) -> Iterator[Result[T]]:
    """Yield each result as it ends, and look at the worker now and then."""
    waiting = dict.fromkeys(results)
    while waiting:
        try:
            for result in as_completed(list(waiting), timeout=LOOK_SECONDS):
                del waiting[result]
                yield result
        except ResultTimeout:
            if worker:
                worker.check()


def _print_longest(root: Path, reports: Sequence[FileReport]) -> None:
    table = Table(title="The ten longest functions")
    table.add_column("lines", justify="right")
    table.add_column("function")
    table.add_column("where", overflow="fold")
    for one in longest([function for report in reports for function in report.longest]):
        where = f"{Path(one.path).relative_to(root)}:{one.line}"
        table.add_row(str(one.lines), escape(one.name), escape(_printable(where)))
    console.print(table)


def _print_totals(root: Path, reports: Sequence[FileReport], elapsed: float) -> None:
    def total(name: str) -> str:
        return f"{sum(getattr(one, name) for one in reports):,} {name}"

    _print(", ".join(map(total, ("lines", "bytes", "functions", "classes"))))
    _print(
        f"{len(reports)} files in {elapsed:.1f} s: {len(reports) / elapsed:,.0f} tasks/s, "
        "the start of the workers included"
    )
    problems = Counter((one.problem or "").partition(":")[0] for one in reports if one.problem)
    for problem, count in problems.most_common():
        _print(f"  {count} of them could not be parsed: {problem}")
    _print(f"Count them yourself: {find_command(root)}")


def _sum(reports: Sequence[FileReport], worker: OwnWorker | None) -> list[Exception]:
    """Show a task that is retried; return what failed."""
    largest = sorted(reports, key=lambda one: (-one.bytes, one.path))[:3]
    calls = checksum.options(expires=EXPIRES_SECONDS).map(one.path for one in largest)
    sums, failed = gather_with_bar("checksums", calls, worker)
    for one in sorted(sums, key=lambda one: one.path):
        _print(f"sha256 {one.sha256[:16]}…, in attempt {one.attempt}: {one.path}")
    return failed


def _scan(reports: Sequence[FileReport], worker: OwnWorker | None) -> list[Exception]:
    """Show an `async def` task; return what failed."""
    paths = [one.path for one in reports]
    lots = [paths[at : at + FILES_A_SCAN] for at in range(0, len(paths), FILES_A_SCAN)]
    calls = licences.options(expires=EXPIRES_SECONDS).map(lots)
    scans, failed = gather_with_bar("licences", calls, worker)
    names = sum(map(Counter, scans), Counter[str]())
    words = ", ".join(f"{name} {count}" for name, count in names.most_common())
    _print(f"licences named at the top of files: {words or 'none'}")
    return failed


def _print_memory() -> None:
    """Show what a task said that nobody called: workers do, each second."""
    try:
        schedule = app.schedules.get(memory.name)
        size: int = app.result(schedule.last_id).get(LOOK_SECONDS) if schedule.last_id else 0
    except (ScheduleError, ResultError, ResultTimeout):
        return  # another worker is at it, or just gone
    if size:
        _print(f"a worker process had {size >> 20} MiB when it was last looked at, by schedule")


def _complain(failed: Sequence[Exception], worker: OwnWorker | None) -> int:
    _print(f"{len(failed)} tasks failed; the first: {type(failed[0]).__name__}: {failed[0]}")
    if worker:
        _print(f"The worker wrote:\n{worker.log()}")
    return 1


def _print(text: str) -> None:
    # Soft: a command that was cut in two lines could not be copied.
    console.print(_printable(text), markup=False, highlight=False, soft_wrap=True)


def _printable(text: str) -> str:
    """Return text without the marks that stand for undecodable bytes in a file's name."""
    return text.encode(errors="replace").decode()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_project", description=__doc__)
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        help="a directory [the standard library of this Python]",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="of the worker [usable CPUs]")
    parser.add_argument("--no-worker", action="store_true", help="use workers started elsewhere")
    options = parser.parse_args()
    if not options.path.is_dir():
        parser.error(f"{options.path} is no directory")
    return options


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Ended from outside, too, we must end our worker.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        _print(f"stopped; calls not begun expire in ten minutes, or now with: {PURGE}")
        sys.exit(130)
    except (TaskQError, WorkerFailed) as error:
        _print(f"failed: {error}")
        sys.exit(1)
