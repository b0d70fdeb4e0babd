"""The papers are true: their code runs, their tables are those of the code.

A page's blocks run in order, in one project folder: `python` blocks in one interpreter,
or written to the file that their first line names; `sh` blocks line by line, workers in the
background. What a comment `# prints …` says must be printed. `text` and `mermaid` are data.
"""

from __future__ import annotations

import ast
import configparser
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import click
import pytest

from taskq.broker import keys, records, scripts
from taskq.cli import main
from taskq.client.signature import Options
from taskq.client.task import TaskOptions
from taskq.config import OTHER_VARIABLES, Config
from taskq.model import message, outcome, schedule, states
from taskq.model.message import Envelope, Message
from taskq.model.signing import Domain, Keyring

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# CHANGELOG and the example's README are there for people to run as well.
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "example_project").glob("*.md")],
    key=str,
)
SHORT = {"ARCHITECTURE.md": 150, "CONTRIBUTING.md": 120}
# What stands in the pages for the reader's own Redis.
READERS_REDIS = "redis://localhost:6379/0"
DATA = {"text", "mermaid"}
STOP_SECONDS = 40
# A worker says so once it knows its app.
READY = "; tasks: "

INTERPRETER = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    printed, error = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(json.loads(line), "<block>", "exec"), names)
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    text: str
    line: int


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in re.finditer(r"^```(.*)\n((?:(?!```).*\n)*)```$", text, re.MULTILINE)
    ]
    # A fence that is written in another way would be skipped in silence.
    assert 2 * len(found) == len(re.findall(r"```|~~~", text)), name_of(path)
    return found


def expected(code: str) -> list[str]:
    return re.findall(r"# prints (.*)$", code, re.MULTILINE)


class Project:
    """A folder in which a reader follows a page."""

    def __init__(self, folder: Path, url: str, namespace: str) -> None:
        self.folder = folder
        self._url, self._namespace = url, namespace
        self._workers: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._python: subprocess.Popen[str] | None = None
        programs = folder / ".bin"
        self.env = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{folder}:{ROOT}",
            "TASKQ_URL": url,
        }
        programs.mkdir()
        for name, arguments in (("python", ""), ("taskq", "-m taskq")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
            program.chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._python is not None:
            self._python.communicate()
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        codes = [worker.wait(STOP_SECONDS) for worker in self._workers]
        for reader in self._readers:
            reader.join()
        assert kind or codes == [0] * len(codes)

    def run(self, block: Block, cwd: Path) -> None:
        text = block.text.replace(READERS_REDIS, self._url)
        # The suite's server is shared: each page's apps have names of their own.
        text = re.sub(r'\bTaskQ\("', f'TaskQ("{self._namespace}-', text)
        file = re.match(r"# ([\w/]+\.py)\n", text)
        if block.kind == "python" and file:
            path = self.folder / file[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif block.kind == "python":
            self._python_block(text)
        elif block.kind == "sh":
            for command in text.replace("\\\n", "").splitlines():
                self._command(command, cwd)
        else:
            assert block.kind in DATA, f"line {block.line}: blocks of {block.kind!r} are unknown"

    def _python_block(self, code: str) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", INTERPRETER],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin
        assert self._python.stdout
        self._python.stdin.write(json.dumps(code) + "\n")
        self._python.stdin.flush()
        printed, error = json.loads(self._python.stdout.readline())
        assert not error, error
        assert printed.splitlines() == expected(code), code

    def _command(self, command: str, cwd: Path) -> None:
        words = command.partition("#")[0].split()
        if not words:
            return
        if words[0] == "make":
            # CI runs these themselves.
            assert set(words[1:]) <= targets(), command
        elif words[:2] == ["pip", "install"]:
            extra = re.fullmatch(r"pip install '\.\[(\w+)\]'", command)
            assert extra, command
            assert extra[1] in extras(), command
        elif words[0] == "export":
            name, _, value = command.removeprefix("export ").partition("=")
            self.env[name] = self._shell(f"printf %s {value}", cwd)
        elif "worker" in words and "--burst" not in words:
            self._start_worker(command, cwd)
        else:
            printed = self._shell(command, cwd)
            for text in expected(command):
                assert text in printed, command

    def _shell(self, command: str, cwd: Path) -> str:
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def _start_worker(self, command: str, cwd: Path) -> None:
        worker = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            cwd=cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._workers.append(worker)
        ready = threading.Event()
        said: list[str] = []
        reader = threading.Thread(target=_read, args=(worker, said, ready))
        reader.start()
        self._readers.append(reader)
        assert ready.wait(STOP_SECONDS), command
        assert any(READY in line for line in said), f"{command}\n{''.join(said)}"


def _read(worker: subprocess.Popen[str], said: list[str], ready: threading.Event) -> None:
    """Read what a worker says until it ends; tell when it has said what it serves."""
    assert worker.stderr
    with worker.stderr as stream:
        for line in stream:
            if not ready.is_set():
                said.append(line)
            if READY in line:
                ready.set()
    ready.set()


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):.*?## ", makefile, re.MULTILINE))


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def extras() -> set[str]:
    return set(metadata()["options.extras_require"])


def tables(path: Path) -> list[list[list[str]]]:
    """Return each table of a page as rows of cells, the heading first."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^\|.*\n\|[-:| ]+\|\n(?:\|.*\n?)+", text, re.MULTILINE)
    return [
        [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            for row in table.splitlines()
            if not re.fullmatch(r"[-:| ]+", row)
        ]
        for table in found
    ]


def table(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the table whose heading begins so."""
    [rows] = [rows for rows in tables(ROOT / page) if rows[0][0] == heading]
    return rows[1:]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def header_words(name: str) -> set[str]:
    returns = re.search(r"^-- Returns (.*)$", scripts.source(name), re.MULTILINE)
    assert returns
    return set(re.findall(r"'(\w+)'", returns[1]))


def verbs() -> dict[str, click.Command]:
    return dict(main.commands)


def options_of(command: click.Command) -> set[str]:
    named = {text for one in command.params for text in (*one.opts, *one.secondary_opts)}
    return {text for text in named if text.startswith("-")} | {"-h", "--help"}


def said_in(line: str) -> list[click.Command]:
    """Return `taskq` itself, the verb of a command line, and the verb's own verb."""
    said: list[click.Command] = [main]
    for word in line.split():
        if isinstance(said[-1], click.Group) and word in said[-1].commands:
            said.append(said[-1].commands[word])
    return said


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield every `taskq …` that a page shows, in blocks and in sentences."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        lines = [line for one in blocks(path) if one.kind == "sh" for line in one.text.splitlines()]
        for line in (*lines, *codes(re.sub(r"```.*?```", "", text, flags=re.DOTALL))):
            if match := re.search(r"\btaskq (?!=)(.*)", line.partition("#")[0]):
                yield name_of(path), match[1]


# What the pages' code does.


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(
    path: Path, tmp_path: Path, redis_url: str, namespace: str
) -> None:
    with Project(tmp_path, redis_url, namespace) as project:
        # The example's commands are typed where the example is.
        cwd = ROOT if path.parent.name == "example_project" else tmp_path
        for block in blocks(path):
            project.run(block, cwd)


def test_a_block_of_an_unknown_kind_fails(tmp_path: Path) -> None:
    project = Project(tmp_path, READERS_REDIS, "none")
    with pytest.raises(AssertionError, match="unknown"):
        project.run(Block("pyhton", "1 / 0\n", 1), tmp_path)


# What the pages say.


def test_the_pages_are_there() -> None:
    names = {name_of(path) for path in PAGES}
    papers = {"README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG", "SECURITY"}
    assert {f"{name}.md" for name in papers} <= names
    assert {"docs/protocol.md", "docs/states.md", "docs/settings.md"} <= names


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        assert page.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_nobody_is_told_to_install_the_package_of_another(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"install(?: -\S+)* ['\"]?taskq(?!-redis)", text) == []


@pytest.mark.parametrize("name", SHORT)
def test_the_short_ones_are_short(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
    assert lines <= SHORT[name]


def test_command_lines_have_the_options_they_name() -> None:
    shown = list(command_lines())
    assert shown
    for page, line in shown:
        known = set[str]().union(*map(options_of, said_in(line)))
        named = set(re.findall(r"(?<!\S)--?[a-zA-Z][\w-]*", line))
        assert named <= known, f"{page}: taskq {line}"


def test_options_that_stand_alone_exist() -> None:
    known = set[str]().union(*map(options_of, (main, *verbs().values())))
    for path in (ROOT / "README.md", *DOCS.rglob("*.md")):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        alone = [code for code in codes(text) if re.match(r"--?[a-zA-Z]", code)]
        wrong = [code for code in alone if code.split()[0] not in known]
        # The column of Celery's own options.
        celerys = {code for row in celery_rows() for code in codes(row[0])}
        assert set(wrong) <= celerys, name_of(path)


def test_every_setting_is_in_the_table() -> None:
    fields = {field.name: field for field in dataclasses.fields(Config)}
    rows = table("docs/settings.md", "keyword")
    assert [codes(row[0])[0] for row in rows] == list(fields)
    for name, variable, default, *_ in rows:
        field = fields[codes(name)[0]]
        assert variable == f"`TASKQ_{field.name.upper()}`"
        if field.default is dataclasses.MISSING:
            assert default == "usable CPUs"
        else:
            assert ast.literal_eval(codes(default)[0]) == field.default, field.name


def test_every_other_variable_is_explained() -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert {name for name in OTHER_VARIABLES if name not in text} == set()


def test_every_option_of_a_task_and_of_a_call_is_in_a_table() -> None:
    told = {code for row in table("docs/settings.md", "option of a task") for code in codes(row[0])}
    assert told == {"bind", *TaskOptions.__annotations__}
    told = {code for row in table("docs/settings.md", "option of a call") for code in codes(row[0])}
    assert told == {field.name for field in dataclasses.fields(Options)}


def test_the_machine_is_drawn_as_it_is() -> None:
    [drawing] = [one.text for one in blocks(DOCS / "states.md") if one.kind == "mermaid"]
    arrows = re.findall(r"^ *(\w+|\[\*\]) --> (\w+|\[\*\])(?:: (.*))?$", drawing, re.MULTILINE)
    assert len(arrows) == drawing.count("-->")
    drawn = {(one, other) for one, other, _ in arrows if "[*]" not in (one, other)}
    moves = {(one, to) for one, others in states.TRANSITIONS.items() for to in others}
    assert drawn == moves
    assert {one for one, other, _ in arrows if other == "[*]"} == states.TERMINAL
    named = {word for _, _, label in arrows for word in re.findall(r"[a-z]+", label)}
    assert named <= set(scripts.names())


def test_every_state_and_letter_is_in_the_table() -> None:
    rows = {row[0]: row[1] for row in table("docs/states.md", "state")}
    letters: dict[str, list[str]] = {state: [] for state in states.State}
    for letter, state in states.LETTERS.items():
        letters[state].append(letter.decode())
    assert {codes(state)[0]: codes(cell) for state, cell in rows.items()} == letters


def test_the_layout_of_a_message_is_as_drawn() -> None:
    rows = [(codes(row[0])[0], codes(row[1])[0]) for row in table("docs/protocol.md", "bytes")]
    spans: dict[str, slice] = {}
    for span, name in rows:
        first, _, last = span.partition("-")
        spans[name] = slice(int(first), int(last or first) + 1 if "-" not in span or last else None)
    starts = [span.start for span in spans.values()]
    stops = [span.stop for span in spans.values()]
    assert starts == [0, *stops[:-1]]
    seal = Keyring(["k" * 32]).seal(Domain.MESSAGE, "a", "q")
    sent = Message("0123456789abcdef" * 2, 1_700_000_000_000, Envelope("t", 1, "json", b"[]"))
    raw = message.encode(sent, seal)
    assert raw[spans["magic"]] == message.MAGIC
    assert raw[spans["version"]] == message.VERSION
    assert raw[spans["algorithm"]] == b"b"
    assert raw[spans["key id"]] == seal.key_id
    assert raw[spans["id"]] == sent.id.encode()
    assert raw[spans["expires"]] == b"1700000000000"
    assert spans["tag"] == slice(message.HEADER_BYTES, message.BODY_AT)
    assert spans["envelope"] == slice(message.BODY_AT, None)


@pytest.mark.parametrize(
    "struct",
    [
        Envelope,
        outcome.Report,
        outcome.Failure,
        outcome.History,
        outcome.AttemptError,
        schedule.Definition,
        schedule.Rule,
    ],
)
def test_the_fields_of_an_array_are_in_order(struct: Any) -> None:
    [fields] = [row[1] for row in table("docs/protocol.md", "array") if row[0] == struct.__name__]
    assert codes(fields) == list(struct.__struct_fields__)


def test_the_layout_of_a_record_is_as_drawn() -> None:
    widths = [(codes(row[0])[0], int(row[1])) for row in table("docs/protocol.md", "field")]
    assert sum(width for _, width in widths) == records.HEAD_BYTES
    marks = {name: str(number % 10) * width for number, (name, width) in enumerate(widths, 1)}
    marks["state"] = "R"
    record = records.parse("".join(marks.values()).encode() + b"tail")
    assert record.letter.decode() == marks["state"]
    assert record.label.decode() == marks["mark"] + marks["expires"]
    counters = (record.attempts, record.crashes, record.claims, record.fence)
    assert counters == tuple(int(marks[one]) for one in ("attempts", "crashes", "claims", "fence"))
    assert record.worker.decode() == marks["worker"]
    assert record.seq.decode() == marks["seq"]
    assert record.tail == b"tail"


def test_every_key_is_in_the_table() -> None:
    told = {row[0]: row[1] for row in table("docs/protocol.md", "key")}
    assert keys.__doc__
    listed = dict(re.findall(r"^\| (`.*?) \| (.*?) \|", keys.__doc__, re.MULTILINE))
    assert listed.items() <= told.items()
    spelt = {
        _first(name)
        for path in (ROOT / "taskq" / "broker" / "lua").rglob("*.lua")
        for name in re.findall(r"base \.\. '([a-z][^']*)'", path.read_text(encoding="utf-8"))
    }
    assert spelt <= {_first(code) for cell in told for code in codes(cell)}


def _first(key: str) -> str:
    return key.partition(":")[0]


def test_every_script_and_word_is_in_the_table() -> None:
    rows = {codes(row[0])[0]: row[2] for row in table("docs/protocol.md", "script")}
    assert sorted(rows) == scripts.names()
    for name, words in rows.items():
        assert header_words(name) <= set(codes(words)), name


def module_map() -> list[str]:
    [drawn] = [one.text for one in blocks(ROOT / "ARCHITECTURE.md") if one.kind == "text"]
    return re.findall(r"\b(\w+)\.py\b", drawn)


def imports(path: Path) -> set[str]:
    """Return the last names of the modules of taskq that a module imports at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskq"):
            names = {alias.name for alias in node.names}
            found |= {(node.module or "").rpartition(".")[2]} | names
    return found


def test_every_module_has_its_line_on_the_map() -> None:
    modules = {path.stem for path in (ROOT / "taskq").rglob("*.py")}
    assert sorted(module_map()) == sorted(modules)


def test_modules_import_only_from_lines_above_theirs() -> None:
    order = {name: place for place, name in enumerate(module_map())}
    wrong = [
        f"{path.stem} imports {name}"
        for path in (ROOT / "taskq").rglob("*.py")
        if path.stem != "__init__"
        for name in imports(path) & order.keys()
        if order[name] >= order[path.stem]
    ]
    assert wrong == []


def test_every_dependency_has_its_reason() -> None:
    parser = metadata()
    lines = parser["options"]["install_requires"].splitlines()
    for extra in extras():
        lines += parser["options.extras_require"][extra].splitlines()
    names = {match[0] for line in lines if (match := re.match(r"[\w-]+", line))} - {"taskq-redis"}
    told = {codes(row[0])[0].partition("[")[0] for row in table("CONTRIBUTING.md", "dependency")}
    assert told == names


def celery_rows() -> list[list[str]]:
    return [
        row for rows in tables(DOCS / "celery.md") if rows[0][0] == "Celery" for row in rows[1:]
    ]


def test_states_have_their_celery_names() -> None:
    told = {
        code for row in celery_rows() for code in codes(row[1]) if code.isupper() and code.isalpha()
    }
    assert told == set(states.State)


def test_decisions_are_numbered_and_complete() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(path.name[:3]) for path in pages] == list(range(1, len(pages) + 1))
    for path in pages:
        headings = re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Problem", "Options", "Choice", "Cost"], path.name
