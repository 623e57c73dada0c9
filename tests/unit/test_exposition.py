"""A made-up snapshot in Prometheus's text format, read back and linted."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client")

from exposed import Exposed, lint

from relay.destinations.outcome import Delivered, Refused, Retry, Unauthorized
from relay.metrics import catalogue
from relay.metrics.exposition import _OUTCOMES, Limits, exposition
from relay.queue import attempts
from relay.queue.counters import counters_of
from relay.queue.dead_letters import Reason
from relay.queue.health import HealthState
from relay.queue.metrics_snapshot import DestinationState, Snapshot, Waiting
from relay.queue.redis_server import RedisServer

LIMITS = Limits(max_backlog=1000, max_in_flight=32)

TOTALS = {
    "taken": 100, "redriven": 2, "new": 60, "changed": 20, "reasserted": 1, "outbox": 7, "delivered": 70,
    "duplicate": 15, "stale": 1, "superseded": 3, "dead": 4, "dead:refused": 3, "dead:exhausted": 1,
    "dropped": 1, "retries": 9,
    "attempt:delivered:202": 70, "attempt:retry:503": 8, "attempt:retry:timeout": 2, "attempt:refused:400": 3,
    "duration:delivered:0.005": 60, "duration:delivered:0.01": 10, "duration_us:delivered": 300_000,
    "duration:retry:inf": 2, "duration:retry:0.25": 8, "duration_us:retry": 121_500_000,
}  # fmt: skip

SNAPSHOT = Snapshot(
    counters=counters_of(TOTALS, [b"0", b"1", b"8", b"60", b"9", b"9"], inbox=2, dead_waiting=1),
    delivered={"production": 50, 'with "quotes"\n and \\ and ü': 15},
    delivered_elsewhere=5,
    inbox=Waiting(2, 1_750_000_001_500),
    dead=Waiting(1, 1_750_000_000_000),
    outboxes={"production": Waiting(4, 1_750_000_000_500), "staging": Waiting()},
    outboxes_elsewhere=Waiting(3, 1_750_000_000_250),
    attempts=attempts.read(TOTALS),
    latency_seconds=12.5,
    newest_added=1_750_000_002_000,
    newest_accepted=1_750_000_001_000,
    newest_delivered=1_750_000_000_750,
    last_success=1_750_000_002_500,
    destinations={
        "default": DestinationState(
            state=HealthState.UNAUTHORIZED,
            concurrency_limit=4,
            unhealthy_ms={"unauthorized": 2500, "throttled": 60_000},
            retry_after_ms=60_000,
        )
    },
    paused=1,
    workers={"relay@one": 1_750_000_002_000},
    leases_taken_over=5,
    wakeups={"work": 3},
    refused={"queue_full": 11},
    skipped={"replica": 3},
    token_reloads={"changed": 1},
    resets=1,
    server=RedisServer(
        version="7.2.4",
        appendonly=True,
        appendfsync="always",
        maxmemory_policy="noeviction",
        memory_used=25,
        maxmemory=100,
    ),
)


@pytest.fixture(scope="module")
def exposed() -> Exposed:
    return Exposed(exposition(SNAPSHOT, limits=LIMITS, seconds=0.004))


def test_the_exposition_passes_lint(exposed: Exposed) -> None:
    assert not lint(exposed.text)


def test_the_exposition_has_exactly_the_metrics_of_the_catalogue(exposed: Exposed) -> None:
    told = {name for name, *_ in exposed.samples}
    assert told == catalogue.names()


def test_labels_are_those_of_the_catalogue(exposed: Exposed) -> None:
    labels = {metric.name: set(metric.labels) for metric in catalogue.METRICS}
    for family in exposed.families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == labels[name]


def test_counters_add_up_as_in_the_recording_rules(exposed: Exposed) -> None:
    ends = [f"relay_events_{end}_total" for end in ("delivered", "duplicate", "stale", "superseded", "dead")]
    came = exposed.value("relay_events_added_total") + exposed.value("relay_events_redriven_total")
    waiting = sum(exposed.total("relay_waiting_events", stream=stream) for stream in ("inbox", "outbox"))
    assert came - sum(exposed.total(end) for end in ends) - waiting == SNAPSHOT.counters.unaccounted


def test_environments_without_a_name_are_one_sum(exposed: Exposed) -> None:
    assert exposed.value("relay_events_delivered_total", environment="other") == 5
    assert exposed.value("relay_waiting_events", stream="outbox", environment="other") == 3
    oldest = exposed.value("relay_oldest_waiting_timestamp_seconds", stream="outbox", environment="other")
    assert oldest == 1_750_000_000.25


def test_every_outcome_starts_at_zero() -> None:
    words = {Delivered.word, Retry.word, Refused.word, Unauthorized.word}
    assert words == set(_OUTCOMES)


def test_any_environment_name_is_escaped(exposed: Exposed) -> None:
    assert exposed.value("relay_events_delivered_total", environment='with "quotes"\n and \\ and ü') == 15


def test_an_empty_stream_has_no_time(exposed: Exposed) -> None:
    oldest = exposed.of("relay_oldest_waiting_timestamp_seconds")
    assert (("environment", "staging"), ("stream", "outbox")) not in oldest
    assert (("environment", "production"), ("stream", "outbox")) in oldest


def test_durations_are_added_up_to_each_bound(exposed: Exposed) -> None:
    def bucket(outcome: str, bound: str) -> float:
        return exposed.value("relay_delivery_attempt_duration_seconds_bucket", outcome=outcome, le=bound)

    assert [bucket("delivered", bound) for bound in ("0.005", "0.01", "0.025", "60", "+Inf")] == [60, 70, 70, 70, 70]
    assert [bucket("retry", bound) for bound in ("0.1", "0.25", "60", "+Inf")] == [0, 8, 8, 10]
    assert exposed.value("relay_delivery_attempt_duration_seconds_sum", outcome="retry") == 121.5
    assert exposed.value("relay_delivery_attempt_duration_seconds_count", outcome="refused") == 0


def test_latency_is_exact_at_every_eighth_bound(exposed: Exposed) -> None:
    buckets = {
        float(dict(labels)["le"]): n for labels, n in exposed.of("relay_delivery_latency_seconds_bucket").items()
    }
    assert buckets[0.001] == 1
    assert buckets[0.002144] == 61, "bucket 8 ends at 1.1 ** 8 ms"
    assert buckets[0.004595] == 70
    assert buckets[float("inf")] == 70
    assert exposed.value("relay_delivery_latency_seconds_sum") == 12.5


def test_reasons_have_a_sample_each(exposed: Exposed) -> None:
    assert exposed.value("relay_report_failures_total", reason="queue_full") == 11
    assert exposed.value("relay_kubernetes_skipped_total", reason="replica") == 3
    assert exposed.value("relay_kubernetes_skipped_total", reason="unchanged") == 0
    assert exposed.value("relay_token_reloads_total", outcome="changed") == 1
    assert exposed.value("relay_wakeups_total", why="due") == 0


def test_a_destination_has_a_sample_for_each_state(exposed: Exposed) -> None:
    states = {dict(labels)["state"]: value for labels, value in exposed.of("relay_destination_health").items()}
    assert states == {state: int(state == "unauthorized") for state in HealthState}
    seconds = exposed.of("relay_destination_unhealthy_seconds_total")
    assert sorted(seconds.values()) == [0, 0, 2.5, 60]
    assert exposed.value("relay_in_flight_limit", destination="default") == 4
    assert exposed.value("relay_retry_after_seconds", destination="default") == 60


def test_counters_start_at_zero() -> None:
    quiet = Exposed(
        exposition(Snapshot(counters=counters_of({}, [], inbox=0, dead_waiting=0)), limits=LIMITS, seconds=0)
    )

    assert not lint(quiet.text)
    assert {dict(labels)["reason"] for labels in quiet.of("relay_events_dead_total")} == set(Reason)
    for name in ("relay_events_added_total", "relay_events_delivered_total", "relay_wakeups_total"):
        assert set(quiet.of(name).values()) == {0}
    assert not quiet.of("relay_redis_memory_used_ratio"), "there is no maxmemory to be a part of"


def test_without_a_snapshot_relay_up_is_zero() -> None:
    away = Exposed(exposition(None, limits=LIMITS, seconds=2.0))

    assert not lint(away.text)
    assert away.value("relay_up") == 0
    assert {name for name, *_ in away.samples} == {
        "relay_up",
        "relay_build_info",
        "relay_scrape_duration_seconds",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# HELP relay_x_total Says it.\n# TYPE relay_x_total gauge\nrelay_x_total 1\n", "ends in _total"),
        ("# HELP relay_x Says it.\n# TYPE relay_x counter\nrelay_x 1\n", "counter without _total"),
        ("# TYPE relay_x gauge\nrelay_x 1\n", "no HELP"),
        ('# HELP relay_x Says it.\n# TYPE relay_x gauge\nrelay_x{event_id="1"} 1\n', "no bound is known of event_id"),
        ("# HELP relay_x_milliseconds Says it.\n# TYPE relay_x_milliseconds gauge\nrelay_x_milliseconds 1\n", "says"),
        ("# HELP relay_x Says it.\n# TYPE relay_x gauge\nrelay_x 1\nrelay_x 2\n", "come twice"),
        (
            """\
# HELP relay_x_seconds Says it.
# TYPE relay_x_seconds histogram
relay_x_seconds_bucket{le="1"} 2
relay_x_seconds_bucket{le="+Inf"} 1
relay_x_seconds_count 1
""",
            "do not grow",
        ),
    ],
)
def test_lint_finds_each_fault(text: str, fault: str) -> None:
    assert fault in "\n".join(lint(text))
