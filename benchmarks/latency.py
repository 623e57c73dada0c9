"""Latency of one event from XADD to the API in an idle relay."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.report import decision, table
from benchmarks.rig import rig
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENTS = 150

#: Numbers of environments, one measurement each.
SPREADS = (1, 8)

#: Pauses between events: long enough for all runs to end, and not a multiple of any timer.
PAUSE_SECONDS = (0.1, 0.3)

#: Deadline of the last event.
LAST_SECONDS = 10.0

REQUIRED_MEDIAN_MS = 10.0
REQUIRED_P99_MS = 50.0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One measurement: events over a number of environments, and their latencies in the order of sending."""

    environments: int
    events: int
    latency_ms: list[float]

    @property
    def median_ms(self) -> float:
        """The median latency."""
        return median(self.latency_ms)

    @property
    def p99_ms(self) -> float:
        """The latency at the 99th percentile (nearest rank)."""
        return sorted(self.latency_ms)[math.ceil(0.99 * len(self.latency_ms)) - 1]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One run: a measurement for each of `SPREADS`, by the same worker."""

    spreads: list[Spread]

    @property
    def faults(self) -> list[str]:
        """Defects that make the run invalid."""
        return [
            f"over {spread.environments} environments {spread.events} events were added, "
            f"and {len(spread.latency_ms)} came to the API"
            for spread in self.spreads
            if spread.events != len(spread.latency_ms)
        ]


def measure(events: int | None) -> Latency:
    """Run once, with its own Redis, worker and API."""
    keys = Keys()
    added: dict[int, dict[str, float]] = {}
    total = events or EVENTS
    with rig() as parts:
        parts.start_worker("workers", lambda: any(parts.client.scan_iter(keys.worker("*"))))
        for environments in SPREADS:
            added[environments] = {}
            for number in range(total):
                name = f"{environments}-{number}"
                body = _body(name, random.randrange(environments))
                time.sleep(random.uniform(*PAUSE_SECONDS))
                added[environments][name] = time.time()
                parts.client.xadd(keys.inbox, {"event": body, "id": name})
        expected = total * len(SPREADS)
        parts.wait_until(lambda: parts.api.counts().distinct >= expected, LAST_SECONDS)
        received = parts.api.receipts()
    return Latency(spreads=[_spread(environments, times, received) for environments, times in added.items()])


def told(runs: Sequence[Latency]) -> str:
    """Format the runs' figures."""
    rows = [
        [
            str(spread.environments),
            *(f"{each:.1f}" for each in (spread.median_ms, spread.p99_ms, max(spread.latency_ms))),
            decision(passed=spread.median_ms <= REQUIRED_MEDIAN_MS and spread.p99_ms <= REQUIRED_P99_MS),
        ]
        for run in runs
        for spread in run.spreads
        if spread.latency_ms
    ]
    title = (
        f"Idle latency, XADD to receipt: {runs[0].spreads[0].events} events a row,"
        f" one every {PAUSE_SECONDS[0]:g} to {PAUSE_SECONDS[1]:g} s"
    )
    figures = table(["environments", "median ms", "p99 ms", "max ms", "decision"], rows)
    required = f"Required: median {REQUIRED_MEDIAN_MS:g} ms, p99 {REQUIRED_P99_MS:g} ms"
    return f"{title}\n{figures}\n{required}"


def _body(name: str, environment: int) -> str:
    """Return a report of an image that is new in the environment."""
    digest = f"{random.getrandbits(256):064x}"
    url = f"docker.io/library/nginx@sha256:{digest}"
    return json.dumps({"image": {"url": url}, "environment": {"name": f"{name.partition('-')[0]}-{environment}"}})


def _spread(environments: int, added: dict[str, float], received: dict[str, float]) -> Spread:
    latency_ms = [(received[name] - sent) * 1000 for name, sent in added.items() if name in received]
    return Spread(environments=environments, events=len(added), latency_ms=latency_ms)
