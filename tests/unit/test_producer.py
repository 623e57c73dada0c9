"""A report adds one inbox entry and returns its id; of many, each has its outcome in its place."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest

from relay import AsyncProducer, DeploymentEvent, InvalidEvent, Producer, QueueFull, QueueUnavailable
from relay.producer import streaming
from relay.producer.queue_producer import CHUNK
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST = "sha256:" + "0123456789abcdef" * 4
APP = f"registry.example.com/team/app@{DIGEST}"
INBOX, COUNTS = Keys().inbox, Keys().counts

pytestmark = pytest.mark.usefixtures("no_settings")

#: An address without a server.
REFUSED = "127.0.0.1:1"


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def redis(server: fakeredis.FakeServer) -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server=server)


@pytest.fixture
def producer(redis: fakeredis.FakeRedis) -> Producer:
    return producer_on(redis)


def producer_on(redis: fakeredis.FakeRedis, **queue: Any) -> Producer:
    producer = Producer(settings=Settings.load(queue=queue))
    producer._client = redis
    return producer


def entries(redis: fakeredis.FakeRedis) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in redis.xrange(INBOX)]


def events(count: int, environment: str = "production") -> Iterator[DeploymentEvent]:
    return (DeploymentEvent.of(APP, environment=environment, id=f"e{number}") for number in range(count))


# One event


def test_given_id_is_returned_and_enqueued(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    assert producer.report(APP, id="42") == "42"
    assert entries(redis)[0][b"id"] == b"42"


def test_event_without_an_id_gets_a_new_one(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    ids = [producer.report(APP), producer.report(APP)]

    assert len(set(ids)) == 2
    assert [fields[b"id"].decode() for fields in entries(redis)] == ids
    assert all(ids)


def test_fields_are_the_contracts(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    producer.report(
        APP,
        environment="production",
        name="wéb",
        platform="linux/arm64",
        id="42",
        source="ci",
        time="2025-01-31T13:00:00+01:00",
    )

    (fields,) = entries(redis)
    body = (
        f'{{"image":{{"url":"{APP}","name":"wéb"}},"environment":{{"name":"production"}},'
        '"platform":{"os":"linux","architecture":"arm64"}}'
    )
    assert fields == {
        b"event": body.encode(),
        b"id": b"42",
        b"source": b"ci",
        b"time": b"2025-01-31T12:00:00+00:00",
    }


def test_missing_fields_are_not_enqueued(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    event_id = producer.report(APP)

    assert entries(redis) == [{b"event": f'{{"image":{{"url":"{APP}"}}}}'.encode(), b"id": event_id.encode()}]


def test_entry_is_read_back_as_the_same_event(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    event = DeploymentEvent.of(APP, environment="edge", id="1", source="ci", time="2025-01-31T12:00:00.250Z")
    producer.report_event(event)

    (fields,) = entries(redis)
    envelope = {name: fields[name.encode()].decode() for name in ("id", "source", "time")}
    assert DeploymentEvent.parse(fields[b"event"], **envelope) == event


def test_namespace_is_the_configured_one(redis: fakeredis.FakeRedis) -> None:
    producer_on(redis, namespace="staging").report(APP)

    assert {key.partition(b"}:")[0] for key in redis.scan_iter()} == {b"{staging:0"}
    assert redis.xlen("{staging:0}:inbox") == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"image_url": "nginx:1"}, "image.url"),
        ({"image_url": ""}, "image.url"),
        ({"image_url": APP, "environment": "a\nb"}, "environment.name"),
        ({"image_url": APP, "id": "x" * 129}, "id"),
        ({"image_url": APP, "time": "yesterday"}, "time"),
    ],
)
def test_event_that_could_never_be_delivered_is_refused(
    producer: Producer, redis: fakeredis.FakeRedis, arguments: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidEvent) as refused:
        producer.report(**arguments)

    assert refused.value.field == field
    assert redis.keys() == []


def test_event_larger_than_allowed_is_refused(redis: fakeredis.FakeRedis) -> None:
    size = len(DeploymentEvent.of(APP).body())
    producer_on(redis, max_event_bytes=size).report(APP)

    with pytest.raises(InvalidEvent, match=f"the event is {size} bytes, and queue.max_event_bytes is {size - 1}"):
        producer_on(redis, max_event_bytes=size - 1).report(APP)
    assert len(entries(redis)) == 1


def test_full_queue_refuses_and_trims_nothing(redis: fakeredis.FakeRedis) -> None:
    producer = producer_on(redis, max_backlog=2)
    producer.report(APP)
    producer.report(APP)

    with pytest.raises(QueueFull, match=r"the queue is full \(2 events wait\)"):
        producer.report(APP)
    assert len(entries(redis)) == 2


def test_events_in_outboxes_count_for_the_backlog(redis: fakeredis.FakeRedis) -> None:
    redis.hset(COUNTS, "outbox", 2)

    with pytest.raises(QueueFull):
        producer_on(redis, max_backlog=2).report(APP)


@pytest.mark.parametrize(
    "url", [f"redis://user:hunter2@{REFUSED}/0", f"redis://{REFUSED}/0?password=hunter2"], ids=["user", "query"]
)
def test_error_about_an_unreachable_redis_has_no_password(url: str) -> None:
    with Producer(url) as producer, pytest.raises(QueueUnavailable, match=REFUSED) as refused:
        producer.report(APP)

    assert "hunter2" not in str(refused.value)


def test_producer_is_used_again_after_it_was_closed(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    with producer:
        producer.report(APP)
    producer.report(APP)

    assert len(entries(redis)) == 2


# Many events


def test_many_are_enqueued_in_their_order_with_their_ids(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    ids = producer.report_many(events(CHUNK + 3))

    assert ids == [f"e{number}" for number in range(CHUNK + 3)]
    assert [fields[b"id"].decode() for fields in entries(redis)] == ids


def test_many_may_be_given_as_the_apis_bodies(producer: Producer, redis: fakeredis.FakeRedis) -> None:
    body = {"image": {"url": APP}, "environment": {"name": "production"}}

    assert producer.report_many([{**body, "id": "42"}, *events(1)]) == ["42", "e0"]
    assert json.loads(entries(redis)[0][b"event"]) == body


@pytest.mark.parametrize("bad", [{"image": {"url": "nginx:1"}}, {"image": APP}, {}, "text", None])
@pytest.mark.parametrize("method", ["report_many", "report_stream"])
def test_of_many_an_invalid_one_is_returned_in_its_place(
    bad: Any, method: str, producer: Producer, redis: fakeredis.FakeRedis
) -> None:
    first, fault, last = getattr(producer, method)([*events(1), bad, *events(1)])

    assert (first, last) == ("e0", "e0")
    assert isinstance(fault, InvalidEvent)
    assert len(entries(redis)) == 2


def test_of_many_one_that_is_too_large_is_returned_in_its_place(redis: fakeredis.FakeRedis) -> None:
    producer = producer_on(redis, max_event_bytes=200)
    large = events(1, "x" * 200)

    assert [str(each) for each in producer.report_many([*events(1), *large, *events(1)])] == [
        "e0",
        "the event is 347 bytes, and queue.max_event_bytes is 200",
        "e0",
    ]
    assert len(entries(redis)) == 2


def test_of_many_the_error_has_the_ids_that_are_enqueued(redis: fakeredis.FakeRedis) -> None:
    with pytest.raises(QueueFull) as raised:
        producer_on(redis, max_backlog=CHUNK).report_many(events(CHUNK + 2))

    assert list(raised.value.enqueued) == [fields[b"id"].decode() for fields in entries(redis)]
    assert len(raised.value.enqueued) == CHUNK


def test_stream_is_enqueued_lazily_in_chunks(
    producer: Producer, redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PAUSE_SECONDS", 600)  # a machine under load may pause for longer
    assert CHUNK == 500
    source = events(3 * CHUNK)
    ids = producer.report_stream(source)
    assert len(entries(redis)) == 0

    first = list(islice(ids, CHUNK))
    assert len(entries(redis)) == CHUNK

    assert next(ids) == f"e{CHUNK}"
    assert len(entries(redis)) == 2 * CHUNK
    assert len(first) == CHUNK
    assert next(source).id == f"e{2 * CHUNK}", "no more is read than is enqueued"


def test_chunk_that_finds_the_queue_full_is_refused_whole(redis: fakeredis.FakeRedis) -> None:
    ids = producer_on(redis, max_backlog=CHUNK).report_stream(events(CHUNK + 2))
    reported = list(islice(ids, CHUNK))

    with pytest.raises(QueueFull):
        next(ids)
    assert [fields[b"id"].decode() for fields in entries(redis)] == reported


# For asyncio


def test_async_producer_makes_the_same_entries(
    producer: Producer, server: fakeredis.FakeServer, redis: fakeredis.FakeRedis
) -> None:
    fields = {"environment": "production", "id": "42", "source": "ci", "time": "2025-01-31T12:00:00Z"}
    producer.report(APP, **fields)

    async def report() -> list[str]:
        async with AsyncProducer(settings=Settings.load()) as asynchronous:
            await asynchronous._client.aclose()
            asynchronous._client = fakeredis.FakeAsyncRedis(server=server)
            one = await asynchronous.report(APP, **fields)
            return [one, *(await asynchronous.report_many(events(CHUNK + 1)))]

    assert asyncio.run(report()) == ["42", *(f"e{number}" for number in range(CHUNK + 1))]
    assert entries(redis)[0] == entries(redis)[1]
    assert len(entries(redis)) == CHUNK + 3


@pytest.mark.parametrize(
    ("queue", "image", "error"),
    [
        ({}, "nginx:1", InvalidEvent),
        ({"max_event_bytes": 1}, APP, InvalidEvent),
        ({"max_backlog": 1}, APP, QueueFull),
    ],
)
def test_async_producer_refuses_the_same(
    server: fakeredis.FakeServer,
    redis: fakeredis.FakeRedis,
    queue: dict[str, int],
    image: str,
    error: type[Exception],
) -> None:
    redis.xadd(INBOX, {"event": "{}"})

    async def report() -> None:
        async with AsyncProducer(settings=Settings.load(queue=queue)) as asynchronous:
            await asynchronous._client.aclose()
            asynchronous._client = fakeredis.FakeAsyncRedis(server=server)
            await asynchronous.report(image)

    with pytest.raises(error):
        asyncio.run(report())
    assert len(entries(redis)) == 1


def test_async_producer_raises_queue_unavailable() -> None:
    async def report() -> None:
        async with AsyncProducer(f"redis://{REFUSED}/0") as asynchronous:
            await asynchronous.report(APP)

    with pytest.raises(QueueUnavailable, match=REFUSED):
        asyncio.run(report())
