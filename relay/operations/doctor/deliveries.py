"""What holds deliveries up? What `relay status` says of it, and how long operators' pauses last already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.operations.diagnosis import Cause, Level, describe, diagnose, duration
from relay.operations.doctor.result import Grade, Result, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.queue.overview import Overview

#: A pause that lasts this long was perhaps forgotten.
LONG_PAUSE_SECONDS = 86_400.0

#: What other checks look into deeper.
_ELSEWHERE = frozenset({Cause.READ_ONLY, Cause.NO_WORKERS, Cause.REDIS_FULL})

_GRADES = {Level.BAD: Grade.FAULT, Level.WARN: Grade.WARNING, Level.NOTE: Grade.NOTE}


def judge(seen: Overview) -> Iterator[Result]:
    """Say what is wrong with deliveries; pure."""
    findings = [finding for finding in diagnose(seen) if finding.cause not in _ELSEWHERE]
    for finding in findings:
        yield Result(
            check=f"deliveries.{finding.cause}", grade=_GRADES[finding.level], what=finding.what, do=finding.do
        )
    longest = min(seen.paused, key=lambda each: each.paused_since or seen.now, default=None)
    if longest is not None and longest.paused_since is not None:
        lasts = seen.now - longest.paused_since
        if lasts > LONG_PAUSE_SECONDS * 1000:
            yield warning(
                "deliveries.paused",
                f"{longest.environment} is paused for {duration(lasts)} already",
                f"`relay resume {longest.environment}`, if that was forgotten",
            )
    if not findings:
        yield ok(
            "deliveries",
            f"nothing holds them up; {seen.counters.waiting:,} waiting; API: {describe(seen.health, seen.now)}",
        )
