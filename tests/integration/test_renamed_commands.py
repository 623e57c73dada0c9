"""A Redis that renames or forbids what is nice to have, as managed ones do, is enough for everything."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from flower.utils.broker import Broker
from gateways import TOKEN, running
from tls_servers import HOST, redis_server
from typer.testing import CliRunner

from relay import DeploymentEvent, Producer
from relay.cli import app as command_line
from relay.connections.clients import connect, connect_async
from relay.console.queue_client import QueueClient
from relay.metrics.exporter import Exporter
from relay.operations.doctor import broker as doctors_broker
from relay.operations.doctor import redis_server as doctors_redis
from relay.operations.finding import Severity
from relay.settings import Settings
from workers.scheduling.app import RelayApp

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What managed services rename or forbid, of all that this project or its libraries might send. Needed are the
#: commands of streams, scripts and transactions, TIME, and for Celery lists and PUBLISH.
FORBIDDEN = (
    "ACL", "BGREWRITEAOF", "BGSAVE", "CLIENT", "COMMAND", "CONFIG", "DEBUG", "FAILOVER", "FLUSHALL", "FLUSHDB",
    "HELLO", "INFO", "KEYS", "LATENCY", "MEMORY", "MODULE", "MONITOR", "OBJECT", "REPLICAOF", "ROLE", "SAVE", "SCAN",
    "SHUTDOWN", "SLOWLOG", "SORT", "SWAPDB", "WAIT",
)  # fmt: skip

EVENT = DeploymentEvent.of(f"ghcr.io/acme/app@sha256:{'a' * 64}", environment="production")


@pytest.fixture(scope="module", params=["nothing", "CLIENT", "all"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis without some commands; the first has all, so that a fault of the test's own shows."""
    forbidden = {"nothing": (), "all": FORBIDDEN}.get(request.param, (request.param,))
    sound = {"appendonly": "yes", "appendfsync": "always", "maxmemory": "2gb", "maxmemory-policy": "noeviction"}
    options = {**sound, **{f"rename-command {name}": '""' for name in forbidden}}
    with redis_server(tmp_path_factory.mktemp("redis"), options) as started:
        yield f"redis://{HOST}:{started.port}/0"


@pytest.fixture
def settings(url: str) -> Settings:
    return Settings.load(redis={"url": url})


def test_clients_connect(settings: Settings) -> None:
    async def ask() -> bool:
        shard = QueueClient(settings)
        async with connect_async(settings.redis) as client, connect_async(settings.redis, connections=1) as single:
            try:
                return await client.ping() and await single.ping() and await shard.ask(lambda one, _: one.ping())
            finally:
                await shard.close()

    assert asyncio.run(ask())
    with connect(settings.redis) as client:
        assert client.ping()


def test_a_name_is_given_where_it_is_permitted(settings: Settings, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["url"] != "nothing":
        return
    with connect(settings.redis) as client, RelayApp(settings) as app, app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        assert {each["name"] for each in client.client_list()} >= {"relay", "relay-celery"}


def test_producer_and_gateway_report(settings: Settings, url: str) -> None:
    with Producer(settings=settings) as producer:
        assert producer.report_many([EVENT])
    with running(url) as gateway:
        assert gateway.post().status_code == 202
        assert gateway.ask("GET", "/readyz").status_code == 200
        metrics = gateway.ask("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert b"\nrelay_up 1" in metrics.content
    with closing(Exporter(settings)) as exporter:
        assert b"\nrelay_up 1" in exporter.scrape()


def test_the_broker_takes_messages(settings: Settings) -> None:
    with RelayApp(settings) as app, app.connection_for_write() as connection:
        app.send_task("relay.nothing", queue="elsewhere", connection=connection, ignore_result=True)
        with connect(settings.redis) as client:
            assert client.llen("elsewhere") >= 1


def test_flower_and_the_doctor_read_queue_lengths(settings: Settings, request: pytest.FixtureRequest) -> None:
    """By clients of their own, which want HELLO with redis-py 8."""
    if request.node.callspec.params["url"] == "all":
        return
    assert doctors_broker.read_broker(settings, frozenset).answered == frozenset()
    with RelayApp(settings) as app, app.connection_for_write() as connection:
        app.send_task("relay.nothing", queue="elsewhere", connection=connection, ignore_result=True)
        shown = Broker(
            connection.as_uri(include_password=True),
            broker_options=app.conf.broker_transport_options,
            broker_use_ssl=app.conf.broker_use_ssl,
        )
        assert asyncio.run(shown.queues(["elsewhere"]))[0]["messages"] >= 1


def test_the_doctor_finds_no_fault_of_redis(settings: Settings) -> None:
    with connect(settings.redis, retries=0) as client:
        assert doctors_redis.check_connection(client, settings).severity is Severity.OK
        found = list(doctors_redis.check_redis(client, settings))
    assert {each.severity for each in found} <= {Severity.OK, Severity.NOTE}, found


@pytest.mark.parametrize("command", ["status", "status --json", "dead list", "pause x", "resume x", "inventory"])
def test_commands_answer(command: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_REDIS_URL", url)
    said = CliRunner().invoke(command_line, command.split())
    assert said.exit_code in {0, 1}, said.output
    assert "unknown command" not in said.output
