"""How long does a `Retry-After` ask us to wait? Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Characters of a header line that are looked at; three dates fit.
MAX_CHARACTERS = 128

#: What absurdly many seconds come down to: beyond any cap, and small enough to reckon with.
MAX_SECONDS = 1e9


def retry_after_seconds(lines: Iterable[str], *, date: str | None, now: datetime) -> float | None:
    """Read the values of an answer's `Retry-After` lines (RFC 9110, 10.2.3): whole seconds, or a date.

    A date counts from the answer's own `Date`, if it has one that can be read: the two clocks may be apart, and
    `now` is ours. Said more than once, the longest holds, so that nothing is sent before any of the times named.
    None for what is in the past, zero, or neither seconds nor a date: then our own back-off holds. Not capped;
    that is the caller's to do.
    """
    since = date_of(date)
    # A date's comma divides it too: what is before it is a weekday and says nothing.
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
    """Read a date in any of the three forms of RFC 9110, 5.6.7, with or without its weekday."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):  # depends on what it is not
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)  # asctime's form names no zone and means UTC
