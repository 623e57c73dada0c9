"""The gateway's responses: an HTTP status, a JSON document, and headers; `report_parsing` lists those of a report."""

from __future__ import annotations

from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import exceptions as redis_errors

from relay.connections.failover import WrongServer
from relay.errors import InvalidEvent, QueueFull, QueueUnavailable, RelayError
from relay.gateway.report_parsing import NotPermitted
from relay.http.refused import Refused
from relay.queue.dead_letters import moment
from relay.queue.receipts import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relay.gateway.report_parsing import Fault
    from relay.queue.receipts import Receipt

#: Seconds of `Retry-After`: a full queue takes longer to recover than Redis takes to restart.
RETRY_AFTER_SECONDS = {HTTPStatus.TOO_MANY_REQUESTS: 5, HTTPStatus.SERVICE_UNAVAILABLE: 2}

#: Reasons for a failure of Redis, by its class; the first match counts. Redis's own messages are not sent to clients:
#: some repeat the command that failed, which may have been AUTH.
_UNAVAILABLE: tuple[tuple[type[BaseException], str], ...] = (
    (redis_errors.AuthenticationError, "Redis refuses the relay's credentials"),
    (redis_errors.NoPermissionError, "Redis does not permit it to the relay's user"),
    (redis_errors.BusyLoadingError, "Redis is loading its data"),
    (redis_errors.OutOfMemoryError, "Redis is out of memory"),
    (WrongServer, "this Redis takes no writes: it is a read-only replica, or a failover is under way"),
    (redis_errors.TimeoutError, "Redis did not answer in time"),
    (TimeoutError, "Redis did not answer in time"),
    (redis_errors.ConnectionError, "Redis cannot be reached"),
)


class Response(NamedTuple):
    """A status, a JSON document (None: no body), and headers beyond the content's."""

    status: HTTPStatus
    document: Mapping[str, Any] | None
    headers: Mapping[str, str] = MappingProxyType({})


def accepted(event_id: str) -> Response:
    """Return the response to one event that Redis has."""
    return Response(HTTPStatus.ACCEPTED, {"id": event_id})


def accepted_many(ids: Sequence[str | None], faults: Sequence[Fault], stopped: RelayError | None = None) -> Response:
    """Return the response to many events: the id of each that Redis has, else None; `stopped` ended it early."""
    document: dict[str, Any] = {"ids": list(ids)}
    if faults:
        document["errors"] = [{"index": each.index, "field": each.field, "reason": each.reason} for each in faults]
    if stopped is None and faults and len(faults) == len(ids):
        stopped = InvalidEvent("", f"none of the {len(ids)} events is valid; errors has the reasons")
    if stopped is None:
        return Response(HTTPStatus.ACCEPTED, document)
    refused = of_error(stopped)
    return refused._replace(document={**(refused.document or {}), **document})


def of_error(error: RelayError) -> Response:
    """Return the response to a failed request, without any text of Redis's own."""
    match error:
        case Refused():
            return refusal(error.status, str(error), headers=error.headers)
        case NotPermitted():
            return refusal(HTTPStatus.FORBIDDEN, error.reason, field=error.field)
        case InvalidEvent():
            return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, error.reason, field=error.field)
        case QueueFull():
            return _try_again(HTTPStatus.TOO_MANY_REQUESTS, str(error))
        case QueueUnavailable():
            return unavailable(error.__cause__)
        case _:
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the gateway failed; its log has more")


def unavailable(cause: BaseException | None) -> Response:
    """Return the response to a failure of Redis."""
    reason = next((reason for kind, reason in _UNAVAILABLE if isinstance(cause, kind)), "Redis refused it")
    return _try_again(HTTPStatus.SERVICE_UNAVAILABLE, reason)


def stopping() -> Response:
    """Return the response to a request that is under way when the process must end."""
    return _try_again(HTTPStatus.SERVICE_UNAVAILABLE, "the gateway stops")


def of_receipt(event_id: str, receipt: Receipt | None) -> Response:
    """Return the response with an event's receipt; 404 without one."""
    if receipt is None:
        reason = "no receipt: no event with this id was reported, or it ended a while ago (queue.receipt_for)"
        return refusal(HTTPStatus.NOT_FOUND, reason)
    status = Status.QUEUED if receipt.is_repeated else receipt.status
    document = {"id": event_id, "status": status, "since": moment(receipt.at)}
    if receipt.reason or receipt.status is Status.DEAD:
        document |= {"reason": receipt.reason, "detail": receipt.detail}
    return Response(HTTPStatus.OK, document)


def refusal(
    status: HTTPStatus, reason: str, *, field: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error response, in the form of all errors."""
    return Response(status, {"error": reason, "field": field}, headers or {})


def _try_again(status: HTTPStatus, reason: str) -> Response:
    return refusal(status, reason, headers={"Retry-After": str(RETRY_AFTER_SECONDS[status])})
