"""The scripts as files: each loads, keeps its header's promise, and leaves no trace in Lua."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from taskq.broker import claims, commands, permissions, queries, scripts, timetable
from taskq.broker.claims import Blame, Finish, Order, Room
from taskq.broker.commands import Command
from taskq.broker.timetable import Entry, Firing, Progress
from tests.broker.drivers import Driver
from tests.broker.queues import ADD, CRAWL, LEASE_MS, MAIL, TICK_MS, Queue, order

ALL = scripts.names()
each_script = pytest.mark.parametrize("name", ALL)


def samples(queue: Queue) -> dict[str, list[Command[Any]]]:
    """Return calls of each script, as the package makes them."""
    base, worker = queue.base, queue.worker()
    field = "f" * 32 + "0000000001"
    finishes = [Finish(kind, field.encode(), b"payload", 60_000) for kind in "sfybrc"]
    one, late = queue.message(), queue.message(MAIL, name="order-42", expires_ms=1)
    later = [queue.message(task, due="+60000") for task in (ADD, MAIL)]

    def exchange(seq: int, *ends: Finish, **room: Any) -> Command[Any]:
        return claims.exchange(
            base, worker.id, b"%010d" % seq, worker.digest, LEASE_MS, ends, Room(**room)
        )

    return {
        "enqueue": [
            commands.enqueue(base, [one]),
            commands.enqueue(base, [one, late, queue.message(priority=9)]),
        ],
        "schedule": [commands.schedule(base, later[:1]), commands.schedule(base, later)],
        "reschedule": [
            commands.reschedule(base, later[0].message.id, "+5"),
            commands.reschedule(base, "f" * 32, "1"),
        ],
        "enrol": [
            claims.enrol(base, worker.id, LEASE_MS, "name", worker.digest, {}),
            claims.enrol(base, worker.id, LEASE_MS, "name", worker.digest, worker.kinds),
        ],
        "exchange": [
            exchange(1),
            exchange(2, threads=3, coroutines=2, caps={ADD: 1, CRAWL: 2}),
            exchange(3, *finishes),
            exchange(4, *finishes, threads=1, caps={ADD: 1}),
            exchange(3),
        ],
        "renew": [claims.renew(base, worker.id, LEASE_MS, worker.digest)],
        "look": [
            queries.look(base, one.message.id, None),
            queries.look(base, later[0].message.id, ADD),
        ],
        "survey": [queries.survey(base, "default")],
        "expire": [commands.expire(base, late.message.id)],
        "forget": [commands.forget(base, one.message.id)],
        "letters": [
            queries.letters(base, 60_000, 0, 10),
            queries.letters(base, 60_000, 0, 10, b"f" * 32),
        ],
        "revive": [commands.revive(base, b"f" * 32, b"1", ADD, queue.message().raw)],
        "discard": [
            commands.discard(base, 0),
            commands.discard(base, 0, ADD),
            commands.discard(base, 0, ids=[b"f" * 32, b"e" * 32]),
        ],
        "cancel": [
            commands.cancel(base, one.message.id, order("reason")),
            commands.cancel(base, "f" * 32, order(terminate=True)),
        ],
        "orders": [claims.orders(base, worker.id)],
        "wake": [claims.wake(base, "a child")],
        "disobey": [claims.disobey(base, worker.id, [Order(b"f" * 42, order())])],
        "purge": [commands.purge(base, "reason"), commands.purge(base, "reason", ADD)],
        "reclaim": [
            claims.reclaim(base, LEASE_MS, TICK_MS),
            claims.reclaim(base, LEASE_MS, TICK_MS, worker.id),
            claims.reclaim(base, LEASE_MS, TICK_MS, members=[worker.id, b"another"]),
            claims.reclaim(
                base, LEASE_MS, TICK_MS, worker.id, "d", [Blame("k", b"f", 3, "why")] * 2
            ),
        ],
        "widen": [commands.widen(base, 1), commands.widen(base, 8)],
        "release": [claims.release(base, worker.id, [field.encode()] * 2)],
    } | schedule_samples(queue)


def schedule_samples(queue: Queue) -> dict[str, list[Command[Any]]]:
    """Return calls of the scripts that keep schedules."""
    base = queue.base
    progress = Progress(b"0" * 16, 1000, 0, 0, timetable.NO_ID, 0, 0, 0)
    firing = Firing("a", b"", 2000, 2000, [])
    messages = [(1000, queue.message()), (2000, queue.message())]
    return {
        "plan": [
            timetable.plan(base, "s", b"definition", (1000, 1000), known=None, declared=0),
            timetable.plan(base, "t", b"definition", (0, 0), known=progress, declared=60_000),
        ],
        "plans": [timetable.plans(base), timetable.plans(base, names=["s", "t"])],
        "agenda": [
            timetable.agenda(base, declared=0),
            timetable.agenda(base, declared=60_000, skipped=[b"x", b"y"], names=["s", "z"]),
        ],
        "fire": [
            timetable.fire(base, "s", progress, firing),
            timetable.fire(base, "s", progress, msgspec.structs.replace(firing, messages=messages)),
        ],
        "trigger": [timetable.trigger(base, "s", b"0" * 16, 1000, queue.message())],
        "suspend": [timetable.suspend(base, "s", "a note")],
        "resume": [timetable.resume(base, "s", b"0" * 16, (1000, 1000))],
        "distrust": [timetable.distrust(base, [Entry(b"s", b"definition", None)] * 2)],
        "unplan": [timetable.unplan(base, "s"), timetable.unplan(base, "t", b"definition")],
    }


def test_each_script_is_called_here(queue: Queue) -> None:
    assert sorted(samples(queue)) == ALL


@each_script
def test_its_arguments_are_as_its_header_says(queue: Queue, name: str) -> None:
    grammar = Grammar(header(name, "ARGV"))
    for command in samples(queue)[name]:
        assert command.script.name == name
        grammar.check(list(command.arguments))


@each_script
def test_where_it_publishes_its_caller_says_by_which_word(queue: Queue, name: str) -> None:
    """In a cluster that is another one."""
    publishes = "PUBLISH" in permissions.commands_of(name)
    for command in samples(queue)[name]:
        assert (command.publish_at is not None) == publishes
        if command.publish_at is not None:
            told = command.publishing("SPUBLISH")
            assert command.arguments[command.publish_at] == commands.PUBLISH
            assert told.arguments[command.publish_at] == "SPUBLISH"
            assert [one for one in told.arguments if one == commands.PUBLISH] == []


@each_script
def test_its_one_key_is_the_base(name: str) -> None:
    """All other keys are made from it, so they share its hash tag."""
    assert header(name, "KEYS") == "base"
    text = "".join(code_of(name))
    assert set(re.findall(r"KEYS\[(.*?)\]", text)) == {"1"}


def test_replies_are_as_the_headers_say(driver: Driver, queue: Queue) -> None:
    for name, calls in samples(queue).items():
        for command in calls:
            raw = msgspec.structs.replace(command, read=lambda reply: reply)
            promise = header(name, "Returns", whole=True)
            check_reply(promise, driver.run(raw))


def test_the_second_round_finds_lua_as_the_first_left_it(driver: Driver, queue: Queue) -> None:
    """A global would be there still, or would break all that comes after."""
    for _ in range(2):
        for calls in samples(queue).values():
            for command in calls:
                driver.run(command)


@each_script
def test_it_writes_no_data_by_a_format(name: str) -> None:
    """Lua 5.1 ends a string at its first zero byte there, and numbers come out as 1.7e+15."""
    for line in code_of(name):
        assert "%s" not in line
        assert "tostring" not in line


@each_script
def test_it_names_the_pieces_it_needs_and_no_others(name: str) -> None:
    """A piece that is missing shows as a global."""
    own = scripts.source(name)
    assert re.search(r"^-- use: ", own, re.MULTILINE)
    lists = re.findall(r"^-- (?:use|seldom): (.*)$", own, re.MULTILINE)
    for piece in re.findall(r"^-- here: (\w+)$", own, re.MULTILINE):
        own += scripts.source(f"lib/{piece}")
    for pieces in map(str.split, lists):
        for piece in pieces:
            others = [scripts.source(f"lib/{one}") for one in pieces if one != piece]
            text = "".join([own, *others])
            made = definitions(scripts.source(f"lib/{piece}"))
            assert any(re.search(rf"\b{word}\b", text) for word in made), f"{piece} is not used"


@each_script
def test_it_makes_no_function_that_it_does_not_call(name: str) -> None:
    """One too many costs time in each call."""
    text = "\n".join(code_of(name))
    for word in re.findall(r"^local function (\w+)", text, re.MULTILINE):
        assert len(re.findall(rf"\b{word}\b", text)) > 1, f"{word} is not used"


@each_script
def test_it_is_the_same_each_time(name: str) -> None:
    assert scripts.load(name) is scripts.load(name)
    assert len(scripts.load(name).sha) == 40


def test_a_script_that_redis_forgot_is_loaded_again(driver: Driver, queue: Queue) -> None:
    one = queue.message()
    assert queue.enqueue(one) == "o"
    driver.call("SCRIPT", "FLUSH")
    assert queue.enqueue(one) == "d"
    driver.call("SCRIPT", "FLUSH")
    many = [commands.enqueue(queue.base, [one]), queries.survey(queue.base, "default")]
    replies = driver.run_many(many)
    assert replies[0] == "d"
    assert replies[1].tasks[ADD].queued == 1


class Grammar:
    """The ARGV line of a header: words, `(group)*` for any number, `(group)*word` for so many."""

    def __init__(self, text: str) -> None:
        self._tokens = re.findall(r"\w+|\(|\)\*\w*", text)
        self._tree = self._parse()

    def check(self, arguments: Sequence[Any]) -> None:
        """Fail unless the arguments fit, to the last one."""
        left = self._match(self._tree, list(arguments), {})
        assert left == [], f"{len(left)} arguments too many"

    def _parse(self) -> list[Any]:
        found: list[Any] = []
        while self._tokens:
            token = self._tokens.pop(0)
            if token == "(":
                found.append(self._parse())
            elif token.startswith(")"):
                return [token[2:], *found]
            else:
                found.append(token)
        return found

    def _match(self, tree: list[Any], left: list[Any], seen: dict[str, Any]) -> list[Any]:
        for part in tree:
            if isinstance(part, str):
                assert left, f"no argument is left for {part!r}"
                seen[part] = left.pop(0)
            else:
                times, *group = part
                count = int(seen[times]) if times else -1
                while count > 0 or (count < 0 and left):
                    left = self._match(group, left, seen)
                    count -= 1
        return left


def header(name: str, word: str, *, whole: bool = False) -> str:
    """Return what follows a word of a script's header, up to the explanation."""
    found = re.search(rf"^-- {word}\b *(.*)$", scripts.source(name), re.MULTILINE)
    assert found is not None
    return found.group(1) if whole else re.split(r" {3,}", found.group(1))[0].strip()


def definitions(text: str) -> list[str]:
    return re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE)


def code_of(name: str) -> list[str]:
    return [line.partition("--")[0] for line in scripts.load(name).text.splitlines()]


def check_reply(promise: str, reply: Any) -> None:
    """Fail unless a reply has the promised shape, and says one of the promised words."""
    shape, _, words = promise.partition("    ")
    named = set(re.findall(r"'(\w+)'", shape))
    if not shape.startswith("{"):
        if "one letter a message" in shape:
            assert set(reply.decode()) <= set(re.findall(r"'(\w)'", shape))
        else:
            assert reply.decode() in named
        return
    inside = shape[1 : shape.index("}")]
    fixed, _, repeated = inside.partition("(")
    count = len(fixed.split())
    if repeated:
        assert len(reply) >= count
        assert (len(reply) - count) % len(repeated.rstrip(")*").split()) == 0
    else:
        assert len(reply) == count
    for at, word in enumerate(fixed.split()):
        told = re.search(rf"{word}: ((?:'\w+'(?: \| )?)+)", words)
        if told:
            assert reply[at].decode() in {*re.findall(r"'(\w+)'", told.group(1)), ""}
