"""Rate and latency of reports and admission reviews at one gateway process."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.report import decision, table
from benchmarks.rig import ROOT, Posted, rig

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS = 64
SECONDS = 8.0

#: Turns of each app, and the length of one: a machine's speed can change within seconds.
TURNS = 6
TURN_SECONDS = 2.0

REVIEWS_A_SECOND = 500

REQUIRED_REPORTS_A_SECOND = 8_000
#: Required on a slower machine: the part of the rate of the least app with group commit.
REQUIRED_PART = 8_000 / 13_000
REQUIRED_REPORT_P99_MS = 30.0
REQUIRED_REVIEW_P99_MS = 20.0
REQUIRED_REVIEW_MS = 200.0

#: A pod as Kubernetes sends it when it is created; its image's digest becomes the request's number.
REVIEW = ROOT / "tests" / "data" / "kubernetes" / "review-create.json"


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """One run: reports at full rate, then reviews at a steady rate with Redis running and stopped.

    `bare` are requests to an app that only answers, `committed` to one that only commits (bare_asgi.py): the maximum
    of the server, the client and this machine. `parts` is the gateway's part of `committed` in each turn.
    """

    bare: Posted
    committed: Posted
    reports: Posted
    parts: Sequence[float]
    enqueued: int
    reviews: Posted
    reviewed: int
    without_redis: Posted

    @property
    def faults(self) -> list[str]:
        """Why the run is invalid."""
        faults = []
        accepted = self.reports.statuses.get("202", 0)
        if set(self.reports.statuses) != {"202"} or accepted != self.enqueued:
            faults.append(f"{self.enqueued} reports are in the inbox, and the answers were {self.reports.statuses}")
        reviewed = (self.reviews.statuses, self.without_redis.statuses)
        faults += [f"reviews were answered {statuses}" for statuses in reviewed if set(statuses) != {"200"}]
        if self.reviewed != self.reviews.requests:
            faults.append(f"of {self.reviews.requests} reviews {self.reviewed} events are in the inbox")
        return faults


def measure(_events: int | None) -> Gateway:
    """Run once, with its own Redis and gateway."""
    with rig() as parts:
        urls = {
            "bare": parts.start_server("bare", "benchmarks.bare_asgi"),
            "committed": parts.start_server("committed", "benchmarks.bare_asgi", parts.redis.url),
            "reports": parts.start_gateway(),
        }
        for each in urls.values():  # warm-up: imports and connections
            parts.post(each, _report(), "--connections", "8", "--seconds", "1")
        parts.client.flushall()
        connections = ("--connections", str(CONNECTIONS))
        turn = (*connections, "--seconds", str(TURN_SECONDS))
        seen: dict[str, list[Posted]] = {name: [] for name in urls}
        for _ in range(TURNS):
            for name, each in urls.items():
                seen[name].append(parts.post(each, _report(), *turn))
        enqueued = parts.client.xlen("{relay:0}:inbox")
        parts.client.flushall()
        url = urls["reports"]
        paced = (*connections, "--seconds", str(SECONDS), "--rate", str(REVIEWS_A_SECOND))
        review = REVIEW.read_text()
        reviews = parts.post(f"{url}/admission", review, *paced)
        reviewed = parts.client.xlen("{relay:0}:inbox")
        os.kill(parts.redis.pid, signal.SIGSTOP)
        without_redis = parts.post(f"{url}/admission", review, *paced)
        os.kill(parts.redis.pid, signal.SIGCONT)
    return Gateway(
        **{name: Posted.together(each) for name, each in seen.items()},
        parts=[ours.rate / theirs.rate for ours, theirs in zip(seen["reports"], seen["committed"], strict=True)],
        enqueued=enqueued,
        reviews=reviews,
        reviewed=reviewed,
        without_redis=without_redis,
    )


def told(runs: Sequence[Gateway]) -> str:
    """Return the results as text."""
    rows = []
    for run in runs:
        passed = run.reports.rate >= REQUIRED_REPORTS_A_SECOND and run.reports.p99_ms <= REQUIRED_REPORT_P99_MS
        rows.append(_row("nothing but an answer", run.bare, passed=None))
        rows.append(_row("nothing but group commit", run.committed, passed=None))
        rows.append(_row("reports", run.reports, passed=passed))
        rows.append(_row("reviews", run.reviews, passed=run.reviews.p99_ms <= REQUIRED_REVIEW_P99_MS))
        stopped = run.without_redis
        rows.append(_row("reviews, Redis stopped", stopped, passed=stopped.max_ms <= REQUIRED_REVIEW_MS))
    title = f"One gateway process, {CONNECTIONS} connections; the client and Redis share the machine"
    figures = table(["", "requests/s", "p50 ms", "p99 ms", "max ms", "decision"], rows)
    required = (
        f"Required: {REQUIRED_REPORTS_A_SECOND:,} reports/s with p99 {REQUIRED_REPORT_P99_MS:g} ms; at "
        f"{REVIEWS_A_SECOND} reviews/s p99 {REQUIRED_REVIEW_P99_MS:g} ms, all within {REQUIRED_REVIEW_MS:g} ms "
        "with Redis stopped"
    )
    parts = [part for run in runs for part in run.parts]
    part = median(parts)
    ratio = (
        f"Reports to nothing but group commit, median of {len(parts)} turns: {part:.2f} ({min(parts):.2f} to "
        f"{max(parts):.2f}); required, if the machine is a slower one: {REQUIRED_PART:.2f}: "
        f"{decision(passed=part >= REQUIRED_PART)}"
    )
    return f"{title}\n{figures}\n{required}\n{ratio}"


def _row(name: str, posted: Posted, *, passed: bool | None) -> list[str]:
    figures = (posted.p50_ms, posted.p99_ms, posted.max_ms)
    return [
        name,
        f"{posted.rate:,.0f}",
        *(f"{each:.1f}" for each in figures),
        "" if passed is None else decision(passed=passed),
    ]


def _report() -> str:
    url = f"ghcr.io/acme/api@sha256:{'0123456789abcdef' * 4}"
    return json.dumps({"image": {"url": url, "name": "@N@"}, "environment": {"name": "production"}})
