"""Receipts: the step that commits an outcome also records it for the producer that asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from runs import KEYS, TOKEN, image_of, report_image, retries_are_due, running

from relay import DeploymentEvent, Producer
from relay.queue import dead_letters, receipts
from relay.queue.receipts import Receipt, Status
from relay.queue.redrive import Redrive, redrive_all
from relay.settings import Settings
from workers.delivery.run import run_delivery
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

from relay.sandbox import Sandbox


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    with running(redis_server, api) as made:
        yield made


@pytest.fixture
def producer(redis_server: EmbeddedRedis) -> Iterator[Producer]:
    with Producer(settings=Settings.load(redis={"url": redis_server.url})) as made:
        yield made


def ask(producer: Producer, version: str, event_id: str, **fields: Any) -> None:
    event = DeploymentEvent.of(image_of("app", version), environment="production", id=event_id, **fields)
    producer.report_event(event, receipt=True)


def status_of(client: Redis, event_id: str) -> Status | None:
    receipt = receipts.read(client, KEYS, event_id)
    return receipt.status if receipt else None


def work(runtime: Runtime) -> None:
    run_intake(runtime)
    run_delivery(runtime, ["production"])


def redrive(client: Redis) -> None:
    run = Redrive(client, KEYS, max_backlog=100)
    assert run.acquire()
    assert [step.moved for step in redrive_all(run, dead_letters.EVERYTHING)][-1] == 1
    run.release()


def test_receipt_follows_an_event_from_inbox_to_api(client: Redis, producer: Producer, runtime: Runtime) -> None:
    ask(producer, "a", "one")
    assert status_of(client, "one") is Status.QUEUED
    run_intake(runtime)
    assert status_of(client, "one") is Status.QUEUED, "it waits in an outbox"
    run_delivery(runtime, ["production"])
    assert status_of(client, "one") is Status.DELIVERED
    assert 0 < client.pttl(KEYS.receipt("one")) <= 900_000


def test_event_without_the_wish_leaves_no_receipt(client: Redis, producer: Producer, runtime: Runtime) -> None:
    producer.report_event(DeploymentEvent.of(image_of("app", "a"), environment="production", id="one"))
    work(runtime)
    assert receipts.read(client, KEYS, "one") is None
    assert not client.keys(f"{KEYS.receipts}*")


def test_duplicate_and_stale_events_say_so(client: Redis, producer: Producer, runtime: Runtime) -> None:
    ask(producer, "a", "one", time="2025-06-01T12:00:00Z")
    ask(producer, "a", "two")
    ask(producer, "b", "three", time="2025-06-01T11:00:00Z")
    work(runtime)
    assert [status_of(client, each) for each in ("one", "two", "three")] == ["delivered", "duplicate", "stale"]


def test_repeat_under_one_id_keeps_the_receipt_of_the_first(
    client: Redis, producer: Producer, runtime: Runtime
) -> None:
    ask(producer, "a", "one")
    ask(producer, "a", "one")
    run_intake(runtime)
    assert status_of(client, "one") is Status.QUEUED, "its first copy is on its way"
    run_delivery(runtime, ["production"])
    ask(producer, "a", "one")
    assert status_of(client, "one") is Status.DELIVERED
    work(runtime)
    assert status_of(client, "one") is Status.DELIVERED


@pytest.mark.parametrize("expired", [False, True], ids=["its receipt is kept", "its receipt has expired"])
@pytest.mark.parametrize("image", ["a", "c"], ids=["rollback", "another image under a used id"])
def test_repeat_under_an_id_whose_digest_is_not_the_current_one_is_superseded(
    client: Redis, producer: Producer, runtime: Runtime, api: Sandbox, image: str, *, expired: bool
) -> None:
    """Not `delivered`: that was the outcome of another report, and the API believes something else."""
    ask(producer, "a", "one")
    work(runtime)
    ask(producer, "b", "two")
    work(runtime)
    if expired:
        client.delete(KEYS.receipt("one"))
    ask(producer, image, "one")
    receipt = receipts.read(client, KEYS, "one")
    assert receipt
    assert not receipt.is_final, "whether it is the outcome of this report is not known yet"
    work(runtime)
    receipt = receipts.read(client, KEYS, "one")
    assert receipt
    assert receipt.is_final
    assert receipt.status is Status.SUPERSEDED
    assert (receipt.reason, receipt.detail) == (receipts.BY_ID, image_of("app", "b").partition("@")[2])
    assert len(api.requests) == 2
    assert 0 < client.pttl(KEYS.receipt("one")) <= 900_000


def test_repeat_under_an_id_whose_digest_is_the_current_one_is_what_it_was(
    client: Redis, producer: Producer, runtime: Runtime
) -> None:
    ask(producer, "a", "one")
    work(runtime)
    before = receipts.read(client, KEYS, "one")
    for _ in range(2):
        ask(producer, "a", "one")
        repeated = receipts.read(client, KEYS, "one")
        assert repeated
        assert not repeated.is_final
    work(runtime)
    assert receipts.read(client, KEYS, "one") == before
    assert before
    assert before.is_final


def test_duplicate_names_the_event_that_it_repeats_and_whether_that_was_delivered(
    client: Redis, producer: Producer, runtime: Runtime
) -> None:
    ask(producer, "a", "one")
    ask(producer, "a", "two")
    run_intake(runtime)
    receipt = receipts.read(client, KEYS, "two")
    assert receipt
    assert (receipt.status, receipt.reason, receipt.detail) == ("duplicate", "one", receipts.WAITING)
    run_delivery(runtime, ["production"])
    ask(producer, "a", "three")
    run_intake(runtime)
    receipt = receipts.read(client, KEYS, "three")
    assert receipt
    assert (receipt.status, receipt.reason, receipt.detail) == ("duplicate", "one", receipts.DELIVERED)


def test_dead_letter_says_why_and_a_later_report_begins_anew(
    client: Redis, producer: Producer, runtime: Runtime, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    ask(producer, "a", "one")
    work(runtime)
    receipt = receipts.read(client, KEYS, "one")
    assert receipt
    assert (receipt.status, receipt.reason) == (Status.DEAD, "refused")
    assert "422" in receipt.detail

    ask(producer, "a", "one")
    assert status_of(client, "one") is Status.QUEUED
    work(runtime)
    assert status_of(client, "one") is Status.DELIVERED


def test_redriven_dead_letter_brings_its_receipt_along(
    client: Redis, producer: Producer, runtime: Runtime, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    ask(producer, "a", "one")
    work(runtime)
    redrive(client)
    work(runtime)
    assert status_of(client, "one") is Status.DELIVERED


@pytest.mark.parametrize("outcome", [Status.DUPLICATE, Status.STALE])
def test_redriven_dead_letter_that_is_no_news_any_more_says_so(
    client: Redis, producer: Producer, runtime: Runtime, api: Sandbox, outcome: Status
) -> None:
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    ask(producer, "a", "one")
    work(runtime)
    ask(producer, "a" if outcome is Status.DUPLICATE else "b", "two")
    work(runtime)
    redrive(client)
    assert status_of(client, "one") is Status.DEAD, "no other outcome is known yet"
    work(runtime)
    assert [status_of(client, each) for each in ("one", "two")] == [outcome, Status.DELIVERED]


def test_redriven_dead_letter_that_is_still_unreadable_died_anew(client: Redis, runtime: Runtime) -> None:
    client.xadd(KEYS.inbox, {"event": "{", "id": "bad", "receipt": "1"})
    work(runtime)
    client.set(KEYS.receipt("bad"), "dead\n5\ninvalid\nwhat an older version said")
    redrive(client)
    work(runtime)
    receipt = receipts.read(client, KEYS, "bad")
    assert receipt
    assert receipt.at > 5
    assert "JSON" in receipt.detail


def test_event_that_waits_for_a_retry_is_queued(
    client: Redis, redis_server: EmbeddedRedis, producer: Producer, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 500, "count": 1}]
    with running(redis_server, api, delivery={"backoff_initial": "5m"}) as runtime:
        ask(producer, "a", "one")
        work(runtime)
        assert status_of(client, "one") is Status.QUEUED
        retries_are_due(client)
        work(runtime)
    assert status_of(client, "one") is Status.DELIVERED


def test_superseded_event_says_so(
    client: Redis, redis_server: EmbeddedRedis, producer: Producer, api: Sandbox
) -> None:
    with running(redis_server, api, delivery={"history": "latest"}) as runtime:
        ask(producer, "a", "one")
        ask(producer, "b", "two")
        work(runtime)
    assert [status_of(client, each) for each in ("one", "two")] == ["superseded", "delivered"]


def test_superseded_while_it_waits_for_a_retry_says_so(
    client: Redis, redis_server: EmbeddedRedis, producer: Producer, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 500, "count": 1}]
    with running(redis_server, api, delivery={"history": "latest", "backoff_initial": "5m"}) as runtime:
        ask(producer, "a", "one")
        work(runtime)
        ask(producer, "b", "two")
        work(runtime)
        retries_are_due(client)
        work(runtime)
    assert [status_of(client, each) for each in ("one", "two")] == ["superseded", "delivered"]


def test_plain_xadd_can_ask_too_and_is_told_what_was_unreadable(client: Redis, runtime: Runtime) -> None:
    report_image(client, image_of("app", "a"), id="good", receipt="1")
    client.xadd(KEYS.inbox, {"event": "{", "id": "bad", "receipt": "1"})
    client.xadd(KEYS.inbox, {"event": "{", "receipt": "1"})
    client.xadd(KEYS.inbox, {"event": "{", "id": "x" * 200, "receipt": "1"})
    work(runtime)
    assert status_of(client, "good") is Status.DELIVERED
    receipt = receipts.read(client, KEYS, "bad")
    assert receipt
    assert (receipt.status, receipt.reason) == (Status.DEAD, "invalid")
    assert "JSON" in receipt.detail
    assert len(client.keys(f"{KEYS.receipts}*")) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"queued\n5", Receipt(status=Status.QUEUED, at=5)),
        (b"accepted\n5", Receipt(status=Status.QUEUED, at=5)),
        (b"dead\n5\nrefused\na\nb", Receipt(status=Status.DEAD, at=5, reason="refused", detail="a\nb")),
    ],
)  # fmt: skip
def test_receipt_is_read_as_the_scripts_write_it(value: bytes, expected: Receipt) -> None:
    assert Receipt.decode(value) == expected
