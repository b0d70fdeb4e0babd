"""A URL taken apart: where Redis is, what may be shown of it, and who is asked for the way.

What is wrong with a URL is a `ConfigError`, in which nothing of it stands that may be a
password.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import msgspec

from taskq.broker.guides import ASK_SECONDS, Address, Guide, Sentinels, Slots
from taskq.errors import ConfigError

SCHEMES = (
    "redis", "rediss", "unix", "memory", "embedded", "redis+sentinel", "redis+cluster",
    "rediss+sentinel", "rediss+cluster",
)  # fmt: skip
_PORT, _SENTINEL_PORT = 6379, 26379
_UNREADABLE = (
    "url: host and port cannot be read; in a password, write / # ? @ and : as "
    "%2F %23 %3F %40 and %3A"
)
_TIMEOUTS = ("socket_timeout", "socket_connect_timeout")


class Place(msgspec.Struct, frozen=True):
    """What a URL says."""

    scheme: str
    # The URL without user, password and options.
    shown: str
    # Whether all of it is on this machine.
    local: bool
    # The same as one server's URL; where there is a guide, host and port are those it finds.
    plain: str
    guide: Guide | None = None

    @property
    def encrypted(self) -> bool:
        """Whether all that it leads to speaks TLS."""
        return self.scheme.startswith("rediss")

    @property
    def clustered(self) -> bool:
        """Whether each queue is on a node of its own."""
        return self.scheme.endswith("+cluster")


def read(url: str) -> Place:
    """Take a URL apart.

    Raises:
        ConfigError: it cannot be one.

    """
    parts = _split(url)
    if parts.scheme not in SCHEMES:
        known = ", ".join(scheme + "://" for scheme in SCHEMES)
        # Not the rest of it: a password may stand there.
        msg = f"url begins with {parts.scheme!r}, and must begin with one of {known}"
        raise ConfigError(msg)
    _check_host_was_found(parts)
    if parts.scheme.endswith("+sentinel"):
        return _sentinels(parts)
    if parts.scheme.endswith("+cluster"):
        return _cluster(parts)
    local = parts.scheme in ("unix", "memory", "embedded") or _is_local(parts.hostname)
    return Place(parts.scheme, _shown(parts), local, url)


def _sentinels(parts: SplitResult) -> Place:
    addresses = _addresses(parts, _SENTINEL_PORT)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        msg = f"url: {parts.scheme}://h1,h2,h3/<service> names the master's service after the hosts"
        raise ConfigError(msg)
    if database and not database.isdecimal():
        msg = f"url: the database after the service must be a number, not {database!r}"
        raise ConfigError(msg)
    options, rest = _asking(parts)
    options |= {"db": 0}
    shown = _shown(parts)
    guide = Sentinels(shown, addresses, unquote(service), options)
    local = all(_is_local(host) for host, _ in addresses)
    return Place(parts.scheme, shown, local, _plain(parts, addresses[0], database, rest), guide)


def _cluster(parts: SplitResult) -> Place:
    addresses = _addresses(parts, _PORT)
    if parts.path.strip("/") not in ("", "0"):
        msg = f"url: a cluster has one database, 0: {parts.scheme}://h1,h2/"
        raise ConfigError(msg)
    shown = _shown(parts)
    guide = Slots(shown, addresses, dict.fromkeys(_TIMEOUTS, ASK_SECONDS))
    local = all(_is_local(host) for host, _ in addresses)
    return Place(parts.scheme, shown, local, _plain(parts, addresses[0], "", parts.query), guide)


def _asking(parts: SplitResult) -> tuple[dict[str, Any], str]:
    """Return how sentinels are connected to, and the options that are not for them."""
    options: dict[str, Any] = {
        "username": None,
        "password": None,
        # The servers' own.
        "credential_provider": None,
        **dict.fromkeys(_TIMEOUTS, ASK_SECONDS),
    }
    rest: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ("sentinel_username", "sentinel_password"):
            options[name.removeprefix("sentinel_")] = value or None
        else:
            rest.append((name, value))
    return options, urlencode(rest)


def _plain(parts: SplitResult, address: Address, database: str, query: str) -> str:
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    scheme = parts.scheme.partition("+")[0]
    return urlunsplit((scheme, f"{user}{at}{host}:{address[1]}", f"/{database}", query, ""))


def _addresses(parts: SplitResult, port: int) -> Sequence[Address]:
    """Return the hosts of a URL that names several, each once."""
    found: dict[Address, None] = {}
    for text in parts.netloc.rpartition("@")[2].split(","):
        one = _split(f"redis://{text}")
        if not one.hostname:
            msg = f"url: {parts.scheme}:// is followed by hosts, host:port or host, with commas"
            raise ConfigError(msg)
        found[one.hostname, one.port or port] = None
    return list(found)


def _split(url: str) -> SplitResult:
    """Return the parts of a URL; its own text is told to nobody, for the password's sake."""
    scheme, _, rest = url.partition("://")
    # Several hosts are looked at each by each: together, with brackets, they are no host.
    hosts = re.split("[/?#]", rest, maxsplit=1)[0] if "+" in scheme else ""
    try:
        if hosts:
            return urlsplit(f"{scheme}://{rest.removeprefix(hosts)}")._replace(netloc=hosts)
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError(_UNREADABLE) from None
    return parts


def _check_host_was_found(parts: SplitResult) -> None:
    """Refuse a URL the password of which is taken for host and path, to be shown as those."""
    words = (parts.path, parts.fragment, parts.query.partition("=")[0])
    if any("@" in one for one in words) and (parts.scheme != "unix" or parts.netloc):
        raise ConfigError(_UNREADABLE)


def _shown(parts: SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _is_local(host: str | None) -> bool:
    if host in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
