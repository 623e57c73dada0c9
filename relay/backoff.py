"""Exponential backoff with full jitter: a random pause up to a bound that doubles."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

#: Maximum doublings, which keeps the power small; the bound is at its maximum long before.
MAX_DOUBLINGS = 40


def pause_seconds(attempt: int, *, initial: float, maximum: float, random: Random) -> float:
    """Return the pause after the `attempt`-th attempt (from 1) failed."""
    bound = min(maximum, initial * 2 ** min(attempt - 1, MAX_DOUBLINGS))
    return random.uniform(0, bound)
