"""Template filters: numbers, times, digests and code as text. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

#: Hexadecimal digits of a shortened digest.
_DIGITS = 12


def number(value: float) -> str:
    """Format a count with thousands separators."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """Format a rate with two significant digits."""
    if not per_second:
        return "0"
    return f"{per_second:.2f}" if per_second < 1 else f"{per_second:.1f}" if per_second < 10 else number(per_second)  # noqa: PLR2004 - digits


def moment(milliseconds: int) -> str:
    """Format a time to the second, in UTC; `?` for a time out of range."""
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return "?"
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def short_digest(digest: str) -> str:
    """Return a digest with its first hexadecimal digits."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm}:{value[:_DIGITS]}…" if len(value) > _DIGITS else digest


def with_code(text: str) -> Markup:
    """Escape a text, and format the parts between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def plural(count: int, one: str) -> str:
    """Format a count with its noun."""
    return f"{number(count)} {one}{'' if count == 1 else 's'}"
