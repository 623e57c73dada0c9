"""Check of deliveries: the findings of `relay status`, and pauses that may have been forgotten. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from relay.operations.diagnosis import Cause, diagnose
from relay.operations.finding import Finding, ok, warning
from relay.operations.status import describe, duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.queue.status import Status

#: Age of a pause from which it may have been forgotten.
LONG_PAUSE_SECONDS = 86_400.0

#: Causes that other checks examine in more detail.
_CHECKED_ELSEWHERE = frozenset({Cause.READ_ONLY, Cause.NO_WORKERS, Cause.REDIS_FULL})


def decide_deliveries(status: Status) -> Iterator[Finding]:
    """Yield what is wrong with deliveries."""
    findings = [finding for finding in diagnose(status) if finding.check not in _CHECKED_ELSEWHERE]
    for finding in findings:
        yield replace(finding, check=f"deliveries.{finding.check}")
    longest = min(status.paused, key=lambda each: each.paused_since or status.now, default=None)
    if longest is not None and longest.paused_since is not None:
        age = status.now - longest.paused_since
        if age > LONG_PAUSE_SECONDS * 1000:
            yield warning(
                "deliveries.paused",
                f"{longest.environment} has been paused for {duration(age)}",
                f"`relay resume {longest.environment}`, if that was forgotten",
            )
    if not findings:
        yield ok(
            "deliveries",
            f"nothing delays deliveries; {status.counters.waiting:,} waiting; destination: "
            f"{describe(status.health, status.now)}",
        )
