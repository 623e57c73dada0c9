"""What is a request answered? An HTTP status, a JSON document, and headers; reports.py shows all of them."""

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

#: What `Retry-After` asks for, in seconds: a full queue drains in a while, Redis restarts in a moment.
RETRY_AFTER_SECONDS = {HTTPStatus.TOO_MANY_REQUESTS: 5, HTTPStatus.SERVICE_UNAVAILABLE: 2}

#: Why Redis did not take something, for those outside. Its own messages stay inside: some repeat the command that
#: failed, and that may have been AUTH. First match wins.
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


class Answer(NamedTuple):
    """A status, a JSON document or None for an empty body, and headers beyond the content's."""

    status: HTTPStatus
    document: Mapping[str, Any] | None
    headers: Mapping[str, str] = MappingProxyType({})


def taken(event_id: str) -> Answer:
    """Answer for one event that Redis has."""
    return Answer(HTTPStatus.ACCEPTED, {"id": event_id})


def taken_many(ids: Sequence[str | None], faults: Sequence[Fault], stopped: RelayError | None = None) -> Answer:
    """Answer for many: the id of each that Redis has, None in the others' places; `stopped` is what ended it."""
    document: dict[str, Any] = {"ids": list(ids)}
    if faults:
        document["errors"] = [{"index": each.index, "field": each.field, "reason": each.reason} for each in faults]
    if stopped is not None:
        refused = of_error(stopped)
        return refused._replace(document={**(refused.document or {}), **document})
    if faults and len(faults) == len(ids):
        refused = of_error(InvalidEvent("", f"none of the {len(ids)} events is valid; errors has the reasons"))
        return refused._replace(document={**(refused.document or {}), **document})
    return Answer(status=HTTPStatus.ACCEPTED, document=document)


def of_error(error: RelayError) -> Answer:
    """Answer for what was raised instead; says nothing that Redis said."""
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
            return _try_again(HTTPStatus.SERVICE_UNAVAILABLE, unavailable_because(error.__cause__))
        case _:
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the gateway failed; its log has more")


def unavailable(cause: BaseException) -> Answer:
    """Answer for Redis's own errors."""
    return _try_again(HTTPStatus.SERVICE_UNAVAILABLE, unavailable_because(cause))


def stopping() -> Answer:
    """Answer for what is still under way when the process must end."""
    return _try_again(HTTPStatus.SERVICE_UNAVAILABLE, "the gateway stops")


def of_receipt(event_id: str, receipt: Receipt | None) -> Answer:
    """Answer with what became of an event; 404 if that is not known."""
    if receipt is None:
        reason = "no receipt: no event with this id was reported, or it ended a while ago (queue.receipt_for)"
        return refusal(HTTPStatus.NOT_FOUND, reason)
    status = Status.QUEUED if receipt.is_repeated else receipt.status
    document = {"id": event_id, "status": status, "since": moment(receipt.at)}
    if receipt.reason or receipt.status is Status.DEAD:
        document |= {"reason": receipt.reason, "detail": receipt.detail}
    return Answer(status=HTTPStatus.OK, document=document)


def refusal(
    status: HTTPStatus,
    reason: str,
    *,
    field: str = "",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Answer with an error, in the shape of all errors."""
    return Answer(status=status, document={"error": reason, "field": field}, headers=headers or {})


def unavailable_because(cause: BaseException | None) -> str:
    """Say why Redis did not take something, in words of ours."""
    for kind, reason in _UNAVAILABLE:
        if isinstance(cause, kind):
            return reason
    return "Redis refused it"


def _try_again(status: HTTPStatus, reason: str) -> Answer:
    return refusal(status, reason, headers={"Retry-After": str(RETRY_AFTER_SECONDS[status])})
