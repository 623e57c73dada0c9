"""How fast were events delivered in the last minutes? Rates by environment, in a bounded memory; pure."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Steps that are kept, and how long one is at least: ten minutes.
STEPS, STEP_SECONDS = 120, 5.0

#: Environments with a history, of four bytes a step; later ones have none.
ENVIRONMENTS = 20_000


class History:
    """Deliveries a second, made of counters that are looked at now and then."""

    def __init__(self) -> None:
        self._began = array("d", [0.0] * STEPS)
        self._rates: dict[str, array[float]] = {}
        self._last: Mapping[str, int] = {}
        self._steps = 0
        self._since = 0.0

    def note(self, delivered: Mapping[str, int], now: float) -> None:
        """Take counters by environment as they stand; `now` in seconds on any steady clock.

        What comes before a step is over is not looked at. A counter that went back was reset, and counts as no rate.
        """
        if self._last and now - self._since < STEP_SECONDS:
            return
        if self._last:
            self._step(delivered, now)
        self._last, self._since = dict(delivered), now

    def rates(self, environment: str) -> list[float]:
        """Return an environment's deliveries a second, the oldest step first; empty before the first is over."""
        kept = min(self._steps, STEPS)
        rates = self._rates.get(environment)
        if rates is None:
            return [0.0] * kept
        return [rates[step % STEPS] for step in range(self._steps - kept, self._steps)]

    def span_seconds(self, now: float) -> float:
        """Return how far back the rates go."""
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
