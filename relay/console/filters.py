"""How numbers, times and names are said to people; pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

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


def with_code(text: str) -> Markup:
    """Escape a text, and set as code what stands between backticks."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def plural(count: int, one: str) -> str:
    """Write a count and what is counted."""
    return f"{number(count)} {one}{'' if count == 1 else 's'}"
