"""A histogram of the time from an event's arrival to the destination's 2xx, with buckets 10 % wide.

A hash in Redis, bucket number → deliveries, to which the commit script adds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Each bucket's upper bound is this much times the one before; the first ends at one millisecond.
GROWTH = 1.1

#: The counter with the sum of all latencies, in milliseconds.
SUM = "latency_ms"

_LOG_GROWTH = math.log(GROWTH)


def bucket(milliseconds: float) -> int:
    """Return the number of the bucket that holds a latency."""
    return 0 if milliseconds <= 1 else math.ceil(math.log(milliseconds) / _LOG_GROWTH)


def upper_bound_seconds(number: int) -> float:
    """Return the latency that a bucket ends at."""
    return GROWTH**number / 1000


def percentile(histogram: Mapping[int, int], share: float) -> float | None:
    """Return the latency in seconds that `share` (0 to 1) of the deliveries did not exceed; None for none."""
    total = sum(histogram.values())
    reached = 0
    for number in sorted(histogram):
        reached += histogram[number]
        if reached >= share * total:
            return upper_bound_seconds(number)
    return None
