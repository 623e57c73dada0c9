"""How attempts at delivery are counted: what came of them, with which code, and how long they took.

They lie beside the ledger's counters, written by the script that records what became of the events: the fields
`attempt:<outcome>:<code>` (attempts), `duration:<outcome>:<upper bound in seconds>` (attempts that took no longer
than this, and longer than the bound before), and `duration_us:<outcome>` (their sum in microseconds).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Upper bounds of the durations' buckets; `api.timeout` is 10 s unless set.
BOUNDS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, float("inf"))

_BUCKETS = tuple(f"{bound:g}" for bound in BOUNDS_SECONDS)


@dataclass(frozen=True, slots=True)
class Durations:
    """How long attempts took: how many ended in which of the buckets, in the order of their bounds, and the sum."""

    buckets: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Attempts:
    """All attempts ever: by outcome and code, and their durations by outcome."""

    by_code: dict[tuple[str, str], int] = field(default_factory=dict)
    durations: dict[str, Durations] = field(default_factory=dict)


def note(counts: dict[str, int], *, outcome: str, code: str, seconds: float) -> None:
    """Add one attempt to what is to be counted."""
    bucket = _BUCKETS[bisect_left(BOUNDS_SECONDS, seconds)]
    for name, much in (
        (f"attempt:{outcome}:{code}", 1),
        (f"duration:{outcome}:{bucket}", 1),
        (f"duration_us:{outcome}", round(seconds * 1_000_000)),
    ):
        counts[name] = counts.get(name, 0) + much


def read(totals: Mapping[str, int]) -> Attempts:
    """Find the attempts among the ledger's counters."""
    by_code: dict[tuple[str, str], int] = {}
    buckets: dict[str, dict[str, int]] = defaultdict(dict)
    for name, value in totals.items():
        match name.split(":"):
            case ["attempt", outcome, code]:
                by_code[outcome, code] = value
            case ["duration", outcome, bucket]:
                buckets[outcome][bucket] = value
    durations = {
        outcome: Durations(
            tuple(found.get(bucket, 0) for bucket in _BUCKETS), totals.get(f"duration_us:{outcome}", 0) / 1_000_000
        )
        for outcome, found in buckets.items()
    }
    return Attempts(by_code, durations)
