"""Catalogue of all metrics: name, type, labels and HELP. docs/metrics.md is generated from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(StrEnum):
    """Prometheus's metric types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. HELP is a sentence that says what a sample is."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _histogram(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, labels)


UP = _gauge("relay_up", "1 if the queue's Redis answered this scrape, else 0; then most metrics are absent.")
BUILD = _gauge(
    "relay_build_info", "Always 1, with the versions of the relay, Python and Redis.", "version", "python", "redis"
)
SCRAPE_SECONDS = _gauge("relay_scrape_duration_seconds", "Duration of reading Redis for this scrape.")

ADDED = _counter("relay_events_added_total", "Events added by producers, without redriven ones.")
ACCEPTED = _counter("relay_events_accepted_total", "Events added to an outbox: new, changed or reasserted.")
DELIVERED = _counter(
    "relay_events_delivered_total",
    "Events answered with 2xx, for the environments with the most of them, and `other` for the sum of the rest.",
    "environment",
)
DUPLICATE = _counter("relay_events_duplicate_total", "Events whose digest or id had been accepted before.")
STALE = _counter("relay_events_stale_total", "Events older than the last accepted one of their instance.")
SUPERSEDED = _counter(
    "relay_events_superseded_total", "Events replaced by a newer one of their instance before their delivery."
)
DEAD = _counter(
    "relay_events_dead_total", "Events that became dead letters; an event that does so twice counts twice.", "reason"
)
REDRIVEN = _counter("relay_events_redriven_total", "Dead letters moved back to the inbox.")
DROPPED = _counter("relay_events_dropped_total", "Dead letters dropped by an operator.")
CLOCK_AHEAD = _counter(
    "relay_events_clock_ahead_total",
    "Events whose `time` was ahead of Redis's clock by more than delivery.max_clock_skew; their arrival counts.",
)
IGNORED = _counter(
    "relay_reports_ignored_total",
    "Reports that the gateway accepted and did not add, because they are no deployment.",
)
SKIPPED = _counter(
    "relay_kubernetes_skipped_total",
    "Observations of pods that were not reported; most reasons are normal.",
    "reason",
)
REFUSED = _counter(
    "relay_report_failures_total",
    "Events refused because the queue or Redis was full, counted at each attempt as far as Redis could write it.",
    "reason",
)

WAITING = _gauge(
    "relay_waiting_events",
    "Events in a stream; of the outboxes, those of the environments with the most, and `other` for the rest.",
    "stream",
    "environment",
)
OLDEST = _gauge(
    "relay_oldest_waiting_timestamp_seconds",
    "Time at which the first event of a stream was added to it; absent if the stream is empty.",
    "stream",
    "environment",
)
CAPACITY = _gauge(
    "relay_backlog_capacity_events",
    "Maximum number of events in the inbox and the outboxes; beyond it producers are refused.",
)
NEWEST_ADDED = _gauge("relay_newest_added_timestamp_seconds", "Enqueue time of the newest event.")
NEWEST_ACCEPTED = _gauge("relay_newest_accepted_timestamp_seconds", "Enqueue time of the newest accepted event.")
NEWEST_DELIVERED = _gauge("relay_newest_delivered_timestamp_seconds", "Enqueue time of the newest delivered event.")
LAST_SUCCESS = _gauge("relay_last_success_timestamp_seconds", "Time of the last delivery.")
LATENCY = _histogram(
    "relay_delivery_latency_seconds", "Time from an event's arrival to the destination's 2xx, by Redis's clock."
)

ATTEMPTS = _counter(
    "relay_delivery_attempts_total",
    "Delivery attempts by outcome, and by HTTP status or kind of failure.",
    "outcome",
    "code",
)
ATTEMPT_SECONDS = _histogram(
    "relay_delivery_attempt_duration_seconds", "Duration of one delivery attempt, by outcome.", "outcome"
)
RETRIES = _counter(
    "relay_delivery_retries_total", "Delivery attempts after which the event was deferred for a retry."
)
IN_FLIGHT_LIMIT = _gauge(
    "relay_in_flight_limit",
    "Maximum number of requests in flight for one delivery run; it falls while the destination pushes back.",
    "destination",
)
HEALTH = _gauge(
    "relay_destination_health", "1 for the current state of a destination, 0 for the others.", "destination", "state"
)
UNHEALTHY_SECONDS = _counter(
    "relay_destination_unhealthy_seconds_total",
    "Time a destination has spent in a state, including the scheduled rest of a current pause.",
    "destination",
    "state",
)
RETRY_AFTER = _gauge(
    "relay_retry_after_seconds",
    "The last Retry-After of the destination, capped; absent if there was none.",
    "destination",
)
PAUSED = _gauge("relay_paused_environments", "Environments whose deliveries an operator paused.")
TOKEN_RELOADS = _counter(
    "relay_token_reloads_total", "Reloads of the token that found another token, or failed.", "outcome"
)

TAKEN_OVER = _counter(
    "relay_leases_taken_over_total",
    "Runs that found the in-flight marker of a previous run, which had died or lost its lease.",
)
WAKEUPS = _counter(
    "relay_wakeups_total",
    "Wake-ups sent: `work` for new or remaining events, `due` for a retry, the end of a pause or a lost run.",
    "why",
)
HEARTBEAT = _gauge("relay_worker_heartbeat_timestamp_seconds", "Time of each worker's last heartbeat.", "worker")

MEMORY = _gauge("relay_redis_memory_used_ratio", "Used part of Redis's maxmemory; absent without a maxmemory.")
DURABILITY = _gauge(
    "relay_redis_durability_info",
    "Always 1, with Redis's persistence and eviction settings; `unknown` if Redis does not report them.",
    "appendonly",
    "appendfsync",
    "maxmemory_policy",
)
RESETS = _counter(
    "relay_redis_dataset_reset_total", "Times that workers found another data set in Redis than before."
)

METRICS = (
    UP, BUILD, SCRAPE_SECONDS,
    ADDED, ACCEPTED, DELIVERED, DUPLICATE, STALE, SUPERSEDED, DEAD, REDRIVEN, DROPPED, CLOCK_AHEAD, IGNORED, SKIPPED,
    REFUSED,
    WAITING, OLDEST, CAPACITY, NEWEST_ADDED, NEWEST_ACCEPTED, NEWEST_DELIVERED, LAST_SUCCESS, LATENCY,
    ATTEMPTS, ATTEMPT_SECONDS, RETRIES, IN_FLIGHT_LIMIT, HEALTH, UNHEALTHY_SECONDS, RETRY_AFTER, PAUSED,
    TOKEN_RELOADS, TAKEN_OVER, WAKEUPS, HEARTBEAT, MEMORY, DURABILITY, RESETS,
)  # fmt: skip


def names(metrics: Iterable[Metric] = METRICS) -> set[str]:
    """Return the names of the metrics' samples."""
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    return {metric.name + suffix for metric in metrics for suffix in suffixes.get(metric.kind, ("",))}
