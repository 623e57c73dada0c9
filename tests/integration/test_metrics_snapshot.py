"""What the metrics are read from, on a real Redis: exact, bounded, and changing nothing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("prometheus_client")

from exposed import Exposed, lint
from outboxes import KEYS, everything, fill, now_ms, put, throttle
from redis.exceptions import OutOfMemoryError

from relay.metrics.exporter import Exporter
from relay.queue import epoch, forgetting, metrics_snapshot, scripts
from relay.queue.metrics_snapshot import Snapshot, Waiting
from relay.settings import DEFAULT_DESTINATION, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

INDEX = KEYS.environments(DEFAULT_DESTINATION)
SCHEDULE = KEYS.schedule(DEFAULT_DESTINATION)


def read(client: Redis, environments: int = 50) -> Snapshot:
    return metrics_snapshot.read_snapshot(client, KEYS, DEFAULT_DESTINATION, environments=environments)


def deliver(client: Redis, environment: str, number: int = 1) -> None:
    """Count deliveries as commit_delivery.lua does."""
    client.hincrby(KEYS.counts, "delivered", number)
    client.zincrby(INDEX, number, environment)


def wait_in(client: Redis, environment: str, number: int) -> list[str]:
    """Let so many events wait in an environment's outbox, as commit_intake.lua does; return their ids."""
    ids = fill(client, *["x"] * number, keys=KEYS.of_outbox(DEFAULT_DESTINATION, environment))
    client.zadd(SCHEDULE, {environment: 1})
    client.zadd(INDEX, {environment: 0}, nx=True)
    return ids


@pytest.fixture
def exporter(redis_server: EmbeddedRedis, client: Redis) -> Iterator[Exporter]:
    exporter = Exporter(Settings.load(redis={"url": redis_server.url}, metrics={"environments": 2}))
    yield exporter
    exporter.close()


def test_empty_redis_is_all_zeros(exporter: Exporter) -> None:
    exposed = Exposed(exporter.scrape())

    assert not lint(exposed.text)
    assert exposed.value("relay_up") == 1
    assert exposed.value("relay_events_added_total") == 0
    assert not exposed.of("relay_newest_added_timestamp_seconds")


def test_those_with_the_most_deliveries_have_a_name_and_the_rest_is_one_sum(client: Redis) -> None:
    for name, number in {"a": 5, "b": 9, "c": 1, "d": 7}.items():
        deliver(client, name, number)

    found = read(client, environments=2)
    assert found.delivered == {"b": 9, "d": 7}
    assert found.delivered_elsewhere == 6


def test_sum_of_the_rest_never_falls_whoever_overtakes_whom(client: Redis) -> None:
    """As a counter must not: Prometheus takes one that falls for one that began again."""
    dice = random.Random(7)
    names = [*"abcdefghij", "other"]
    before = 0
    for _ in range(300):
        deliver(client, dice.choice(names), dice.randrange(1, 9))
        found = read(client, environments=3)
        assert found.delivered_elsewhere >= before
        assert found.delivered_elsewhere + sum(found.delivered.values()) == found.counters.delivered
        assert "other" not in found.delivered
        before = found.delivered_elsewhere
    assert before > 0


def test_sum_of_the_rest_takes_in_what_a_forgotten_environment_delivered(client: Redis) -> None:
    for name, number in {"a": 5, "b": 9, "c": 1, "d": 7}.items():
        deliver(client, name, number)
        client.hset(KEYS.of_outbox(DEFAULT_DESTINATION, name).counts, "seen", 1)

    rest = []
    for name in "cbda":
        assert forgetting.forget_environment(client, KEYS, KEYS.of_outbox(DEFAULT_DESTINATION, name), 2)
        found = read(client, environments=2)
        assert name not in found.delivered
        assert found.delivered_elsewhere + sum(found.delivered.values()) == found.counters.delivered == 22
        rest.append(found.delivered_elsewhere)
    assert rest == [6, 10, 17, 22], "it rises when one with a name goes, and never falls"


def test_what_waits_adds_up_to_the_ledgers_whichever_environments_have_a_name(client: Redis) -> None:
    ids = {name: wait_in(client, name, number) for name, number in {"a": 1, "b": 4, "c": 2, "d": 3}.items()}
    put(client, {}, {})

    for environments in (1, 2, 3, 4, 50):
        found = read(client, environments)
        named = sum(waiting.events for waiting in found.outboxes.values())
        assert named + found.outboxes_elsewhere.events + found.inbox.events == found.counters.waiting == 12
        assert len(found.outboxes) == min(environments, 4)

    found = read(client, environments=2)
    assert found.outboxes.keys() == {"b", "d"}
    assert found.outboxes["b"] == Waiting(4, int(ids["b"][0].partition("-")[0]))
    assert found.outboxes_elsewhere == Waiting(3, int(ids["a"][0].partition("-")[0]))


def test_more_environments_wait_than_one_page_holds(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_snapshot, "PAGE", 3)
    for number in range(10):
        wait_in(client, f"e{number}", 1 + (number == 7))

    found = read(client, environments=1)
    assert found.outboxes == {"e7": found.outboxes["e7"]}
    assert found.outboxes["e7"].events == 2
    assert found.outboxes_elsewhere.events == 9


def test_environments_where_nothing_waits_fill_the_places_that_are_left(client: Redis) -> None:
    deliver(client, "busy", 9)
    deliver(client, "quiet", 1)
    wait_in(client, "late", 1)

    assert {name: waiting.events for name, waiting in read(client, 2).outboxes.items()} == {"late": 1, "busy": 0}


def test_an_environment_called_other_is_never_named_beside_the_others_sum(client: Redis, exporter: Exporter) -> None:
    deliver(client, "other", 9)
    wait_in(client, "other", 2)
    deliver(client, "a", 1)

    exposed = Exposed(exporter.scrape())
    assert not lint(exposed.text), "its series would come twice"
    assert exposed.value("relay_events_delivered_total", environment="other") == 9
    assert exposed.value("relay_waiting_events", stream="outbox", environment="other") == 2


def test_newest_is_told_though_nothing_waits_any_more(client: Redis) -> None:
    (one,) = put(client, {})
    client.xdel(KEYS.inbox, one)

    found = read(client)
    assert found.newest_added == int(one.partition("-")[0])
    assert found.inbox == Waiting(0, None)


def test_held_destination_is_told_with_why_and_for_how_long(client: Redis) -> None:
    throttle(client, 60)
    found = read(client).destinations["default"]
    assert (found.state, found.unhealthy_ms, found.retry_after_ms) == ("throttled", {"throttled": 60_000}, 60_000)

    client.hset(KEYS.destination(DEFAULT_DESTINATION), mapping={"openings": 1, "circuit": "unauthorized"})
    assert read(client).destinations["default"].state == "unauthorized", (
        "why its circuit is open, as relay status has it"
    )
    client.hset(KEYS.destination(DEFAULT_DESTINATION), "until", 1)
    assert read(client).destinations["default"].state == "unauthorized", "its circuit is open between two probes"

    client.hdel(KEYS.destination(DEFAULT_DESTINATION), "circuit", "openings")
    assert read(client).destinations["default"].state == "healthy"


def test_workers_are_told_with_their_last_sign_of_life(client: Redis) -> None:
    epoch.beat(client, KEYS, "relay@one", keep_seconds=10)

    assert read(client).workers == {"relay@one": pytest.approx(now_ms(client), abs=10_000)}


def test_scrape_writes_nothing(client: Redis, exporter: Exporter) -> None:
    for name in ("a", "b", "c"):
        wait_in(client, name, 2)
        deliver(client, name)
    put(client, {})
    before = everything(client)
    client.config_resetstat()

    first, second = exporter.scrape(), exporter.scrape()

    assert everything(client) == before
    called = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    writes = {row["name"] for row in client.command().values() if "write" in row["flags"]}
    assert "xrange" in called, "the scripts' own commands are counted"
    assert not called & writes
    volatile = ("relay_scrape_duration_seconds", "relay_redis_memory_used_ratio")
    samples = [
        {key: value for key, value in Exposed(text).samples.items() if key[0] not in volatile}
        for text in (first, second)
    ]
    assert samples[0] == samples[1]


def test_scrape_is_a_few_round_trips_however_many_environments_there_are(client: Redis, exporter: Exporter) -> None:
    """Ten thousand environments, of which two thousand wait."""
    pipeline = client.pipeline(transaction=False)
    for number in range(10_000):
        pipeline.zincrby(INDEX, number, f"env-{number}")
        if number % 5 == 0:
            pipeline.xadd(KEYS.of_outbox(DEFAULT_DESTINATION, f"env-{number}").outbox, {"event": "{}"})
            pipeline.zadd(SCHEDULE, {f"env-{number}": 1})
    pipeline.hset(KEYS.counts, mapping={"outbox": 2000, "delivered": sum(range(10_000))})
    pipeline.execute()
    exporter.scrape()  # Redis knows the scripts from here on
    client.config_resetstat()

    exposed = Exposed(exporter.scrape())

    calls = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in client.info("commandstats").items()}
    assert calls["evalsha"] == 1 + 2000 // metrics_snapshot.PAGE
    assert "scan" not in calls
    assert exposed.total("relay_waiting_events", stream="outbox") == 2000
    assert exposed.total("relay_events_delivered_total") == sum(range(10_000))
    assert len(exposed.of("relay_events_delivered_total")) == 3
    assert len(exposed.samples) < 300


def test_scrape_works_when_memory_is_full(client: Redis, exporter: Exporter) -> None:
    wait_in(client, "a", 1)
    for name in ("snapshot", "heads"):
        client.script_load(scripts.load(name).text)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            client.set("anything", "more")
        exposed = Exposed(exporter.scrape())
    finally:
        client.config_set("maxmemory", 0)

    assert exposed.value("relay_waiting_events", stream="outbox", environment="a") == 1
    assert exposed.value("relay_redis_memory_used_ratio") > 1


def test_user_who_may_not_ask_the_server_is_told_the_rest(redis_server: EmbeddedRedis, client: Redis) -> None:
    client.execute_command("ACL", "SETUSER", "scraper", "on", ">secret", "~*", "+@all", "-info", "-config")
    url = redis_server.url.replace("redis://", "redis://scraper:secret@")
    exporter = Exporter(Settings.load(redis={"url": url}))
    try:
        exposed = Exposed(exporter.scrape())
    finally:
        exporter.close()
        client.execute_command("ACL", "DELUSER", "scraper")

    assert exposed.value("relay_up") == 1
    unknown = {"appendonly": "unknown", "appendfsync": "unknown", "maxmemory_policy": "unknown"}
    assert exposed.value("relay_redis_durability_info", **unknown) == 1
    assert not lint(exposed.text)


def test_redis_that_is_away_is_told_as_such() -> None:
    settings = Settings.load(redis={"url": "redis://127.0.0.1:1/0", "connect_timeout": 0.2, "timeout": 0.2})
    exporter = Exporter(settings)
    try:
        exposed = Exposed(exporter.scrape())
    finally:
        exporter.close()

    assert exposed.value("relay_up") == 0
    assert not exposed.of("relay_events_added_total")
