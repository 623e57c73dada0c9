"""What became of an event, by whatever Redis still knows of its id."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from runs import (
    KEYS,
    REPOSITORY,
    TOKEN,
    Longest,
    counters_of,
    deliver_until,
    digest,
    make_runtime_for,
    report,
    report_many,
    running,
)

from relay.cli.trace import timeline
from relay.queue.lookup import LookupResult, Place, Scanned, look_up
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.delivery.run import run_delivery
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    made = make_runtime_for(redis_server, api)
    yield made
    made.close()


def follow(client: Redis, event_id: str = "job-1", **how: object) -> LookupResult:
    return look_up(client, KEYS, DEFAULT_DESTINATION, event_id, **how)  # type: ignore[arg-type]


def places(found: LookupResult) -> list[Place]:
    return [trace.place for trace in found.traces]


def said(found: LookupResult) -> str:
    return "\n".join(what for _, what in timeline(found))


def test_an_event_is_found_from_the_inbox_to_its_delivery(runtime: Runtime, client: Redis) -> None:
    report(client, "a", id="job-1")
    assert places(follow(client)) == [Place.INBOX]
    assert "waiting in the inbox" in said(follow(client))

    run_intake(runtime)
    assert places(follow(client)) == [Place.OUTBOX, Place.CURRENT]
    assert f"for {REPOSITORY} linux/amd64 in production" in said(follow(client))
    assert "not attempted yet" in said(follow(client))
    assert "\ndelivered" not in said(follow(client))

    deliver_until(runtime, lambda: counters_of(client).delivered == 1)
    found = follow(client)
    assert places(found) == [Place.CURRENT]
    assert said(found).endswith(f"{digest('a')}\ndelivered")

    report(client, "b", id="job-2")
    run_intake(runtime)
    assert places(follow(client)) == [Place.EARLIER]
    assert "other events of it were accepted later" in said(follow(client))


def test_a_deferred_event_has_its_retry_time(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> None:
    api.faults = [{"kind": "status", "status": 503}]
    report(client, "a", id="job-1")
    with running(redis_server, api, delivery={"backoff_initial": "1h", "backoff_max": "1h"}) as runtime:
        run_intake(runtime)
        run_delivery(replace(runtime, random=Longest()), ["production"])
    found = follow(client)
    assert found.traces[0].attempts == 1
    assert found.traces[0].retry_at is not None
    assert "1 attempts so far" in said(found)


def test_a_dead_letter_is_found_with_its_reason(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    report(client, "a", id="job-1")
    run_intake(runtime)
    deliver_until(runtime, lambda: counters_of(client).dead == 1)
    found = follow(client)
    assert places(found) == [Place.DEAD]
    assert found.traces[0].letter in said(found)
    assert "refused: HTTP 422" in said(found)


def test_a_duplicate_is_found_only_by_its_receipt(runtime: Runtime, client: Redis) -> None:
    report(client, "a", id="job-1")
    report(client, "a", id="job-2", receipt="1")
    report(client, "a", id="job-3")
    run_intake(runtime)
    assert said(follow(client, "job-2")) == "receipt: duplicate"
    assert follow(client, "job-3").traces == []


def test_an_event_without_an_id_has_that_of_its_entry(runtime: Runtime, client: Redis) -> None:
    entry = report(client, "a")
    assert places(follow(client, entry)) == [Place.INBOX]
    run_intake(runtime)
    assert places(follow(client, entry)) == [Place.OUTBOX, Place.CURRENT]


def test_a_part_of_an_id_is_not_the_id(runtime: Runtime, client: Redis) -> None:
    report(client, "a", id="job-10")
    run_intake(runtime)
    assert follow(client).traces == []


def test_a_lookup_reports_what_it_scanned(runtime: Runtime, client: Redis) -> None:
    report_many(client, 30)
    run_intake(runtime)
    report_many(client, 20)
    found = follow(client, max_scanned=10)
    assert found.traces == []
    assert not found.is_complete
    assert found.scanned == {
        "inbox": Scanned(10, 20), "outboxes": Scanned(10, 30), "dead letters": Scanned(0, 0),
        "instances": Scanned(10, 30),
    }  # fmt: skip
    assert follow(client).is_complete
    assert follow(client, environments=["staging"]).scanned["outboxes"] == Scanned(0, 0)
    before = client.info("persistence")["rdb_changes_since_last_save"]
    follow(client)
    assert client.info("persistence")["rdb_changes_since_last_save"] == before
