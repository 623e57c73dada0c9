"""CloudEvents' HTTP 1.1 Web Hooks for Event Delivery: handshake, other places of a token, responses without a body.

https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md. A sender that cannot set `Authorization`
may send its token in the header `X-Relay-Token`, or in the query parameter `access_token` (section 3.2, RFC 6750
section 2.3).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from relay.gateway.responses import Response
from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The id of an event whose response has no body. Not `ce-id`: a broker would take the response for an event.
EVENT_ID_HEADER = "X-Relay-Event-Id"

#: Maximum length of a sender's name in a handshake: it is a DNS name.
MAX_ORIGIN_CHARACTERS = 253

#: Visible ASCII characters that a header carries unescaped (CloudEvents' HTTP binding, section 3.1.3.2).
_PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')

#: The preference `reply` without a value; an empty value counts as none (RFC 7240, section 2).
_PREFERS_REPLY = re.compile(r'reply(?:\s*=\s*"")?', re.IGNORECASE)


def authorization_of(headers: Mapping[str, str], query: bytes = b"") -> str | None:
    """Return the `Authorization` header, or one made of the token in its other places.

    An `Authorization` of another scheme belongs to a proxy, and any token takes precedence over it.
    """
    given = headers.get("authorization")
    if given is not None and given[:7].lower() == "bearer ":
        return given
    token = headers.get("x-relay-token") or _query_token(query)
    return f"Bearer {token}" if token else given


def _query_token(query: bytes) -> str:
    """Return the first `access_token`, decoded as Latin-1 like headers; a plus sign stays one, for base64."""
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"access_token":
            return unquote_to_bytes(value).decode("latin-1")
    return ""


def kept_private(response: Response, query: bytes) -> Response:
    """Return the response; if the URL has a token, no shared cache may store it (RFC 6750, section 2.3)."""
    if not _query_token(query):
        return response
    return response._replace(headers={**response.headers, "Cache-Control": "private"})


def consent(headers: Mapping[str, str]) -> Response:
    """Return the response to a handshake (section 4): any rate is allowed, because a full queue answers 429.

    Raise 405 for any other OPTIONS request.
    """
    origin = headers.get("webhook-request-origin", "").strip()
    if not origin:
        reason = "of OPTIONS, only the handshake of CloudEvents' web hooks is answered (WebHook-Request-Origin)"
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, reason, {"Allow": "POST"})
    if len(origin) > MAX_ORIGIN_CHARACTERS:
        raise Refused(HTTPStatus.BAD_REQUEST, f"WebHook-Request-Origin has over {MAX_ORIGIN_CHARACTERS} characters")
    allowed = {"Allow": "POST, OPTIONS", "WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"}
    return Response(HTTPStatus.OK, None, allowed)


def wants_no_body(headers: Mapping[str, str]) -> bool:
    """Return whether 202 must have no body: for a CloudEvent in any mode, and after `Prefer: reply`.

    A Knative broker takes a body for an event that replies, and any other body for a failed delivery.
    """
    if "ce-type" in headers or "ce-specversion" in headers:
        return True
    if headers.get("content-type", "").strip().lower().startswith("application/cloudevents"):
        return True
    preferences = headers.get("prefer")
    if preferences is None:
        return False
    return any(_PREFERS_REPLY.fullmatch(each.partition(";")[0].strip()) for each in preferences.split(","))


def without_body(response: Response) -> Response:
    """Return a 202 without its body, the id of one event in a header; unchanged if it names faults."""
    document = response.document
    if response.status is not HTTPStatus.ACCEPTED or document is None or "errors" in document:
        return response
    event_id = document.get("id")
    given = {} if event_id is None else {EVENT_ID_HEADER: quote(event_id, safe=_PLAIN)}
    return response._replace(document=None, headers={**response.headers, **given})
