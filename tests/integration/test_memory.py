"""A Redis that is short of memory: producers are refused first, workers can still record what they did."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError
from rig import FILLER, MEBIBYTE

from relay import AsyncProducer, Producer
from relay.errors import QueueFull, QueueUnavailable
from relay.queue import inbox, leases, scripts
from relay.queue.keys import Keys
from relay.queue.leases import Why
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

KEYS = Keys()
IMAGE = "ghcr.io/acme/api@sha256:" + "a" * 64


@pytest.fixture
def small(client: Redis) -> Iterator[Redis]:
    """A Redis with 64 MiB, 20 of them used by something else."""
    client.config_set("maxmemory", used(client) + 44 * MEBIBYTE)
    fill(client, 20)
    yield client
    client.config_set("maxmemory", 0)
    client.flushall()


def used(client: Redis) -> int:
    return int(client.info("memory")["used_memory"])


def fill(client: Redis, mebibytes: int) -> None:
    for number in range(mebibytes):
        client.set(f"filler:{number}", FILLER)


def fill_up(client: Redis) -> None:
    """Fill it to the last byte, as a producer with a plain XADD may."""
    number = 0
    for size in (MEBIBYTE, 1000, 1):
        try:
            while True:
                number += 1
                client.set(f"filler:more:{number}", b"x" * size)
        except OutOfMemoryError:
            pass


def test_producers_are_refused_at_the_watermark_and_taken_again_below_it(
    redis_server: EmbeddedRedis, small: Redis
) -> None:
    with Producer(redis_server.url) as producer:
        producer.report(IMAGE)
        fill_to = 0.95 * int(small.config_get("maxmemory")["maxmemory"])
        fill(small, 20 + int((fill_to - used(small)) / MEBIBYTE))
        with pytest.raises(QueueFull, match=r"short of memory: \d+ of \d+ bytes.*queue.memory_watermark.*try again"):
            producer.report(IMAGE)
        with pytest.raises(QueueFull) as refused:
            producer.report_many([{"image": {"url": IMAGE}}] * 3)
        assert refused.value.enqueued == ()
        assert small.xlen(KEYS.inbox) == 1, "something was half written"
        small.xadd(KEYS.inbox, {"event": "{}"})  # plain XADD knows no watermark: there is room until maxmemory
        for number in range(20):
            small.delete(f"filler:{number}")
        producer.report(IMAGE)
        assert small.xlen(KEYS.inbox) == 3


def test_the_watermark_is_the_settings(redis_server: EmbeddedRedis, small: Redis) -> None:
    body = [{"event": b"{}"}]
    assert scripts.run(small, inbox.append_call(KEYS, body, 100, 1.0)) == 1
    with pytest.raises(ResponseError, match="MEMORYFULL"):
        scripts.run(small, inbox.append_call(KEYS, body, 100, 0.01))


def test_without_a_maxmemory_there_is_no_watermark(client: Redis) -> None:
    assert scripts.run(client, inbox.append_call(KEYS, [{"event": b"{}"}], 100, 0.000001)) == 1


def test_a_user_who_may_not_ask_for_memory_may_report(redis_server: EmbeddedRedis, small: Redis) -> None:
    small.execute_command("ACL", "SETUSER", "producer", "on", ">secret", "~*", "+@all", "-info")
    try:
        with Producer(redis_server.url.replace("redis://", "redis://producer:secret@")) as producer:
            producer.report(IMAGE)
    finally:
        small.execute_command("ACL", "DELUSER", "producer")


def test_at_maxmemory_producers_learn_that_it_is_full_and_nothing_is_half_written(
    redis_server: EmbeddedRedis, small: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_QUEUE__MEMORY_WATERMARK", "1")
    fill_up(small)
    small.config_set("maxmemory", used(small) - 8 * MEBIBYTE)  # more than a client that leaves gives back

    async def report() -> None:
        async with AsyncProducer(redis_server.url) as producer:
            await producer.report(IMAGE)

    with Producer(redis_server.url) as producer, pytest.raises(QueueFull, match="memory"):
        producer.report(IMAGE)
    with pytest.raises(QueueFull, match="memory"):
        asyncio.run(report())
    assert not small.exists(KEYS.inbox)


def test_redis_own_refusal_is_read_as_full() -> None:
    for error in (
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ResponseError("Error running script: user_script:9: -OOM command not allowed when used memory > 'maxmemory'"),
    ):
        assert "out of memory" in str(inbox.full_because(error))
    assert inbox.full_because(ResponseError("READONLY You can't write against a read only replica")) is None


def test_at_maxmemory_drains_still_get_their_bells_and_leases(small: Redis) -> None:
    fill_up(small)
    small.config_set("maxmemory", used(small) - 8 * MEBIBYTE)  # more than a client that leaves gives back
    outbox = KEYS.of_outbox(DEFAULT_DESTINATION, "production")
    assert leases.to_wake(small, KEYS.counts, [(outbox.lease, outbox.wakeup)], 5, Why.DUE) == [0]


@pytest.mark.usefixtures("client")
def test_a_redis_that_cannot_be_reached_is_not_full() -> None:
    with Producer("redis://127.0.0.1:1/0") as producer, pytest.raises(QueueUnavailable):
        producer.report(IMAGE)
