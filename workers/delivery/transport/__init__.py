"""One attempt over HTTP: no retry, no policy.

The transport sends requests side by side and returns their answers when asked:

- An attempt is one POST, or none: nothing is repeated that may have gone out. HTTP/1.1, no redirects, no netrc.
- One deadline bounds the whole attempt. A status that was read counts, whatever becomes of the rest of its answer.
- A bounded part of an answer is read, and a smaller one kept, without the token.
- Bytes that nobody asked for end their connection; they are nobody's answer. (Those that come after the next
  request went out look like its answer to any client.)
- A proxy from the environment (HTTPS_PROXY, NO_PROXY) is used for https alone, where it sees neither token nor event.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from relay.errors import ConfigurationError
from relay.redaction import redact_token
from workers.delivery.transport import rate_limit
from workers.delivery.transport.retry_after import date_of, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.settings import ApiSettings

    Headers = Callable[[str], Sequence[str]]

#: What every request carries beside its token and its key.
HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "deployment-relay"}

#: Bytes of an answer's body that are read at most; the rest is not waited for.
MAX_BODY_BYTES = 65_536

#: Bytes of an answer's body that are kept, for a dead letter's detail.
EXCERPT_BYTES = 200

#: Statuses with which an API whose rate limit is used up answers.
RATE_LIMITING = frozenset({403, 429, 503})

#: What a host may look like to be shown: a name or an address, no longer than names can be.
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
    """What came back: a status, or the failure that kept it away.

    `redirects_to` is the host that a redirect names, and nothing else of the address. No part holds the token.
    """

    status: int | None = None
    failure: Failure | None = None
    retry_after_seconds: float | None = None
    excerpt: str = ""
    redirects_to: str = ""
    #: How long an API whose rate limit is used up asks to be spared, by other headers or the body of a 403.
    used_up_seconds: float | None = None


class Request(NamedTuple):
    """A body to POST; `tag` is the caller's and comes back with the answer."""

    tag: Any
    body: bytes
    idempotency_key: str


def bearer(api: ApiSettings) -> str:
    """Return the `Authorization` header's value, with the token read afresh; `ConfigurationError` if it cannot be."""
    token = api.read_token()
    if not token:
        raise ConfigurationError("the API's token is empty")
    if not token.isascii() or not token.isprintable():
        raise ConfigurationError("the API's token has characters that no HTTP header can carry")
    return f"Bearer {token}"


def answer_of(status: int, headers: Headers, body: bytes | bytearray, authorization: str) -> Answer:
    """Return what an answer tells that is no success: `headers` gives a header's values by its name."""
    dates = headers("Date")
    now = datetime.now(UTC)
    date = dates[0] if dates else None
    return Answer(
        status=status,
        retry_after_seconds=retry_after_seconds(headers("Retry-After"), date=date, now=now),
        used_up_seconds=_used_up_seconds(status, headers, body, date_of(date) or now),
        excerpt=excerpt_of(body, authorization),
        redirects_to=_host(headers("Location"), authorization) if 300 <= status < 400 else "",
    )


def _used_up_seconds(status: int, headers: Headers, body: bytes | bytearray, since: datetime) -> float | None:
    if status not in RATE_LIMITING:
        return None
    seconds = rate_limit.used_up_seconds(headers, since=since)
    if seconds is None and status == 429:
        return rate_limit.reset_seconds(headers, since=since)
    if status == 403 and rate_limit.says_used_up(body):
        return rate_limit.UNSAID_SECONDS if seconds is None else seconds
    return seconds


def excerpt_of(text: bytes | bytearray, authorization: str) -> str:
    """Return the beginning of what the API said as one line, without the token, should it be echoed there."""
    token = authorization.removeprefix("Bearer ").encode()
    shown = redact_token(bytes(text), token)
    line = shown[:EXCERPT_BYTES].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in line)


def _host(locations: Sequence[str], authorization: str) -> str:
    """Return the host that a redirect names, "" for none: the rest of an address may hold secrets."""
    try:
        host = urlsplit(locations[0]).hostname if locations else None
    except ValueError:
        return ""
    token = authorization.removeprefix("Bearer ").lower()
    return host if host and _HOST.fullmatch(host) and token not in host else ""


def header_text(value: str) -> str:
    """Return text as a header can carry it: what is not printable ASCII is escaped."""
    return value if value.isascii() and value.isprintable() else value.encode("unicode_escape").decode("ascii")
