"""The `Retry-After` header of an answer, as a number of seconds. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Characters of a header line that are read; three dates fit.
MAX_CHARACTERS = 128

#: The most seconds that are returned: beyond any cap, and small enough to calculate with.
MAX_SECONDS = 1e9


def retry_after_seconds(lines: Iterable[str], *, date: str | None, now: datetime) -> float | None:
    """Return the seconds that an answer's `Retry-After` lines (RFC 9110, 10.2.3) ask for; the caller caps them.

    A value is whole seconds or a date. A date counts from the answer's own `Date`, if that can be read, because the
    two clocks may differ; else from `now`, our clock. Of several values the longest counts, so that no request is
    sent before any of them. None for a value in the past, zero, or neither seconds nor a date: then our own back-off
    counts.
    """
    since = date_of(date)
    # The comma within a date divides it too; the part before it is a weekday, and is ignored.
    values = (value.strip() for line in lines if len(line) <= MAX_CHARACTERS for value in line.split(","))
    seconds = [_seconds(value, since or now) for value in values]
    longest = max(seconds, default=0.0)
    return min(longest, MAX_SECONDS) if longest > 0 else None


def date_of(value: str | None) -> datetime | None:
    """Return the time that a `Date` header names, None for none or for one that cannot be read."""
    return _date(value[:MAX_CHARACTERS]) if value else None


def _seconds(value: str, since: datetime) -> float:
    if value.isascii() and value.isdigit():
        return float(value)
    until = _date(value)
    return -math.inf if until is None else (until - since).total_seconds()


def _date(value: str) -> datetime | None:
    """Parse a date in any of the three forms of RFC 9110, 5.6.7, with or without its weekday."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):  # depends on the text
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)  # asctime's form names no zone and means UTC
