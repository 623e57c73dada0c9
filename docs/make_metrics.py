"""Print docs/metrics.md from the catalogue of metrics: `python docs/make_metrics.py > docs/metrics.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.metrics.catalogue import METRICS

if TYPE_CHECKING:
    from relay.metrics.catalogue import Metric

HEAD = """\
# Metrics

`relay metrics` and the gateway's `/metrics` tell the same, in Prometheus's text format: the numbers of the whole
cluster, read from Redis at the scrape. The gateway asks for a token ([how](gateway.md#tokens)). No process counts for
itself, so restarts change nothing, and one target is enough to scrape. Counters of events are written by the steps
that move the events, so each scrape adds up:
`added + redriven = delivered + duplicate + stale + superseded + dead + waiting` in inbox and outboxes.

- `environment` has at most `metrics.environments` values, those with the most, and `other` for the sum of the rest.
  That sum never falls where it is a counter's. An environment that is forgotten (`delivery.forget_after`) loses its
  series and is counted under `other` from then on: that rises by as much once, though nothing was delivered.
- No label has an id, an image, an address or a token in it.
- While Redis does not answer, the scrape succeeds and tells `relay_up 0`, `relay_build_info` and its own duration.
- A scrape reads and never writes. With ten thousand environments it takes a fraction of a second.

Not here, because no process could tell it exactly: requests in flight, connections reused (both live in a worker's
memory for milliseconds), errors of Redis (which cannot count those itself), and reports that the gateway refused as
invalid (the producer got the answer). A poison entry is `relay_events_dead_total{reason="worker_crash"}`. A lease
that is lost is one that somebody took over: `relay_leases_taken_over_total`.

Rules and alerts: [config/prometheus/alerts.yml](../config/prometheus/alerts.yml), explained in the
[runbook](runbook.md). A dashboard: [config/grafana/relay.json](../config/grafana/relay.json). This page is generated
from `relay/metrics/catalogue.py`.

| name | type | labels | HELP |
|---|---|---|---|
"""


def page() -> str:
    """Return the page."""
    return HEAD + "".join(map(_row, METRICS))


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - its purpose
