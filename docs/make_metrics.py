"""Print docs/metrics.md from the catalogue of metrics: `python docs/make_metrics.py > docs/metrics.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.metrics.catalogue import METRICS

if TYPE_CHECKING:
    from relay.metrics.catalogue import Metric

HEAD = """\
# Metrics

`relay metrics` and the gateway's `/metrics` serve the same metrics, in Prometheus's text format: the numbers of the
whole cluster, read from Redis at the scrape. The gateway needs a token ([how](gateway.md#tokens)). No process counts
for itself, so restarts change nothing, and one target is enough. The scripts that move events write the counters, so
each scrape adds up:
`added + redriven = delivered + duplicate + stale + superseded + dead + waiting` in inbox and outboxes.

- `environment` has at most `metrics.environments` values, those with the most, and `other` for the sum of the rest.
  For a counter that sum never falls. A forgotten environment (`delivery.forget_after`) loses its series and counts
  under `other` from then on: `other` rises by as much once, without deliveries.
- No label contains an id, an image, an address or a token.
- While Redis does not answer, the scrape succeeds with `relay_up 0`, `relay_build_info` and its own duration.
- A scrape reads and never writes. With ten thousand environments it takes a fraction of a second.

Absent, because no process could count them exactly: requests in flight, reused connections (both exist in a worker's
memory for milliseconds), errors of Redis (which cannot count them itself), and reports that the gateway refused as
invalid (the producer got the answer). A poison entry counts in `relay_events_dead_total{reason="worker_crash"}`, a
lost lease in `relay_leases_taken_over_total`.

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
