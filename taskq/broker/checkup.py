"""What can be wrong with an app's Redis and keys, told as findings, each with its mend.

It reads and changes nothing. What Redis does not let this user ask is `UNKNOWN`, no error:
managed servers forbid CONFIG, and often INFO.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qs

from redis.exceptions import NoPermissionError

from taskq.broker import keys, layout, permissions
from taskq.broker.access import Access
from taskq.broker.connection import Endpoint
from taskq.broker.guides import Misplaced
from taskq.broker.layout import Finding, Level
from taskq.broker.line import Line
from taskq.errors import BrokerError, BrokerUnavailable
from taskq.model import clock

OLDEST = (6, 2)
# `eta` and `expires` are instants by the caller's clock, held against Redis's.
MOST_SKEW_SECONDS = 2.0
_FULL_SHARE = 0.9
_MOST_ARGUMENTS = 6
_MEND_URL = "mend host, port, user and password in TASKQ_URL or url="


def examine(
    app: str, queue: str, access: Access, *, allow_eviction: bool, replicas: int = 0
) -> list[Finding]:
    """Look at everything; `replicas`: so many must have a message before its call returns."""
    if access.endpoint.memory:
        return [*standing(access), Finding(Level.OK, "server", "memory:// has none")]
    endpoint = access.endpoint
    inquiry = endpoint.inquire()
    line = Line(endpoint)
    online = _followers(line) if inquiry and not endpoint.clustered else None
    line.close()
    findings = [*standing(access), *layout.look(endpoint, inquiry, online)]
    for node in layout.nodes(endpoint, inquiry):
        line = Line(node)
        findings += _server(line, node, allow_eviction=allow_eviction, brief=False)
        if replicas:
            findings.append(_durability(line, replicas))
        line.close()
    line = Line(endpoint.at(keys.base(app, queue)))
    try:
        return [*findings, *_rights(line, app, queue)]
    finally:
        line.close()


def standing(access: Access) -> list[Finding]:
    """Look at the keys and at the way to Redis; ask Redis nothing."""
    return [_signing(access), _transport(access.endpoint)]


def glance(endpoint: Endpoint, *, allow_eviction: bool) -> list[Finding]:
    """Look at what a worker must know of its Redis; with INFO and TIME alone.

    Of a cluster it looks at each node that is there.

    Raises:
        BrokerUnavailable: Redis is away at the moment.

    """
    if not endpoint.clustered:
        return _glance(endpoint, allow_eviction=allow_eviction)
    inquiry = endpoint.inquire()
    findings, away = layout.look(endpoint, inquiry), 0
    nodes = layout.nodes(endpoint, inquiry)
    for node in nodes:
        try:
            findings += _glance(node, allow_eviction=allow_eviction)
        except BrokerUnavailable:
            away += 1
            if away == len(nodes):
                raise
    return findings


def _glance(endpoint: Endpoint, *, allow_eviction: bool) -> list[Finding]:
    line = Line(endpoint)
    try:
        line.call("TIME")
        return list(_server(line, endpoint, allow_eviction=allow_eviction, brief=True))
    except BrokerUnavailable:
        raise
    except Misplaced as error:
        return [Finding(Level.ERROR, "server", str(error), _MEND_URL)]
    except BrokerError as error:
        return [Finding(Level.UNKNOWN, "server", str(error), "`taskq doctor` tells more")]
    finally:
        line.close()


def worst(findings: Iterable[Finding]) -> Level:
    """Return the highest level among them."""
    order = list(Level)
    return max((one.level for one in findings), key=order.index, default=Level.OK)


def _signing(access: Access) -> Finding:
    if access.keys_from == "nowhere":
        text = "nothing is signed (insecure_unsigned): whoever writes to Redis runs code here"
        fix = "set what `taskq secret` prints as TASKQ_SECRET, and drop insecure_unsigned"
        return Finding(Level.WARNING, "signing key", text, fix)
    # It names the keys by their ids.
    return Finding(Level.OK, "signing key", f"from {access.keys_from}: {access.keyring!r}")


def _transport(endpoint: Endpoint) -> Finding:
    if endpoint.encrypted:
        options = parse_qs(endpoint.url.partition("?")[2])
        unchecked = {"none", "optional"} & {one.lower() for one in options.get("ssl_cert_reqs", ())}
        if unchecked or options.get("ssl_check_hostname", ["true"])[0].lower() in ("false", "0"):
            fix = (
                "take ssl_cert_reqs and ssl_check_hostname out of the URL; ssl_ca_certs= names a CA"
            )
            return Finding(Level.WARNING, "transport", "TLS, but not verified by the URL", fix)
        return Finding(Level.OK, "transport", "TLS, verified")
    if endpoint.local:
        return Finding(Level.OK, "transport", "does not leave this machine")
    text = f"password and messages travel in clear to {endpoint.place}"
    return Finding(Level.WARNING, "transport", text, "begin the URL with rediss")


def _server(
    line: Line, endpoint: Endpoint, *, allow_eviction: bool, brief: bool
) -> Iterator[Finding]:
    """Look at the server; one that cannot be reached is the only finding then."""
    asked = clock.now_ms()
    try:
        seconds, micros = map(int, line.call("TIME"))
    except BrokerError as error:
        yield Finding(
            Level.ERROR, "server", f"cannot be used: {error}", f"start it, or {_MEND_URL}"
        )
        return
    skew = (seconds * 1000 + micros / 1000 - (asked + clock.now_ms()) / 2) / 1000
    info = _info(line)
    if info is None:
        text = "its version and policies are not known: INFO is not permitted"
        yield Finding(Level.UNKNOWN, "server", text, "allow +info, or ask whoever runs it")
    else:
        yield _version(info, endpoint)
        yield from _role(info)
    config = {} if brief else _config(line)
    yield _eviction(info, config, allow_eviction=allow_eviction)
    if info is not None:
        yield from _room(info)
    yield _persistence(info, config)
    yield _clocks(skew)


def _info(line: Line) -> dict[str, str] | None:
    """Return what INFO says, or None where it is not permitted."""
    try:
        raw: bytes = line.call("INFO")
    except BrokerUnavailable:
        raise
    except BrokerError:
        return None
    pairs = (text.partition(":") for text in raw.decode(errors="replace").splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def _config(line: Line) -> dict[str, str]:
    """Return the settings that INFO does not tell; nothing where CONFIG is not permitted."""
    found: dict[str, str] = {}
    for name in ("maxmemory-policy", "appendonly", "appendfsync", "save"):
        try:
            reply: list[bytes] = line.call("CONFIG", "GET", name)
        except BrokerUnavailable:
            raise
        except BrokerError:
            return {}
        if len(reply) == 2:
            found[name] = reply[1].decode(errors="replace")
    return found


def _version(info: dict[str, str], endpoint: Endpoint) -> Finding:
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    shown = info.get("valkey_version" if name == "Valkey" else "redis_version", "?")
    text = f"{name} {shown} at {endpoint.place}"
    digits = re.match(r"(\d+)\.(\d+)", info.get("redis_version", ""))
    if digits is None:
        return Finding(Level.UNKNOWN, "server", f"{text}: the version cannot be read")
    if (int(digits[1]), int(digits[2])) < OLDEST:
        fix = "use Redis 6.2 or newer, or Valkey"
        return Finding(Level.ERROR, "server", f"{text} is too old", fix)
    if info.get("cluster_enabled") == "1" and not endpoint.clustered:
        fix = "begin the URL with redis+cluster://"
        return Finding(Level.ERROR, "server", f"{text} is a node of a cluster", fix)
    return Finding(Level.OK, "server", text)


def _role(info: dict[str, str]) -> Iterator[Finding]:
    if info.get("role") in ("slave", "replica"):
        text = "this server is a replica, and takes no writes"
        yield Finding(Level.ERROR, "role", text, "name its primary in TASKQ_URL or url=")


def _eviction(
    info: dict[str, str] | None, config: dict[str, str], *, allow_eviction: bool
) -> Finding:
    policy = config.get("maxmemory-policy") or (info or {}).get("maxmemory_policy")
    fix = "CONFIG SET maxmemory-policy noeviction, and in the server's settings"
    if policy is None:
        return Finding(
            Level.UNKNOWN, "eviction", "INFO and CONFIG are not permitted", f"see to it: {fix}"
        )
    if policy.startswith("allkeys"):
        text = f"maxmemory-policy {policy} lets Redis throw messages away"
        if allow_eviction:
            return Finding(Level.WARNING, "eviction", f"{text}; allow_eviction is set", fix)
        instead = "allow_eviction=True or TASKQ_ALLOW_EVICTION=1 starts workers all the same"
        return Finding(Level.ERROR, "eviction", text, f"{fix}; {instead}")
    if policy.startswith("volatile"):
        text = f"maxmemory-policy {policy} lets Redis throw outcomes and dead letters away"
        return Finding(Level.WARNING, "eviction", text, fix)
    return Finding(Level.OK, "eviction", f"maxmemory-policy {policy}")


def _room(info: dict[str, str]) -> Iterator[Finding]:
    limit, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    if limit and used > _FULL_SHARE * limit:
        text = f"{used} of {limit} bytes are in use: soon `.delay()` raises BrokerFull"
        yield Finding(Level.WARNING, "memory", text, "start workers, or raise maxmemory")


def _persistence(info: dict[str, str] | None, config: dict[str, str]) -> Finding:
    on = config.get("appendonly") or {"1": "yes", "0": "no"}.get(
        (info or {}).get("aof_enabled", "")
    )
    fix = "CONFIG SET appendonly yes, and in the server's settings"
    if on is None:
        text = "not known: INFO and CONFIG are not permitted"
        return Finding(Level.UNKNOWN, "persistence", text, f"see to it: {fix}")
    if on != "yes":
        snapshots = config.get("save")
        lost = "what came since the last snapshot" if snapshots else "every message"
        # Without CONFIG nobody knows of snapshots.
        lost = lost if "save" in config else "messages"
        text = f"appendonly no: a restart of Redis loses {lost}"
        return Finding(Level.WARNING, "persistence", text, fix)
    if info and info.get("aof_last_write_status", "ok") != "ok":
        text = "the append-only file cannot be written"
        return Finding(Level.ERROR, "persistence", text, "see the server's log: is its disk full?")
    how = config.get("appendfsync")
    if how == "no":
        text = "appendonly yes, appendfsync no: a power loss can cost many seconds"
        return Finding(Level.WARNING, "persistence", text, "CONFIG SET appendfsync everysec")
    known = f", appendfsync {how}" if how else "; appendfsync is not known without CONFIG"
    cost = ": a power loss can cost the last second" if how == "everysec" else ""
    return Finding(Level.OK, "persistence", f"appendonly yes{known}{cost}")


def _durability(line: Line, asked: int) -> Finding:
    """Count the replicas that follow a master; calls wait for so many of them."""
    wish = f"calls wait for {asked} replicas of {line.endpoint.place}"
    count = _followers(line)
    if count is None:
        text = f"{wish}; how many there are is not known: INFO is not permitted"
        return Finding(Level.UNKNOWN, "durability", text)
    if count < asked:
        fix = "start replicas, or ask for fewer by TASKQ_DURABILITY or durability="
        text = f"{wish}, which has {count}: each call raises EnqueueUncertain"
        return Finding(Level.ERROR, "durability", text, fix)
    text = f"{wish}, which has {count}"
    if count > asked:
        text += ": a failover that chooses another one of them may lose what was accepted"
    return Finding(Level.OK, "durability", text)


def _followers(line: Line) -> int | None:
    """Return how many replicas follow a master, or None where it does not tell."""
    try:
        info = _info(line)
    except BrokerUnavailable:
        info = None
    if info is None:
        return None
    slaves = [value for name, value in info.items() if re.fullmatch(r"slave\d+", name)]
    return sum("state=online" in one for one in slaves)


def _clocks(skew: float) -> Finding:
    if abs(skew) > MOST_SKEW_SECONDS:
        where = "ahead of" if skew > 0 else "behind"
        text = f"Redis's clock is {abs(skew):.1f} s {where} this machine's: eta and expires are off"
        return Finding(Level.WARNING, "clock", text, "run NTP on both machines")
    return Finding(Level.OK, "clock", f"{abs(skew) * 1000:.0f} ms apart")


def _rights(line: Line, app: str, queue: str) -> Iterator[Finding]:
    """Ask for each command inside a MULTI that is thrown away: nothing is run."""
    try:
        line.call("PING")
        user = _word(line, "ACL", "WHOAMI") or "this user"
        line.call("MULTI")
    except BrokerUnavailable:
        return  # told already
    except BrokerError:
        fix = "compare with what `taskq acl` prints"
        yield Finding(Level.UNKNOWN, "rights", "this user may not ask (MULTI)", fix)
        return
    key, refused = f"{keys.base(app, queue)}doctor", list[str]()
    try:
        for command in sorted(permissions.commands("worker", clustered=line.endpoint.clustered)):
            # Not allowed inside a MULTI by some servers, whoever asks.
            if command not in permissions.ALONE and not _may(line, command, key):
                refused.append(command.lower())
    except BrokerUnavailable as error:  # a replica: it takes no writes, whoever asks
        yield Finding(Level.UNKNOWN, "rights", f"cannot be asked for: {error}", "see above")
        return
    finally:
        line.close()
    if refused:
        text = f"{user} may not {', '.join(refused)} on {keys.base(app, queue)}*"
        yield Finding(Level.ERROR, "rights", text, "set the user as `taskq acl` prints it")
    else:
        yield Finding(Level.OK, "rights", f"{user} may do what a worker does")


def _word(line: Line, *command: str) -> str | None:
    try:
        reply: bytes = line.call(*command)
    except BrokerUnavailable:
        raise
    except BrokerError:
        return None
    return reply.decode(errors="replace")


def _may(line: Line, command: str, key: str) -> bool:
    """Return whether a command would be queued; the number of its arguments is found."""
    words = ["0"] * 2 if command.startswith("EVAL") else [key]
    while len(words) < _MOST_ARGUMENTS:
        try:
            line.call(command, *words)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            if isinstance(error.__cause__, NoPermissionError):
                return False
            if "wrong number of arguments" not in str(error):
                return True
            words.append(key)
        else:
            return True
    return True
