"""`taskq doctor`, `taskq acl`, and the look that a worker takes before it serves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from taskq.broker import checkup, permissions, scripts
from taskq.broker.connection import Endpoint
from taskq.broker.layout import Finding, Level
from taskq.model import clock
from tests.cli.conftest import SECRET, Shell
from tests.eventually import until
from tests.fleets import SERVICE, Cluster, SentinelSet, role_of
from tests.servers import HOST, Server

PASSWORD = "hunter2-and-more"


@pytest.fixture
def server_of_mine(tmp_path: Path) -> Iterator[Any]:
    """Start a server with these settings, and a shell for it."""
    made: list[Any] = []

    def start(**settings: str) -> tuple[Server, Shell]:
        server = Server(**settings).start()
        shell = Shell(tmp_path, server.url)
        made.extend((shell, server))
        return server, shell

    yield start
    for one in made:
        one.close()


def told(shell: Shell, code: int = 0, **variables: str) -> dict[str, Any]:
    done = shell.say("doctor", "-A", "proj", "--json", **variables)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    return {one["check"]: one for one in json.loads(done.stdout)["findings"]}


def test_a_good_server_has_no_fault_and_nothing_is_changed(server_of_mine: Any) -> None:
    server, shell = server_of_mine(appendonly="yes")
    done = shell.say("doctor", "-A", "proj")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "0 errors, 0 warnings"
    checks = ["signing key", "transport", "server", "eviction", "persistence", "clock", "rights"]
    assert [line[9:21].strip() for line in done.stdout.splitlines()[:-1]] == checks
    assert all(line.startswith("ok ") for line in done.stdout.splitlines()[:-1])
    with server.client() as client:
        assert client.dbsize() == 0


def test_what_could_be_lost_is_a_warning_with_its_mend(server_of_mine: Any) -> None:
    _, shell = server_of_mine(maxmemory_policy="volatile-lru", maxmemory="3mb")
    found = told(shell)
    assert found["persistence"]["level"] == found["eviction"]["level"] == "warning"
    assert "loses every message" in found["persistence"]["text"]
    assert "CONFIG SET appendonly yes" in found["persistence"]["fix"]
    assert "noeviction" in found["eviction"]["fix"]
    worker = shell.worker("proj", "-p", "1")
    worker.says("WARNING")
    assert "persistence: appendonly no" in worker.log
    assert "eviction: maxmemory-policy volatile-lru" in worker.log
    assert worker.stop() == 0


def test_eviction_of_any_key_keeps_a_worker_from_starting(server_of_mine: Any) -> None:
    _, shell = server_of_mine(maxmemory_policy="allkeys-lru")
    found = told(shell, 1)["eviction"]
    assert found["level"] == "error"
    assert "TASKQ_ALLOW_EVICTION=1" in found["fix"]
    done = shell.type("worker", "proj", "-p", "1")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "allkeys-lru" in line]
    assert "noeviction" in line
    assert "allow_eviction=True" in line
    assert told(shell, TASKQ_ALLOW_EVICTION="1")["eviction"]["level"] == "warning"
    worker = shell.worker("proj", "-p", "1", TASKQ_ALLOW_EVICTION="1")
    worker.says("allkeys-lru")
    assert worker.stop() == 0


def test_a_server_that_comes_later_is_looked_at_when_it_comes(server_of_mine: Any) -> None:
    server, shell = server_of_mine(maxmemory_policy="allkeys-random")
    server.stop()
    worker = shell.worker("proj", "-p", "1", TASKQ_LEASE="1")
    worker.says("cannot be reached")
    server.start()
    assert worker.ends() == 2
    assert "taskq worker: eviction: maxmemory-policy allkeys-random" in worker.log


def test_a_user_who_may_not_ask_is_told_so(server_of_mine: Any) -> None:
    """As on managed servers."""
    server, shell = server_of_mine(appendonly="yes")
    with server.client() as client:
        rule = "on >pw ~* &* +@all -@admin -@dangerous -multi"
        client.execute_command("ACL", "SETUSER", "managed", *rule.split())
    shell.environment["TASKQ_URL"] = server.url.replace("redis://", "redis://managed:pw@")
    found = told(shell)
    unknown = {check for check, one in found.items() if one["level"] == "unknown"}
    assert unknown == {"server", "eviction", "persistence", "rights"}
    assert "not permitted" in found["server"]["text"]
    assert "taskq acl" in found["rights"]["fix"]
    worker = shell.worker("proj", "-p", "1")
    worker.says("INFO is not permitted")
    with shell.app() as app:
        assert app.send_task("proj.add", (1, 2)).get(timeout=14) == 3
    assert worker.stop() == 0


def test_what_a_user_lacks_is_named(server_of_mine: Any) -> None:
    server, shell = server_of_mine()
    with server.client() as client:
        rule = "on >pw ~* &* +@all -blpop -zadd"
        client.execute_command("ACL", "SETUSER", "weak", *rule.split())
    shell.environment["TASKQ_URL"] = server.url.replace("redis://", "redis://weak:pw@")
    found = told(shell, 1)["rights"]
    assert found["level"] == "error"
    assert "weak may not blpop, zadd on tq:{" in found["text"]
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "weak", "+@all", "resetkeys", "~other:*")
    assert "evalsha" not in told(shell, 1)["rights"]["text"]
    assert "lpush" in told(shell, 1)["rights"]["text"]


def test_a_replica_is_no_place_for_a_queue(server_of_mine: Any) -> None:
    server, shell = server_of_mine()
    with server.client() as client:
        client.replicaof("127.0.0.1", "1")
    assert told(shell, 1)["role"]["level"] == "error"


@pytest.mark.parametrize("wrong", ["away", "password"])
def test_a_server_that_cannot_be_used_is_an_error(server_of_mine: Any, wrong: str) -> None:
    server, shell = server_of_mine(requirepass=PASSWORD)
    if wrong == "away":
        server.stop()
    else:
        shell.environment["TASKQ_URL"] = server.url.replace(PASSWORD, "not-it")
    done = shell.say("doctor", "-A", "proj")
    assert done.returncode == 1
    assert "cannot be used" in done.stdout
    assert "TASKQ_URL" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert PASSWORD not in done.stdout
    assert "not-it" not in done.stdout


def test_the_key_is_named_and_not_shown(shell: Shell) -> None:
    found = told(shell)["signing key"]
    assert found["level"] == "ok"
    assert "TASKQ_SECRET" in found["text"]
    assert SECRET not in json.dumps(found)
    del shell.environment["TASKQ_SECRET"]
    assert "signing.key" in told(shell)["signing key"]["text"]
    found = told(shell, TASKQ_INSECURE_UNSIGNED="1")["signing key"]
    assert (found["level"], "taskq secret" in found["fix"]) == ("warning", True)
    worker = shell.worker("proj", "-p", "1", TASKQ_INSECURE_UNSIGNED="1")
    assert "nothing is signed" in worker.log
    assert worker.stop() == 0


def test_a_remote_server_without_a_key_is_an_error(shell: Shell) -> None:
    del shell.environment["TASKQ_SECRET"]
    found = told(shell, 1, TASKQ_URL="redis://10.255.255.1")["access"]
    assert found["level"] == "error"
    assert "taskq secret" in found["fix"]


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("redis://redis.example.com", Level.WARNING),
        ("rediss://redis.example.com", Level.OK),
        ("rediss://redis.example.com?ssl_cert_reqs=none", Level.WARNING),
        ("rediss://redis.example.com?ssl_check_hostname=false", Level.WARNING),
        ("redis://127.0.0.1", Level.OK),
        ("unix:///run/redis.sock", Level.OK),
    ],
)
def test_the_way_to_redis_is_judged(url: str, level: Level) -> None:
    found = checkup.standing(TaskQ("shop", url=url, secret=SECRET).access)
    assert [one.level for one in found if one.check == "transport"] == [level]


@pytest.mark.parametrize("offset_ms", [-3600_000, 3600_000])
def test_clocks_apart_are_a_warning(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, offset_ms: int
) -> None:
    now_ms = clock.now_ms
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms() + offset_ms)
    with shell.app() as app:
        found = checkup.examine(app.name, "default", app.access, allow_eviction=False)
    (skew,) = [one for one in found if one.check == "clock"]
    assert skew.level is Level.WARNING
    assert ("ahead of" if offset_ms < 0 else "behind") in skew.text
    assert "3600.0 s" in skew.text


@pytest.mark.parametrize(
    ("info", "level"),
    [
        ({"redis_version": "6.0.16"}, Level.ERROR),
        ({"redis_version": "6.2.0"}, Level.OK),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}, Level.OK),
        ({"redis_version": "latest"}, Level.UNKNOWN),
    ],
)
def test_old_servers_are_an_error(info: dict[str, str], level: Level) -> None:
    found: Finding = checkup._version(info, Endpoint("redis://127.0.0.1"))
    assert found.level is level


@pytest.mark.parametrize(
    "words",
    [["doctor"], ["doctor", "-A", "no.such"], ["doctor", "-A", "proj", "--jsn"], ["acl"],
     ["acl", "-A", "proj", "king"]],
    ids=" ".join,
)  # fmt: skip
def test_bad_words_exit_with_2(shell: Shell, words: list[str]) -> None:
    done = shell.say(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


# `taskq acl`; that its users can work is seen in tests/security.


def test_each_role_gets_a_line_with_a_new_password(shell: Shell) -> None:
    lines = shell.say("acl", "-A", "proj").stdout.splitlines()
    users = [line.split()[2] for line in lines]
    assert users == [f"{shell.name}-{role}" for role in permissions.ROLES]
    passwords = {re.search(r" >([0-9a-f]{48}) ", line) for line in lines}
    assert len({match[1] for match in passwords if match}) == len(lines)
    (one,) = shell.say("acl", "-A", "proj", "watcher").stdout.splitlines()
    assert one.split()[2] == f"{shell.name}-watcher"


def test_no_role_may_do_what_taskq_never_does() -> None:
    for role in permissions.ROLES:
        may = permissions.commands(role)
        assert may.isdisjoint({"KEYS", "SCAN", "CONFIG", "SCRIPT", "FLUSHALL", "DEBUG", "MONITOR"})
        assert not any(name.startswith("+@") for name in permissions.rule("a", role, "x").split())
    writing = {"SET", "LPUSH", "RPUSH", "DEL", "HSET", "HDEL", "ZADD", "ZREM", "PEXPIRE"}
    assert permissions.commands("watcher").isdisjoint(writing)


def test_the_commands_of_every_script_can_be_read() -> None:
    for name in scripts.names():
        text = scripts.load(name).text
        spelt = set(re.findall(r"call\('([A-Z]+)'", scripts.source(name)))
        assert spelt <= permissions.commands_of(name)
        # Whatever is called is spelt out, or the publishing command that comes as an argument.
        assert set(re.findall(r"call\((\w+)", text)) <= {"publish"}
        assert permissions.commands_of(name) <= permissions.commands("admin")


def test_sentinels_and_their_master_are_looked_at(sentinels: SentinelSet, tmp_path: Path) -> None:
    found = told(Shell(tmp_path, sentinels.url))
    master = f"{HOST}:{sentinels.primary.port}"
    text = f"3 sentinels name {master}, which has 2 replicas"
    assert (found["topology"]["level"], found["topology"]["text"]) == ("ok", text)
    assert found["rights"]["level"] == "ok"


def test_replicas_that_are_asked_for_are_counted(sentinels: SentinelSet, tmp_path: Path) -> None:
    shell = Shell(tmp_path, sentinels.url)
    for asked, code, level in ((1, 0, "ok"), (2, 0, "ok"), (3, 1, "error")):
        found = told(shell, code, TASKQ_DURABILITY=f"replicas:{asked}")["durability"]
        wish = f"calls wait for {asked} replicas of {sentinels.url.partition('?')[0]}, which has 2"
        assert (found["level"], found["text"].startswith(wish)) == (level, True)
    assert "durability" not in told(shell)


def test_a_sentinel_that_is_away_is_told(sentinels: SentinelSet, tmp_path: Path) -> None:
    url = sentinels.url.replace("://", f"://{HOST}:1,")
    text = told(Shell(tmp_path, url))["topology"]["text"]
    assert text.startswith(f"1 of 4 sentinels do not answer: {HOST}:1 (")
    assert "Connection refused" in text


def test_a_sentinel_that_refuses_the_login_is_told(sentinels: SentinelSet, tmp_path: Path) -> None:
    with Server(requirepass=PASSWORD) as other:
        url = sentinels.url.replace("://", f"://{HOST}:{other.port},")
        found = told(Shell(tmp_path, url))
    why = f"1 of 4 sentinels do not answer: {HOST}:{other.port} (refused user or password)"
    assert found["topology"]["text"] == why


@pytest.mark.slow
def test_replicas_that_are_dead_are_not_counted(tmp_path: Path) -> None:
    with SentinelSet() as fleet:
        primary, shell = fleet.primary, Shell(tmp_path, fleet.url)
        for left in (1, 0):
            next(one for one in fleet.servers if role_of(one) == "slave").kill()
            until(lambda left=left: fleet.replicas(primary) == left, 30)
            found = told(shell)["topology"]
            text = f"which has {left} replicas, and {2 - left} that do not follow it"
            assert found["text"].endswith(text)
            assert found["level"] == ("ok" if left else "warning")
        assert "start a replica" in found["fix"]


def test_each_node_of_a_cluster_is_looked_at(cluster: Cluster, tmp_path: Path) -> None:
    shell = Shell(tmp_path, cluster.url)
    done = shell.say("doctor", "-A", "proj")
    assert done.returncode == 0
    assert "a cluster of 3 masters, without a replica: " in done.stdout
    for node in cluster.masters:
        assert f" at redis://{HOST}:{node.port}" in done.stdout


@pytest.fixture
def left_node() -> Iterator[Server]:
    """A node that was taken out of its cluster: it answers, and knows of nobody."""
    with Server(**{"cluster-enabled": "yes"}) as node:
        yield node


def warnings_of(shell: Shell) -> list[str]:
    done = shell.say("doctor", "-A", "proj", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)["findings"]
    return [one["text"] for one in found if (one["check"], one["level"]) == ("topology", "warning")]


@pytest.mark.parametrize("first", [True, False])
def test_a_node_that_was_taken_out_of_the_cluster_is_named(
    cluster: Cluster, left_node: Server, tmp_path: Path, *, first: bool
) -> None:
    hosts = [f"{HOST}:{left_node.port}", f"{HOST}:{cluster.masters[0].port}"]
    shell = Shell(tmp_path, f"redis+cluster://{','.join(hosts if first else hosts[::-1])}")
    whole, out = warnings_of(shell)
    assert whole.startswith("a cluster of 3 masters, ")
    assert out == f"no members of the cluster: {hosts[0]}"


def test_where_no_node_has_any_slots_that_is_the_fault(left_node: Server, tmp_path: Path) -> None:
    found = told(Shell(tmp_path, f"redis+cluster://{HOST}:{left_node.port}"), 1)
    assert found["topology"]["level"] == "error"
    assert "16384 of 16,384 slots are served by no node" in found["topology"]["text"]


def test_nodes_that_disagree_are_named(
    cluster: Cluster, cluster_node: Server, tmp_path: Path
) -> None:
    nodes = (cluster.masters[0], cluster.masters[1], cluster_node)
    hosts = [f"{HOST}:{one.port}" for one in nodes]
    _, apart = warnings_of(Shell(tmp_path, f"redis+cluster://{','.join(hosts)}"))
    assert apart == f"{hosts[2]} and {hosts[0]} disagree about who serves which slots"


def test_no_node_that_was_taken_out_hides_masters_that_evict(
    cluster: Cluster, left_node: Server, tmp_path: Path
) -> None:
    url = cluster.url.replace("://", f"://{HOST}:{left_node.port},")
    with cluster.masters[2].client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            done = Shell(tmp_path, url).type("worker", "proj", "-p", "1")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert done.returncode == 2
    assert "allkeys-lru" in done.stderr


@pytest.mark.parametrize("kind", ["cluster", "sentinel", "one server"])
def test_a_url_of_another_kind_keeps_a_worker_from_starting(
    kind: str, cluster: Cluster, server: Server, tmp_path: Path
) -> None:
    url, words = {
        "cluster": (server.url.replace("redis://", "redis+cluster://"), "it is no cluster"),
        "sentinel": (f"redis+sentinel://{HOST}:{server.port}/{SERVICE}", "no sentinel knows"),
        "one server": (f"redis://{HOST}:{cluster.masters[0].port}", "redis+cluster://"),
    }[kind]
    shell = Shell(tmp_path, url)
    done = shell.type("worker", "proj", "-p", "1")
    assert done.returncode == 2
    assert words in done.stderr
    assert words in told(shell, 1)["server"]["text"] + told(shell, 1)["server"]["fix"]
