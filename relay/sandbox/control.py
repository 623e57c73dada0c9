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
    from relay.sandbox.contract import Request
    from relay.sandbox.faults import FaultPlan
    from relay.sandbox.record import Records

#: Path of these endpoints; all other paths are the API.
PREFIX: Final = b"/_sandbox/"
#: Requests in one response unless `limit` is given.
DEFAULT_LIMIT: Final = 100
#: Maximum requests in one response.
MAX_LIMIT: Final = 10_000


#: Methods of each endpoint.
METHODS: Final = {
    b"healthz": (b"GET",),
    b"counts": (b"GET",),
    b"requests": (b"GET",),
    b"faults": (b"GET", b"PUT", b"DELETE"),
    b"reset": (b"POST",),
}


def respond(records: Records, faults: FaultPlan, request: Request) -> Response:
    """Execute a request under `PREFIX`."""
    if request.too_large:
        return json_response(413, {"error": "the body is too large"})
    path, _, query = request.path.removeprefix(PREFIX).partition(b"?")
    if path not in METHODS:
        return json_response(404, {"error": "unknown; known are " + ", ".join(sorted(map(bytes.decode, METHODS)))})
    if request.method not in METHODS[path]:
        return json_response(405, {"error": "allowed are " + ", ".join(sorted(map(bytes.decode, METHODS[path])))})
    try:
        return json_response(200, _execute(records, faults, path, request, query))
    except (ValueError, ConfigurationError) as error:
        return json_response(422, {"error": str(error)})


def _execute(records: Records, faults: FaultPlan, path: bytes, request: Request, query: bytes) -> object:
    """Return the JSON document of the response, or raise ValueError or ConfigurationError."""
    match path, request.method:
        case b"counts", _:
            return records.counts()._asdict()
        case b"requests", _:
            return _requests(records, query)
        case b"reset", _:
            records.reset()
            faults.replace(())
            return records.counts()._asdict()
        case b"faults", method:
            if method != b"GET":
                faults.replace(parse_rules(from_json(request.body)) if method == b"PUT" else ())
            return faults.describe()
    return {"status": "ok"}


def _requests(records: Records, query: bytes) -> list[dict[str, object]]:
    given = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
    unknown = given.keys() - {"offset", "limit", "environment"}
    if unknown:
        raise ValueError(f"unknown parameter {min(unknown)}")
    try:
        offset, limit = int(given.get("offset", "0")), int(given.get("limit", DEFAULT_LIMIT))
    except ValueError as error:
        raise ValueError("offset and limit must be whole numbers") from error
    if offset < 0 or not 0 <= limit <= MAX_LIMIT:
        raise ValueError(f"offset must be 0 or more and limit from 0 to {MAX_LIMIT}")
    found = records.requests(offset=offset, limit=limit, environment=given.get("environment"))
    return [each.document() for each in found]
