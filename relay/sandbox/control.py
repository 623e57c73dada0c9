"""What one can ask of the stand-in, or tell it, over HTTP.

Everything under `/_sandbox/`, without a token: the stand-in is a tool for loopback.

    GET    /_sandbox/healthz
    GET    /_sandbox/counts
    GET    /_sandbox/requests?offset=&limit=&environment=
    GET    /_sandbox/faults      PUT a JSON list of rules      DELETE
    POST   /_sandbox/reset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs

from pydantic_core import from_json

from relay.errors import ConfigurationError
from relay.sandbox.faults import parse_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.sandbox.contract import Request
    from relay.sandbox.standin import StandIn

#: The path below which requests are for the stand-in and not for the API.
PREFIX: Final = b"/_sandbox/"
#: Requests in one answer unless `limit` is given.
DEFAULT_LIMIT: Final = 100
#: The most requests in one answer.
MAX_LIMIT: Final = 10_000


class Reply(NamedTuple):
    """A status and a JSON body."""

    status: int
    document: object


def control(standin: StandIn, request: Request) -> Reply:
    """Do what a request under `PREFIX` asks for."""
    if request.too_large:
        return Reply(413, {"error": "the body is too large"})
    path, _, query = request.path.partition(b"?")
    methods = _ROUTES.get(path.removeprefix(PREFIX))
    if methods is None:
        return Reply(404, {"error": "unknown; there are " + ", ".join(sorted(map(bytes.decode, _ROUTES)))})
    act = methods.get(request.method)
    if act is None:
        return Reply(405, {"error": "takes " + ", ".join(sorted(map(bytes.decode, methods)))})
    return act(standin, query, request.body)


def _healthz(_standin: StandIn, _query: bytes, _body: bytes) -> Reply:
    return Reply(200, {"status": "ok"})


def _counts(standin: StandIn, _query: bytes, _body: bytes) -> Reply:
    return Reply(200, standin.counters.counts()._asdict())


def _requests(standin: StandIn, query: bytes, _body: bytes) -> Reply:
    asked = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
    unknown = asked.keys() - {"offset", "limit", "environment"}
    if unknown:
        return Reply(422, {"error": f"unknown parameter {min(unknown)}"})
    try:
        offset, limit = int(asked.get("offset", "0")), int(asked.get("limit", DEFAULT_LIMIT))
    except ValueError:
        return Reply(422, {"error": "offset and limit must be whole numbers"})
    if offset < 0 or not 0 <= limit <= MAX_LIMIT:
        return Reply(422, {"error": f"offset must be 0 or more and limit from 0 to {MAX_LIMIT}"})
    found = standin.counters.requests(offset=offset, limit=limit, environment=asked.get("environment"))
    return Reply(200, [each.document() for each in found])


def _show_faults(standin: StandIn, _query: bytes, _body: bytes) -> Reply:
    return Reply(200, standin.faults.describe())


def _set_faults(standin: StandIn, query: bytes, body: bytes) -> Reply:
    try:
        standin.faults.replace(parse_rules(from_json(body)))
    except (ValueError, ConfigurationError) as error:
        return Reply(422, {"error": str(error)})
    return _show_faults(standin, query, body)


def _clear_faults(standin: StandIn, query: bytes, body: bytes) -> Reply:
    standin.faults.replace(())
    return _show_faults(standin, query, body)


def _reset(standin: StandIn, query: bytes, body: bytes) -> Reply:
    standin.reset()
    return _counts(standin, query, body)


_ROUTES: Final[dict[bytes, dict[bytes, Callable[[StandIn, bytes, bytes], Reply]]]] = {
    b"healthz": {b"GET": _healthz},
    b"counts": {b"GET": _counts},
    b"requests": {b"GET": _requests},
    b"faults": {b"GET": _show_faults, b"PUT": _set_faults, b"DELETE": _clear_faults},
    b"reset": {b"POST": _reset},
}
