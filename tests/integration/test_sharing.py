"""Reports that one process makes at once share round trips, and each has its own outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from runs import KEYS, image_of

from relay import AsyncProducer, DeploymentEvent, QueueFull, QueueUnavailable
from relay.producer.queue_producer import CHUNK
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

AT_ONCE = 200


def with_producer(url: str, use: Callable[[AsyncProducer], Awaitable[Any]], **queue: Any) -> Any:
    async def run() -> Any:
        async with AsyncProducer(settings=Settings.load(redis={"url": url}, queue=queue)) as producer:
            return await use(producer)

    return asyncio.run(run())


async def report_at_once(producer: AsyncProducer) -> list[Any]:
    reports = (producer.report(image_of(f"app-{n}"), id=f"event-{n}") for n in range(AT_ONCE))
    return await asyncio.gather(*reports, return_exceptions=True)


def ids_in_inbox(client: Redis) -> list[str]:
    return [fields[b"id"].decode() for _, fields in client.xrange(KEYS.inbox)]


def scripts_run(client: Redis) -> int:
    stats: Any = client.info("commandstats")
    return sum(stats.get(name, {"calls": 0})["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval"))


def test_reports_at_once_take_few_round_trips(redis_server: EmbeddedRedis, client: Redis) -> None:
    before = scripts_run(client)
    ids = with_producer(redis_server.url, report_at_once)
    assert ids == [f"event-{n}" for n in range(AT_ONCE)]
    assert ids_in_inbox(client) == ids, "each in its place"
    assert scripts_run(client) - before <= 4


def test_all_of_them_learn_that_the_queue_is_full(redis_server: EmbeddedRedis, client: Redis) -> None:
    client.xadd(KEYS.inbox, {"event": "{}"})
    told = with_producer(redis_server.url, report_at_once, max_backlog=1)
    assert {type(each) for each in told} == {QueueFull}
    assert client.xlen(KEYS.inbox) == 1


def test_all_of_them_learn_that_redis_is_away() -> None:
    told = with_producer("redis://127.0.0.1:1/0", report_at_once)
    assert {type(each) for each in told} == {QueueUnavailable}
    assert len({id(each) for each in told}) == AT_ONCE, "an error raised twice would get a wrong traceback"


def test_a_cancelled_report_cancels_no_other(redis_server: EmbeddedRedis, client: Redis) -> None:
    async def use(producer: AsyncProducer) -> list[str]:
        tasks = [asyncio.create_task(producer.report(image_of(f"app-{n}"), id=f"event-{n}")) for n in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[5].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        return [each for each in done if isinstance(each, str)]

    told = with_producer(redis_server.url, use)
    assert len(told) == 8
    assert set(told) <= set(ids_in_inbox(client))


def test_many_of_one_call_stay_together_beside_others(redis_server: EmbeddedRedis, client: Redis) -> None:
    async def use(producer: AsyncProducer) -> None:
        many = [DeploymentEvent.of(image_of(f"many-{n}"), id=f"many-{n}") for n in range(CHUNK)]
        await asyncio.gather(
            producer.report(image_of("a"), id="a"), producer.report_many(many), producer.report(image_of("b"), id="b")
        )

    with_producer(redis_server.url, use)
    ids = ids_in_inbox(client)
    first = ids.index("many-0")
    assert ids[first : first + CHUNK] == [f"many-{n}" for n in range(CHUNK)]
    assert set(ids) == {"a", "b", *(f"many-{n}" for n in range(CHUNK))}


def test_closing_sends_what_waits(redis_server: EmbeddedRedis, client: Redis) -> None:
    async def use(producer: AsyncProducer) -> list[str]:
        tasks = [asyncio.create_task(producer.report(image_of(f"app-{n}"), id=f"event-{n}")) for n in range(10)]
        await asyncio.sleep(0)
        await producer.close()
        return await asyncio.gather(*tasks)

    assert with_producer(redis_server.url, use) == ids_in_inbox(client)


@pytest.mark.parametrize("given", [None, "mine"])
def test_receipt_is_asked_for_by_the_id_that_is_returned(
    redis_server: EmbeddedRedis, client: Redis, given: str | None
) -> None:
    async def use(producer: AsyncProducer) -> str:
        return await producer.report(image_of("app"), id=given, receipt=True)

    event_id = with_producer(redis_server.url, use)
    assert client.exists(KEYS.receipt(event_id))
