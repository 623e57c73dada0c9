"""The plain Celery design instead of the relay: one task an event, with the same Redis and API."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from benchmarks import throughput
from benchmarks.plain_worker import READY_KEY
from benchmarks.report import table
from benchmarks.rig import rig
from benchmarks.throughput import costs
from benchmarks.workload import PRODUCERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.throughput import Throughput

EVENTS = 5000


def measure(events: int | None) -> Throughput:
    """Run once, with its own Redis, worker and API."""
    with rig() as parts:
        worker = parts.start_worker("benchmarks.plain_worker", lambda: bool(parts.client.exists(READY_KEY)))
        return throughput.run(parts, worker, "plain", events or EVENTS)


def told(runs: Sequence[Throughput]) -> str:
    """Format the runs' figures."""
    rows = [
        [f"{run.events_per_second:,.0f}", f"{run.seconds:.1f}", f"{run.events / run.produced_seconds:,.0f}"]
        for run in runs
    ]
    title = f"Plain Celery design: {runs[0].events:,} events from {PRODUCERS} producers, a task each"
    speed = table(["events/s", "seconds", "enqueued/s"], rows)
    rate = median(run.events_per_second for run in runs)
    return f"{title}\n{speed}\n{costs(runs)}\nMedian {rate:,.0f} events/s"
