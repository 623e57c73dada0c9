"""The sandbox's own endpoints, to read its records and to set faults.

They are under `/_sandbox/` and need no token, because the sandbox is a tool for loopback.

    GET    /_sandbox/healthz
    GET    /_sandbox/counts
    GET    /_sandbox/requests?offset=&limit=&environment=
    GET    /_sandbox/faults      PUT a JSON list of rules      DELETE
    POST   /_sandbox/reset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from pydantic_core import from_json

from relay.errors import ConfigurationError
from relay.sandbox.faults import parse_rules
from relay.sandbox.response import Response, json_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.sandbox.api import SandboxApi
    from relay.sandbox.contract import Request

#: Path of these endpoints; all other paths are the API.
PREFIX: Final = b"/_sandbox/"
#: Requests in one response unless `limit` is given.
DEFAULT_LIMIT: Final = 100
#: Maximum requests in one response.
MAX_LIMIT: Final = 10_000


def respond(api: SandboxApi, request: Request) -> Response:
    """Execute a request under `PREFIX`."""
    if request.too_large:
        return json_response(413, {"error": "the body is too large"})
    path, _, query = request.path.partition(b"?")
    methods = _ROUTES.get(path.removeprefix(PREFIX))
    if methods is None:
        return json_response(404, {"error": "unknown; known are " + ", ".join(sorted(map(bytes.decode, _ROUTES)))})
    act = methods.get(request.method)
    if act is None:
        return json_response(405, {"error": "allowed are " + ", ".join(sorted(map(bytes.decode, methods)))})
    return act(api, query, request.body)


def _healthz(_api: SandboxApi, _query: bytes, _body: bytes) -> Response:
    return json_response(200, {"status": "ok"})


def _counts(api: SandboxApi, _query: bytes, _body: bytes) -> Response:
    return json_response(200, api.records.counts()._asdict())


def _requests(api: SandboxApi, query: bytes, _body: bytes) -> Response:
    given = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
    unknown = given.keys() - {"offset", "limit", "environment"}
    if unknown:
        return json_response(422, {"error": f"unknown parameter {min(unknown)}"})
    try:
        offset, limit = int(given.get("offset", "0")), int(given.get("limit", DEFAULT_LIMIT))
    except ValueError:
        return json_response(422, {"error": "offset and limit must be whole numbers"})
    if offset < 0 or not 0 <= limit <= MAX_LIMIT:
        return json_response(422, {"error": f"offset must be 0 or more and limit from 0 to {MAX_LIMIT}"})
    found = api.records.requests(offset=offset, limit=limit, environment=given.get("environment"))
    return json_response(200, [each.document() for each in found])


def _show_faults(api: SandboxApi, _query: bytes, _body: bytes) -> Response:
    return json_response(200, api.faults.describe())


def _set_faults(api: SandboxApi, query: bytes, body: bytes) -> Response:
    try:
        api.faults.replace(parse_rules(from_json(body)))
    except (ValueError, ConfigurationError) as error:
        return json_response(422, {"error": str(error)})
    return _show_faults(api, query, body)


def _clear_faults(api: SandboxApi, query: bytes, body: bytes) -> Response:
    api.faults.replace(())
    return _show_faults(api, query, body)


def _reset(api: SandboxApi, query: bytes, body: bytes) -> Response:
    api.reset()
    return _counts(api, query, body)


_ROUTES: Final[dict[bytes, dict[bytes, Callable[[SandboxApi, bytes, bytes], Response]]]] = {
    b"healthz": {b"GET": _healthz},
    b"counts": {b"GET": _counts},
    b"requests": {b"GET": _requests},
    b"faults": {b"GET": _show_faults, b"PUT": _set_faults, b"DELETE": _clear_faults},
    b"reset": {b"POST": _reset},
}
