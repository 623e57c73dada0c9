"""The console's routes and pages.

A GET changes nothing. A change is a POST of a form, whose response leads to a page.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route, Router

from relay.console import actions, dead_letters, inventory, overview
from relay.console.actions import Actions
from relay.console.pages import ROOT, HeadersMiddleware, PageError, Pages, redirect, url
from relay.console.queue_client import QueueClient
from relay.console.sign_in import SignIn
from relay.console.sse import Streams
from relay.console.status_cache import StatusCache
from relay.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from relay.console.sign_in import Handler, OperatorRequest
    from relay.settings import Settings


class Console:
    """The console of one process. Without an operator token, all its paths explain how to switch it on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_on = bool(settings.gateway.operator_token.get_secret_value())
        self._pages = Pages(settings)
        self._sign_in = SignIn(settings.gateway, self._pages)
        self._queue = QueueClient(settings)
        self._status = StatusCache(self._queue, settings)
        self._actions = Actions(self._queue, settings)
        self._streams = Streams()

    @property
    def routes(self) -> list[Route]:
        """The routes to mount: all paths at and below `/console`."""
        handlers = {PageError: self._error_page, QueueUnavailable: self._unavailable, HTTPException: self._not_found}
        router = Router(self._routes() if self._is_on else [], redirect_slashes=False)
        app = HeadersMiddleware(ExceptionMiddleware(router, handlers))
        return [Route(ROOT, app), Route(f"{ROOT}/{{rest:path}}", app)]

    def _routes(self) -> list[Route]:
        def page(path: str, handler: Handler, method: str = "GET") -> Route:
            async def endpoint(request: Request) -> Response:
                return await self._sign_in.require(request, handler)

            return Route(f"{ROOT}/{path}", endpoint, methods=[method])

        def form(path: str, handler: Handler) -> Route:
            async def submit(request: OperatorRequest) -> Response:
                response = await handler(request)
                self._status.expire()
                return response

            return page(path, submit, "POST")

        return [
            Route(ROOT, self._root),
            Route(f"{ROOT}/assets/{{name}}", self._asset),
            Route(f"{ROOT}/sign-in", self._sign_in.page),
            Route(f"{ROOT}/sign-in", self._sign_in.submit, methods=["POST"]),
            form("sign-out", self._sign_in.sign_out),
            page("", self._overview),
            page("live/overview", self._live_overview),
            form("pause", self._actions.pause),
            form("resume", self._actions.resume),
            form("lift", self._actions.lift),
            page("dead", self._dead),
            page("live/dead", self._live_dead),
            page("dead/letter", self._letter),
            page("dead/redrive", lambda request: self._confirm(request, "redrive")),
            page("dead/drop", lambda request: self._confirm(request, "drop")),
            form("dead/redrive", self._actions.redrive),
            form("dead/drop", self._actions.drop),
            page("inventory", self._inventory),
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Refresh the status cache, and close the connections at the end."""
        refreshing = asyncio.create_task(self._status.run()) if self._is_on else None
        try:
            yield
        finally:
            if refreshing is not None:
                refreshing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await refreshing
            self._sign_in.close()
            await self._queue.close()

    def stop(self) -> None:
        """End the streams; call this before the server waits for its connections to end."""
        self._streams.stop()

    async def _root(self, _request: Request) -> Response:
        return redirect(url())

    async def _asset(self, request: Request) -> Response:
        return self._pages.asset(request.path_params["name"])

    # Errors

    async def _error_page(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, PageError):
            raise error
        session = self._sign_in.session_of(request)
        return self._pages.page("message", session, status=error.status, title=error.title, text=error.text)

    async def _unavailable(self, request: Request, error: Exception) -> Response:
        text = f"{error}. Producers are told to try again later."
        page = PageError(HTTPStatus.SERVICE_UNAVAILABLE, "Redis is unavailable", text)
        response = await self._error_page(request, page)
        response.headers["Retry-After"] = "5"
        return response

    async def _not_found(self, request: Request, _error: Exception) -> Response:
        if not self._is_on:
            return self._pages.page("off", None, status=HTTPStatus.NOT_FOUND)
        page = PageError(HTTPStatus.NOT_FOUND, "No such page", "There is no page at this address.")
        return await self._error_page(request, page)

    # Pages

    async def _overview(self, request: OperatorRequest) -> Response:
        return self._pages.page("overview", request.session, **await self._read_overview(request, request.location))

    async def _live_overview(self, request: OperatorRequest) -> Response:
        location = url("", dict(request.query))
        return self._stream(request, "overview", lambda: self._read_overview(request, location))

    async def _read_overview(self, request: OperatorRequest, location: str) -> dict[str, Any]:
        search = overview.Search.of(request.query)
        return {"shown": overview.page_of(await self._status.latest(), self._status.history, search), "at": location}

    async def _dead(self, request: OperatorRequest) -> Response:
        notice = actions.notice(request.query)
        return self._pages.page("dead", request.session, **await self._read_dead(request), notice=notice)

    async def _live_dead(self, request: OperatorRequest) -> Response:
        return self._stream(request, "dead", lambda: self._read_dead(request))

    async def _read_dead(self, request: OperatorRequest) -> dict[str, Any]:
        selection = dead_letters.Selection.of(request.query)
        before = request.query.get("before", "")
        page = await dead_letters.read_page(self._queue, self._settings, selection, before)
        return {"selection": selection, "before": before, "page": page}

    async def _letter(self, request: OperatorRequest) -> Response:
        details = await self._details(request.query.get("id", ""))
        return self._pages.page("letter", request.session, details=details)

    async def _confirm(self, request: OperatorRequest, action: str) -> Response:
        """Show the scope of an action; the form on that page performs it."""
        details = selection = counted = None
        force = False
        if letter_id := request.query.get("id", ""):
            details = await self._details(letter_id)
            force = request.query.get("force", "") == "yes"
        else:
            selection = actions.selected(request.query)
            counted = await dead_letters.count(self._queue, selection)
        return self._pages.page(
            "confirm", request.session,
            action=action, details=details, selection=selection, counted=counted, force=force,
        )  # fmt: skip

    async def _details(self, letter_id: str) -> dead_letters.Details:
        details = await dead_letters.read_details(self._queue, self._settings, letter_id)
        if details is None:
            text = "It was redriven or dropped meanwhile, or never existed."
            raise PageError(HTTPStatus.NOT_FOUND, "No such letter", text)
        return details

    async def _inventory(self, request: OperatorRequest) -> Response:
        search = inventory.Search.of(request.query)
        page = await inventory.read_page(self._queue, self._status, search)
        return self._pages.page("inventory", request.session, search=search, page=page)

    def _stream(self, request: OperatorRequest, name: str, read: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
        if self._streams.is_full:
            text = "Too many pages are open: reload this page to update it."
            raise PageError(HTTPStatus.SERVICE_UNAVAILABLE, "Not live", text)

        async def render() -> str:
            return self._pages.live(name, request.session, **await read())

        return self._streams.stream(request.session, render)
