"""The rate limit headers of an answer, as a number of seconds. Pure.

APIs tell a client in many ways that it has used up its requests: `RateLimit` and `RateLimit-Remaining`/`-Reset` (the
drafts of the IETF, with the reset in seconds from now), and `X-RateLimit-…` or `X-Rate-Limit-…`, whose reset is a
Unix time at most APIs and seconds from now at others. Some say it only in the body of a 403.
"""

from __future__ import annotations

import math
import re
from itertools import chain
from typing import TYPE_CHECKING

from relay.destinations.retry_after import MAX_CHARACTERS, MAX_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    Headers = Callable[[str], Sequence[str]]

#: The beginnings of the names of single-value headers.
PREFIXES = ("RateLimit-", "X-RateLimit-", "X-Rate-Limit-")

#: A reset of so many seconds or more is a Unix time: as seconds from now it would be more than thirty years.
_UNIX_SECONDS = 1e9
#: The same in milliseconds.
_UNIX_MILLISECONDS = 1e11

#: The pause if the body says that the limit is used up, and no header says until when; GitHub documents it.
UNSAID_SECONDS = 60.0

#: The pause if a header says that no request remains, and none says until when.
UNSAID_RESET_SECONDS = 1.0

#: The texts of bodies that stand in for a header.
_USED_UP = re.compile(
    rb"secondary rate limit|rate[ _-]?limit[ _-]?(?:was |is |has been )?(?:exceeded|reached)"
    rb"|exceed(?:ed|ing)?[^.<>{}\"]{0,60}(?:rate[ _-]?limit|quota)|quota[ _-]?exceeded"
    rb"|too many requests|rate[ -]limited",
    re.IGNORECASE,
)

_NUMBER = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,9})?")
_PARAMETER = re.compile(r'(?:^|[;,\s"])(remaining|reset|r|t)\s*=\s*"?([0-9]{1,16})')


def used_up_seconds(headers: Headers, *, since: datetime) -> float | None:
    """Return the seconds until a client that has used up its requests has one again; None if one may be left.

    Unix times count from `since`, the answer's `Date` or now. Of several limits the longest counts. If no request is
    left and no time is named, return `UNSAID_RESET_SECONDS`.
    """
    waits = [*_structured(headers("RateLimit"))]
    for prefix in PREFIXES:
        remaining = _numbers(headers(f"{prefix}Remaining"))
        if remaining and min(remaining) < 1:
            after = _numbers(headers(f"{prefix}Reset-After"))
            waits.append(max([*after, *resets(headers, prefix, since)], default=0.0))
    if not waits:
        return None
    longest = max(waits)
    return min(longest, MAX_SECONDS) if longest > 0 else UNSAID_RESET_SECONDS


def reset_seconds(headers: Headers, *, since: datetime) -> float | None:
    """Return the seconds to the reset, for a 429 whose headers do not say how many requests remain."""
    named = [seconds for prefix in PREFIXES if not headers(f"{prefix}Remaining")
             for seconds in resets(headers, prefix, since)]  # fmt: skip
    longest = max(named, default=0.0)
    return min(longest, MAX_SECONDS) if longest > 0 else None


def says_used_up(body: bytes | bytearray) -> bool:
    """Return whether a body says that the rate limit is used up."""
    return _USED_UP.search(body) is not None


def resets(headers: Headers, prefix: str, since: datetime) -> Iterable[float]:
    """Yield the seconds until the resets that headers of a prefix name; negative for a past one."""
    for value in _numbers(headers(f"{prefix}Reset")):
        if value >= _UNIX_MILLISECONDS:
            yield value / 1000 - since.timestamp()
        elif value >= _UNIX_SECONDS:
            yield value - since.timestamp()
        else:
            yield value


def _structured(lines: Sequence[str]) -> Iterable[float]:
    """Yield the waits that `RateLimit` asks for: `limit=9, remaining=0, reset=7`, or `"policy";r=0;t=7, …`."""
    for line in lines:
        text = line[:MAX_CHARACTERS]
        # In the older form all members are of one limit, in the newer each is one of its own.
        members = text.split(",") if ";" in text else [text]
        for member in members:
            found = {name: float(value) for name, value in _PARAMETER.findall(member)}
            remaining = found.get("remaining", found.get("r", math.inf))
            if remaining < 1:
                yield found.get("reset", found.get("t", 0.0))


def _numbers(values: Sequence[str]) -> list[float]:
    parts = chain.from_iterable(value[:MAX_CHARACTERS].split(",") for value in values)
    stripped = (part.partition(";")[0].strip() for part in parts)
    return [float(part) for part in stripped if _NUMBER.fullmatch(part)]
