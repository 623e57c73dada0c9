"""After a failover behind one address, kept connections lead to a demoted node: clients make new ones."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from failovers import Pair
from gateways import running
from redis.exceptions import ResponseError
from rig import wait_for

from relay import AsyncProducer, Producer
from relay.connections import failover
from relay.connections.clients import connect, connect_async
from relay.connections.failover import WrongServer, wrong_server
from relay.console.queue_client import QueueClient
from relay.operations.doctor import redis_server
from relay.operations.finding import Severity
from relay.queue import scripts
from relay.queue.inbox import append_call
from relay.queue.keys import Keys
from relay.queue.status import read_status
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.scheduling.app import RelayApp
from workers.scheduling.wakeups import DELIVER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

IMAGE = f"ghcr.io/acme/api@sha256:{'a' * 64}"


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    servers.to_a.flushall()
    yield servers
    servers.fail_back()


def settings_of(pair: Pair, **more: Any) -> Settings:
    return Settings.load(redis={"url": pair.url}, **more)


def waiting(client: Redis) -> int:
    return int(client.xlen(Keys().inbox))


def test_a_producer_reports_to_the_new_primary(pair: Pair) -> None:
    with Producer(settings=settings_of(pair)) as producer:
        producer.report(IMAGE)
        pair.fail_over()
        producer.report(IMAGE)
        assert waiting(pair.to_b) == 2


def test_a_stream_of_reports_goes_on(pair: Pair) -> None:
    with Producer(settings=settings_of(pair)) as producer:

        def events() -> Iterator[Any]:
            from relay import DeploymentEvent  # noqa: PLC0415 - here alone

            for number in range(1200):
                if number == 700:
                    pair.fail_over()
                yield DeploymentEvent.of(IMAGE, name=f"n{number}")

        assert len(list(producer.report_stream(events()))) == 1200
    assert waiting(pair.to_b) == 1200


def test_a_producer_with_a_spool_needs_no_spool(pair: Pair, tmp_path: Path) -> None:
    with Producer(settings=settings_of(pair), spool=tmp_path) as producer:
        producer.report(IMAGE)
        pair.fail_over()
        producer.report(IMAGE)
        assert producer.spooled == 0
        assert waiting(pair.to_b) == 2


def test_an_asynchronous_producer_reports_to_the_new_primary(pair: Pair) -> None:
    async def report() -> None:
        async with AsyncProducer(settings=settings_of(pair), deadline_seconds=5) as producer:
            await producer.report(IMAGE)
            await asyncio.to_thread(pair.fail_over)
            await asyncio.gather(*[producer.report(IMAGE) for _ in range(10)])

    asyncio.run(report())
    assert waiting(pair.to_b) == 11


def test_all_connections_of_a_pool_follow(pair: Pair) -> None:
    with connect(pair.settings()) as client:
        together = threading.Barrier(4)

        def write(_: int) -> None:
            together.wait(10)
            pipeline = client.pipeline(transaction=False)
            pipeline.incr("n")
            pipeline.incr("n")
            pipeline.execute()
            scripts.run_all(client, [append_call(Keys(), [{"event": b"{}"}], 1000)])

        for is_first in (True, False):
            threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if is_first:
                pair.fail_over()
        assert int(pair.to_b.get("n")) == 16
        assert waiting(pair.to_b) == 8


def test_a_transaction_follows(pair: Pair) -> None:
    with connect(pair.settings()) as client:
        client.incr("n")
        pair.fail_over()
        assert client.pipeline(transaction=True).incr("n").incr("n").execute() == [2, 3]


def test_a_blocking_read_that_the_demotion_ends_goes_on(pair: Pair) -> None:
    """The reader is blocked at A as that is demoted (UNBLOCKED), and gets what comes to B."""
    got: list[Any] = []
    with connect(pair.settings()) as client:
        client.ping()
        reader = threading.Thread(target=lambda: got.append(client.xread({"s": "0-0"}, block=4000)))
        reader.start()
        while not pair.to_a.info("clients")["blocked_clients"]:
            pass
        pair.fail_over()
        pair.to_b.xadd("s", {"n": 1})
        reader.join()
    assert got[0][0][0] == b"s"


@pytest.mark.parametrize("connections", [1, 4])
def test_who_only_reads_leaves_a_demoted_node(pair: Pair, monkeypatch: pytest.MonkeyPatch, connections: int) -> None:
    """The demoted node is cut off and answers reads with old data: only its role tells."""
    monkeypatch.setattr(failover, "ROLE_SECONDS", 0.2)

    async def read() -> None:
        async with connect_async(pair.settings(), connections=connections) as client:
            with connect(pair.settings()) as other:
                assert (await client.get("n"), other.get("n")) == (b"1", b"1")
                await asyncio.to_thread(pair.fail_over, cut_off=True)
                pair.to_b.set("n", 2)
                deadline = time.monotonic() + 10
                while (await client.get("n"), other.get("n")) != (b"2", b"2"):
                    assert time.monotonic() < deadline

    pair.to_a.set("n", 1)
    asyncio.run(read())


def test_the_console_follows(pair: Pair) -> None:
    async def ask() -> None:
        shard = QueueClient(settings_of(pair))
        await shard.ask(lambda client, _: client.set("n", 1))
        await asyncio.to_thread(pair.fail_over)
        await shard.ask(lambda client, _: client.set("n", 2))
        await shard.close()

    asyncio.run(ask())
    assert pair.to_b.get("n") == b"2"


def test_wake_ups_go_to_the_new_primary(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu keeps the connections of its pools as redis-py does, and a count of what waits is a read."""
    monkeypatch.setattr(failover, "ROLE_SECONDS", 0.2)
    app = RelayApp(settings_of(pair))

    def waiting_at_the_broker() -> int:
        with app.pool.acquire(block=True) as connection, connection.channel() as channel:
            return int(channel.queue_declare(DELIVER, passive=True).message_count)

    for _ in range(3):
        app.send_task(DELIVER, ("production",), retry=False)
    assert waiting_at_the_broker() == 3
    pair.fail_over(cut_off=True)
    for _ in range(2):
        app.send_task(DELIVER, ("production",), retry=False)
    assert pair.to_b.llen(DELIVER) == 5
    wait_for(lambda: waiting_at_the_broker() == 5)
    app.close()


def test_the_gateway_reports_to_the_new_primary_and_is_ready(pair: Pair) -> None:
    with running(pair.url) as gateway:
        assert gateway.post().status_code == 202
        pair.fail_over()
        assert gateway.ask("GET", "/readyz").status_code == 200
        assert gateway.post().status_code == 202
    assert waiting(pair.to_b) == 2


@pytest.mark.parametrize(
    ("spoil", "restore", "says"),
    [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read-only replica"),
        ("CONFIG SET min-replicas-to-write 5", "CONFIG SET min-replicas-to-write 0", "no writes"),
    ],
    ids=["replica", "lost replicas"],
)
def test_a_redis_that_takes_no_writes_is_not_ready_and_found(pair: Pair, spoil: str, restore: str, says: str) -> None:
    """A replica answers PING: /readyz said 200 while no report was taken."""
    with running(pair.url) as gateway, connect(pair.settings(), retries=0) as client:
        assert gateway.ask("GET", "/readyz").status_code == 200
        assert redis_server.check_writes(client, Keys()).severity is Severity.OK
        pair.to_a.execute_command(*spoil.split())
        try:
            refused = [gateway.ask("GET", "/readyz"), gateway.post()]
            found = redis_server.check_writes(client, Keys())
            seen = read_status(client, Keys(), DEFAULT_DESTINATION, Settings().queue)
        finally:
            pair.to_a.execute_command(*restore.split())
        assert [answer.status_code for answer in refused] == [503, 503]
        assert all(says in answer.json()["error"] for answer in refused)
        assert found.severity is Severity.FAULT
        assert seen.write_error.startswith(("READONLY", "NOREPLICAS"))
        assert gateway.ask("GET", "/readyz").status_code == 200
        assert gateway.post().status_code == 202


@pytest.mark.parametrize(
    "message",
    [
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "NOREPLICAS Not enough good replicas to write.",
        "NOREPLICAS Not enough good replicas to write. script: 1f2e, on @user_script:1.",
        "Error running script (call to f_1f2e): @user_script:12: @user_script: 12: -READONLY You can't write.",
        "Error running script (call to f_1f2e): @user_script:12: -MASTERDOWN Link with MASTER is down",
    ],
)
def test_refusals_of_a_wrong_server(message: str) -> None:
    assert isinstance(wrong_server(ResponseError(message)), WrongServer)


@pytest.mark.parametrize(
    "message",
    [
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "QUEUEFULL READONLY ",
        "Error running script (call to f_1f2e): @user_script:1: user_script:1: QUEUEFULL 7 wait",
        "wrong number of arguments for 'get' command",
        "UNKILLABLE Sorry the script already executed write commands against the dataset.",
        "BUSY Redis is busy running a script.",
    ],
)
def test_troubles_of_the_right_server(message: str) -> None:
    assert wrong_server(ResponseError(message)) is None
