"""What each kind of user of Redis must be allowed: minimal ACL rules.

Which commands a script runs is read from its text, and which scripts somebody runs stands
here; so a script that changes cannot leave its users behind.
"""

from __future__ import annotations

import functools
import re

from taskq.broker import keys, scripts

# Scripts and plain commands by role; a role has what the ones before it have where it says.
_SCRIPTS = {
    "producer": (
        "cancel",
        "enqueue",
        "expire",
        "forget",
        "look",
        "plan",
        "plans",
        "reschedule",
        "resume",
        "schedule",
        "survey",
        "suspend",
        "trigger",
        "unplan",
        "widen",
    ),
    "worker": (
        "agenda",
        "disobey",
        "distrust",
        "enrol",
        "exchange",
        "fire",
        "orders",
        "reclaim",
        "release",
        "renew",
        "wake",
    ),
    "watcher": ("look", "plans", "survey"),
}
_PLAIN = {
    # SET and WAIT: of calls that are to reach replicas.
    "producer": ("GET", "MGET", "SET", "SUBSCRIBE", "UNSUBSCRIBE", "WAIT"),
    # INFO and TIME: a worker looks at its Redis when it starts.
    "worker": ("BLPOP", "HKEYS", "INFO", "TIME"),
    "watcher": ("GET", "INFO", "TIME"),
    # What `taskq doctor` asks.
    "admin": ("ACL|WHOAMI", "CONFIG|GET", "DISCARD", "MULTI", "PING"),
}
ROLES = {
    "producer": "enqueues, waits for outcomes, makes schedules",
    "worker": "runs tasks, which may enqueue and wait as well",
    "watcher": "reads: `taskq status`, `taskq schedule list`",
    "admin": "all verbs of the command line",
}
# Of servers that know each other; nothing in them is of an app. What the last two need is what
# Redis's own pages say: https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
_AMONG_SERVERS = {
    "guide": "&+switch-master +sentinel|master +subscribe",
    "sentinel": (
        "&* +client|kill +client|setname +config|rewrite +exec +info +multi +ping +publish +role "
        "+script|kill +slaveof +subscribe"
    ),
    "replica": "+ping +psync +replconf",
}
SENTINEL_ROLES = {
    "guide": "set on sentinels: asks them for the master",
    "sentinel": "set on servers: sentinels watch them by it",
}
REPLICA_ROLES = {"replica": "set on servers: replicas follow their master by it"}
# Everybody: a script by its SHA or, after SCRIPT FLUSH, by its text; the database of the URL.
_ALL = ("EVAL", "EVALSHA", "SELECT")
# Of a cluster, from Redis 7 on, whatever the role: the way to a queue, and what is heard there.
_CLUSTERED = ("CLUSTER|SLOTS", "SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")
# What no MULTI takes, or what says nothing there.
ALONE = frozenset(
    {"SUBSCRIBE", "UNSUBSCRIBE", "SELECT", "CLUSTER|SLOTS", "SSUBSCRIBE", "SUNSUBSCRIBE"}
)

# A function of one line, or of several up to the `end` at the margin.
_FUNCTION = re.compile(
    r"^local function (\w+)\([^\n]*(?:\bend$|\n(?:(?!end$)[^\n]*\n)*end$)", re.MULTILINE
)
# A function that a comment names is not called.
_COMMENT = re.compile(r"^ *--.*$", re.MULTILINE)
_CALL = re.compile(r"\bp?call\(\s*(?:'([A-Z]+)'|(\w+))")


def commands(role: str, *, clustered: bool = False) -> frozenset[str]:
    """Return the commands that a role needs, in capitals; `A|B` is a subcommand."""
    found = {*_ALL, *_PLAIN[role], *(_CLUSTERED if clustered else ())}
    if role == "worker":
        found |= commands("producer")
    if role == "admin":
        found |= commands("worker")
    for script in scripts.names() if role == "admin" else _SCRIPTS[role]:
        found |= commands_of(script)
    return frozenset(found)


@functools.cache
def commands_of(script: str) -> frozenset[str]:
    """Return the commands that a script can come to run."""
    text = _COMMENT.sub("", scripts.load(script).text)
    functions = {match[1]: match[0] for match in _FUNCTION.finditer(text)}
    reached, body = set[str](), _FUNCTION.sub("", text)
    while called := {
        name for name in functions.keys() - reached if re.search(rf"\b{name}\b", body)
    }:
        reached |= called
        body += "\n".join(functions[name] for name in called)
    # The one command that comes as an argument is the publishing one.
    return frozenset(match[1] or match[2].upper() for match in _CALL.finditer(body))


def rule(app: str, role: str, password: str, *, clustered: bool = False) -> str:
    """Return the `ACL SETUSER` line of a role: this app's keys and channels alone."""
    user = f"ACL SETUSER {app}-{role} reset on >{password}"
    if role in _AMONG_SERVERS:
        return f"{user} {_AMONG_SERVERS[role]}"
    own = f"{keys.PREFIX}:{{{app}:*"
    allowed = " ".join(f"+{name.lower()}" for name in sorted(commands(role, clustered=clustered)))
    return f"{user} ~{own} &{own} {allowed}"
