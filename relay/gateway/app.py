"""The gateway's routes, and the last error handler.

Memory is bounded for each request (`http_limits` its head and pipelined requests, `Limits` its body, and uvicorn
buffers 64 KiB), not for all of them together: the proxy or the orchestrator must bound the number of connections.
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
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.connections.clients import connect_async
from relay.errors import RelayError
from relay.gateway import openapi, report_parsing, responses, webhook
from relay.gateway.admission_endpoint import AdmissionEndpoint
from relay.gateway.asgi import to_starlette
from relay.gateway.auth import ANONYMOUS
from relay.gateway.report_endpoint import ReportEndpoint
from relay.gateway.tokens import TokenSource
from relay.http.browsers import Hosts
from relay.metrics.exporter import Exporter
from relay.metrics.exposition import CONTENT_TYPE
from relay.producer.queue_producer import AsyncProducer
from relay.queue import probe, receipts
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from relay.console.routes import Console
    from relay.settings import Settings

#: Maximum time for the write of `/readyz`.
READY_SECONDS = 2.0

REPORT_PATHS = ("/", "/v1/deployments")

#: Paths of admission reviews, the second with a secret (`gateway.admission_secret_file`). It matches deeper
#: paths, too: such a review is allowed and logged, where a 404 could refuse a deployment.
REVIEW_PATHS = ("/admission", "/admission/{secret:path}")

log = logging.getLogger("relay.gateway")


def create_app(settings: Settings, console: Console) -> ASGIApp:
    """Return the ASGI app. It connects to Redis on demand, and closes its connections at the end of its lifespan."""
    gateway = _Gateway(settings, console)
    app = Starlette(
        routes=[
            *(Route(path, gateway.report_endpoint, methods=["POST"]) for path in REPORT_PATHS),
            *(Route(path, gateway.admission_endpoint, methods=["POST"]) for path in REVIEW_PATHS),
            *(Route(path, gateway.handshake, methods=["OPTIONS"]) for path in REPORT_PATHS),
            Route("/events/{event_id:path}", gateway.receipt, methods=["GET"]),
            Route("/metrics", gateway.metrics, methods=["GET"]),
            Route("/healthz", gateway.healthz, methods=["GET"]),
            Route("/readyz", gateway.readyz, methods=["GET"]),
            Route("/openapi.json", gateway.openapi, methods=["GET"]),
            *console.routes,
        ],
        exception_handlers={HTTPException: _no_such_route},
        lifespan=gateway.lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would send the token of a POST again
    return _Edge(app, gateway.report_endpoint)


class _Gateway:
    """The connections of the process, and the endpoints that use them."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._console = console
        self._tokens = TokenSource(settings.gateway)
        self._hosts = Hosts.of(settings.gateway)
        self._keys = Keys(settings.queue.namespace)
        self._client = connect_async(settings.redis)
        # One attempt's time-outs; the producer retries within them.
        self._deadline_seconds = settings.redis.connect_timeout + settings.redis.timeout
        self._producer = AsyncProducer(settings=settings, deadline_seconds=self._deadline_seconds)
        self.report_endpoint = ReportEndpoint(settings, self._tokens, self._hosts, self._producer, self._client)
        self.admission_endpoint = AdmissionEndpoint(settings, self._tokens, self._hosts, self._producer, self._client)
        self._requires_tokens = settings.gateway.asks_for_tokens
        self._metrics = settings.gateway.metrics
        self._exporter = Exporter(settings)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Run the console, and close the connections at the end."""
        try:
            async with self._console.running():
                yield
        finally:
            await self.admission_endpoint.close()
            await self._producer.close()
            await self._client.aclose()
            self._exporter.close()

    async def handshake(self, request: Request) -> Response:
        """Answer a web hook's handshake, of a sender that may report."""
        query = request.scope["query_string"]
        try:
            response = webhook.consent(request.headers)
            self._admit(request, webhook.authorization_of(request.headers, query))
        except RelayError as error:
            response = responses.of_error(error)
        return to_starlette(webhook.kept_private(response, query))

    async def receipt(self, request: Request) -> Response:
        """Return the receipt of an event."""
        event_id: str = request.path_params["event_id"]
        try:
            self._admit(request, webhook.authorization_of(request.headers))
            async with asyncio.timeout(self._deadline_seconds):
                found = await receipts.read_async(self._client, self._keys, event_id)
        except RelayError as error:
            return to_starlette(responses.of_error(error))
        except (RedisError, TimeoutError) as error:
            return to_starlette(responses.unavailable(error))
        return to_starlette(responses.of_receipt(event_id, found))

    def metrics(self, request: Request) -> Response:
        """Return the metrics. Starlette runs this in a thread, because it blocks on Redis."""
        if self._metrics == "off":
            raise HTTPException(HTTPStatus.NOT_FOUND)
        try:
            if self._metrics == "token":
                self._admit(request, webhook.authorization_of(request.headers))
            else:
                self._hosts.check_host(request.headers)
        except RelayError as error:
            return to_starlette(responses.of_error(error))
        return Response(self._exporter.scrape(), media_type=CONTENT_TYPE)

    def _admit(self, request: Request, authorization: str | None) -> None:
        """Refuse a request without a token or, on a gateway without tokens, one to an unknown host name."""
        if report_parsing.admitted(self._tokens.current().identify(authorization)) is ANONYMOUS:
            self._hosts.check_host(request.headers)

    async def healthz(self, _request: Request) -> Response:
        """Return 200 while the process is alive, with or without Redis."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Return 200 if Redis accepts a write, and so a report; a replica would also answer a PING."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await probe.write_async(self._client, self._keys)
        except (RedisError, TimeoutError) as error:
            return to_starlette(responses.unavailable(error))
        return JSONResponse({"status": "ready"})

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI description."""
        if not self._requires_tokens:
            try:
                self._hosts.check_host(request.headers)
            except RelayError as error:
                return to_starlette(responses.of_error(error))
        return JSONResponse(openapi.DOCUMENT)


class _Edge:
    """The outermost ASGI app: dispatches reports, and handles unexpected errors.

    Reports bypass Starlette, whose routing costs as much as a whole report. An unexpected error is one line of the
    log, without the values that a traceback shows.
    """

    def __init__(self, app: ASGIApp, report_endpoint: ASGIApp) -> None:
        self._app = app
        self._report_endpoint = report_endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_report = scope["method"] == "POST" and scope["path"] in REPORT_PATHS
        try:
            await (self._report_endpoint if is_report else self._app)(scope, receive, send)
        except asyncio.CancelledError:  # only the end of the process cancels, after STOP_SECONDS
            with contextlib.suppress(RuntimeError):  # the response had begun
                await to_starlette(responses.stopping())(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the edge
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("a request failed: %s at %s:%s", type(error).__qualname__, place.filename, place.lineno)  # noqa: TRY400 - see above
            with contextlib.suppress(RuntimeError):
                await to_starlette(responses.of_error(RelayError()))(scope, receive, send)


async def _no_such_route(_request: Request, error: Exception) -> Response:
    """Return the JSON error for an unknown path or method, with Starlette's headers (`Allow`)."""
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    return to_starlette(responses.refusal(status, status.phrase.lower(), headers=error.headers))
