"""What is sent to a gateway, and what does its answer mean? Pure; relay/gateway/report_parsing.py is the other side.

    202, and 422 with `errors`              each event is taken, or refused for a reason of its own
    408, 425, 429, 5xx                      try again; what the answer says was taken stays taken
    401, 403, 3xx, any other                refused: trying again changes nothing

Events always go as JSON lines, one or many, with their ids in them: what is sent again counts once.
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

#: Events, and bytes, of one request at most; one event that is larger goes alone.
MAX_EVENTS, MAX_BYTES = 1_000, 1_048_576

#: What the gateway's own paths look like, should the URL be given with one of them.
_PATHS = ("/v1/deployments",)

#: Characters of the gateway's own words that a message repeats.
_MAX_QUOTED_CHARACTERS = 300

_TRY_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_TOKEN_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

#: What became of one event of a request: its id if it was taken, why it was not, or None if that is not known yet.
Outcome = str | InvalidEvent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The gateway has dealt with all events."""

    outcomes: tuple[str | InvalidEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """Not now: what `outcomes` leaves open is to be sent again after `after_seconds`, or `error` is the end."""

    error: QueueFull | QueueUnavailable
    outcomes: tuple[Outcome, ...] = ()
    after_seconds: float = 0.0


def reports_url(gateway_url: str) -> str:
    """Return where reports are POSTed to."""
    return f"{_base(gateway_url)}/"


def receipt_url(gateway_url: str, event_id: str) -> str:
    """Return where an event's receipt is."""
    return f"{_base(gateway_url)}/events/{quote(event_id, safe='')}"


def line_of(event: DeploymentEvent) -> bytes:
    """Write an event, its envelope in it, as a line."""
    return to_json(from_json(event.body()) | event.envelope)


def requests_of(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Divide lines into what one request may have."""
    first, size = 0, 0
    for place, line in enumerate(lines):
        if place > first and (place - first == MAX_EVENTS or size + len(line) + 1 > MAX_BYTES):
            yield lines[first:place]
            first, size = place, 0
        size += len(line) + 1
    if first < len(lines):
        yield lines[first:]


def read_report(answer: Answer, events: int) -> Taken | TryAgain:
    """Read the answer to a report of that many events; `GatewayRefused` if it will not change."""
    outcomes = _outcomes(answer, events)
    if answer.status in {HTTPStatus.ACCEPTED, HTTPStatus.UNPROCESSABLE_ENTITY}:
        known = tuple(outcome for outcome in outcomes if outcome is not None)
        if len(known) == events:
            return Taken(outcomes=known)
        raise GatewayRefused(f"{_quoted(answer)}: this is not how a gateway answers; is its URL right?")
    return _not_now(answer, outcomes)


def read_receipt(answer: Answer) -> Receipt | TryAgain | None:
    """Read the answer to the question for a receipt; None if there is none."""
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
        raise GatewayRefused(f"{_quoted(answer)}: this is no receipt; is the gateway's URL right?") from None


def _base(gateway_url: str) -> str:
    base = gateway_url.rstrip("/")
    for path in _PATHS:
        base = base.removesuffix(path)
    return base.rstrip("/")


def _not_now(answer: Answer, outcomes: tuple[Outcome, ...]) -> TryAgain:
    """Tell a refusal for now from one for good, which is raised."""
    quoted = _quoted(answer)
    if answer.status in _TRY_AGAIN or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        is_full = answer.status == HTTPStatus.TOO_MANY_REQUESTS
        error = QueueFull(f"the gateway is full: {quoted}") if is_full else QueueUnavailable(f"the gateway: {quoted}")
        return TryAgain(error=error, outcomes=outcomes, after_seconds=_retry_after(answer))
    if answer.status in _TOKEN_REFUSED:
        raise GatewayRefused(
            f"the gateway refuses our token ({quoted}): set RELAY_GATEWAY_TOKEN_FILE or RELAY_GATEWAY_TOKEN to one "
            "that it knows (its gateway.token or gateway.tokens_file)"
        )
    if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
        raise GatewayRefused(
            f"the gateway's URL redirects ({quoted}), which our token does not follow: give the last URL"
        )
    raise GatewayRefused(f"the gateway refuses the request ({quoted}); is its URL right?")


def _outcomes(answer: Answer, events: int) -> tuple[Outcome, ...]:
    """Read what is said of each event, as far as it is said: an answer may come from something on the way."""
    outcomes: list[Outcome] = [None] * events
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
    """Read `Retry-After` in seconds, as the gateway gives it; 0 for a date, which only others give."""
    given = answer.headers.get("retry-after", "").strip()
    return float(given) if given.isascii() and given.isdigit() and len(given) < 10 else 0.0  # noqa: PLR2004 - 30 years


def _quoted(answer: Answer) -> str:
    """Give an answer's status, and the reason in it if it is a gateway's."""
    reason = _shown(_document(answer).get("error"))
    return f"HTTP {answer.status}: {reason}" if reason else f"HTTP {answer.status}"


def _shown(given: object) -> str:
    """Give another program's words on one line, and not too many of them."""
    text = given if isinstance(given, str) else ""
    return "".join(each if each.isprintable() else "?" for each in text[:_MAX_QUOTED_CHARACTERS])
