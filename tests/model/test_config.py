"""Each setting once: where it is read, what it may be, and what is said of a wrong one."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import typing
import warnings
from typing import Any

import pytest

from taskq import config
from taskq.config import Config, Settings, check_name, nearest, seconds
from taskq.errors import ConfigError

SECRET, OTHER = "one-secret-of-the-tests-long-enough", "the-other-secret-which-is-long-as-well"
FIELDS = [field.name for field in dataclasses.fields(Config)]

# For each setting: good values as keyword and variable, and what they become; wrong ones.
GOOD: dict[str, list[tuple[Any, str, Any]]] = {
    "url": [("redis://x", "redis://x", "redis://x")],
    "secret": [
        (SECRET, SECRET, (SECRET,)),
        (f"{SECRET}, {OTHER}", f"{SECRET},{OTHER}", (SECRET, OTHER)),
    ],
    "insecure_unsigned": [(True, "yes", True), (False, "0", False), (True, "TRUE", True)],
    "allow_eviction": [(True, "1", True), (False, "no", False)],
    "serializer": [("json", "json", "json")],
    "log_errors": [("text", "text", "text")],
    "default_queue": [("low", "low", "low")],
    "result_ttl": [(5, "5", 5.0), (dt.timedelta(minutes=1), "60.0", 60.0)],
    "failure_ttl": [(5.5, "5.5", 5.5)],
    "dead_letters": [(0, "0", 0), (500, "500", 500)],
    "dead_letter_age": [(dt.timedelta(days=1), "86400", 86_400.0)],
    "max_message_bytes": [(2048, "2048", 2048)],
    "max_result_bytes": [(2048, "2048", 2048)],
    "enqueue_deadline": [(0.5, "0.5", 0.5)],
    "durability": [("replicas:2", "replicas:2", "replicas:2")],
    "lease": [(2, "2", 2.0)],
    "max_crashes": [(5, "5", 5)],
    "shutdown_timeout": [(0, "0", 0.0)],
    "processes": [(3, "3", 3)],
    "threads": [(0, "0", 0)],
    "coroutines": [(7, " 7", 7)],
    "state_dir": [("/x", "/x", "/x")],
    "redis_server": [("/x", "/x", "/x")],
}  # fmt: skip
NO_DURATION = [-1, "x", "nan", math.inf, True, None, [], "1h"]
NO_COUNT = [-1, "x", 1.5, "1.5", True, None, 10**9]
NO_TEXT = [5, b"x", ["x"]]
WRONG: dict[str, list[Any]] = {
    "url": NO_TEXT,
    "secret": [*NO_TEXT, "short", f"{SECRET},short", f"{SECRET},"],
    "insecure_unsigned": ["maybe", 2, None, ""],
    "allow_eviction": ["allkeys-lru", 1, None],
    "serializer": ["yaml", None, 5, ["json"]],
    "log_errors": ["all", "", None, 1],
    "default_queue": ["", "a b", "a{b}", "x" * 129, 5, None],
    "result_ttl": NO_DURATION,
    "failure_ttl": NO_DURATION,
    "dead_letters": NO_COUNT,
    "dead_letter_age": [*NO_DURATION, 59],
    "max_message_bytes": [*NO_COUNT, 100],
    "max_result_bytes": [*NO_COUNT, 100],
    "enqueue_deadline": [*NO_DURATION, 0],
    "durability": [
        2,
        None,
        "",
        "2",
        "replicas",
        "replicas:",
        "replicas:-1",
        "replicas:1 ",
        "replicas:²",
        "replicas:100",
        "quorum:2",
        "REPLICAS:1",
    ],
    "lease": [*NO_DURATION, 0.1],
    "max_crashes": [*NO_COUNT, 0, 101],
    "shutdown_timeout": NO_DURATION,
    "processes": [*NO_COUNT, 0],
    "threads": NO_COUNT,
    "coroutines": NO_COUNT,
    "state_dir": NO_TEXT,
    "redis_server": NO_TEXT,
}


def pairs(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, case) for name, cases in table.items() for case in cases]


def variable(name: str) -> str:
    return f"TASKQ_{name.upper()}"


def short(value: object) -> str:
    return repr(value)[:12]


class TestPrecedence:
    def test_a_keyword_beats_the_variable_which_beats_the_default(self) -> None:
        environ = {"TASKQ_THREADS": "3"}
        assert Config.load({}, {}).threads == 8
        assert Config.load({}, environ).threads == 3
        assert Config.load({"threads": 5}, environ).threads == 5

    def test_an_empty_variable_is_none(self) -> None:
        assert Config.load({}, {"TASKQ_THREADS": "", "TASKQ_URL": ""}) == Config.load({}, {})

    def test_a_variable_that_is_beaten_is_not_even_read(self) -> None:
        assert Config.load({"threads": 5}, {"TASKQ_THREADS": "nonsense"}).threads == 5

    def test_the_defaults_are_those_of_the_documentation(self) -> None:
        found = Config.load({}, {})
        assert (found.default_queue, found.serializer) == ("default", "pickle")
        assert (found.result_ttl, found.failure_ttl) == (3600, 86_400)
        assert (found.max_message_bytes, found.max_result_bytes) == (1 << 20, 16 << 20)
        assert (found.enqueue_deadline, found.lease, found.shutdown_timeout) == (10, 15, 25)
        assert (found.threads, found.coroutines) == (8, 100)
        assert found.processes == config.usable_cpus() >= 1
        assert (found.url, found.secret, found.insecure_unsigned) == (None, (), False)

    def test_defaults_would_pass_their_own_checks(self) -> None:
        for field in dataclasses.fields(Config):
            value = getattr(Config.load({}, {}), field.name)
            if field.name != "secret":
                assert Config.load({field.name: value}, {}) == Config.load({}, {})


class TestValues:
    @pytest.mark.parametrize(("name", "case"), pairs(GOOD), ids=short)
    def test_a_good_one_is_taken_from_both(self, name: str, case: tuple[Any, str, Any]) -> None:
        keyword, text, value = case
        for found in (Config.load({name: keyword}, {}), Config.load({}, {variable(name): text})):
            assert getattr(found, name) == value
            assert type(getattr(found, name)) is type(value)

    @pytest.mark.parametrize(("name", "value"), pairs(WRONG), ids=short)
    def test_a_wrong_one_is_named(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=name) as raised:
            Config.load({name: value}, {})
        assert SECRET not in str(raised.value)

    @pytest.mark.parametrize(
        ("name", "text"),
        [(name, value) for name, value in pairs(WRONG) if isinstance(value, str) and value],
        ids=short,
    )
    def test_a_wrong_variable_is_named_as_one(self, name: str, text: str) -> None:
        with pytest.raises(ConfigError, match=variable(name)):
            Config.load({}, {variable(name): text})

    def test_every_setting_has_its_cases_here(self) -> None:
        assert list(GOOD) == FIELDS
        assert list(WRONG) == FIELDS


class TestNames:
    def test_the_typed_keywords_are_the_fields(self) -> None:
        assert list(typing.get_type_hints(Settings)) == FIELDS

    def test_none_is_allowed_where_it_is_the_default(self) -> None:
        hints = typing.get_type_hints(Settings)
        for name in FIELDS:
            takes_none = type(None) in typing.get_args(hints[name])
            is_text = name in ("url", "secret", "state_dir", "redis_server")
            assert takes_none is is_text
            if takes_none:
                assert Config.load({name: None}, {}) == Config.load({}, {})

    @pytest.mark.parametrize(
        ("wrong", "right"), [("thread", "threads"), ("secrets", "secret"), ("URL", None)]
    )
    def test_an_unknown_keyword_names_the_nearest(self, wrong: str, right: str | None) -> None:
        hint = f"did you mean '{right}'" if right else f"unknown setting '{wrong}'$"
        with pytest.raises(ConfigError, match=hint):
            Config.load({wrong: 1}, {})

    def test_an_unknown_variable_warns_and_names_the_nearest(self) -> None:
        with pytest.warns(UserWarning, match=r"TASKQ_THREAD; did you mean 'TASKQ_THREADS'\?"):
            Config.load({}, {"TASKQ_THREAD": "3"})

    def test_its_value_is_not_shown(self) -> None:
        with pytest.warns(UserWarning, match="TASKQ_SECRETS") as caught:
            Config.load({}, {"TASKQ_SECRETS": SECRET})
        assert SECRET not in str(caught[0].message)

    def test_other_programs_variables_are_no_concern(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Config.load({}, {"PATH": "/bin", "TASKQX": "1", "taskq_threads": "1", "TASKQ_APP": "x"})

    def test_nothing_near_is_not_named(self) -> None:
        assert nearest("zzz", {"threads"}) == ""


class TestSecret:
    def test_is_never_shown(self) -> None:
        found = Config.load({"secret": SECRET}, {})
        assert SECRET not in repr(found)
        assert SECRET not in str(found)

    def test_a_short_one_is_refused_unseen(self) -> None:
        for text in ("hunter2", f"{SECRET},hunter2"):
            with pytest.raises(
                ConfigError, match=r"secret: .*32 characters.*`taskq secret`"
            ) as raised:
                Config.load({"secret": text}, {})
            assert "hunter2" not in str(raised.value)

    def test_thirty_two_characters_will_do(self) -> None:
        assert Config.load({"secret": "x" * 32}, {}).secret == ("x" * 32,)
        with pytest.raises(ConfigError):
            Config.load({"secret": "x" * 31}, {})


class TestSeconds:
    @pytest.mark.parametrize(
        ("value", "expected"), [(5, 5.0), (0.5, 0.5), (0, 0.0), (dt.timedelta(hours=1), 3600.0)]
    )
    def test_a_duration(self, value: Any, expected: float) -> None:
        found = seconds("wait", value)
        assert (found, type(found)) == (expected, float)

    @pytest.mark.parametrize("value", ["5", None, True, [], 5j])
    def test_another_type(self, value: Any) -> None:
        with pytest.raises(TypeError, match="wait must be seconds or a timedelta"):
            seconds("wait", value)

    @pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, dt.timedelta(-1)])
    def test_no_duration(self, value: Any) -> None:
        with pytest.raises(ValueError, match="wait must be a finite number"):
            seconds("wait", value)

    def test_a_least_value(self) -> None:
        assert seconds("wait", 2, minimum=2) == 2
        with pytest.raises(ValueError, match=">= 2"):
            seconds("wait", 1.9, minimum=2)


class TestCheckName:
    @pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 128, "..", "-"])
    def test_a_name(self, name: str) -> None:
        assert check_name("queue", name) == name

    @pytest.mark.parametrize(
        "name", ["", "x" * 129, "a b", "a:b", "a{b", "a}b", "ä", "a\n", "a/b", "a@b", "a*"]
    )
    def test_what_could_break_a_key_is_none(self, name: str) -> None:
        with pytest.raises(ConfigError, match="queue name"):
            check_name("queue", name)

    @pytest.mark.parametrize("name", [None, 5, b"x"])
    def test_another_type(self, name: Any) -> None:
        with pytest.raises(TypeError, match="queue name must be a str"):
            check_name("queue", name)


def test_a_config_cannot_be_changed() -> None:
    found = Config.load({}, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.threads = 5  # type: ignore[misc]


class Word(str, enum.Enum):  # noqa: UP042 - its text is not its value
    JSON = "json"
    TEXT = "text"
    MAIL = "mail"
    TWO = "replicas:2"


def test_what_is_one_of_several_words_may_be_that_of_an_enum() -> None:
    words = {"serializer": Word.JSON, "log_errors": Word.TEXT, "default_queue": Word.MAIL}
    found = Config.load({**words, "durability": Word.TWO}, {})
    told = [str(getattr(found, name)) for name in words]
    assert told == ["json", "text", "mail"]
    assert config.replicas(found.durability) == 2
