"""Formats a snapshot in Prometheus's text format."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from relay.kubernetes.skip_reason import SkipReason
from relay.metrics import catalogue as of
from relay.metrics.catalogue import Kind
from relay.queue.attempts import BOUNDS_SECONDS, Durations
from relay.queue.dead_letters import Reason
from relay.queue.health import UNHEALTHY, HealthState
from relay.queue.latency import upper_bound_seconds
from relay.queue.leases import Why
from relay.queue.metrics_snapshot import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric as Family

    from relay.metrics.catalogue import Metric
    from relay.queue.metrics_snapshot import DestinationState, Snapshot, Waiting

__all__ = ["CONTENT_TYPE", "Limits", "exposition"]

#: Redis keeps latency in buckets of 10 % width; every eighth bound is exposed, up to a day.
_LATENCY_BUCKETS = range(0, 193, 8)

_FAMILIES = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
}

#: Label values that are exposed as 0 before they first occur, so that a rate has a start.
_OUTCOMES = ("delivered", "retry", "refused", "unauthorized")
_REFUSALS = ("queue_full", "memory")
_RELOADS = ("changed", "failed")


class Limits(NamedTuple):
    """Settings that are exposed: `queue.max_backlog` and `delivery.max_in_flight`."""

    max_backlog: int
    max_in_flight: int


#: Label values, and the sample's value.
_Sample = tuple[tuple[str, ...], float]


def exposition(snapshot: Snapshot | None, *, limits: Limits, seconds: float) -> bytes:
    """Return all metrics. Without a snapshot, Redis did not answer. `seconds` is how long reading took."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(_families(snapshot, limits, seconds)))
    return generate_latest(registry)


class _Families:
    """A collector for prometheus_client."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Family]:
        return self._families


def _families(snapshot: Snapshot | None, limits: Limits, seconds: float) -> Iterator[Family]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield _family(of.UP, [((), 0 if snapshot is None else 1)])
    yield _family(of.BUILD, [((_version(), python, snapshot.server.version if snapshot else ""), 1)])
    yield _family(of.SCRAPE_SECONDS, [((), seconds)])
    if snapshot is None:
        return
    yield from _counters(snapshot)
    yield from _backlog(snapshot, limits)
    yield from _deliveries(snapshot)
    yield from _destinations(snapshot.destinations, limits)
    yield from _workers(snapshot)
    yield from _redis(snapshot)


def _counters(snapshot: Snapshot) -> Iterator[Family]:
    counters = snapshot.counters
    yield _plain(of.ADDED, counters.added)
    yield _plain(of.ACCEPTED, counters.accepted)
    # `other` never falls, as no counter may. An environment that becomes named has delivered at least as much as the
    # one it replaces; the deliveries of a forgotten environment are part of `other` from then on.
    named = sorted(snapshot.delivered.items())
    yield _labelled(of.DELIVERED, (), dict([*named, (OTHER, snapshot.delivered_elsewhere)]))
    yield _plain(of.DUPLICATE, counters.duplicate)
    yield _plain(of.STALE, counters.stale)
    yield _plain(of.SUPERSEDED, counters.superseded)
    yield _labelled(of.DEAD, Reason, counters.dead_by_reason)
    yield _plain(of.REDRIVEN, counters.redriven)
    yield _plain(of.DROPPED, counters.dropped)
    yield _plain(of.IGNORED, counters.ignored)
    yield _labelled(of.SKIPPED, SkipReason, snapshot.skipped)
    yield _plain(of.CLOCK_AHEAD, snapshot.clocks_ahead)
    yield _labelled(of.REFUSED, _REFUSALS, snapshot.refused)


def _backlog(snapshot: Snapshot, limits: Limits) -> Iterator[Family]:
    streams: list[tuple[tuple[str, str], Waiting]] = [(("inbox", ""), snapshot.inbox), (("dead", ""), snapshot.dead)]
    streams += [(("outbox", name), waiting) for name, waiting in sorted(snapshot.outboxes.items())]
    streams.append((("outbox", OTHER), snapshot.outboxes_elsewhere))
    yield _family(of.WAITING, [(labels, waiting.events) for labels, waiting in streams])
    yield _family(of.OLDEST, [(labels, waiting.oldest / 1000) for labels, waiting in streams if waiting.oldest])
    yield _plain(of.CAPACITY, limits.max_backlog)
    for metric, milliseconds in (
        (of.NEWEST_ADDED, snapshot.newest_added),
        (of.NEWEST_ACCEPTED, snapshot.newest_accepted),
        (of.NEWEST_DELIVERED, snapshot.newest_delivered),
        (of.LAST_SUCCESS, snapshot.last_success),
    ):
        yield _family(metric, [] if milliseconds is None else [((), milliseconds / 1000)])


def _deliveries(snapshot: Snapshot) -> Iterator[Family]:
    yield _histogram(of.LATENCY, [((), _latency_buckets(snapshot.counters.latency), snapshot.latency_seconds)])
    yield _family(of.ATTEMPTS, sorted(snapshot.attempts.by_code.items()))
    none = Durations((0,) * len(BOUNDS_SECONDS), 0.0)
    durations = dict.fromkeys(_OUTCOMES, none) | snapshot.attempts.durations
    samples = [
        ((outcome,), list(zip(BOUNDS_SECONDS, accumulate(took.buckets), strict=True)), took.seconds)
        for outcome, took in sorted(durations.items())
    ]
    yield _histogram(of.ATTEMPT_SECONDS, samples)
    yield _plain(of.RETRIES, snapshot.counters.retries)


def _latency_buckets(latency: Mapping[int, int]) -> list[tuple[float, int]]:
    buckets = [
        (float(f"{upper_bound_seconds(number):.4g}"), sum(n for bucket, n in latency.items() if bucket <= number))
        for number in _LATENCY_BUCKETS
    ]
    return [*buckets, (float("inf"), sum(latency.values()))]


def _destinations(destinations: Mapping[str, DestinationState], limits: Limits) -> Iterator[Family]:
    each = sorted(destinations.items())
    limit = [((name,), found.concurrency_limit or limits.max_in_flight) for name, found in each]
    yield _family(of.IN_FLIGHT_LIMIT, limit)
    health = [((name, state), int(found.state is state)) for name, found in each for state in HealthState]
    yield _family(of.HEALTH, health)
    seconds = [
        ((name, state), found.unhealthy_ms.get(state, 0) / 1000) for name, found in each for state in UNHEALTHY
    ]
    yield _family(of.UNHEALTHY_SECONDS, seconds)
    retry_after = [((name,), found.retry_after_ms / 1000) for name, found in each if found.retry_after_ms is not None]
    yield _family(of.RETRY_AFTER, retry_after)


def _workers(snapshot: Snapshot) -> Iterator[Family]:
    yield _plain(of.PAUSED, snapshot.paused)
    yield _labelled(of.TOKEN_RELOADS, _RELOADS, snapshot.token_reloads)
    yield _plain(of.TAKEN_OVER, snapshot.leases_taken_over)
    yield _labelled(of.WAKEUPS, Why, snapshot.wakeups)
    yield _family(of.HEARTBEAT, [((name,), at / 1000) for name, at in sorted(snapshot.workers.items())])


def _redis(snapshot: Snapshot) -> Iterator[Family]:
    server = snapshot.server
    yield _family(of.MEMORY, [] if server.memory_used_ratio is None else [((), server.memory_used_ratio)])
    appendonly = "unknown" if server.appendonly is None else "yes" if server.appendonly else "no"
    durability = (appendonly, server.appendfsync or "unknown", server.maxmemory_policy or "unknown")
    yield _family(of.DURABILITY, [(durability, 1)])
    yield _plain(of.RESETS, snapshot.resets)


def _plain(metric: Metric, value: float) -> Family:
    return _family(metric, [((), value)])


def _labelled(metric: Metric, known: Iterable[str], values: Mapping[str, int]) -> Family:
    """Return a sample for each known value of the only label, and for each other value that occurred."""
    return _family(metric, [((name,), value) for name, value in {**dict.fromkeys(known, 0), **values}.items()])


def _family(metric: Metric, samples: Iterable[_Sample]) -> Family:
    family: CounterMetricFamily | GaugeMetricFamily = _FAMILIES[metric.kind](
        metric.name, metric.help, labels=metric.labels
    )
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(
    metric: Metric, samples: Iterable[tuple[tuple[str, ...], Sequence[tuple[float, int]], float]]
) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, buckets, total in samples:
        family.add_metric(labels, [(f"{bound:g}".replace("inf", "+Inf"), count) for bound, count in buckets], total)
    return family


def _version() -> str:
    try:
        return version("deployment-relay")
    except PackageNotFoundError:  # a clone that is not installed
        return "unknown"
