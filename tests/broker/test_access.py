"""Which keys sign: those that were set, else one that was made for this machine."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from taskq.broker.access import open_access
from taskq.config import Config
from taskq.errors import ConfigError
from taskq.model.signing import Domain, key_id

SECRETS = "one-secret-of-the-tests-long-enough,the-other-secret-which-is-long-as-well"
LOCAL, REMOTE = "redis://127.0.0.1:1", "redis://:hidden@redis.example.com"


def key_of(app: str = "shop", **settings: Any) -> bytes:
    """Return the name of the key that an app with these settings signs with."""
    keyring = open_access(app, Config.load(settings, {})).keyring
    return keyring.seal(Domain.MESSAGE, app, "default").key_id


@pytest.mark.parametrize("url", [LOCAL, REMOTE, "memory://"])
def test_a_secret_that_was_set_is_used(url: str) -> None:
    assert key_of(url=url, secret=SECRETS) == key_id(SECRETS.partition(",")[0])


def test_another_machine_wants_one() -> None:
    with pytest.raises(
        ConfigError, match=r"redis\.example\.com.*taskq secret.*TASKQ_SECRET"
    ) as raised:
        key_of(url=REMOTE)
    assert "hidden" not in str(raised.value)


def test_unless_that_was_waived() -> None:
    assert key_of(url=REMOTE, insecure_unsigned=True) == b"00000000"


@pytest.mark.parametrize("url", [LOCAL, "unix:///run/redis.sock"])
def test_on_this_machine_a_key_is_made_for_each_app(url: str, state_home: Path) -> None:
    assert key_of(url=url) == key_of(url=url) != b"00000000"
    assert key_of("other", url=url) != key_of(url=url)
    made = [path for path in state_home.rglob("*") if path.is_file() and "key" in path.name]
    assert made
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}


def test_in_memory_all_apps_share_one() -> None:
    assert key_of(url="memory://a") == key_of("other", url="memory://b") != b"00000000"
