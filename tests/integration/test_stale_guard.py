"""The newest known time of an instance outlives the events that die, and a clock that is ahead does not set it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from outboxes import next_millisecond, now_ms
from runs import (
    KEYS,
    PRODUCTION,
    REPOSITORY,
    TOKEN,
    counters_of,
    delivered_digests,
    digest,
    make_runtime_for,
    report,
)

from relay.logs import LineLimit
from relay.operations.diagnosis import Cause, diagnose
from relay.operations.doctor import deliveries
from relay.queue import metrics_snapshot
from relay.queue.dead_letters import walk
from relay.queue.inventory import read_page as read_inventory
from relay.queue.redrive import Redrive
from relay.queue.resync import resync_all
from relay.queue.state import Accepted
from relay.queue.status import read_status
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.delivery.run import run_delivery
from workers.intake import run as intake
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

REFUSES = [{"kind": "status", "status": 422}]


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    made = make_runtime_for(redis_server, api)
    yield made
    made.close()


def at(clock: str) -> dict[str, str]:
    """Return the field that says when an event's deployment happened."""
    return {"time": f"2026-06-01T{clock}:00Z"}


def work(runtime: Runtime) -> None:
    run_intake(runtime)
    run_delivery(runtime, ["production"])


def told(runtime: Runtime, version: str, **fields: str) -> None:
    report(runtime.client, version, **fields)
    work(runtime)


def refused(runtime: Runtime, api: Sandbox, version: str, **fields: str) -> None:
    api.faults = REFUSES
    told(runtime, version, **fields)
    api.faults = []


def redrive(runtime: Runtime) -> None:
    moving = Redrive(runtime.client, KEYS, max_backlog=1000)
    assert moving.acquire()
    for page in walk(runtime.client, KEYS):
        moving.move(page.letters)
    moving.release()
    work(runtime)


def digests(*versions: str) -> list[str]:
    return [digest(version) for version in versions]


def test_an_event_without_a_time_carries_the_newest_known_past_a_death(runtime: Runtime, api: Sandbox) -> None:
    told(runtime, "a", **at("08:00"))
    told(runtime, "b")
    refused(runtime, api, "c")
    told(runtime, "yesterday", time="2026-05-31T12:00:00Z")
    assert delivered_digests(api) == digests("a", "b")
    assert counters_of(runtime.client).stale == 1


@pytest.mark.parametrize("deaths", [1, 3])
def test_however_many_die_and_are_redriven_the_guard_stays(runtime: Runtime, api: Sandbox, deaths: int) -> None:
    told(runtime, "a", **at("08:00"))
    for number in range(deaths):
        told(runtime, f"b{number}")
        refused(runtime, api, f"c{number}")
    api.faults = REFUSES
    redrive(runtime)
    api.faults = []
    told(runtime, "o", **at("07:59"))
    assert counters_of(runtime.client).stale == deaths, "the older letters of several, and the late report"
    assert digest("o") not in delivered_digests(api)


def test_a_superseded_event_leaves_its_time(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> None:
    runtime = make_runtime_for(redis_server, api, delivery={"history": "latest"})
    try:
        report(client, "a", **at("08:00"))
        told(runtime, "b")
        assert counters_of(client).superseded == 1
        refused(runtime, api, "c")
        told(runtime, "o", **at("07:00"))
        assert delivered_digests(api) == digests("b")
    finally:
        runtime.close()


def test_a_resync_leaves_the_newest_time(runtime: Runtime, api: Sandbox) -> None:
    told(runtime, "a", **at("08:00"))
    told(runtime, "b")
    next_millisecond(runtime.client)
    list(resync_all(runtime.client, KEYS, DEFAULT_DESTINATION, "production", max_backlog=100, memory_watermark=1.0))
    work(runtime)
    refused(runtime, api, "c")
    told(runtime, "o", **at("07:00"))
    assert delivered_digests(api) == digests("a", "b", "b")


def test_a_time_that_only_a_repeat_told_stays_when_a_later_event_dies(runtime: Runtime, api: Sandbox) -> None:
    told(runtime, "a", **at("08:00"))
    told(runtime, "a", **at("09:00"))
    refused(runtime, api, "c")
    told(runtime, "o", **at("08:30"))
    assert delivered_digests(api) == digests("a")


@pytest.mark.parametrize("first", [("a",), ()], ids=["something was delivered before", "nothing was"])
@pytest.mark.parametrize("own", [at("09:00"), {}], ids=["with a time", "without"])
def test_a_time_that_only_a_repeat_told_stays_when_the_event_that_it_repeated_dies(
    runtime: Runtime, api: Sandbox, first: tuple[str, ...], own: dict[str, str]
) -> None:
    for version in first:
        told(runtime, version, **at("08:00"))
    report(runtime.client, "b", **own)
    run_intake(runtime)
    report(runtime.client, "b", **at("11:00"))
    run_intake(runtime)
    api.faults = REFUSES
    run_delivery(runtime, ["production"])
    api.faults = []
    page = read_inventory(runtime.client, KEYS, DEFAULT_DESTINATION, "production")
    assert [each.digest for each in page.running] == digests(*first)
    told(runtime, "o", **at("10:00"))
    assert delivered_digests(api) == digests(*first), "older than a report that is done"
    redrive(runtime)
    assert delivered_digests(api) == digests(*first, "b"), "its letter is as new as its newest report"
    told(runtime, "p", **at("12:00"))
    assert delivered_digests(api) == digests(*first, "b", "p")
    assert counters_of(runtime.client).unaccounted == 0


def test_the_time_of_an_event_that_died_goes_with_it(runtime: Runtime, api: Sandbox) -> None:
    """A dead letter restores the previous state: an event newer than the delivered one is a change."""
    told(runtime, "a", **at("08:00"))
    refused(runtime, api, "b", **at("10:00"))
    told(runtime, "o", **at("09:00"))
    assert delivered_digests(api) == digests("a", "o")


def test_a_digest_that_dies_when_it_is_reasserted_is_known_to_have_run(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    runtime = make_runtime_for(redis_server, api, delivery={"reassert_after": "1ms"})
    try:
        told(runtime, "a", **at("08:00"))
        next_millisecond(client)
        refused(runtime, api, "a", **at("10:00"))
        assert counters_of(client).dead == 1
        told(runtime, "o", **at("09:00"))
        assert delivered_digests(api) == digests("a")
    finally:
        runtime.close()


def test_a_letter_without_a_time_is_redriven_without_one(runtime: Runtime, api: Sandbox) -> None:
    told(runtime, "a", **at("08:00"))
    refused(runtime, api, "c")
    told(runtime, "a", **at("08:30"))
    redrive(runtime)
    assert delivered_digests(api) == digests("a", "c")


def iso(client: Redis, seconds: float) -> str:
    """Return the time so many seconds after Redis's, as `date -u +%FT%TZ` writes it."""
    return datetime.fromtimestamp(now_ms(client) // 1000 + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("ahead_seconds", [302, 86_400, 10**9])
def test_a_clock_that_is_ahead_makes_no_later_report_stale(
    runtime: Runtime, api: Sandbox, ahead_seconds: float
) -> None:
    client = runtime.client
    told(runtime, "a", time=iso(client, ahead_seconds), source="east")
    told(runtime, "b", time=iso(client, 0))
    told(runtime, "c", time=iso(client, ahead_seconds), source="east")
    told(runtime, "yesterday", time=iso(client, -86_400))
    told(runtime, "d")
    assert delivered_digests(api) == digests("a", "b", "c", "d")
    assert counters_of(client).stale == 1


def test_a_clock_that_is_ahead_is_counted_and_named(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = runtime.client
    monkeypatch.setattr(intake, "_ahead_lines", LineLimit())
    for version in ("a", "b", "c"):
        told(runtime, version, time=iso(client, 86_400), source="east")
    told(runtime, "d", time=iso(client, 60), source="a little ahead")
    seen = read_status(client, KEYS, DEFAULT_DESTINATION, runtime.settings.queue)
    [finding] = [each for each in diagnose(seen) if each.check is Cause.CLOCK_AHEAD]
    assert "source east is 24 h ahead" in finding.what
    assert "production" in finding.what
    assert "3 such reports" in finding.what
    assert [
        each.severity for each in deliveries.decide_deliveries(seen) if each.check == "deliveries.clock_ahead"
    ] == ["warning"]
    assert metrics_snapshot.read_snapshot(client, KEYS, DEFAULT_DESTINATION, environments=5).clocks_ahead == 3
    assert len([line for line in caplog.text.splitlines() if "ahead of Redis's clock" in line]) == 1
    assert 0 < client.ttl(KEYS.clock_ahead) <= 86_400


def test_a_time_from_the_future_in_a_state_of_before_makes_nothing_stale(runtime: Runtime, api: Sandbox) -> None:
    client = runtime.client
    told(runtime, "a", **at("08:00"))
    future = 7_258_118_400_000
    [(instance, value)] = client.hgetall(PRODUCTION.accepted).items()
    state = Accepted.decode(value.decode())._replace(time=future)
    client.hset(PRODUCTION.accepted, instance, state.encode())
    client.hset(PRODUCTION.delivered, instance, f"{state.digest}\n{future}\n{state.at}\n{state.at}")
    told(runtime, "b", time=iso(client, 1))
    refused(runtime, api, "c", time=iso(client, 1))
    told(runtime, "d", time=iso(client, 1))
    assert delivered_digests(api) == digests("a", "b", "d")


def test_an_entry_whose_own_id_is_ahead_makes_nothing_stale(runtime: Runtime, api: Sandbox) -> None:
    """As after Redis's clock was a day ahead, or of a producer that gives its entries ids."""
    client = runtime.client
    event = {"image": {"url": f"{REPOSITORY}@{digest('a')}"}, "environment": {"name": "production"}}
    ahead = now_ms(client) + 86_400_000
    client.xadd(KEYS.inbox, {"event": json.dumps(event), "time": iso(client, 86_000)}, id=f"{ahead}-0")
    work(runtime)
    told(runtime, "b", time=iso(client, 0))
    assert delivered_digests(api) == digests("a", "b")
