"""Between ASGI's messages and the values that are decided on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import to_json
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Scope

    from relay.gateway.reports import Answer


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers by their lower-case names; of those that come twice the first counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def response_of(answer: Answer) -> Response:
    """Return what Starlette sends for an answer."""
    return Response(to_json(answer.document), answer.status, answer.headers, media_type="application/json")
