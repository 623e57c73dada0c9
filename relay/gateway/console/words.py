"""How numbers, times and names are said to people; pure."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

#: Seconds of each unit, the larger first.
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))

#: Characters of a digest's hexadecimal part that tell it from others.
_TELLING = 12


def number(value: float) -> str:
    """Write a count with its thousands apart."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """Write a rate with two digits that matter."""
    if not per_second:
        return "0"
    return f"{per_second:.2f}" if per_second < 1 else f"{per_second:.1f}" if per_second < 10 else number(per_second)  # noqa: PLR2004 - digits


def duration(seconds: float) -> str:
    """Write a duration in its two largest units: `3 d 4 h`, `12 s`."""
    left = max(0, round(seconds))
    for (size, unit), (smaller, its_unit) in pairwise(_UNITS):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit} {rest} {its_unit}" if rest else f"{left // size} {unit}"
    return f"{left} s"


def moment(milliseconds: int) -> str:
    """Write a time to the second, in UTC; whatever came as a time must not break a page."""
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return "?"
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def short_digest(digest: str) -> str:
    """Write the part of a digest that tells it from others."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm}:{value[:_TELLING]}…" if len(value) > _TELLING else digest


def plural(count: int, one: str, many: str = "") -> str:
    """Write a count and what is counted."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def sentence(text: str) -> str:
    """Begin a text with a capital letter, and change nothing else."""
    return text[:1].upper() + text[1:]
