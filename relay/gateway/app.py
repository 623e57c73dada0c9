"""Which request goes where, and the last `except`.

Memory is bounded for each request (`heads` its head and what waits behind it, `Limits` its body, and uvicorn holds
64 KiB of what is not read yet), not for all of them together: that many connections is the proxy's or the
orchestrator's to bound.
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
from relay.gateway.admission_endpoint import Reviewing
from relay.gateway.asgi import response_of
from relay.gateway.auth import EVERYBODY
from relay.gateway.report_endpoint import Reporting
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

#: How long Redis may take to answer the write of `/readyz`.
READY_SECONDS = 2.0

#: Where events are reported.
REPORT_PATHS = ("/", "/v1/deployments")

#: Where admission reviews come to, the second with a secret (`gateway.admission_secret_file`). That takes what is
#: below too: a review is allowed and the log has a line, where 404 could refuse a deployment.
REVIEW_PATHS = ("/admission", "/admission/{secret:path}")

log = logging.getLogger("relay.gateway")


def create_app(settings: Settings, console: Console) -> ASGIApp:
    """Wire the gateway. It connects to Redis when it must, and closes that at the end of its lifespan."""
    gateway = _Gateway(settings, console)
    app = Starlette(
        routes=[
            *(Route(path, gateway.reporting, methods=["POST"]) for path in REPORT_PATHS),
            *(Route(path, gateway.reviewing, methods=["POST"]) for path in REVIEW_PATHS),
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
    app.router.redirect_slashes = False  # a POST must not be redirected with its token
    return _Edge(app, gateway.reporting)


class _Gateway:
    """One for the process: its connections, and the endpoints that use them."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._console = console
        self._tokens = TokenSource(settings.gateway)
        self._hosts = Hosts.of(settings.gateway)
        self._keys = Keys(settings.queue.namespace)
        self._client = connect_async(settings.redis)
        # One attempt's time-outs: a producer that retries within them does.
        self._deadline_seconds = settings.redis.connect_timeout + settings.redis.timeout
        self._producer = AsyncProducer(settings=settings, deadline_seconds=self._deadline_seconds)
        self.reporting = Reporting(settings, self._tokens, self._hosts, self._producer, self._client)
        self.reviewing = Reviewing(settings, self._tokens, self._hosts, self._producer, self._client)
        self._asks_for_tokens = settings.gateway.asks_for_tokens
        self._metrics = settings.gateway.metrics
        self._exporter = Exporter(settings)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Close the connections at the end."""
        try:
            async with self._console.running():
                yield
        finally:
            await self.reviewing.close()
            await self._producer.close()
            await self._client.aclose()
            self._exporter.close()

    async def handshake(self, request: Request) -> Response:
        """Answer a web hook's handshake, for a sender that may report."""
        try:
            answer = webhook.consent(request.headers)
            self._admit(request, webhook.authorization_of(request.headers, request.scope["query_string"]))
        except RelayError as error:
            answer = responses.of_error(error)
        return response_of(webhook.kept_private(answer, request.scope["query_string"]))

    async def receipt(self, request: Request) -> Response:
        """Tell what became of an event."""
        event_id: str = request.path_params["event_id"]
        try:
            self._admit(request, webhook.authorization_of(request.headers))
            async with asyncio.timeout(self._deadline_seconds):
                found = await receipts.read_async(self._client, self._keys, event_id)
        except RelayError as error:
            return response_of(responses.of_error(error))
        except (RedisError, TimeoutError) as error:
            return response_of(responses.unavailable(error))
        return response_of(responses.of_receipt(event_id, found))

    def metrics(self, request: Request) -> Response:
        """Answer a scrape; Starlette runs this in a thread, because it waits for Redis."""
        if self._metrics == "off":
            raise HTTPException(HTTPStatus.NOT_FOUND)
        try:
            if self._metrics == "token":
                self._admit(request, webhook.authorization_of(request.headers))
            else:
                self._hosts.check_host(request.headers)
        except RelayError as error:
            return response_of(responses.of_error(error))
        return Response(self._exporter.scrape(), media_type=CONTENT_TYPE)

    def _admit(self, request: Request, authorization: str | None) -> None:
        """Refuse a request without a token, or, where there are no tokens, one to a name that is not ours."""
        caller = report_parsing.admitted(self._tokens.current().identify(authorization))
        if caller is EVERYBODY:
            self._hosts.check_host(request.headers)

    async def healthz(self, _request: Request) -> Response:
        """Tell that the process is alive, which says nothing of Redis."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Answer whether Redis takes a write, and so a report: a replica would answer a PING."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await probe.write_async(self._client, self._keys)
        except (RedisError, TimeoutError) as error:
            return response_of(responses.unavailable(error))
        return JSONResponse({"status": "ready"})

    async def openapi(self, request: Request) -> Response:
        """Describe all of this."""
        if not self._asks_for_tokens:
            try:
                self._hosts.check_host(request.headers)
            except RelayError as error:
                return response_of(responses.of_error(error))
        return JSONResponse(openapi.DOCUMENT)


class _Edge:
    """The first to see a request, and the last `except`.

    Reports go straight to where they are taken: Starlette's way to an endpoint costs as much as all that is done
    there. What nobody foresaw is one line of the log, without the values that a traceback has.
    """

    def __init__(self, app: ASGIApp, reporting: ASGIApp) -> None:
        self._app = app
        self._reporting = reporting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_report = scope["method"] == "POST" and scope["path"] in REPORT_PATHS
        try:
            await (self._reporting if is_report else self._app)(scope, receive, send)
        except asyncio.CancelledError:  # only the end of the process cancels, after STOP_SECONDS
            with contextlib.suppress(RuntimeError):  # the answer had begun
                await response_of(responses.stopping())(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the edge
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("a request failed: %s at %s:%s", type(error).__qualname__, place.filename, place.lineno)  # noqa: TRY400 - see above
            with contextlib.suppress(RuntimeError):
                await response_of(responses.of_error(RelayError()))(scope, receive, send)


async def _no_such_route(_request: Request, error: Exception) -> Response:
    """Answer for paths and methods that there are not, with the headers (`Allow`) that Starlette gives."""
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    return response_of(responses.refusal(status, status.phrase.lower(), headers=error.headers))
