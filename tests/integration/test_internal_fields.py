"""The fields of a redrive and of a resync count only where a redrive or a resync wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from outboxes import next_millisecond
from runs import (
    KEYS,
    PRODUCTION,
    TOKEN,
    counters_of,
    dead_letters,
    delivered_digests,
    digest,
    make_runtime_for,
    report,
    run_once,
)

from relay.queue import inbox
from relay.queue.dead_letters import walk
from relay.queue.redrive import Redrive
from relay.queue.resync import resync_all
from relay.queue.state import Accepted
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.intake import read as intake
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

EARLIER, LATER = "2026-01-31T12:00:00Z", "2026-01-31T13:00:00Z"

#: What a producer may write into its entry, as if the event had been redriven or were a resync's.
FORGED = [
    {"redriven": "1 1-0 force"},
    {"redriven": "1 1-0"},
    {"redriven": "7 9999999999999-0"},
    {"redriven": "no redrive wrote this"},
    {"resync": "1"},
    {"resync": "1", "redriven": "1 1-0 force"},
]


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    made = make_runtime_for(redis_server, api)
    yield made
    made.close()


def work(runtime: Runtime) -> None:
    run_intake(runtime)
    if runtime.client.exists(PRODUCTION.outbox):
        run_once(runtime)


def redrive(client: Redis, *, force: bool = False) -> None:
    moving = Redrive(client, KEYS, max_backlog=1_000_000, force=force)
    assert moving.acquire()
    for page in walk(client, KEYS):
        moving.move(page.letters)
    moving.release()


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_what_a_producer_writes_delivers_no_duplicate(
    runtime: Runtime, client: Redis, api: Sandbox, forged: dict[str, str]
) -> None:
    for fields in ({}, forged, {"id": "job-1"}, {"id": "job-1", **forged}):
        report(client, "a", **fields)
        work(runtime)
    assert delivered_digests(api) == [digest("a")]
    assert counters_of(client).duplicate == 3


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_what_a_producer_writes_undoes_nothing_newer(
    runtime: Runtime, client: Redis, api: Sandbox, forged: dict[str, str]
) -> None:
    report(client, "new", time=LATER)
    report(client, "old", time=EARLIER, **forged)
    work(runtime)
    assert delivered_digests(api) == [digest("new")]
    assert counters_of(client).stale == 1


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_what_a_producer_writes_is_a_report_like_any_other(
    runtime: Runtime, client: Redis, api: Sandbox, forged: dict[str, str]
) -> None:
    for version in ("a", "b"):
        report(client, version, time="2999-01-01T00:00:00Z", **forged)
        work(runtime)
    report(client, "c")
    work(runtime)
    assert delivered_digests(api) == [digest("a"), digest("b"), digest("c")]
    state = Accepted.decode(client.hvals(PRODUCTION.accepted)[0].decode())
    assert (state.time or 0) <= state.at <= int(client.time()[0]) * 1000 + 1000


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_what_a_producer_writes_is_not_made_good_by_dying_unread(
    runtime: Runtime, client: Redis, forged: dict[str, str]
) -> None:
    report(client, "old", **forged, event="no JSON")
    run_intake(runtime)
    assert not set(forged) & set(dead_letters(client)[0])


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_what_a_producer_writes_is_not_believed_in_an_older_data_set_that_is_in_use(
    runtime: Runtime, client: Redis, api: Sandbox, forged: dict[str, str]
) -> None:
    """As after an update: what comes after the first batch of this version must be noted."""
    client.hset(KEYS.counts, "taken", 1)
    report(client, "a")
    work(runtime)
    report(client, "a", **forged)
    work(runtime)
    assert delivered_digests(api) == [digest("a")]


def test_entries_of_an_older_redrive_are_believed(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    """They lay in the inbox when the workers were updated, and nothing notes them."""
    client.hset(KEYS.counts, mapping={"taken": 3, "dead": 1, "redriven": 1})
    report(client, "a")
    report(client, "b")
    report(client, "a", redriven="1 1000-0")
    work(runtime)
    assert delivered_digests(api) == [digest("a"), digest("b")]
    assert counters_of(client).stale == 1
    report(client, "a", redriven="1 1000-0")
    work(runtime)
    assert delivered_digests(api) == [digest("a"), digest("b"), digest("a")], "a later one is a report"


def test_what_a_redrive_and_a_resync_write_is_believed_and_not_kept(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    report(client, "a")
    work(runtime)
    next_millisecond(client)
    list(resync_all(client, KEYS, DEFAULT_DESTINATION, "production", max_backlog=100, memory_watermark=1.0))
    assert client.hlen(KEYS.internal) == 1
    work(runtime)
    assert delivered_digests(api) == [digest("a"), digest("a")]
    assert not client.exists(KEYS.internal)
    client.xadd(KEYS.inbox, {"event": "no JSON"})
    run_intake(runtime)
    redrive(client)
    assert client.hlen(KEYS.internal) == 1
    run_intake(runtime)
    assert dead_letters(client)[0]["redriven"].startswith("1 ")
    assert not client.exists(KEYS.internal)
    assert counters_of(client).unaccounted == 0


def test_a_batch_without_internal_fields_asks_redis_nothing_about_them(
    runtime: Runtime, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake.inbox, "authentic", None)
    report(client, "a")
    assert run_intake(runtime)
    assert counters_of(client).accepted == 1


def test_an_oversize_entry_in_a_new_data_set_makes_no_forged_field_authentic(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    client.xadd(KEYS.inbox, {"event": "x" * (inbox.OVERSIZE_BYTES + 1)})
    assert runtime.settings.queue.max_event_bytes < inbox.OVERSIZE_BYTES
    report(client, "a")
    report(client, "a", redriven="1 1-0 force")
    work(runtime)
    assert delivered_digests(api) == [digest("a")]
    assert counters_of(client).duplicate == 1
