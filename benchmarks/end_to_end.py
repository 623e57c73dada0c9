"""Events a second from producers through Redis and the worker to the trivial API."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import throughput
from benchmarks.report import decision, table
from benchmarks.rig import rig
from benchmarks.throughput import GRACE_SECONDS, Throughput, costs
from benchmarks.workload import ENVIRONMENTS, PRODUCERS, REPOSITORIES
from relay.queue.counters import Counters, read_counters
from relay.queue.keys import Keys
from relay.queue.latency import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENTS = 200_000
REQUIRED_EVENTS_PER_SECOND = 10_000

#: Quantiles of the latency that are shown.
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """One run; `latency_seconds` is from a report's XADD to the API's answer, by quantile."""

    throughput: Throughput
    waiting: int
    unaccounted: int
    latency_seconds: dict[float, float]

    @property
    def events_per_second(self) -> float:
        """Events a second."""
        return self.throughput.events_per_second

    @property
    def faults(self) -> list[str]:
        """Defects that make the run invalid."""
        faults = self.throughput.faults
        if self.unaccounted:
            faults.append(f"the counters has {self.unaccounted} events unaccounted for")
        if self.waiting:
            faults.append(f"the counters has {self.waiting} events waiting")
        return faults


def measure(events: int | None) -> EndToEnd:
    """Run once, with its own Redis, worker and API."""
    keys = Keys()
    with rig() as parts:

        def counters() -> Counters:
            return read_counters(parts.client, keys)

        worker = parts.start_worker("workers", lambda: any(parts.client.scan_iter(keys.worker("*"))))
        done = throughput.run(parts, worker, "relay", events or EVENTS)
        parts.wait_until(lambda: counters().waiting == 0, GRACE_SECONDS)  # the last commits follow the last answers
        end = counters()
    return EndToEnd(
        throughput=done,
        waiting=end.waiting,
        unaccounted=end.unaccounted,
        latency_seconds={share: percentile(end.latency, share) or 0.0 for share in SHARES},
    )


def told(runs: Sequence[EndToEnd]) -> str:
    """Format the runs' figures."""
    rate = median(run.events_per_second for run in runs)
    speed = table(
        ["events/s", "seconds", "enqueued/s", *(f"p{share * 100:g} s" for share in SHARES)],
        [
            [
                f"{run.events_per_second:,.0f}",
                f"{run.throughput.seconds:.1f}",
                f"{run.throughput.events / run.throughput.produced_seconds:,.0f}",
                *(f"{seconds:.2f}" for seconds in run.latency_seconds.values()),
            ]
            for run in runs
        ],
    )
    cost = costs([run.throughput for run in runs])
    title = (
        f"End to end: {runs[0].throughput.events:,} events from {PRODUCERS} producers,"
        f" {ENVIRONMENTS} environments x {REPOSITORIES:,} repositories"
    )
    passed = rate >= REQUIRED_EVENTS_PER_SECOND
    result = f"Median {rate:,.0f} events/s; required {REQUIRED_EVENTS_PER_SECOND:,}: {decision(passed=passed)}"
    return f"{title}\n{speed}\n{cost}\n{result}"
