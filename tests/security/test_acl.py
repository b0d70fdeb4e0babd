"""S10: the users that `taskq acl` prints can do their work, and never ask for more."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

import taskq
from taskq import TaskQ
from taskq.broker import permissions
from taskq.cli.place import printable
from taskq.config import Settings
from tests.cli.conftest import SECRET, Shell
from tests.eventually import until
from tests.fleets import SERVICE, Cluster, SentinelSet
from tests.servers import Server

pytestmark = pytest.mark.slow

MORE = """

@app.task(bind=True)
async def relay(ctx, x):
    return await (await add.adelay(x, 1))


@app.task
def ask(x):
    return add.delay(x, 1).get(timeout=5, in_task=True)
"""


class Users:
    """The printed users, set on a server whose `default` user is off."""

    def __init__(self, shell: Shell, server: Server) -> None:
        self.shell, self.server = shell, server
        self.urls: dict[str, str] = {}
        lines = shell.type("acl", "-A", "proj").stdout.splitlines()
        with server.client() as client:
            for line in lines:
                words = line.split()
                assert client.execute_command(*words) in (True, b"OK", "OK")
                (password,) = [word[1:] for word in words if word.startswith(">")]
                place = f"redis://{words[2]}:{password}@"
                self.urls[words[2].rpartition("-")[2]] = server.url.replace("redis://", place)
            client.execute_command("ACL", "SETUSER", "judge", "on", ">judge", "+@all", "~*", "&*")
            client.execute_command("ACL", "SETUSER", "default", "off")

    def log(self) -> list[str]:
        """Return what was denied so far."""
        with self.judge() as client:
            return [printable(entry) for entry in client.execute_command("ACL", "LOG")]

    def judge(self) -> redis.Redis:
        return redis.Redis(port=self.server.port, username="judge", password="judge", protocol=2)

    def app(self, role: str, queue: taskq.Queue | str = "mail") -> TaskQ:
        settings: Settings = {"secret": SECRET, "enqueue_deadline": 5}
        return TaskQ(self.shell.name, url=self.urls[role], queues=[queue], **settings)


@pytest.fixture
def users(tmp_path: Path, binary: Path) -> Iterator[Users]:
    with Server(binary) as server, Shell(tmp_path, server.url) as shell:
        shell.write("proj.py", (shell.folder / "proj.py").read_text() + MORE)
        shell.environment["TASKQ_QUEUES"] = "mail:3"
        yield Users(shell, server)


def use_partitions(users: Users) -> None:
    with users.app("producer", taskq.Queue("mail", partitions=3)) as app:
        sent = [app.send_task("proj.add", (x, 1), queue="mail") for x in range(6)]
        assert len({one.place for one in sent}) == 3
        assert taskq.gather(sent, timeout=10) == [x + 1 for x in range(6)]


def test_a_whole_run_asks_for_nothing_that_is_denied(users: Users, tmp_path: Path) -> None:
    shell = users.shell
    worker = shell.worker("proj", "-p", "2", TASKQ_URL=users.urls["worker"])
    with users.app("producer") as app:
        add = [app.send_task("proj.add", (x, 1)) for x in range(200)]
        assert taskq.gather(add, timeout=10) == [x + 1 for x in range(200)]
        soon = app.send_task("proj.add", (1, 1), countdown=0.2)
        retried = app.send_task("proj.flaky")
        named = app.send_task("proj.add", (5, 5), id="order-42")
        assert app.send_task("proj.add", (5, 5), id="order-42") == named
        assert [one.get(timeout=8) for one in (soon, retried, named)] == [2, 2, 10]
        assert isinstance(app.send_task("proj.fail").exception(timeout=5), KeyError)
        assert app.send_task("proj.relay", (4,)).get(timeout=5) == 5
        assert app.send_task("proj.ask", (4,)).get(timeout=5) == 5
        with pytest.raises(taskq.EnqueueUncertain, match="0 of 1 replicas"):
            app.send_task("proj.add", (5, 5), id="order-42", durability="replicas:1")
        use_partitions(users)
        expired = app.send_task("proj.nobody", expires=0.2)
        assert isinstance(expired.exception(timeout=5), taskq.Expired)
        assert named.snapshot().status is taskq.State.SUCCEEDED
        assert named.forget()
        assert len(app.send_task("proj.add", ("x" * 50_000, "y")).get(timeout=5)) == 50_001
        # A child dies, and its message is taken back; scripts are gone, and loaded anew.
        held = app.send_task("proj.hold", (str(tmp_path),))
        until(lambda: list(tmp_path.glob("started-*")))
        for child in worker.children():
            os.kill(child, signal.SIGKILL)
        with users.judge() as client:
            client.script_flush()
        (tmp_path / "go").touch()
        assert held.get(timeout=10) == [1, 2]
        often = app.schedules.add("often", app._unchecked("proj.add", (1, 2), None, {}), every=1)
        until(lambda: app.schedules.get("often").fired >= 1)
        app.schedules.pause("often", "enough")
        app.schedules.resume("often")
        assert app.schedules.run_now("often").get(timeout=5) == 3
        assert app.schedules.backfill("often", often.next_at, often.next_at + timedelta(seconds=1))
        app.schedules.remove("often")
        with pytest.raises(taskq.ResultTimeout):
            app.send_task("proj.nobody").get(timeout=4)  # it looks whether a worker is there
    status = shell.type("status", "-A", "proj", "--json", TASKQ_URL=users.urls["watcher"])
    assert (status.returncode, status.stderr) == (0, "")
    assert len(json.loads(status.stdout)["queues"]["default"]["workers"]) == 2
    listed = shell.type("schedule", "list", "-A", "proj", TASKQ_URL=users.urls["watcher"])
    assert (listed.returncode, listed.stdout) == (0, "no schedules\n")
    purged = shell.type(
        "purge", "-A", "proj", "-Q", "default", "--yes", TASKQ_URL=users.urls["admin"]
    )
    assert (purged.returncode, purged.stdout) == (0, "purged 1 messages\n")
    doctor = shell.type("doctor", "-A", "proj", TASKQ_URL=users.urls["admin"])
    assert doctor.returncode == 0, doctor.stdout
    assert "unknown" not in doctor.stdout
    assert worker.stop() == 0
    assert users.log() == []


def test_they_can_do_no_more(users: Users) -> None:
    """Not with the keys of other apps, nor what only an administrator does."""

    def denied(role: str, *command: str) -> bool:
        with redis.Redis.from_url(users.urls[role], protocol=2) as client:
            try:
                client.execute_command(*command)
            except redis.ResponseError as error:
                text = str(error)
                return isinstance(error, NoPermissionError) or "ACL failure" in text
            return False

    ours = f"tq:{{{users.shell.name}:default}}:x"
    for role in users.urls:
        assert denied(role, "GET", "tq:{other:default}:x"), role
        assert not denied(role, "GET", ours), role
        for command in ("FLUSHALL", "KEYS *", "CONFIG SET maxmemory 1", "ACL LIST", "SHUTDOWN"):
            assert denied(role, *command.split()), (role, command)
        assert denied(role, "EVAL", "return redis.call('LPUSH', 'tq:{other:q}:y', '1')", "0")
    assert denied("watcher", "EVAL", f"return redis.call('LPUSH', '{ours}', '1')", "0")
    assert denied("watcher", "DEL", ours)
    assert denied("producer", "RPOP", ours)
    assert denied("producer", "SUBSCRIBE", "tq:{other:default}:done:x")


@pytest.mark.slow
def test_the_users_of_a_cluster_are_enough_for_it(tmp_path: Path) -> None:
    with Cluster() as cluster, Shell(tmp_path, cluster.url) as shell:
        urls: dict[str, str] = {}
        for line in shell.say("acl", "-A", "proj").stdout.splitlines():
            words = line.split()
            (password,) = [word[1:] for word in words if word.startswith(">")]
            urls[words[2].rpartition("-")[2]] = cluster.url.replace(
                "://", f"://{words[2]}:{password}@"
            )
            for node in cluster.nodes:
                with node.client() as client:
                    client.execute_command(*words)
        shell.environment["TASKQ_QUEUES"] = "mail:8"
        worker = shell.worker("proj", "-p", "1", TASKQ_URL=urls["worker"])
        mail = taskq.Queue("mail", partitions=8)
        with TaskQ(shell.name, url=urls["producer"], secret=SECRET, queues=[mail]) as app:
            sent = [
                app.send_task("proj.add", (x, 1), queue=queue)
                for x in range(20)
                for queue in ("default", "mail")
            ]
            assert taskq.gather(sent, timeout=10) == [x + 1 for x in range(20) for _ in "ab"]
        assert shell.say("doctor", "-A", "proj", TASKQ_URL=urls["admin"]).returncode == 0
        assert worker.stop() == 0
        for node in cluster.nodes:
            with node.client() as client:
                assert client.execute_command("ACL", "LOG") == []


@pytest.mark.slow
def test_the_users_of_sentinels_are_enough_for_them(tmp_path: Path) -> None:
    """Servers are watched, followed and replaced by them; the app finds its master by them."""
    with SentinelSet() as fleet, Shell(tmp_path, fleet.url) as shell:
        urls, passwords = dict[str, str](), dict[str, str]()
        for line in shell.say("acl", "-A", "proj").stdout.splitlines():
            words = line.split()
            (password,) = [word[1:] for word in words if word.startswith(">")]
            role = words[2].rpartition("-")[2]
            passwords[role] = password
            urls[role] = fleet.url.replace("://", f"://{words[2]}:{password}@")
            for one in fleet.sentinels if role == "guide" else fleet.servers:
                tell(one, *words)
        assert passwords.keys() == {*permissions.ROLES, "guide", "sentinel", "replica"}
        asking = f"?sentinel_username={shell.name}-guide&sentinel_password={passwords['guide']}"
        among_themselves(fleet, shell.name, passwords)
        fleet.fail_over()
        fleet.settle()
        worker = shell.worker("proj", "-p", "1", TASKQ_URL=urls["worker"] + asking)
        with TaskQ(
            shell.name, url=urls["producer"] + asking, secret=SECRET, enqueue_deadline=60
        ) as app:
            use_replicas(app)
            fleet.fail_over()
            fleet.settle()
            use_replicas(app)
        done = shell.say("doctor", "-A", "proj", TASKQ_URL=urls["admin"] + asking)
        assert done.returncode == 0, done.stdout
        assert worker.stop() == 0
        for one in (*fleet.servers, *fleet.sentinels):
            assert tell(one, "ACL", "LOG") == []
        for server in fleet.servers:
            users = {one["user"] for one in server.client().client_list()}
            assert f"{shell.name}-sentinel" in users


def use_replicas(app: TaskQ) -> None:
    sent = [app.send_task("proj.add", (x, 1), durability="replicas:1") for x in range(9)]
    assert taskq.gather(sent, timeout=60) == list(range(1, 10))


def among_themselves(fleet: SentinelSet, app: str, passwords: dict[str, str]) -> None:
    """Have sentinels and replicas log in as their users, from now on."""
    for sentinel in fleet.sentinels:
        tell(sentinel, "SENTINEL", "SET", SERVICE, "auth-user", f"{app}-sentinel")
        tell(sentinel, "SENTINEL", "SET", SERVICE, "auth-pass", passwords["sentinel"])
    for server in fleet.servers:
        tell(server, "CONFIG", "SET", "masteruser", f"{app}-replica")
        tell(server, "CONFIG", "SET", "masterauth", passwords["replica"])
    for server in fleet.servers:
        for kind in ("normal", "pubsub", "replica"):
            tell(server, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def tell(server: Server, *words: str) -> object:
    with server.client() as client:
        return client.execute_command(*words)
