"""Rates as the points of a small chart. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 120, 24

#: The number of rates from which on they fill the box.
FEW = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparkline:
    """`points` and `area` are those of an SVG polyline and polygon in a box of `WIDTH` by `HEIGHT`."""

    points: str
    area: str
    now: float
    most: float


def draw(rates: Sequence[float]) -> Sparkline | None:
    """Return the chart of rates, the last at the right; None for fewer than two, or all zero."""
    most = max(rates, default=0.0)
    if len(rates) < 2 or not most:  # noqa: PLR2004 - a line has two ends
        return None
    apart = WIDTH / (max(FEW, len(rates)) - 1)
    left = WIDTH - apart * (len(rates) - 1)
    points = [(left + apart * at, HEIGHT - 1 - (HEIGHT - 2) * rate / most) for at, rate in enumerate(rates)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Sparkline(points=line, area=f"{left:.1f},{HEIGHT} {line} {WIDTH},{HEIGHT}", now=rates[-1], most=most)
