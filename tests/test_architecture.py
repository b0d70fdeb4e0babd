"""Rules about the files themselves, for what linters do not see."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import taskq

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "taskq").rglob("*.py"))
SCRIPTS = sorted((ROOT / "taskq" / "broker" / "lua").glob("*.lua"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_PUBLIC_NAMES = 44
# The options of a task and of a call, spelt out for the type checkers; and constructors.
MANY_PARAMETERS = {"__init__", "apply_async", "options", "send_task", "task"}
NOT_NOUNS = {"common", "compat", "constants", "types", "utils"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
LUA_HEADER = re.compile(
    r"(#!lua.*\n)?"
    r"-- (?P<name>\w+): [^\n]+\.\n"
    r"(--[^\n]*\n)*?"
    r"-- KEYS\b[^\n]*\n(--[^\n]*\n)*?"
    r"-- ARGV\b[^\n]*\n(--[^\n]*\n)*?"
    r"-- Returns \S[^\n]*\n"
)


def functions() -> Iterator[tuple[str, Function]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def parameters(function: Function) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in {"self", "cls"} for argument in named)


def test_modules_are_short() -> None:
    lengths = {str(path): path.read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert {path: n for path, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        place
        for place, function in functions()
        if (function.end_lineno or 0) - function.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_functions_take_few_parameters() -> None:
    wide = [
        place
        for place, function in functions()
        if parameters(function) > MAX_PARAMETERS and function.name not in MANY_PARAMETERS
    ]
    assert wide == []


def test_modules_are_nouns() -> None:
    wrong = [str(path) for path in MODULES if NOT_NOUNS & {path.stem, path.parent.name}]
    assert wrong == []


def test_public_names_are_sorted_few_and_true() -> None:
    names = list(taskq.__all__)
    there = {
        name
        for name, value in vars(taskq).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert names == sorted(names)
    assert len(names) <= MAX_PUBLIC_NAMES
    assert [name for name in names if not hasattr(taskq, name)] == []
    assert there - set(names) - {"annotations"} == set()


def test_no_work_is_left_in_comments() -> None:
    scripts = sorted((ROOT / "taskq").rglob("*.lua"))
    assert lines_with(r"\b(TODO|FIXME)\b", MODULES + scripts) == []


def test_lua_scripts_state_their_contract() -> None:
    named = {
        path.stem: header["name"]
        for path in SCRIPTS
        if (header := LUA_HEADER.match(path.read_text(encoding="utf-8")))
    }
    assert named == {path.stem: path.stem for path in SCRIPTS}


def test_tests_wait_for_events_not_for_time() -> None:
    patient = [path for path in TESTS if ROOT / "tests" / "failure" not in path.parents]
    assert lines_with(r"\bsleep\((?!0\))", patient) == []


def test_scenarios_are_played_by_tests_that_exist() -> None:
    table = (ROOT / "tests" / "failure" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", table))
    there = {
        node.name
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, Function)
    }
    assert len(named) > 40
    assert named - there == set()


def test_docs_name_nobodys_home() -> None:
    assert lines_with(r"(^|[^\w.])/(home|root|Users)/", DOCS) == []


def started_unguarded(function: ast.FunctionDef) -> set[str]:
    """Return the names of shells of a function that start something, which an error would leave."""
    made = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name) and ast.unparse(node.value.func) == "Shell"
    }
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    starts = {ast.unparse(one) for one in called if isinstance(one, ast.Attribute)}
    return {name for name in made if starts & {f"{name}.start", f"{name}.worker"}}


def test_what_a_test_starts_in_a_shell_ends_with_the_test_though_it_fails() -> None:
    left = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and started_unguarded(node)
    ]
    assert left == []
