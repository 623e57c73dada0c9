"""The deployment API's contract: which requests it accepts.

The rules are restated from the API's documentation and share no code with `relay.events`, so that a mistake in one is
not repeated in the other. They are stricter wherever the two could differ.
"""

from __future__ import annotations

import hmac
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The largest body the API reads, in bytes.
MAX_BODY_BYTES: Final = 64 * 1024
#: The environment of an event that names none.
DEFAULT_ENVIRONMENT: Final = "deployed"

_ACCEPTED: Final = int(HTTPStatus.ACCEPTED)
_FIELDS: Final = {
    "image": frozenset({"url", "name"}),
    "environment": frozenset({"name"}),
    "platform": frozenset({"os", "architecture", "variant"}),
}
# Docker's rule for a host instead of the first part of a path: a dot, a port, or "localhost".
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_PORT: Final = r":[0-9]{1,5}"
_HOST: Final = (
    rf"(?:localhost(?:{_PORT})?|{_LABEL}(?:\.{_LABEL})+(?:{_PORT})?|{_LABEL}{_PORT}"
    rf"|\[[0-9A-Fa-f:.]+\](?:{_PORT})?)"
)
_PART: Final = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_DIGEST: Final = r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
_IMAGE: Final = re.compile(rf"{_HOST}(?:/{_PART})+@{_DIGEST}")
_UNREADABLE: Final = object()


class Request(NamedTuple):
    """One HTTP request. Header names are in lower case; `path` has the query, too."""

    method: bytes
    path: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    too_large: bool = False  #: the body is longer than the server reads; `body` is its beginning
    closes: bool = False  #: the connection is closed after the response


class Ruling(NamedTuple):
    """The API's decision on a request: 202, or a refusal with its reason and the field at fault.

    `environment` and `image` are set for each request with a readable body, refused ones included.
    """

    status: int
    error: str = ""
    field: str = ""
    environment: str | None = None
    image: str | None = None


class _Refusal(NamedTuple):
    status: int
    error: str
    field: str = ""


def check_request(request: Request, token: bytes | None) -> Ruling:
    """Return the decision on a request; with `token` None any bearer token passes that is not empty."""
    document = _decode(request)
    environment, image = _names_of(document)
    refusal = (
        _wrong_method(request.method)
        or _wrong_token(request.headers.get(b"authorization"), token)
        or _wrong_media_type(request.headers.get(b"content-type"))
        or _wrong_size(request)
        or _wrong_document(document)
    )
    if refusal is None:
        return Ruling(_ACCEPTED, "", "", environment, image)
    return Ruling(refusal.status, refusal.error, refusal.field, environment, image)


def _decode(request: Request) -> object:
    if request.too_large:
        return _UNREADABLE
    try:
        return from_json(request.body, allow_inf_nan=False)
    except ValueError:
        return _UNREADABLE


def _names_of(document: object) -> tuple[str | None, str | None]:
    if not isinstance(document, dict):
        return None, None
    environment, image = document.get("environment"), document.get("image")
    name = environment.get("name") if isinstance(environment, dict) else None
    url = image.get("url") if isinstance(image, dict) else None
    return (
        name if isinstance(name, str) else DEFAULT_ENVIRONMENT,
        url if isinstance(url, str) else None,
    )


def _wrong_method(method: bytes) -> _Refusal | None:
    if method == b"POST":
        return None
    # A response to HEAD has no body, so it has no reason.
    return _Refusal(405, "" if method == b"HEAD" else "only POST is accepted here")


def _wrong_token(authorization: bytes | None, token: bytes | None) -> _Refusal | None:
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return _Refusal(401, "a bearer token is missing")
    given = authorization[7:].strip()
    if not given:
        return _Refusal(401, "the bearer token is empty")
    if token is not None and not hmac.compare_digest(given, token):
        return _Refusal(403, "the bearer token is wrong")
    return None


def _wrong_media_type(content_type: bytes | None) -> _Refusal | None:
    if content_type == b"application/json":
        return None
    if content_type is None or content_type.partition(b";")[0].strip().lower() != b"application/json":
        return _Refusal(415, "Content-Type must be application/json")
    return None


def _wrong_size(request: Request) -> _Refusal | None:
    if request.too_large or len(request.body) > MAX_BODY_BYTES:
        return _Refusal(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    return None


def _wrong_document(document: object) -> _Refusal | None:
    if document is _UNREADABLE:
        return _Refusal(400, "the body is not JSON")
    if not isinstance(document, dict):
        return _Refusal(400, "the body must be a JSON object")
    for section, fields in document.items():
        refusal = _wrong_section(section, fields)
        if refusal is not None:
            return refusal
    return _wrong_image(document.get("image"))


def _wrong_section(section: str, fields: object) -> _Refusal | None:
    known = _FIELDS.get(section)
    if known is None:
        return _Refusal(422, "unknown field", section)
    if not isinstance(fields, dict):
        return _Refusal(422, "must be an object", section)
    for name, text in fields.items():
        if name not in known:
            return _Refusal(422, "unknown field", f"{section}.{name}")
        if not isinstance(text, str) or not text.strip():
            return _Refusal(422, "must be a string that is not empty", f"{section}.{name}")
    return None


def _wrong_image(image: object) -> _Refusal | None:
    url = image.get("url") if isinstance(image, dict) else None
    if url is None:
        return _Refusal(422, "is mandatory", "image.url")
    if _IMAGE.fullmatch(url) is None:
        return _Refusal(
            422,
            "must be fully qualified, by digest: host/path@sha256:<64 lower-case hex digits> or sha512:<128>",
            "image.url",
        )
    return None
