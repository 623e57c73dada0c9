"""Delivery rates of the last ten minutes by environment, in bounded memory. Pure."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The number of steps, and the minimum length of one: ten minutes in all.
STEPS, STEP_SECONDS = 120, 5.0

#: Maximum environments with a history, of four bytes a step; later ones have none.
ENVIRONMENTS = 20_000


class History:
    """Deliveries a second, computed from readings of counters."""

    def __init__(self) -> None:
        self._began = array("d", [0.0] * STEPS)
        self._rates: dict[str, array[float]] = {}
        self._last: Mapping[str, int] = {}
        self._steps = 0
        self._since = 0.0

    def note(self, delivered: Mapping[str, int], now: float) -> None:
        """Add a reading of the counters by environment; `now` in seconds on any monotonic clock.

        A reading before the end of a step is ignored. A counter that decreased was reset, and its rate is 0.
        """
        if self._last and now - self._since < STEP_SECONDS:
            return
        if self._last:
            self._step(delivered, now)
        self._last, self._since = dict(delivered), now

    def rates(self, environment: str) -> list[float]:
        """Return an environment's deliveries a second, oldest step first; empty before the end of the first."""
        kept = min(self._steps, STEPS)
        rates = self._rates.get(environment)
        if rates is None:
            return [0.0] * kept
        return [rates[step % STEPS] for step in range(self._steps - kept, self._steps)]

    def span_seconds(self, now: float) -> float:
        """Return the time that the rates cover."""
        return now - self._began[max(0, self._steps - STEPS) % STEPS] if self._steps else 0.0

    def _step(self, delivered: Mapping[str, int], now: float) -> None:
        place = self._steps % STEPS
        self._began[place] = self._since
        for environment in self._rates.keys() - delivered.keys():
            del self._rates[environment]
        for environment, count in delivered.items():
            rates = self._rates.get(environment)
            if rates is None:
                if len(self._rates) >= ENVIRONMENTS:
                    continue
                rates = self._rates[environment] = array("f", [0.0] * STEPS)
            before = self._last.get(environment, 0 if self._steps else count)
            rates[place] = max(0, count - before) / (now - self._since)
        self._steps += 1
