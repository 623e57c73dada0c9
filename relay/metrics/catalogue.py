"""What is measured? Every metric: its name, type, labels and HELP. docs/metrics.md is made from this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(StrEnum):
    """Prometheus's types of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. What HELP says is one sentence or two, the first of which says what a sample is."""

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


UP = _gauge("relay_up", "1 if the queue's Redis answered this scrape, else 0; then little else is told.")
BUILD = _gauge(
    "relay_build_info", "1, labelled with the versions of the relay, Python and Redis.", "version", "python", "redis"
)
SCRAPE_SECONDS = _gauge("relay_scrape_duration_seconds", "How long reading Redis took for this scrape.")

ADDED = _counter("relay_events_added_total", "Events that producers added; what was redriven is counted apart.")
ACCEPTED = _counter("relay_events_accepted_total", "Events that were news, and so went to an outbox.")
DELIVERED = _counter(
    "relay_events_delivered_total",
    "Events that the API answered with 2xx, of the environments with the most of them, and `other` for the rest.",
    "environment",
)
DUPLICATE = _counter("relay_events_duplicate_total", "Events whose digest or id was accepted before.")
STALE = _counter("relay_events_stale_total", "Events older than what was accepted already.")
SUPERSEDED = _counter(
    "relay_events_superseded_total",
    "Events that gave way to a newer one of their instance before they were delivered.",
)
DEAD = _counter(
    "relay_events_dead_total", "Events that became dead letters; one that dies twice counts twice.", "reason"
)
REDRIVEN = _counter("relay_events_redriven_total", "Dead letters that were put back into the inbox.")
DROPPED = _counter("relay_events_dropped_total", "Dead letters that an operator dropped for good.")
CLOCK_AHEAD = _counter(
    "relay_events_clock_ahead_total",
    "Events whose `time` was ahead of Redis's clock by more than delivery.max_clock_skew; the arrival counts.",
)
IGNORED = _counter(
    "relay_reports_ignored_total", "Reports of what no deployment is, which the gateway took and did not add."
)
SKIPPED = _counter(
    "relay_kubernetes_skipped_total", "What was seen of pods and not reported, mostly for good reason.", "reason"
)
REFUSED = _counter(
    "relay_report_failures_total",
    "Events that were not taken for want of room, counted at each try as far as Redis still wrote it down.",
    "reason",
)

WAITING = _gauge(
    "relay_waiting_events",
    "Events that lie in a stream now; of the outboxes those of the environments with the most, and `other`.",
    "stream",
    "environment",
)
OLDEST = _gauge(
    "relay_oldest_waiting_timestamp_seconds",
    "When the first event of a stream came to it; absent while nothing waits there.",
    "stream",
    "environment",
)
CAPACITY = _gauge(
    "relay_backlog_capacity_events",
    "Events that may wait in the inbox and the outboxes before producers are refused.",
)
NEWEST_ADDED = _gauge("relay_newest_added_timestamp_seconds", "When the newest event came to the inbox.")
NEWEST_ACCEPTED = _gauge(
    "relay_newest_accepted_timestamp_seconds", "When the newest event that is to be delivered came to the inbox."
)
NEWEST_DELIVERED = _gauge(
    "relay_newest_delivered_timestamp_seconds", "When the newest event that was delivered had come to the inbox."
)
LAST_SUCCESS = _gauge("relay_last_success_timestamp_seconds", "When a delivery was last recorded.")
LATENCY = _histogram("relay_delivery_latency_seconds", "From an event's arrival to the API's 2xx, by Redis's clock.")

ATTEMPTS = _counter(
    "relay_delivery_attempts_total",
    "Answers of the API, and failures to get one, by what they meant and by status or kind of failure.",
    "outcome",
    "code",
)
ATTEMPT_SECONDS = _histogram(
    "relay_delivery_attempt_duration_seconds", "How long one attempt at delivery took, by what it meant.", "outcome"
)
RETRIES = _counter("relay_delivery_retries_total", "Attempts after which an event was put off to be tried again.")
IN_FLIGHT_LIMIT = _gauge(
    "relay_in_flight_limit",
    "Requests that one drain may have under way now; it falls while the API pushes back.",
    "destination",
)
HELD = _gauge(
    "relay_destination_held",
    "1 if a destination's deliveries are held now for this reason, else 0.",
    "destination",
    "reason",
)
HELD_SECONDS = _counter(
    "relay_destination_held_seconds_total",
    "How long a destination was, or already is to be, held for this reason.",
    "destination",
    "reason",
)
RETRY_AFTER = _gauge(
    "relay_retry_after_seconds",
    "The last pause that the API asked for, capped; absent if it never did.",
    "destination",
)
PAUSED = _gauge("relay_paused_environments", "Environments whose deliveries an operator holds.")
TOKEN_RELOADS = _counter(
    "relay_token_reloads_total", "Readings of the API's token that found another one, or failed.", "outcome"
)

TAKEN_OVER = _counter(
    "relay_leases_taken_over_total",
    "Drains that found the mark of one before them that had not let go: it died, or lost its lease.",
)
WAKEUPS = _counter(
    "relay_bells_total",
    "Calls for a drain: `work` came or was left, or an outbox is `due` for a retry, a hold's end or a lost drain.",
    "why",
)
HEARTBEAT = _gauge(
    "relay_worker_heartbeat_timestamp_seconds", "The last sign of life of each worker that gives them.", "worker"
)

MEMORY = _gauge(
    "relay_redis_memory_used_ratio", "The part of Redis's maxmemory that is used; absent where there is none."
)
DURABILITY = _gauge(
    "relay_redis_durability_info",
    "1, labelled with what keeps Redis from forgetting; `unknown` where it may not be asked.",
    "appendonly",
    "appendfsync",
    "maxmemory_policy",
)
RESETS = _counter(
    "relay_redis_dataset_reset_total", "Times that workers found another data set in Redis than a moment before."
)

METRICS = (
    UP, BUILD, SCRAPE_SECONDS,
    ADDED, ACCEPTED, DELIVERED, DUPLICATE, STALE, SUPERSEDED, DEAD, REDRIVEN, DROPPED, CLOCK_AHEAD, IGNORED, SKIPPED,
    REFUSED,
    WAITING, OLDEST, CAPACITY, NEWEST_ADDED, NEWEST_ACCEPTED, NEWEST_DELIVERED, LAST_SUCCESS, LATENCY,
    ATTEMPTS, ATTEMPT_SECONDS, RETRIES, IN_FLIGHT_LIMIT, HELD, HELD_SECONDS, RETRY_AFTER, PAUSED, TOKEN_RELOADS,
    TAKEN_OVER, WAKEUPS, HEARTBEAT, MEMORY, DURABILITY, RESETS,
)  # fmt: skip


def names(metrics: Iterable[Metric] = METRICS) -> set[str]:
    """Return the names that their samples have."""
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    return {metric.name + suffix for metric in metrics for suffix in suffixes.get(metric.kind, ("",))}
