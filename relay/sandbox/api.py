"""The stand-in for the deployment API, without a network: contract, faults and records."""

from __future__ import annotations

import random
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from relay.sandbox import control
from relay.sandbox.connection import Responder
from relay.sandbox.contract import check_request
from relay.sandbox.faults import FaultPlan
from relay.sandbox.record import RecordFile, Records
from relay.sandbox.response import Response, json_response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.sandbox.connection import Connection
    from relay.sandbox.contract import Request, Ruling
    from relay.sandbox.response import Step
    from relay.sandbox.settings import SandboxSettings


class SandboxApi(Responder):
    """Checks each request against the contract, applies a fault, and records both."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._token = None if settings.token is None else settings.token.encode()
        self.faults = FaultPlan(clock=time.monotonic, rng=random.Random())  # noqa: S311 - faults, not secrets
        self.faults.replace(settings.faults)
        self.records = Records(
            keep=settings.keep,
            monotonic=time.monotonic,
            wall=time.time,
            file=None if settings.record is None else RecordFile(settings.record),
        )

    def on_request(self, connection: Connection, request: Request) -> Iterator[Step]:
        """Return the steps of the response, once the request is recorded."""
        if request.path.startswith(control.PREFIX):
            response = control.respond(self.records, self.faults, request)
            if request.method == b"HEAD":
                response = Response(raw=response.head(closes=request.closes))
            return response.steps(closes=request.closes)
        ruling = check_request(request, self._token)
        response, fault = response_to(ruling), None
        if self.faults:
            fault = self.faults.apply(response, environment=ruling.environment, image=ruling.image)
        if fault:
            response = fault.response
        if fault is None or fault.is_recorded:
            self.records.add(
                connection=connection.number,
                path=request.path,
                idempotency_key=request.headers.get(b"idempotency-key"),
                environment=ruling.environment,
                status=response.status if response.has_status else None,
                processed=response.is_processed,
                fault=None if fault is None else fault.kind,
                body=request.body,
            )
        return response.steps(closes=request.closes)

    def on_unreadable(self) -> None:
        """Count input that is not HTTP."""
        self.records.count_unreadable()

    def on_tick(self) -> None:
        """Flush the record file."""
        self.records.flush()

    def reset(self) -> None:
        """Remove records, counts and faults."""
        self.records.reset()
        self.faults.replace(())


#: What nearly every request gets.
_ACCEPTED = Response()


def response_to(ruling: Ruling) -> Response:
    """Return the API's own response to a request."""
    if ruling.status == HTTPStatus.ACCEPTED:
        return _ACCEPTED
    headers = {}
    if ruling.status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer"}
    elif ruling.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": "POST"}
    if not ruling.error:
        return Response(status=ruling.status, headers=headers)
    document = {"error": ruling.error, **({"field": ruling.field} if ruling.field else {})}
    return json_response(ruling.status, document, headers)
