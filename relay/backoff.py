"""When is it tried again? Full jitter: anywhere between now and a bound that doubles."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

#: Doublings after which the bound is certainly at its maximum; keeps the power small.
MAX_DOUBLINGS = 40


def pause_seconds(attempt: int, *, initial: float, maximum: float, random: Random) -> float:
    """Return how long to wait after the `attempt`-th attempt (from 1) failed."""
    bound = min(maximum, initial * 2 ** min(attempt - 1, MAX_DOUBLINGS))
    return random.uniform(0, bound)
