"""The server: sockets, Redis, and nothing decided.

Memory is bounded for each request (`Limits`, and uvicorn holds 64 KiB of what is not read yet), not for all of them
together: that many connections is the proxy's or the orchestrator's to bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING

import uvicorn
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.connection import connect_async
from relay.errors import ConfigurationError, QueueUnavailable, RelayError
from relay.event import DeploymentEvent
from relay.gateway import reports
from relay.gateway.auth import admit
from relay.gateway.console.site import Console
from relay.gateway.reports import Answer, Fault, Limits, Refused
from relay.producer import CHUNK, AsyncProducer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from relay.settings import GatewaySettings, Settings

#: Requests that talk to Redis at once; the others wait. Below the 100 connections that redis-py's pool has.
AT_ONCE = 32

#: How long a body may take from its first byte to its last.
BODY_SECONDS = 30.0

#: What is read and thrown away of a body after it was refused, in bytes and in seconds: a connection closed while
#: data come in is reset, and the client may never see why. Only larger or slower ones risk that.
DISCARD_BYTES = 4 * 1024 * 1024
DISCARD_SECONDS = 2.0

#: How long Redis may take to answer the PING of `/readyz`.
READY_SECONDS = 2.0

#: How long requests under way have to end after SIGTERM; below the 10 s that `relay up` and Docker grant.
STOP_SECONDS = 8

log = logging.getLogger("relay.gateway")


def create_app(settings: Settings) -> Starlette:
    """Wire the gateway. It connects to Redis when it must, and closes that at the end of its lifespan."""
    gateway = _Gateway(settings)
    app = Starlette(
        routes=[
            Route("/", gateway.deployments, methods=["POST"]),
            Route("/v1/deployments", gateway.deployments, methods=["POST"]),
            Route("/healthz", gateway.healthz, methods=["GET"]),
            Route("/readyz", gateway.readyz, methods=["GET"]),
            *gateway.console.routes,
        ],
        middleware=[Middleware(_Edge)],
        exception_handlers={HTTPException: _no_such_route},
        lifespan=gateway.lifespan,
    )
    app.router.redirect_slashes = False  # a POST must not be redirected with its token
    app.state.console = gateway.console
    return app


def create_server(settings: Settings) -> uvicorn.Server:
    """Make the server, which logs no requests: their paths may hold what their senders should not have put there."""
    app = create_app(settings)
    return _Server(
        app.state.console,
        uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        ),
    )


class _Server(uvicorn.Server):
    """Ends the console's streams before it waits for all connections to end."""

    def __init__(self, console: Console, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._console = console

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._console.stop()
        await super().shutdown(sockets)


def listen(settings: GatewaySettings) -> socket.socket:
    """Listen, or raise `ConfigurationError`: from here on the kernel takes connections."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(
            f"the gateway cannot listen on {settings.host}, port {settings.port} (gateway.host, gateway.port): "
            f"{error.strerror}"
        ) from error


def url_of(listening: socket.socket) -> str:
    """Give the URL of a listening socket, whichever port it got."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, which is raised again once the requests under way have had their answers."""
    server = create_server(settings)
    with listen(settings.gateway) as listening:
        announce(url_of(listening))
        server.run(sockets=[listening])


class _Gateway:
    """One for the process: the producer, and what the endpoints do with it."""

    def __init__(self, settings: Settings) -> None:
        self._token = settings.gateway.token.get_secret_value()
        self._limits = Limits.of(settings.queue.max_event_bytes)
        self._producer = AsyncProducer(settings=settings)
        self._probe = connect_async(settings.redis)
        self.console = Console(settings)
        self._turns = asyncio.Semaphore(AT_ONCE)
        # One attempt's time-outs: a producer that retries within them does; waiting for a turn counts.
        self._deadline_seconds = settings.redis.connect_timeout + settings.redis.timeout

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Close the connections at the end."""
        try:
            async with self.console.running():
                yield
        finally:
            await self._producer.close()
            await self._probe.aclose()

    async def deployments(self, request: Request) -> Response:
        """Take one event or many."""
        body = _Body(request)
        try:
            answer = await self._take(request, body)
        except RelayError as error:
            answer = reports.answer_error(error)
        except ClientDisconnect:
            return Response()  # to nobody
        return _response(answer) if body.ended else _Farewell(answer, body)

    async def healthz(self, _request: Request) -> Response:
        """Tell that the process is alive, which says nothing of Redis."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Tell whether Redis answers, and so whether a report would be taken."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._probe.ping()
        except (RedisError, TimeoutError) as error:
            unavailable = QueueUnavailable("PING")
            unavailable.__cause__ = error
            return _response(reports.answer_error(unavailable))
        return JSONResponse({"status": "ready"})

    async def _take(self, request: Request, body: _Body) -> Answer:
        reports.check_entry(admit(request.headers.get("authorization"), self._token))
        media = reports.media_of(request.headers)
        envelope = reports.envelope_of(request.headers)
        content = await body.read(media, self._limits)
        if reports.is_many(media, content):
            return await self._enqueue_many(reports.split(media, content), envelope)
        (event_id,) = await self._enqueue([reports.read_one(content, envelope)])
        return reports.answer_one(event_id)

    async def _enqueue_many(self, texts: list[bytes], envelope: reports.Envelope) -> Answer:
        """Enqueue a chunk a round trip: reading the next is as long as other requests wait for us."""
        ids_of: dict[int, str] = {}
        faults: list[Fault] = []
        stopped: RelayError | None = None
        for first in range(0, len(texts), CHUNK):
            chunk = reports.read_each(texts[first : first + CHUNK], first, envelope, self._limits)
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
        try:
            async with asyncio.timeout(self._deadline_seconds), self._turns:
                return await self._producer.report_many(events)
        except TimeoutError as error:
            raise QueueUnavailable("Redis did not answer before the request's deadline") from error


class _Body:
    """A request's body as it comes in; `ended` once all of it has."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._headers = request.headers
        self._asked = False
        self.ended = False

    async def read(self, media: reports.Media, limits: Limits) -> bytes:
        """Read all of it, or raise `Refused` with no more in hand than `limits` allow and one chunk."""
        declared = reports.declared_size(self._headers)
        content = bytearray()
        reports.check_size(declared, media, content, limits)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not self.ended:
                    content += await self._chunk()
                    reports.check_size(max(declared, len(content)), media, content, limits)
        except TimeoutError:
            reason = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, reason) from None
        return bytes(content)

    async def discard(self) -> None:
        """Throw away what comes, within bounds; nothing comes from a client that waits for 100 (Continue)."""
        if not self._asked and self._headers.get("expect", "").lower() == "100-continue":
            return
        left = DISCARD_BYTES
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(DISCARD_SECONDS):
                while left > 0 and not self.ended:
                    left -= len(await self._chunk())

    async def _chunk(self) -> bytes:
        self._asked = True
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.ended = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk


class _Farewell(JSONResponse):
    """An answer while the body is still coming: it goes out at once, then the connection is closed."""

    def __init__(self, answer: Answer, body: _Body) -> None:
        super().__init__(answer.document, answer.status, {**answer.headers, "Connection": "close"})
        self._rest = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - Starlette's
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await self._rest.discard()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


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


def _response(answer: Answer) -> JSONResponse:
    return JSONResponse(answer.document, answer.status, answer.headers)
