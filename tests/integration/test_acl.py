"""Redis users with least rights: config/redis/users.acl in a real Redis, made ready as docs/redis-acl.md says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from celery import Celery
from gateways import running
from kombu import Connection
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from rig import TIMERS, TOKEN, Estate, wait_for

from relay import Producer
from relay.errors import QueueFull, QueueUnavailable
from relay.events.event import Defaults, DeploymentEvent
from relay.events.platform import parse_platform
from relay.metrics.exporter import Exporter
from relay.processes.embedded_redis import EmbeddedRedis
from relay.processes.stack import Stack
from relay.queue import gone, nodes, receipts
from relay.queue.keys import Keys
from relay.queue.receipts import Status
from relay.sandbox import Sandbox
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
USERS = (ROOT / "config" / "redis" / "users.acl").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "redis-acl.md").read_text(encoding="utf-8")
KEYS = Keys()
IMAGE = "ghcr.io/acme/api@sha256:" + "a" * 64

#: The tests' own, beside those of the file.
ADMINISTRATOR = "user administrator on nopass ~* &* +@all\n"


class Guarded(NamedTuple):
    """A Redis that knows the file's users and the tests' administrator."""

    server: EmbeddedRedis
    passwords: Path

    def url(self, user: str) -> str:
        password = (self.passwords / user).read_text(encoding="ascii")
        return f"redis://{user}:{password}@127.0.0.1:{self.server.port}/0"

    def as_user(self, user: str) -> Redis:
        return Redis.from_url(self.url(user), socket_timeout=10)

    def as_administrator(self) -> Redis:
        return Redis(port=self.server.port, username="administrator", password="any", socket_timeout=10)

    def refused(self) -> set[str]:
        """What was refused since the log was reset, as "user: what"."""
        with self.as_administrator() as administrator:
            return {
                f"{_text(entry['username'])}: {_text(entry['reason'])} {_text(entry['object'])}"
                for entry in administrator.acl_log(128)
            }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("acl")
    shutil.copytree(ROOT / "config", folder / "config")
    [script] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, check=True, timeout=60)
    loaded = folder / "loaded.acl"
    loaded.write_text(
        ADMINISTRATOR, encoding="ascii"
    )  # the embedded server tells that it is ready without a password
    with EmbeddedRedis(append_only=False, options={"aclfile": str(loaded)}) as server:
        found = Guarded(server, folder / "passwords")
        loaded.write_text(ADMINISTRATOR + (folder / "users.acl").read_text(encoding="ascii"), encoding="ascii")
        with found.as_administrator() as administrator:
            administrator.acl_load()
        yield found


@pytest.fixture
def administrator(guarded: Guarded) -> Iterator[Redis]:
    """An administrator of an empty Redis that has refused nothing yet."""
    with guarded.as_administrator() as client:
        client.flushall()
        client.acl_log_reset()
        yield client


@pytest.fixture
def producer(guarded: Guarded, administrator: Redis) -> Iterator[Redis]:
    """The producer's user, in a Redis where there is something to steal."""
    for key in (KEYS.inbox, KEYS.dead, KEYS.of_outbox("default", "production").outbox):
        administrator.xadd(key, {"event": "a secret"})
    administrator.hset(KEYS.counts, "outbox", 1)
    with guarded.as_user("relay-producer") as client:
        yield client


def settings(url: str, **sections: dict[str, Any]) -> Settings:
    return Settings.load(redis={"url": url}, **sections)


class TestTheFile:
    def test_as_it_ships_no_redis_takes_it(self, tmp_path: Path) -> None:
        loaded = tmp_path / "loaded.acl"
        loaded.write_text(ADMINISTRATOR, encoding="ascii")
        with EmbeddedRedis(append_only=False, options={"aclfile": str(loaded)}) as server:
            loaded.write_text(ADMINISTRATOR + USERS, encoding="ascii")
            with Redis.from_url(server.url) as client, pytest.raises(ResponseError, match="password hash"):
                client.acl_load()

    def test_each_user_and_each_rule_is_explained(self) -> None:
        explained = set(
            re.findall(
                r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL).replace("\\|", "|")
            )
        )
        for line in USERS.splitlines()[1:]:
            _, user, *rules = line.split()
            assert f"| `{user}` |" in PAGE
            for rule in (rule.strip("()") for rule in rules):
                if rule[0] in "+-":
                    assert rule in explained, rule

    def test_nobody_comes_in_without_a_name_or_with_a_wrong_password(self, guarded: Guarded) -> None:
        with Redis.from_url(guarded.server.url) as client, pytest.raises(AuthenticationError):
            client.ping()
        with (
            Redis(port=guarded.server.port, username="relay-worker", password="guess") as client,
            pytest.raises(AuthenticationError),
        ):
            client.ping()


#: Whatever reads or takes away what others reported.
FORBIDDEN = [
    ("XRANGE", KEYS.inbox, "-", "+"),
    ("XREVRANGE", KEYS.inbox, "+", "-"),
    ("XREAD", "STREAMS", KEYS.inbox, "0"),
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", KEYS.inbox, ">"),
    ("XGROUP", "CREATE", KEYS.inbox, "g", "0"),
    ("XINFO", "STREAM", KEYS.inbox, "FULL"),
    ("XDEL", KEYS.inbox, "0-1"),
    ("XTRIM", KEYS.inbox, "MAXLEN", "0"),
    ("XSETID", KEYS.inbox, "0-1"),
    ("DEL", KEYS.inbox),
    ("UNLINK", KEYS.inbox),
    ("EXPIRE", KEYS.inbox, "1"),
    ("RENAME", KEYS.inbox, KEYS.appended("x")),
    ("COPY", KEYS.inbox, KEYS.appended("x")),
    ("MOVE", KEYS.inbox, "1"),
    ("DUMP", KEYS.inbox),
    ("RESTORE", KEYS.inbox, "0", "x", "REPLACE"),
    ("SET", KEYS.inbox, "x"),
    ("GETDEL", KEYS.inbox),
    ("SET", KEYS.counts, "x"),
    ("HSET", KEYS.counts, "outbox", "0"),
    ("HINCRBY", KEYS.counts, "outbox", "-1"),
    ("HGETALL", KEYS.counts),
    ("XADD", KEYS.dead, "*", "event", "x"),
    ("XLEN", KEYS.dead),
    ("XADD", KEYS.of_outbox("default", "production").outbox, "*", "event", "x"),
    ("HSET", KEYS.internal, "1-0", "1"),
    ("HSET", KEYS.dataset, "internal_after", "9999999999999-0"),
    ("GET", KEYS.intake_lease),
    ("SET", KEYS.intake_lease, "mine"),
    ("LPUSH", "celery", "x"),
    ("BRPOP", "celery", "0"),
    ("PUBLISH", "/0.celery.pidbox", "x"),
    ("PSUBSCRIBE", "*"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("CLIENT", "TRACKING", "ON", "BCAST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("ACL", "LIST"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SWAPDB", "0", "1"),
    ("SHUTDOWN",),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("FUNCTION", "FLUSH"),
    ("BGREWRITEAOF",),
    ("REPLICAOF", "NO", "ONE"),
]


#: How Redis 7 and Valkey say so of a command in a script.
REFUSED = "(?i)no permission|not allowed from script|can't run this command|can't access at least one of the keys"

#: What of it changes something.
WRITING = {"XADD", "XDEL", "XTRIM", "DEL", "SET", "HSET", "HINCRBY", "RENAME", "FLUSHALL", "CONFIG"}


class TestProducer:
    @pytest.mark.usefixtures("administrator")
    def test_reports_through_the_library_and_by_hand(self, guarded: Guarded) -> None:
        with Producer(guarded.url("relay-producer"), settings=Settings.load()) as reporter:
            event_id = reporter.report(IMAGE, environment="production", id="job-7")
        with guarded.as_user("relay-producer") as client:
            client.xadd(KEYS.inbox, {"event": json.dumps({"image": {"url": IMAGE}})})
            assert client.xlen(KEYS.inbox) == 2
            assert receipts.read(client, KEYS, event_id) is None
        with Producer(guarded.url("relay-producer"), settings=Settings.load()) as reporter:
            assert reporter.report(IMAGE, id="job-8", receipt=True) == "job-8"
            told = reporter.receipts([event_id, "job-8"])
            assert [receipt and receipt.status for receipt in told] == [None, Status.QUEUED]
        assert not guarded.refused()

    @pytest.mark.parametrize("command", FORBIDDEN, ids=lambda command: " ".join(command)[:40])
    def test_can_neither_read_nor_delete(self, producer: Redis, command: tuple[str, ...]) -> None:
        with pytest.raises(NoPermissionError):
            producer.execute_command(*command)

    @pytest.mark.parametrize("command", FORBIDDEN, ids=lambda command: " ".join(command)[:40])
    def test_a_script_of_its_own_can_no_more(self, producer: Redis, command: tuple[str, ...]) -> None:
        script = "return redis.call(unpack(ARGV))"
        with pytest.raises(ResponseError, match=REFUSED):
            producer.eval(script, 0, *command)

    def test_a_script_is_given_no_keys_but_its_own(self, producer: Redis) -> None:
        for key in (KEYS.dead, KEYS.intake_lease, "celery"):
            with pytest.raises(NoPermissionError):
                producer.eval("return 1", 1, key)

    def test_what_lies_there_is_untouched(self, producer: Redis, administrator: Redis) -> None:
        """The commands above were refused before they did anything."""
        before = {key: administrator.dump(key) for key in administrator.scan_iter("*")}
        for command in FORBIDDEN:
            with pytest.raises(NoPermissionError):
                producer.execute_command(*command)
        assert {key: administrator.dump(key) for key in administrator.scan_iter("*")} == before

    def test_trimming_is_what_redis_cannot_forbid(self, producer: Redis) -> None:
        """A known limit, which the page names; when Redis learns to, this fails and the page is to change."""
        producer.xadd(KEYS.inbox, {"event": "x"}, maxlen=1, approximate=False)
        assert producer.xlen(KEYS.inbox) == 1
        assert "`XADD … MAXLEN` trims" in PAGE

    def test_is_told_that_the_queue_is_full(self, guarded: Guarded, administrator: Redis) -> None:
        few = settings(guarded.url("relay-producer"), queue={"max_backlog": 1})
        administrator.hset(KEYS.counts, "outbox", 1)
        with Producer(settings=few) as reporter, pytest.raises(QueueFull, match="1 events wait"):
            reporter.report(IMAGE)

    def test_heeds_the_memory_watermark(self, guarded: Guarded, administrator: Redis) -> None:
        tight = settings(guarded.url("relay-producer"), queue={"memory_watermark": 0.01})
        administrator.config_set("maxmemory", "100mb")
        administrator.set("filler", b"x" * 5_000_000)
        try:
            with Producer(settings=tight) as reporter, pytest.raises(QueueFull, match="short of memory"):
                reporter.report(IMAGE)
        finally:
            administrator.config_set("maxmemory", 0)

    def test_a_wrong_password_is_said_without_it(self, guarded: Guarded) -> None:
        url = f"redis://relay-producer:not-the-password@127.0.0.1:{guarded.server.port}/0"
        with Producer(settings=settings(url)) as reporter, pytest.raises(QueueUnavailable) as refused:
            reporter.report(IMAGE)
        assert "not-the-password" not in str(refused.value)


class TestTheOthers:
    @pytest.mark.usefixtures("administrator")
    def test_a_gateway_takes_counts_and_tells_of_events(self, guarded: Guarded) -> None:
        removed = (ROOT / "tests" / "data" / "cdevents" / "removed-0.3.0.json").read_text(encoding="utf-8")
        with running(guarded.url("relay-gateway")) as gateway:
            accepted = gateway.post(ce_id="job-8")
            assert accepted.status_code == 202
            headers = {"Authorization": "Bearer the-producers-token"}
            assert gateway.ask("GET", "/events/job-8", headers=headers).json()["status"] == "queued"
            assert gateway.post(removed, Content_Type="application/cdevents+json").status_code == 202
            assert gateway.ask("GET", "/readyz").status_code == 200
        assert not guarded.refused()

    @pytest.mark.usefixtures("administrator")
    def test_a_watcher_reports_and_writes_the_node_map_that_a_gateway_reads(self, guarded: Guarded) -> None:
        key, platform = KEYS.nodes("eu-1"), parse_platform("linux/arm64")
        with Producer(guarded.url("relay-watcher"), settings=Settings.load()) as reporter:
            reporter.report(IMAGE, environment="production")
        with guarded.as_user("relay-watcher") as client:
            nodes.publish(client, KEYS, "eu-1", {"n1": platform})

            instance = DeploymentEvent.of(IMAGE, environment="production").completed(Defaults()).instance
            gone.mark(client, KEYS, "default", {instance: 1}, lifetime_seconds=60)
            gone.unmark(client, KEYS, "default", [instance])

        async def read() -> nodes.NodeMap:
            async with AsyncRedis.from_url(guarded.url("relay-gateway")) as client:
                return await nodes.read_nodes(client, KEYS, "eu-1", nodes.NodeMap())

        assert asyncio.run(read()).platforms == {"n1": platform}
        assert not guarded.refused()
        for user, commands in {
            "relay-watcher": [
                ("GET", key),
                ("GETRANGE", key, "0", "9"),
                ("DEL", key),
                ("SET", key, "x", "GET"),
                ("HGETALL", KEYS.of_outbox("default", "production").gone),
            ],
            "relay-gateway": [("SET", key, "x"), ("DEL", key)],
            "relay-producer": [("SET", key, "x"), ("GET", key), ("GETRANGE", key, "0", "9")],
        }.items():
            with guarded.as_user(user) as client:
                for command in commands:
                    with pytest.raises(NoPermissionError):
                        client.execute_command(*command)

    @pytest.mark.usefixtures("administrator")
    def test_what_a_gateway_refuses_is_counted(self, guarded: Guarded) -> None:
        with running(guarded.url("relay-gateway"), queue={"max_backlog": 1}) as gateway:
            assert [gateway.post().status_code for _ in range(2)] == [202, 429]
        assert not guarded.refused()

    def test_a_celery_producer_sends(self, guarded: Guarded, administrator: Redis) -> None:
        with Celery(broker=guarded.url("relay-celery"), set_as_current=False) as app:
            app.send_task("relay.report", args=[{"image": {"url": IMAGE}}], retry=False)
        with Connection(guarded.url("relay-celery")) as connection:
            connection.Producer().publish({}, exchange="", routing_key="celery")
        assert administrator.llen("celery") == 2
        assert not guarded.refused()

    @pytest.mark.usefixtures("producer")
    def test_gateways_watchers_and_celery_producers_read_no_more_than_a_producer(self, guarded: Guarded) -> None:
        allowed = {
            "relay-gateway": [("HINCRBY", KEYS.counts, "outbox", "-1")],
            "relay-celery": [("LPUSH", "celery", "x")],
            "relay-watcher": [],
        }
        for user, also in allowed.items():
            with guarded.as_user(user) as client:
                for command in FORBIDDEN:
                    if command not in also:
                        with pytest.raises(NoPermissionError):
                            client.execute_command(*command)

    @pytest.mark.usefixtures("producer")
    def test_a_monitor_reads_and_writes_nothing(self, guarded: Guarded) -> None:
        with guarded.as_user("relay-monitor") as client:
            assert client.xlen(KEYS.inbox) == 1
            assert client.info("memory")
            assert relay(guarded, "relay-monitor", "status").returncode == 0
            for command in FORBIDDEN:
                if command[0] in {
                    "XADD",
                    "XDEL",
                    "DEL",
                    "SET",
                    "HSET",
                    "HINCRBY",
                    "RENAME",
                    "FLUSHALL",
                    "CONFIG",
                    "XTRIM",
                }:
                    with pytest.raises(NoPermissionError):
                        client.execute_command(*command)
                    with pytest.raises(ResponseError):
                        client.eval("return redis.call(unpack(ARGV))", 0, *command)

    @pytest.mark.usefixtures("administrator")
    def test_a_monitor_sees_every_metric_but_how_redis_syncs(self, guarded: Guarded) -> None:
        with contextlib.closing(Exporter(settings(guarded.url("relay-monitor")))) as exporter:
            assert b"\nrelay_up 1" in exporter.scrape()
        assert guarded.refused() == {"relay-monitor: command config|get"}

    def test_nobody_is_an_administrator(self, guarded: Guarded) -> None:
        for user in re.findall(r"^user (relay-\S+)", USERS, re.MULTILINE):
            with guarded.as_user(user) as client:
                for command in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SHUTDOWN",), ("KEYS", "*"),
                                ("SCRIPT", "FLUSH"), ("SET", "other", "x"), ("GET", "other")):  # fmt: skip
                    with pytest.raises(NoPermissionError):
                        client.execute_command(*command)


def relay(guarded: Guarded, user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(guarded, user, "relay", *arguments)


def run(guarded: Guarded, user: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "RELAY_REDIS_URL": guarded.url(user)},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


class TestAWholeRelay:
    def test_delivers_and_is_operated_with_exactly_these_users(
        self, guarded: Guarded, administrator: Redis, tmp_path: Path
    ) -> None:
        with Sandbox(token=TOKEN) as api:
            environment = {**TIMERS, "RELAY_API_TOKEN": TOKEN, "RELAY_API_URL": api.url}
            stack = Stack(tmp_path, redis_url=guarded.url("relay-worker"), api_url=api.url, environment=environment)
            with stack:
                estate = Estate(stack, administrator, api)

                def seen() -> str:
                    return f"{estate.counters()}, refused: {guarded.refused()}"

                estate.start_worker()
                # As Flower asks who there is.
                asked = run(guarded, "relay-flower", "celery", "-A", "workers", "inspect", "ping", "--timeout", "10")
                assert "pong" in asked.stdout
                assert relay(guarded, "relay-operator", "pause", "staging").returncode == 0
                with Producer(guarded.url("relay-producer"), settings=Settings.load()) as reporter:
                    reporter.report(IMAGE, environment="production")
                    reporter.report(IMAGE, environment="staging")
                with guarded.as_user("relay-producer") as client:
                    client.xadd(KEYS.inbox, {"event": "no json"})
                wait_for(lambda: estate.counters().delivered == 1 and estate.counters().dead == 1, 60, seen)
                assert "staging" in relay(guarded, "relay-operator", "status").stdout
                assert "invalid" in relay(guarded, "relay-operator", "dead", "list").stdout
                for arguments in (("dead", "redrive", "--yes"), ("resume", "staging")):
                    done = relay(guarded, "relay-operator", *arguments)
                    assert done.returncode == 0, done.stderr
                wait_for(lambda: estate.counters().dead == 2 and not estate.counters().waiting, 60, seen)
                assert relay(guarded, "relay-operator", "dead", "drop", "--yes").returncode == 0
                assert (estate.counters().delivered, estate.counters().unaccounted) == (2, 0)
                assert "1 forgotten" in relay(guarded, "relay-operator", "forget", "staging", "--yes").stdout
        assert not guarded.refused()
