"""One round trip: what Redis counts of the commands behind each way to report, once the connection is there."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from gateways import TOKEN, running
from runs import image_of

from relay import AsyncProducer, DeploymentEvent, GatewayProducer, Producer
from relay.producer.queue_producer import CHUNK
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

#: What the script of a report calls, at most once for a run; its XADD is once an event.
WITHIN_THE_SCRIPT = {"get", "xlen", "hget", "info", "set", "time"}

#: Reports in turn, of which none may cost more than the others.
REPORTS = 20


def events(count: int) -> list[DeploymentEvent]:
    return [DeploymentEvent.of(image_of(f"app-{n}"), id=f"event-{n}") for n in range(count)]


@contextmanager
def counted(client: Redis, *, round_trips: int, entries: int) -> Iterator[None]:
    """Check what Redis was asked for meanwhile: one script a round trip, and nothing beside what the script does."""
    client.config_resetstat()
    yield
    stats: Any = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    assert calls.pop("config|resetstat") == 1
    assert calls.pop("evalsha") == round_trips
    assert calls.pop("xadd") == entries
    receipts = calls.pop("set") - round_trips, calls.pop("get") - round_trips
    assert receipts in {(0, 0), (entries, entries)}
    assert calls.keys() <= WITHIN_THE_SCRIPT, f"sent beside the script: {calls}"
    assert set(calls.values()) <= {round_trips, 0}, calls


def one_by_one(producer: Producer) -> None:
    for event in events(REPORTS):
        producer.report_event(event)


def with_receipts(producer: Producer) -> None:
    for number in range(REPORTS):
        producer.report(image_of(f"app-{number}"), environment="production", id=f"event-{number}", receipt=True)


def by_hundreds(producer: Producer) -> None:
    producer.report_many(events(2 * CHUNK + 1))


def as_a_stream(producer: Producer) -> None:
    assert len(list(producer.report_stream(iter(events(2 * CHUNK + 1))))) == 2 * CHUNK + 1


@pytest.mark.parametrize(
    ("report", "round_trips", "entries"),
    [
        (one_by_one, REPORTS, REPORTS),
        (with_receipts, REPORTS, REPORTS),
        (by_hundreds, 3, 2 * CHUNK + 1),
        (as_a_stream, 3, 2 * CHUNK + 1),
    ],
)
def test_a_report_is_one_round_trip(
    redis_server: EmbeddedRedis, client: Redis, report: Callable[[Producer], None], round_trips: int, entries: int
) -> None:
    with Producer(redis_server.url) as producer:
        producer.report(image_of("the-first"))  # connects, and loads the script if Redis does not know it
        with counted(client, round_trips=round_trips, entries=entries):
            report(producer)


def test_a_report_from_asyncio_is_one_round_trip(redis_server: EmbeddedRedis, client: Redis) -> None:
    async def run() -> None:
        async with AsyncProducer(settings=Settings.load(redis={"url": redis_server.url})) as producer:
            await producer.report(image_of("the-first"))
            with counted(client, round_trips=REPORTS, entries=REPORTS):
                for event in events(REPORTS):
                    await producer.report_event(event)
            with counted(client, round_trips=3, entries=2 * CHUNK + 1):
                await producer.report_many(events(2 * CHUNK + 1))

    asyncio.run(run())


def test_a_request_to_the_gateway_is_one_round_trip_however_many_it_reports(
    redis_server: EmbeddedRedis, client: Redis
) -> None:
    with running(redis_server.url) as gateway, GatewayProducer(gateway.url, token=TOKEN) as producer:
        producer.report(image_of("the-first"))
        with counted(client, round_trips=REPORTS, entries=REPORTS):
            for event in events(REPORTS):
                producer.report_event(event)
        with counted(client, round_trips=1, entries=100):
            assert len(producer.report_many(events(100))) == 100
