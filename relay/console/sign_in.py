"""Signing in and out: the pages, the session's cookie, and the lock-out after wrong tokens."""

from __future__ import annotations

import ipaddress
import math
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from relay import hosts
from relay.console import session
from relay.console.attempts import Attempts
from relay.console.filters import plural
from relay.console.forms import foreign_form, read_form
from relay.console.pages import ROOT, PageError, local_path, redirect, url
from relay.http.browsers import Hosts
from relay.http.counted_log import CountedLog
from relay.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.datastructures import QueryParams
    from starlette.requests import Request
    from starlette.responses import Response

    from relay.console.pages import Pages
    from relay.console.session import Session
    from relay.settings import GatewaySettings

    Handler = Callable[["OperatorRequest"], Awaitable[Response]]

#: The cookie of a session.
COOKIE = "relay_console"

#: Maximum characters of a client's text in a log line.
LONGEST_LOGGED = 300

_log = get_logger("relay.console")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRequest:
    """A request of a signed-in operator. `form` is empty unless it is a POST."""

    session: Session
    #: The address of the operator's browser.
    address: str
    #: Path and query, to return to.
    location: str
    query: QueryParams
    form: Mapping[str, str] = field(default_factory=dict)


class SignIn:
    """Requires the operator token once, and the session's cookie from then on."""

    def __init__(self, settings: GatewaySettings, pages: Pages) -> None:
        self._token = settings.operator_token.get_secret_value()
        self._pages = pages
        self._hosts = Hosts.of(settings)
        self._proxies = [ipaddress.ip_network(each, strict=False) for each in settings.trusted_proxies]
        self._attempts = Attempts()
        self._wrong_tokens = CountedLog(_log, "wrong operator tokens")

    def close(self) -> None:
        """Write the last count of wrong tokens."""
        self._wrong_tokens.close()

    def session_of(self, request: Request) -> Session | None:
        """Return the request's session."""
        return session.read(request.cookies.get(COOKIE, ""), self._token, time.time())

    async def require(self, request: Request, handler: Handler) -> Response:
        """Return the handler's response to a request with a session, else lead to the sign-in page.

        A POST must be a form of this session.
        """
        known = self.session_of(request)
        if known is None:
            return self._to_sign_in(request)
        form: Mapping[str, str] = {}
        if request.method == "POST":
            form = await read_form(request, self._hosts)
            if not known.allows(form.get("csrf", "")):
                raise foreign_form()
        return await handler(
            OperatorRequest(
                session=known,
                address=self._address_of(request),
                location=_location(request),
                query=request.query_params,
                form=form,
            )
        )

    async def page(self, request: Request) -> Response:
        """Show the sign-in page."""
        following = local_path(request.query_params.get("next", ""))
        if self.session_of(request) is not None:
            return redirect(following)
        return self._show(request, following)

    async def submit(self, request: Request) -> Response:
        """Begin a session for the operator token."""
        form = await read_form(request, self._hosts)
        address = self._address_of(request)
        now = time.monotonic()
        following = local_path(form.get("next", ""))
        if wait := math.ceil(self._attempts.wait_seconds(address, now)):
            fault = f"Too many wrong tokens from your address: try again in {plural(wait, 'second')}."
            response = self._show(request, following, fault, HTTPStatus.TOO_MANY_REQUESTS)
            response.headers["Retry-After"] = str(wait)
            return response
        if not session.is_operator(form.get("token", ""), self._token):
            self._attempts.failed(address, now)
            self._wrong_tokens.note(f"the last one from {address[:LONGEST_LOGGED]}")
            return self._show(request, following, "This is not the operator token.", HTTPStatus.FORBIDDEN)
        response = redirect(following)
        cookie = session.begin(self._token, time.time())
        begun = session.read(cookie, self._token, time.time())
        _log.info("console sign-in", session=begun.name if begun else "", address=address)
        response.set_cookie(
            COOKIE, cookie, max_age=session.SESSION_SECONDS,
            path=ROOT, secure=_is_secure(request), httponly=True, samesite="strict",
        )  # fmt: skip
        return response

    async def sign_out(self, _request: OperatorRequest) -> Response:
        """Delete the cookie."""
        response = redirect(url("sign-in"))
        response.delete_cookie(COOKIE, path=ROOT, httponly=True, samesite="strict")
        return response

    def _to_sign_in(self, request: Request) -> Response:
        if request.url.path.startswith(f"{ROOT}/live/"):
            raise PageError(HTTPStatus.UNAUTHORIZED, "Not signed in", "The session is over.")
        if request.method == "POST":
            return redirect(url("sign-in"))
        location = _location(request)
        if request.headers.get("sec-fetch-site") == "cross-site" and COOKIE not in request.cookies:
            # A link in a chat or a runbook: the browser withholds a strict cookie, and sends it when this page
            # requests the same URL again.
            return self._pages.page("cookie-bounce", None, at=local_path(location))
        return redirect(url("sign-in", next=location))

    def _show(
        self, request: Request, following: str, fault: str = "", status: HTTPStatus = HTTPStatus.OK
    ) -> Response:
        in_the_clear = not _is_secure(request) and request.url.hostname not in {"localhost", "127.0.0.1", "::1"}
        return self._pages.page(
            "sign-in", None, status=status, following=following, fault=fault, in_the_clear=in_the_clear
        )

    def _address_of(self, request: Request) -> str:
        """Return the client's address: the peer's, or the one that the configured proxies forward."""
        peer = request.client.host if request.client else ""
        return hosts.client_address(peer, request.headers.getlist("x-forwarded-for"), self._proxies)


def _location(request: Request) -> str:
    return f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path


def _is_secure(request: Request) -> bool:
    """Return whether a request came by TLS, by its own claim behind a proxy: it affects only its own cookie."""
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return request.url.scheme == "https" or forwarded == "https"
