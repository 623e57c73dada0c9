"""CloudEvents' HTTP 1.1 Web Hooks for Event Delivery: handshake, other places of a token, answers without a body.

https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md. Some senders can set no `Authorization`: a
token may also stand in the header `X-Relay-Token`, or in the query parameter `access_token` (section 3.2, RFC 6750
section 2.3).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from relay.gateway.responses import Answer
from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Carries the id of an event whose answer has no body. Not `ce-id`: brokers take that for an event of ours.
EVENT_ID_HEADER = "X-Relay-Event-Id"

#: The longest name of a sender that a handshake may have: it is a DNS name.
MAX_ORIGIN_CHARACTERS = 253

#: The visible characters of ASCII that stay as they are in a header (CloudEvents' HTTP binding, section 3.1.3.2).
_PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')

#: The preference, without a value; an empty one is none (RFC 7240, section 2).
_PREFERS_REPLY = re.compile(r'reply(?:\s*=\s*"")?', re.IGNORECASE)


def authorization_of(headers: Mapping[str, str], query: bytes = b"") -> str | None:
    """Return the `Authorization` header, or one with the token from where senders put it that cannot set that.

    An `Authorization` of another scheme is a proxy's, and gives way.
    """
    given = headers.get("authorization")
    if given is not None and given[:7].lower() == "bearer ":
        return given
    token = headers.get("x-relay-token") or _query_token(query)
    return f"Bearer {token}" if token else given


def _query_token(query: bytes) -> str:
    """Return the first `access_token`, read as Latin-1 as headers are; a plus sign is one, as base64 has it."""
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"access_token":
            return unquote_to_bytes(value).decode("latin-1")
    return ""


def kept_private(answer: Answer, query: bytes) -> Answer:
    """Return the answer to a request whose URL has a token: no shared cache may store it (RFC 6750, section 2.3)."""
    if not _query_token(query):
        return answer
    return answer._replace(headers={**answer.headers, "Cache-Control": "private"})


def consent(headers: Mapping[str, str]) -> Answer:
    """Answer a handshake (section 4): the sender may deliver here, as often as it likes; a full queue is 429.

    405 for an OPTIONS request that is none.
    """
    origin = headers.get("webhook-request-origin", "").strip()
    if not origin:
        reason = "of OPTIONS, only the handshake of CloudEvents' web hooks is answered (WebHook-Request-Origin)"
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, reason, {"Allow": "POST"})
    if len(origin) > MAX_ORIGIN_CHARACTERS:
        raise Refused(HTTPStatus.BAD_REQUEST, f"WebHook-Request-Origin has over {MAX_ORIGIN_CHARACTERS} characters")
    allowed = {"Allow": "POST, OPTIONS", "WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"}
    return Answer(HTTPStatus.OK, None, allowed)


def wants_no_body(headers: Mapping[str, str]) -> bool:
    """Return whether 202 with a body would be wrong: for a CloudEvent in any mode, and after `Prefer: reply`.

    A Knative broker takes a body for an event that replies, and one that is none for a failed delivery.
    """
    if "ce-type" in headers or "ce-specversion" in headers:
        return True
    if headers.get("content-type", "").strip().lower().startswith("application/cloudevents"):
        return True
    preferences = headers.get("prefer")
    if preferences is None:
        return False
    return any(_PREFERS_REPLY.fullmatch(each.partition(";")[0].strip()) for each in preferences.split(","))


def without_body(answer: Answer) -> Answer:
    """Return a 202 without its body, the id of one event in a header; one that names faults as it is."""
    document = answer.document
    if answer.status is not HTTPStatus.ACCEPTED or document is None or "errors" in document:
        return answer
    event_id = document.get("id")
    given = {} if event_id is None else {EVENT_ID_HEADER: quote(event_id, safe=_PLAIN)}
    return answer._replace(document=None, headers={**answer.headers, **given})
