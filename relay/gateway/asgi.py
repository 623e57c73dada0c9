"""Between ASGI's messages and the values that are decided on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import to_json
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Scope, Send

    from relay.gateway.responses import Answer

#: The headers that count with reports and reviews: to read the others too takes as long again.
READ = (
    *("authorization", "content-encoding", "content-length", "content-type", "expect"),
    *("idempotency-key", "ce-id", "ce-source", "ce-time", "ce-type"),
    *("host", "origin", "sec-fetch-site"),
    *("ce-specversion", "prefer", "x-relay-token"),
)

_READ = {name.encode(): name for name in READ}


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers `READ` by lower-case names; of those that come twice the first counts, of `Prefer` all."""
    found = {_READ[name]: value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in _READ}
    if "prefer" in found:  # a list, and so all of its headers count (RFC 7240, section 2)
        found["prefer"] = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"prefer")
    return found


async def tell(answer: Answer, send: Send, *, ends: bool = True) -> None:
    """Send an answer, without the detour of a `Response`: reports are answered thousands of times a second."""
    content = b"" if answer.document is None else to_json(answer.document)
    headers = [(b"content-length", b"%d" % len(content))]
    if content:
        headers.append((b"content-type", b"application/json"))
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": not ends})


def response_of(answer: Answer) -> Response:
    """Return what Starlette sends for an answer."""
    if answer.document is None:
        return Response(b"", answer.status, answer.headers)
    return Response(to_json(answer.document), answer.status, answer.headers, media_type="application/json")
