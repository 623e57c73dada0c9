"""Requests to a gateway and the meaning of its answers; pure. relay/gateway/report_parsing.py is the other side.

    202, and 422 with `errors`              each event is enqueued, or refused for a reason of its own
    408, 425, 429, 5xx                      try again; events that the answer names as enqueued stay so
    401, 403, 3xx, any other                refused: trying again changes nothing

Events are always sent as JSON lines with their ids in them, so an event that is sent again counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic_core import from_json, to_json

from relay.errors import GatewayRefused, InvalidEvent, QueueFull, QueueUnavailable
from relay.queue.receipts import Receipt, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from relay.events.event import DeploymentEvent

#: Maximum events and bytes of a request; a larger event is sent alone.
MAX_EVENTS, MAX_BYTES = 1_000, 1_048_576

#: Paths of the gateway, which the URL may include.
_PATHS = ("/v1/deployments",)

#: Maximum characters of the gateway's text in a message.
_MAX_QUOTED_CHARACTERS = 300

_TRY_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_TOKEN_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

#: The outcome of an event; None if it is not known yet.
MaybeOutcome = str | InvalidEvent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """All events have an outcome."""

    outcomes: tuple[str | InvalidEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """Events without an outcome are to be sent again after `after_seconds`; at the deadline `error` is raised."""

    error: QueueFull | QueueUnavailable
    outcomes: tuple[MaybeOutcome, ...] = ()
    after_seconds: float = 0.0


def reports_url(gateway_url: str) -> str:
    """Return the URL for reports."""
    return f"{_base(gateway_url)}/"


def receipt_url(gateway_url: str, event_id: str) -> str:
    """Return the URL of an event's receipt."""
    return f"{_base(gateway_url)}/events/{quote(event_id, safe='')}"


def line_of(event: DeploymentEvent) -> bytes:
    """Return an event as a line, with its envelope in it."""
    return to_json(from_json(event.body()) | event.envelope)


def requests_of(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Split lines into requests."""
    first, size = 0, 0
    for place, line in enumerate(lines):
        if place > first and (place - first == MAX_EVENTS or size + len(line) + 1 > MAX_BYTES):
            yield lines[first:place]
            first, size = place, 0
        size += len(line) + 1
    if first < len(lines):
        yield lines[first:]


def read_report(answer: Answer, events: int) -> Reported | TryAgain:
    """Return the outcomes of a report of that many events; raise `GatewayRefused` if a retry is of no use."""
    outcomes = _outcomes(answer, events)
    if answer.status in {HTTPStatus.ACCEPTED, HTTPStatus.UNPROCESSABLE_ENTITY}:
        known = tuple(outcome for outcome in outcomes if outcome is not None)
        if len(known) == events:
            return Reported(outcomes=known)
        raise GatewayRefused(f"{_quoted(answer)}: this is no answer of a gateway: check its URL")
    return _not_now(answer, outcomes)


def read_receipt(answer: Answer) -> Receipt | TryAgain | None:
    """Return the receipt in an answer, None if there is none; raise `GatewayRefused` if a retry is of no use."""
    document = _document(answer)
    if answer.status == HTTPStatus.NOT_FOUND and "error" in document:
        return None
    if answer.status != HTTPStatus.OK:
        return _not_now(answer, ())
    try:
        since = datetime.fromisoformat(str(document["since"]))
        return Receipt(
            status=Status(str(document["status"])),
            at=round(since.timestamp() * 1000),
            reason=_shown(document.get("reason")),
            detail=_shown(document.get("detail")),
        )
    except (KeyError, ValueError):
        raise GatewayRefused(f"{_quoted(answer)}: this is no receipt: check the gateway's URL") from None


def _base(gateway_url: str) -> str:
    base = gateway_url.rstrip("/")
    for path in _PATHS:
        base = base.removesuffix(path)
    return base.rstrip("/")


def _not_now(answer: Answer, outcomes: tuple[MaybeOutcome, ...]) -> TryAgain:
    """Return when to try again after a temporary refusal; raise `GatewayRefused` for a permanent one."""
    quoted = _quoted(answer)
    if answer.status in _TRY_AGAIN or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        is_full = answer.status == HTTPStatus.TOO_MANY_REQUESTS
        error = QueueFull(f"the gateway is full: {quoted}") if is_full else QueueUnavailable(f"the gateway: {quoted}")
        return TryAgain(error=error, outcomes=outcomes, after_seconds=_retry_after(answer))
    if answer.status in _TOKEN_REFUSED:
        raise GatewayRefused(
            f"the gateway refuses the token ({quoted}): set RELAY_GATEWAY_TOKEN_FILE or RELAY_GATEWAY_TOKEN to one "
            "that it knows (its gateway.token or gateway.tokens_file)"
        )
    if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
        raise GatewayRefused(
            f"the gateway's URL redirects ({quoted}), and the token is not sent elsewhere: set the final URL"
        )
    raise GatewayRefused(f"the gateway refuses the request ({quoted}): check its URL")


def _outcomes(answer: Answer, events: int) -> tuple[MaybeOutcome, ...]:
    """Return the outcomes that the answer has: it may come from a proxy, and have none."""
    outcomes: list[MaybeOutcome] = [None] * events
    document = _document(answer)
    ids, errors = document.get("ids"), document.get("errors")
    if isinstance(ids, list) and len(ids) == events:
        outcomes = [each if isinstance(each, str) else None for each in ids]
    for fault in errors if isinstance(errors, list) else ():
        index = fault.get("index") if isinstance(fault, dict) else None
        if isinstance(index, int) and 0 <= index < events:
            outcomes[index] = InvalidEvent(_shown(fault.get("field")), _shown(fault.get("reason")))
    return tuple(outcomes)


def _document(answer: Answer) -> dict[str, Any]:
    try:
        document = from_json(answer.content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after(answer: Answer) -> float:
    """Return `Retry-After` in seconds, the gateway's form; 0 for a date, which only proxies send."""
    given = answer.headers.get("retry-after", "").strip()
    return float(given) if given.isascii() and given.isdigit() and len(given) < 10 else 0.0  # noqa: PLR2004 - 30 years


def _quoted(answer: Answer) -> str:
    """Return an answer's status, with its reason if it is a gateway's."""
    reason = _shown(_document(answer).get("error"))
    return f"HTTP {answer.status}: {reason}" if reason else f"HTTP {answer.status}"


def _shown(given: object) -> str:
    """Return another program's text on one line, shortened."""
    text = given if isinstance(given, str) else ""
    return "".join(each if each.isprintable() else "?" for each in text[:_MAX_QUOTED_CHARACTERS])
