"""To which of the messages that ran a death is charged."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from taskq.worker import memory
from taskq.worker.blame import Cause, Death, charges, named_thread, title
from taskq.worker.board import CLAIMED, ENDED, STARTED, Entry

NOW = 100.0
DUMP = """Fatal Python error: Segmentation fault

Current thread 0x00007f3a2b7fe640 [taskq-slot-2] (most recent call first):
  File "x.py", line 1 in f

Thread 0x00007f3a2bfff640 (most recent call first):
"""


def entry(id: str, state: int = STARTED, *, thread: int = 1, deadline: float = math.inf) -> Entry:
    return Entry(state, 0, 0, thread, 50.0, deadline, 49.0, 1, id * 32)


def charged(entries: list[Entry], cause: Cause = Cause.CRASH, thread: int | None = None) -> str:
    """Return a letter for each entry, `-` where it is not concerned."""
    found = charges(entries, Death(cause, "by SIGKILL", NOW, thread))
    letters = {charge.entry.id: charge.letter for charge in found}
    return "".join(letters.get(one.id, "-") for one in entries)


def test_the_only_one_that_ran_is_the_culprit() -> None:
    entries = [entry("a"), entry("b", CLAIMED), entry("c", ENDED)]
    assert charged(entries) == "k--"


def test_of_several_that_ran_any_may_be() -> None:
    assert charged([entry("a"), entry("b"), entry("c", CLAIMED)]) == "ss-"


def test_more_than_can_be_alone_at_a_time_run_again_at_once() -> None:
    assert charged([entry(id) for id in "abcd"]) == "ssss"
    assert charged([entry(id) for id in "abcde"]) == "iiiii"


def test_the_one_on_the_thread_that_died_is_the_culprit() -> None:
    entries = [entry("a", thread=1), entry("b", thread=2), entry("c", thread=3)]
    assert charged(entries, thread=2) == "iki"


def test_of_several_on_the_thread_that_died_those_may_be() -> None:
    """They are coroutines of one event loop."""
    entries = [entry("a", thread=1), entry("b", thread=2), entry("c", thread=2)]
    assert charged(entries, thread=2) == "iss"


def test_in_a_thread_that_ran_no_message_any_may_have_done_it() -> None:
    assert charged([entry("a"), entry("b")], thread=9) == "ss"


def test_who_ran_alone_beside_a_thread_that_died_is_a_suspect_at_most() -> None:
    assert charged([entry("a", thread=1)], thread=9) == "s"
    assert charged([entry("a", thread=1)], thread=1) == "k"


def test_the_one_past_its_hard_limit_is_the_culprit() -> None:
    assert charged([entry("a"), entry("b", deadline=NOW - 1)]) == "ik"


def test_a_kill_for_a_hard_limit_is_charged_to_all_that_are_past_theirs() -> None:
    entries = [
        entry("a"),
        entry("b", deadline=NOW - 1),
        entry("c", deadline=NOW - 2),
        entry("d", deadline=NOW + 1),
        entry("e", CLAIMED),
    ]
    assert charged(entries, Cause.LIMIT) == "itti-"


def test_a_death_of_our_doing_is_charged_to_nobody() -> None:
    assert charged([entry("a"), entry("b")], Cause.OURS) == "--"


def test_one_whose_code_had_not_begun_is_not_charged() -> None:
    assert charged([entry("a", thread=0), entry("b")]) == "-k"


def test_the_last_words_name_the_thread() -> None:
    assert named_thread(DUMP) == 0x00007F3A2B7FE640
    assert title(DUMP) == "Segmentation fault"
    assert (named_thread(""), title("")) == (None, "")


def test_they_are_read_as_python_writes_them() -> None:
    script = (
        "import ctypes, faulthandler, sys, threading\n"
        "faulthandler.enable(int(sys.argv[1]))\n"
        "def die():\n"
        "    print(threading.get_ident(), flush=True)\n"
        "    ctypes.string_at(0)\n"
        "threading.Thread(target=die).start()\n"
    )
    reader, writer = os.pipe()
    died = subprocess.run(
        [sys.executable, "-c", script, str(writer)],
        pass_fds=[writer],
        capture_output=True,
        check=False,
    )
    os.close(writer)
    dump = os.read(reader, 65536).decode()
    os.close(reader)
    assert died.returncode == -11
    assert named_thread(dump) == int(died.stdout)


class TestMemory:
    def test_of_this_process_is_what_it_is(self) -> None:
        before = memory.used(os.getpid())
        ballast = b"x" * (64 << 20)
        after = memory.used(os.getpid())
        assert before is not None
        assert after is not None
        assert (48 << 20) < after - before < (200 << 20)
        assert len(ballast) == 64 << 20

    def test_of_a_process_that_is_gone_is_unknown(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        assert memory.used(process.pid) is None

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("1.5 g", 3 << 29),
            ("64KiB", 65536),
            ("1MB", 1 << 20),
        ],
    )
    def test_sizes_are_read(self, text: str, size: int) -> None:
        assert memory.parse(text) == size

    @pytest.mark.parametrize("text", ["", "512", "M", "-1M", "0M", "1T", "1M2", "nan G"])
    def test_other_texts_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="512M"):
            memory.parse(text)

    def test_kills_are_counted(self) -> None:
        assert memory.kills() >= 0
