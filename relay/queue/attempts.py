"""Counters of delivery attempts, by outcome and code, and their durations.

The commit script writes them beside the other counters: the fields `attempt:<outcome>:<code>` (attempts),
`duration:<outcome>:<upper bound in seconds>` (attempts that took no longer than this, and longer than the bound
before), and `duration_us:<outcome>` (their sum in microseconds).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Upper bounds of the durations' buckets; `api.timeout` is 10 s unless set.
BOUNDS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, float("inf"))

_BUCKETS = tuple(f"{bound:g}" for bound in BOUNDS_SECONDS)


@dataclass(frozen=True, slots=True)
class Durations:
    """Durations of attempts: their number in each bucket, in the order of the bounds, and their sum."""

    buckets: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Attempts:
    """All attempts so far: by outcome and code, and their durations by outcome."""

    by_code: dict[tuple[str, str], int] = field(default_factory=dict)
    durations: dict[str, Durations] = field(default_factory=dict)


class Tally:
    """Attempts to be counted with one commit. `note` runs for each attempt, so it does next to nothing."""

    __slots__ = ("_attempts", "_seconds")

    def __init__(self) -> None:
        #: Outcome, code, number of the duration's bucket → attempts; and outcome → their seconds.
        self._attempts: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[str, float] = {}

    def note(self, outcome: str, code: str, seconds: float) -> None:
        """Note one attempt."""
        attempt = (outcome, code, bisect_left(BOUNDS_SECONDS, seconds))
        self._attempts[attempt] = self._attempts.get(attempt, 0) + 1
        self._seconds[outcome] = self._seconds.get(outcome, 0.0) + seconds

    def counts(self) -> dict[str, int]:
        """Return the counters to increase, and by how much."""
        counts: Counter[str] = Counter()
        for (outcome, code, bucket), number in self._attempts.items():
            counts[f"attempt:{outcome}:{code}"] += number
            counts[f"duration:{outcome}:{_BUCKETS[bucket]}"] += number
        for outcome, seconds in self._seconds.items():
            counts[f"duration_us:{outcome}"] += round(seconds * 1_000_000)
        return counts


def read(totals: Mapping[str, int]) -> Attempts:
    """Return the attempts among all counters."""
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
