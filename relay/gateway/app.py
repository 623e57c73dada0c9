"""The gateway's endpoints: HTTP and Redis, and nothing decided.

Memory is bounded for each request (`Limits`, and uvicorn holds 64 KiB of what is not read yet), not for all of them
together: that many connections is the proxy's or the orchestrator's to bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING

from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.connection import connect_async
from relay.errors import QueueUnavailable, RelayError
from relay.event import DeploymentEvent
from relay.gateway import openapi, reports
from relay.gateway.body import Body, Farewell
from relay.gateway.reports import Answer, Fault, Limits
from relay.gateway.tokens import TokenSource
from relay.keys import Keys
from relay.producer import CHUNK, AsyncProducer
from relay.store import receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from relay.gateway.auth import Caller
    from relay.settings import Settings

#: How long Redis may take to answer the PING of `/readyz`.
READY_SECONDS = 2.0

log = logging.getLogger("relay.gateway")


def create_app(settings: Settings) -> Starlette:
    """Wire the gateway. It connects to Redis when it must, and closes that at the end of its lifespan."""
    gateway = _Gateway(settings)
    app = Starlette(
        routes=[
            Route("/", gateway.deployments, methods=["POST"]),
            Route("/v1/deployments", gateway.deployments, methods=["POST"]),
            Route("/events/{event_id:path}", gateway.receipt, methods=["GET"]),
            Route("/healthz", gateway.healthz, methods=["GET"]),
            Route("/readyz", gateway.readyz, methods=["GET"]),
            Route("/openapi.json", gateway.openapi, methods=["GET"]),
        ],
        middleware=[Middleware(_Edge)],
        exception_handlers={HTTPException: _no_such_route},
        lifespan=gateway.lifespan,
    )
    app.router.redirect_slashes = False  # a POST must not be redirected with its token
    return app


class _Gateway:
    """One for the process: the producer, and what the endpoints do with it."""

    def __init__(self, settings: Settings) -> None:
        self._tokens = TokenSource(settings.gateway)
        self._limits = Limits.of(settings.queue.max_event_bytes)
        self._environment = settings.defaults.environment
        self._keys = Keys(settings.queue.namespace)
        self._producer = AsyncProducer(settings=settings)
        self._client = connect_async(settings.redis)
        # One attempt's time-outs: a producer that retries within them does; waiting for others' reports counts.
        self._deadline_seconds = settings.redis.connect_timeout + settings.redis.timeout

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Close the connections at the end."""
        try:
            yield
        finally:
            await self._producer.close()
            await self._client.aclose()

    async def deployments(self, request: Request) -> Response:
        """Take one event or many."""
        headers = _headers_of(request)
        body = Body(request.receive, headers)
        try:
            answer = await self._take(headers, body)
        except RelayError as error:
            answer = reports.answer_error(error)
        except ClientDisconnect:
            return Response()  # to nobody
        return _response(answer) if body.ended else Farewell(answer, body)

    async def receipt(self, request: Request) -> Response:
        """Tell what became of an event."""
        event_id: str = request.path_params["event_id"]
        try:
            self._admit(_headers_of(request))
            async with asyncio.timeout(self._deadline_seconds):
                found = await receipts.read_async(self._client, self._keys, event_id)
        except RelayError as error:
            return _response(reports.answer_error(error))
        except (RedisError, TimeoutError) as error:
            return _response(reports.answer_unavailable(error))
        return _response(reports.answer_receipt(event_id, found))

    async def healthz(self, _request: Request) -> Response:
        """Tell that the process is alive, which says nothing of Redis."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Tell whether Redis answers, and so whether a report would be taken."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._client.ping()
        except (RedisError, TimeoutError) as error:
            return _response(reports.answer_unavailable(error))
        return JSONResponse({"status": "ready"})

    async def openapi(self, _request: Request) -> Response:
        """Describe all of this."""
        return JSONResponse(openapi.DOCUMENT)

    def _admit(self, headers: Mapping[str, str]) -> Caller:
        return reports.admitted(self._tokens.current().identify(headers.get("authorization")))

    async def _take(self, headers: Mapping[str, str], body: Body) -> Answer:
        caller = self._admit(headers)
        media = reports.media_of(headers)
        envelope = reports.envelope_of(headers)
        content = await body.read(media, self._limits)
        if reports.is_many(media, content):
            return await self._enqueue_many(reports.split(media, content), envelope, caller)
        event = reports.read_one(content, envelope)
        reports.check_environment(event, caller, self._environment)
        (event_id,) = await self._enqueue([event])
        return reports.answer_one(event_id)

    async def _enqueue_many(self, texts: list[bytes], envelope: reports.Envelope, caller: Caller) -> Answer:
        """Enqueue a chunk a round trip: reading the next is as long as other requests wait for us."""
        ids_of: dict[int, str] = {}
        faults: list[Fault] = []
        stopped: RelayError | None = None
        for first in range(0, len(texts), CHUNK):
            chunk = reports.read_each(texts[first : first + CHUNK], first, envelope, self._limits)
            chunk = [
                reports.checked_environment(item, first + at, caller, self._environment)
                for at, item in enumerate(chunk)
            ]
            faults += [item for item in chunk if isinstance(item, Fault)]
            valid = {first + at: item for at, item in enumerate(chunk) if isinstance(item, DeploymentEvent)}
            if not valid or stopped is not None:  # the rest is still read, so that the answer has all its faults
                await asyncio.sleep(0)
                continue
            try:
                enqueued = await self._enqueue(list(valid.values()))
            except RelayError as error:
                stopped = error
            else:
                ids_of.update(zip(valid, enqueued, strict=True))
        return reports.answer_many([ids_of.get(place) for place in range(len(texts))], faults, stopped)

    async def _enqueue(self, events: list[DeploymentEvent]) -> list[str]:
        """Enqueue events, together with those of other requests; who gave an id may ask what became of it."""
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self._producer.report_many(events, receipts=True)
        except TimeoutError as error:
            raise QueueUnavailable("Redis did not answer before the request's deadline") from error


class _Edge:
    """The last `except`: what nobody foresaw is one line of the log, without the values that a traceback has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:  # only the end of the process cancels, after STOP_SECONDS
            stopping = reports.answer_refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the gateway stops")
            with contextlib.suppress(RuntimeError):  # the answer had begun
                await _response(stopping)(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the edge
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("a request failed: %s at %s:%s", type(error).__qualname__, place.filename, place.lineno)  # noqa: TRY400 - see above
            with contextlib.suppress(RuntimeError):
                await _response(reports.answer_error(RelayError()))(scope, receive, send)


async def _no_such_route(_request: Request, error: Exception) -> Response:
    """Answer for paths and methods that there are not, with the headers (`Allow`) that Starlette gives."""
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    return _response(reports.answer_refusal(status, status.phrase.lower(), headers=error.headers))


def _headers_of(request: Request) -> dict[str, str]:
    """Return the headers by their lower-case names; of those that come twice the first counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(request.scope["headers"])}


def _response(answer: Answer) -> JSONResponse:
    return JSONResponse(answer.document, answer.status, answer.headers)
