"""The answer to one request over HTTP, as every kind of destination reads it: bounded, and without the token."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from relay.destinations import rate_limit
from relay.destinations.retry_after import date_of, retry_after_seconds
from relay.redaction import redact_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Headers = Callable[[str], Sequence[str]]

#: Bytes of an answer's body that are read at most; the rest is not waited for.
MAX_BODY_BYTES = 65_536

#: Bytes of an answer's body that are kept, for a dead letter's detail.
EXCERPT_BYTES = 200

#: Statuses of an answer to a client whose rate limit is used up.
RATE_LIMITING = frozenset({403, 429, 503})

#: A host that may be shown: a name or an address, no longer than names can be.
_HOST = re.compile(r"[a-z0-9._:-]{1,253}")


class Failure(StrEnum):
    """Why an attempt brought no HTTP status."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESET = "reset"
    PROTOCOL = "protocol"


class Answer(NamedTuple):
    """A status, or the failure that kept it away. No part holds the token."""

    status: int | None = None
    failure: Failure | None = None
    retry_after_seconds: float | None = None
    excerpt: str = ""
    #: The host that a redirect names, and nothing else of its address.
    redirects_to: str = ""
    #: The pause that a destination whose rate limit is used up asks for in other headers, or in the body of a 403.
    used_up_seconds: float | None = None


def read_answer(status: int, headers: Headers, body: bytes | bytearray, token: str) -> Answer:
    """Return what an answer other than a success says; `headers` returns a header's values by its name."""
    dates = headers("Date")
    now = datetime.now(UTC)
    date = dates[0] if dates else None
    return Answer(
        status=status,
        retry_after_seconds=retry_after_seconds(headers("Retry-After"), date=date, now=now),
        used_up_seconds=_used_up_seconds(status, headers, body, date_of(date) or now),
        excerpt=excerpt_of(body, token),
        redirects_to=_host(headers("Location"), token) if 300 <= status < 400 else "",
    )


def excerpt_of(text: bytes | bytearray, token: str) -> str:
    """Return the beginning of an answer's body as one line, with the token masked."""
    shown = redact_token(bytes(text), token.encode())
    line = shown[:EXCERPT_BYTES].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in line)


def _used_up_seconds(status: int, headers: Headers, body: bytes | bytearray, since: datetime) -> float | None:
    if status not in RATE_LIMITING:
        return None
    seconds = rate_limit.used_up_seconds(headers, since=since)
    if seconds is None and status == 429:
        return rate_limit.reset_seconds(headers, since=since)
    if status == 403 and rate_limit.says_used_up(body):
        return rate_limit.UNSAID_SECONDS if seconds is None else seconds
    return seconds


def _host(locations: Sequence[str], token: str) -> str:
    """Return the host that a redirect names, "" for none: the rest of an address may hold secrets."""
    try:
        host = urlsplit(locations[0]).hostname if locations else None
    except ValueError:
        return ""
    return host if host and _HOST.fullmatch(host) and token.lower() not in host else ""
