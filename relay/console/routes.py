"""The routes of the console, and the door before them: signed in, a form of ours, within bounds.

A page is only ever got and changes nothing; what changes something is a form, whose answer leads to a page.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect
from starlette.routing import Route

from relay import hosts
from relay.console import dead_letters, inventory, overview, session, sse
from relay.console.attempts import Attempts
from relay.console.filters import plural
from relay.console.pages import HEADERS, ROOT, Pages, redirect, url
from relay.console.queue_client import QueueClient
from relay.console.status_cache import StatusCache
from relay.errors import QueueUnavailable
from relay.events.event import MAX_NAME_BYTES
from relay.http.browsers import Hosts
from relay.http.counted_log import CountedLog
from relay.http.refused import Refused as RefusedRequest
from relay.logs import get_logger
from relay.queue import health as destination
from relay.queue import pausing
from relay.queue.redrive import LEASE_SECONDS
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from relay.console.session import Session
    from relay.settings import Settings

    Handler = Callable[["Visit"], Awaitable[Response]]

#: The cookie of a session.
COOKIE = "relay_console"

#: A form of ours is smaller, has fewer fields, and comes at once.
FORM_BYTES, FORM_FIELDS, FORM_SECONDS = 16_384, 32, 10.0

#: What a page says of a form's result, by what was done; anything else in its URL is passed over.
_DONE = {"redrive": "redriven", "drop": "dropped"}
_WHY = {
    "busy": "Another redrive is under way, or died less than "
    f"{LEASE_SECONDS:g} seconds ago: try again when it is done.",
    "full": "The queue is full: go on when there is room.",
    "more": "There may be more: do it again for the rest.",
    "gone": "It is not there any more.",
}


#: Characters of a field of a form that a log line has.
LONGEST_LOGGED = 300

_Result = TypeVar("_Result")

_log = get_logger("relay.console")


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """What the door says instead of a page."""

    def __init__(self, status: HTTPStatus, title: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.title = title
        self.text = text


class Visit:
    """A request that came through the door. `form` is empty unless it is a POST."""

    def __init__(self, request: Request, session: Session, form: Mapping[str, str]) -> None:
        self.request = request
        self.session = session
        self.form = form
        self.query = request.query_params

    @property
    def at(self) -> str:
        """Where it is, to come back to."""
        query = self.request.url.query
        return f"{self.request.url.path}?{query}" if query else self.request.url.path


class Console:
    """One for the process. It looks at Redis while `running`; without an operator token it is only an explanation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._token = settings.gateway.operator_token.get_secret_value()
        self._pages = Pages(settings)
        self._attempts = Attempts()
        self._hosts = Hosts.of(settings.gateway)
        self._proxies = [ipaddress.ip_network(each, strict=False) for each in settings.gateway.trusted_proxies]
        self._wrong_tokens = CountedLog(_log, "wrong operator tokens")
        self._queue = QueueClient(settings)
        self._status = StatusCache(self._queue, settings)
        self._streams = sse.Streams()

    @property
    def routes(self) -> list[Route]:
        """What to mount: all paths at and below `/console`."""
        if not self._token:
            return [Route(path, self._off, methods=["GET", "POST"]) for path in (ROOT, f"{ROOT}/{{rest:path}}")]
        return [
            Route(ROOT, self._root),
            Route(f"{ROOT}/assets/{{name}}", self._asset),
            Route(f"{ROOT}/sign-in", self._sign_in_page),
            Route(f"{ROOT}/sign-in", self._sign_in, methods=["POST"]),
            self._form("sign-out", self._sign_out),
            self._page("", self._overview),
            self._page("live/overview", self._live_overview),
            self._form("pause", self._pause),
            self._form("resume", self._resume),
            self._form("lift", self._lift),
            self._page("dead", self._dead),
            self._page("live/dead", self._live_dead),
            self._page("dead/letter", self._letter),
            self._page("dead/redrive", self._confirm_redrive),
            self._page("dead/drop", self._confirm_drop),
            self._form("dead/redrive", self._redrive),
            self._form("dead/drop", self._drop),
            self._page("inventory", self._inventory),
            Route(f"{ROOT}/{{rest:path}}", self._nowhere, methods=["GET", "POST"]),
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look at the environments now and then; close the connections at the end."""
        sampling = asyncio.create_task(self._status.run()) if self._token else None
        try:
            yield
        finally:
            if sampling is not None:
                sampling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sampling
            self._wrong_tokens.close()
            await self._queue.close()

    def stop(self) -> None:
        """End what would keep a connection open; to be called before the server waits for its connections."""
        self._streams.stop()

    # --- the door

    def _page(self, path: str, handler: Handler) -> Route:
        return self._route(path, handler, "GET")

    def _form(self, path: str, handler: Handler) -> Route:
        return self._route(path, handler, "POST")

    def _route(self, path: str, handler: Handler, method: str) -> Route:
        async def destination(request: Request) -> Response:
            return await self._guarded(request, lambda: self._admit(request, handler))

        return Route(f"{ROOT}/{path}", destination, methods=[method])

    async def _guarded(self, request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        """Answer, or say why not, with the headers that every page has."""
        known = self._session(request)
        try:
            response = await answer()
        except Refused as refusal:
            response = self._pages.page(
                "message", known, status=refusal.status, title=refusal.title, text=refusal.text
            )
        except QueueUnavailable as error:
            away = HTTPStatus.SERVICE_UNAVAILABLE
            text = f"{error}. Producers are told to come again."
            response = self._pages.page("message", known, status=away, title="Redis is away", text=text)
            response.headers["Retry-After"] = "5"
        return _with_headers(response)

    async def _admit(self, request: Request, handler: Handler) -> Response:
        known = self._session(request)
        if known is None:
            return self._to_sign_in(request)
        form: Mapping[str, str] = {}
        if request.method == "POST":
            form = await self._form_of(request)
            if not known.allows(form.get("csrf", "")):
                raise _not_ours()
        response = await handler(Visit(request, known, form))
        if request.method == "POST":
            self._status.expire()
        return response

    def _address_of(self, request: Request) -> str:
        """Return the client's address: the peer's, or what the configured proxies say of theirs."""
        peer = request.client.host if request.client else ""
        return hosts.client_address(peer, request.headers.getlist("x-forwarded-for"), self._proxies)

    async def _logged(self, visit: Visit, action: str, doing: Awaitable[_Result], **what: str) -> _Result:
        """Await an action, and log who did what; an action that Redis did not answer may have had its effect."""
        line = {"action": action, "session": visit.session.name, "address": self._address_of(visit.request)}
        line |= {name: value[:LONGEST_LOGGED] for name, value in what.items()}
        try:
            result = await doing
        except QueueUnavailable:
            _log.warning("console action without an answer of Redis", **line)
            raise
        _log.info("console action", **line, **(result._asdict() if isinstance(result, dead_letters.Done) else {}))
        return result

    async def _form_of(self, request: Request) -> dict[str, str]:
        """Read a form as browsers send it, or refuse it: too large, too slow, or sent from elsewhere."""
        try:
            self._hosts.check_page(request.headers)
        except RefusedRequest:
            raise _not_ours() from None
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Not a form", "Only forms of these pages are taken.")
        content = bytearray()
        try:
            async with asyncio.timeout(FORM_SECONDS):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > FORM_BYTES:
                        raise Refused(
                            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too large", "This is more than a form has."
                        )
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "Too slow", "The form did not arrive in time.") from None
        except ClientDisconnect:  # so no answer arrives
            raise Refused(HTTPStatus.BAD_REQUEST, "Not a form", "The form did not arrive.") from None
        try:
            return dict(parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS))
        except ValueError:
            raise Refused(HTTPStatus.BAD_REQUEST, "Not a form", "The form cannot be read.") from None

    def _session(self, request: Request) -> Session | None:
        return session.read(request.cookies.get(COOKIE, ""), self._token, time.time())

    def _to_sign_in(self, request: Request) -> Response:
        if request.url.path.startswith(f"{ROOT}/live/"):
            raise Refused(HTTPStatus.UNAUTHORIZED, "Not signed in", "The session is over.")
        if request.method == "POST":
            return redirect(url("sign-in"))
        at = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("sec-fetch-site") == "cross-site" and COOKIE not in request.cookies:
            # A link in a chat or a runbook: a browser keeps a strict cookie back, and sends it once we ask ourselves.
            return self._pages.page("cookie-bounce", None, at=_ours(at))
        return redirect(url("sign-in", next=at))

    # --- signing in and out

    async def _root(self, _request: Request) -> Response:
        return _with_headers(redirect(url()))

    async def _off(self, request: Request) -> Response:
        return await self._guarded(request, self._explain)

    async def _explain(self) -> Response:
        return self._pages.page("off", None, status=HTTPStatus.NOT_FOUND)

    async def _nowhere(self, request: Request) -> Response:
        async def refuse() -> Response:
            raise Refused(HTTPStatus.NOT_FOUND, "No such page", "There is no page at this address.")

        return await self._guarded(request, refuse)

    async def _asset(self, request: Request) -> Response:
        asset = self._pages.asset(request.path_params["name"])
        if asset is None:
            return await self._nowhere(request)
        for name, value in HEADERS.items():
            asset.headers.setdefault(name, value)
        return asset

    async def _sign_in_page(self, request: Request) -> Response:
        async def answer() -> Response:
            following = _ours(request.query_params.get("next", ""))
            if self._session(request) is not None:
                return redirect(following)
            return self._show_sign_in(request, following)

        return await self._guarded(request, answer)

    async def _sign_in(self, request: Request) -> Response:
        async def answer() -> Response:
            form = await self._form_of(request)
            address = self._address_of(request)
            now = time.monotonic()
            following = _ours(form.get("next", ""))
            wait = self._attempts.wait_seconds(address, now)
            if wait:
                text = f"Too many wrong tokens from your address: try again in {plural(math.ceil(wait), 'second')}."
                response = self._show_sign_in(request, following, text, HTTPStatus.TOO_MANY_REQUESTS)
                response.headers["Retry-After"] = str(math.ceil(wait))
                return response
            if not session.is_operator(form.get("token", ""), self._token):
                self._attempts.failed(address, now)
                self._wrong_tokens.note(f"the last one from {address[:LONGEST_LOGGED]}")
                return self._show_sign_in(request, following, "This is not the operator token.", HTTPStatus.FORBIDDEN)
            response = redirect(following)
            cookie = session.begin(self._token, time.time())
            begun = session.read(cookie, self._token, time.time())
            _log.info("console sign-in", session=begun.name if begun else "", address=address)
            response.set_cookie(
                COOKIE, cookie, max_age=session.SESSION_SECONDS,
                path=ROOT, secure=_came_safely(request), httponly=True, samesite="strict",
            )  # fmt: skip
            return response

        return await self._guarded(request, answer)

    def _show_sign_in(
        self, request: Request, following: str, fault: str = "", status: HTTPStatus = HTTPStatus.OK
    ) -> Response:
        in_the_clear = not _came_safely(request) and request.url.hostname not in {"localhost", "127.0.0.1", "::1"}
        return self._pages.page(
            "sign-in", None, status=status, following=following, fault=fault, in_the_clear=in_the_clear
        )

    async def _sign_out(self, _visit: Visit) -> Response:
        response = redirect(url("sign-in"))
        response.delete_cookie(COOKIE, path=ROOT, httponly=True, samesite="strict")
        return response

    # --- environments

    async def _overview(self, visit: Visit) -> Response:
        return self._pages.page("overview", visit.session, **await self._seen(visit, visit.at))

    async def _live_overview(self, visit: Visit) -> Response:
        return self._stream(visit, "overview", lambda: self._seen(visit, _page_of(visit)))

    async def _seen(self, visit: Visit, at: str) -> dict[str, Any]:
        asked = overview.Asked.of(visit.query)
        return {"shown": await overview.see(self._status, asked), "at": at}

    async def _pause(self, visit: Visit) -> Response:
        name = _environment(visit.form)
        pausing_it = self._queue.ask(lambda client, keys: pausing.pause(client, keys, DEFAULT_DESTINATION, [name]))
        await self._logged(visit, "pause", pausing_it, environment=name)
        return redirect(_ours(visit.form.get("back", "")))

    async def _resume(self, visit: Visit) -> Response:
        name = _environment(visit.form)
        resuming_it = self._queue.ask(lambda client, keys: pausing.resume(client, keys, DEFAULT_DESTINATION, [name]))
        await self._logged(visit, "resume", resuming_it, environment=name)
        return redirect(_ours(visit.form.get("back", "")))

    async def _lift(self, visit: Visit) -> Response:
        lifting = self._queue.ask(lambda client, keys: destination.lift(client, keys, DEFAULT_DESTINATION))
        await self._logged(visit, "lift", lifting, destination=DEFAULT_DESTINATION)
        return redirect(_ours(visit.form.get("back", "")))

    # --- dead letters

    async def _dead(self, visit: Visit) -> Response:
        return self._pages.page("dead", visit.session, **await self._listed(visit), notice=_notice(visit.query))

    async def _live_dead(self, visit: Visit) -> Response:
        return self._stream(visit, "dead", lambda: self._listed(visit))

    async def _listed(self, visit: Visit) -> dict[str, Any]:
        asked = dead_letters.Asked.of(visit.query)
        behind = visit.query.get("behind", "")
        return {
            "asked": asked,
            "behind": behind,
            "listed": await dead_letters.listed(self._queue, self._settings, asked, behind),
        }

    async def _letter(self, visit: Visit) -> Response:
        letter_id = visit.query.get("id", "")
        whole = await dead_letters.whole(self._queue, self._settings, letter_id)
        if whole is None:
            raise _no_letter()
        return self._pages.page("letter", visit.session, whole=whole)

    async def _confirm_redrive(self, visit: Visit) -> Response:
        return await self._confirm(visit, "redrive")

    async def _confirm_drop(self, visit: Visit) -> Response:
        return await self._confirm(visit, "drop")

    async def _confirm(self, visit: Visit, action: dead_letters.Action) -> Response:
        """Show what an action would mean; the form that is sent from there does it."""
        letter_id = visit.query.get("id", "")
        if letter_id:
            whole = await dead_letters.whole(self._queue, self._settings, letter_id)
            if whole is None:
                raise _no_letter()
            force = visit.query.get("force", "") == "yes"
            return self._pages.page(
                "confirm", visit.session, action=action, whole=whole, asked=None, counted=None, force=force
            )
        asked = _readable(visit.query)
        counted = await dead_letters.counted(self._queue, asked)
        return self._pages.page(
            "confirm", visit.session, action=action, whole=None, asked=asked, counted=counted, force=False
        )

    async def _redrive(self, visit: Visit) -> Response:
        form, most = visit.form, self._settings.queue.max_backlog
        force = form.get("force", "") == "yes"
        forced = {"force": "yes"} if force else {}
        if letter_id := form.get("id", ""):
            redriving = dead_letters.redrive_one(self._queue, letter_id, max_backlog=most, force=force)
            done = await self._logged(visit, "redrive", redriving, letter=letter_id, **forced)
            return _told("redrive", done, {})
        asked = _readable(form, settled=True)
        redriving = dead_letters.redrive_set(self._queue, asked, max_backlog=most, force=force)
        done = await self._logged(visit, "redrive", redriving, **asked.query, **forced)
        return _told("redrive", done, asked.query)

    async def _drop(self, visit: Visit) -> Response:
        if letter_id := visit.form.get("id", ""):
            dropping = dead_letters.drop_one(self._queue, letter_id)
            return _told("drop", await self._logged(visit, "drop", dropping, letter=letter_id), {})
        asked = _readable(visit.form, settled=True)
        dropping = dead_letters.drop_set(self._queue, asked)
        return _told("drop", await self._logged(visit, "drop", dropping, **asked.query), asked.query)

    # --- what runs where

    async def _inventory(self, visit: Visit) -> Response:
        asked = inventory.Asked.of(visit.query)
        found = await inventory.see(self._queue, self._status, asked)
        return self._pages.page("inventory", visit.session, asked=asked, stock=found)

    # --- staying true

    def _stream(self, visit: Visit, page: str, look: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
        if self._streams.is_full:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Not live", "Too many pages are open: reload now and then.")

        async def render() -> str:
            return self._pages.live(page, visit.session, **await look())

        return self._streams.stream(visit.session, render)


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response


def _not_ours() -> Refused:
    text = (
        "This form was not made by this console for your session, so nothing was done. Reload the page and try again."
    )
    return Refused(HTTPStatus.FORBIDDEN, "Refused", text)


def _no_letter() -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, "No such letter", "It was redriven or dropped meanwhile, or never was.")


def _ours(path: str) -> str:
    """Return a path of the console, or its first page for anything that could lead elsewhere."""
    inside = path.startswith(f"{ROOT}/") and path.isascii() and path.isprintable() and "\\" not in path
    return path if inside else url()


def _came_safely(request: Request) -> bool:
    """Tell whether a request came by TLS, or says that its proxy took it so; who lies guards their own cookie."""
    return (
        request.url.scheme == "https"
        or request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower() == "https"
    )


def _environment(form: Mapping[str, str]) -> str:
    name = form.get("environment", "")
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise Refused(HTTPStatus.BAD_REQUEST, "No environment", "The form names no environment.")
    return name


def _readable(form: Mapping[str, str], *, settled: bool = False) -> dead_letters.Asked:
    """Read which letters are meant; to act on them it must be `settled` until when they died."""
    asked = dead_letters.Asked.of(form)
    if asked.faults:
        raise Refused(HTTPStatus.BAD_REQUEST, "Not understood", "; ".join(asked.faults))
    if settled and asked.filters.died_until is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "Not understood", "The form does not say until when the letters died.")
    return asked


def _told(action: str, done: dead_letters.Done, query: Mapping[str, str]) -> Response:
    return redirect(url("dead", query, done=action, letters=done.letters, why=done.why))


def _notice(query: Mapping[str, str]) -> str:
    """Say what a form did, of fixed words and a number."""
    done, count = _DONE.get(query.get("done", "")), query.get("letters", "")
    if done is None or not count.isascii() or not count.isdecimal() or len(count) > 7:  # noqa: PLR2004 - digits
        return ""
    return f"{plural(int(count), 'dead letter')} {done}. {_WHY.get(query.get('why', ''), '')}".strip()


def _page_of(visit: Visit) -> str:
    """Return the page that a stream is for."""
    return url("", dict(visit.query))
