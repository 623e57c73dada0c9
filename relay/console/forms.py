"""Reading of the console's forms: size, time and origin are checked, the CSRF token is not."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect

from relay.console.pages import PageError
from relay.http.refused import Refused

if TYPE_CHECKING:
    from starlette.requests import Request

    from relay.http.browsers import Hosts

#: Maximum size, fields and time of a form. The console's own forms are smaller, and browsers send them at once.
FORM_BYTES, FORM_FIELDS, FORM_SECONDS = 16_384, 32, 10.0


async def read_form(request: Request, hosts: Hosts) -> dict[str, str]:
    """Return the fields of a form in a browser's encoding; raise `PageError` for anything else."""
    try:
        hosts.check_page(request.headers)
    except Refused:
        raise foreign_form() from None
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise PageError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Not a form", "Only forms of these pages are accepted.")
    content = bytearray()
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > FORM_BYTES:
                    raise PageError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too large", "The form is too large.")
    except TimeoutError:
        raise PageError(HTTPStatus.REQUEST_TIMEOUT, "Too slow", "The form did not arrive in time.") from None
    except ClientDisconnect:  # the response is sent to no client
        raise PageError(HTTPStatus.BAD_REQUEST, "Not a form", "The form did not arrive.") from None
    try:
        return dict(parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS))
    except ValueError:
        raise PageError(HTTPStatus.BAD_REQUEST, "Not a form", "The form cannot be read.") from None


def foreign_form() -> PageError:
    """Return the error of a form that is not of this console, or not of this session."""
    text = "This form was not made by this console for your session: nothing was done. Reload the page and try again."
    return PageError(HTTPStatus.FORBIDDEN, "Refused", text)
