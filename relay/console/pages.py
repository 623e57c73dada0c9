"""The console's HTML, assets and headers."""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from relay.console import filters, sparkline
from relay.console.dead_letters import MAX_PER_FORM
from relay.operations.status import duration
from relay.queue.dead_letters import Reason
from relay.redaction import PAGE_CHARACTERS, Secrets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http import HTTPStatus

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from relay.console.session import Session
    from relay.settings import Settings

#: The path of the console.
ROOT = "/console"

#: The headers of every page: only the console's own files and forms, no frames, no referrer elsewhere, no caching.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # `no-referrer` would make the Origin of the console's forms `null`
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: Media types of assets by file extension. An asset's URL has a hash of its content, so that it may be cached.
_MEDIA = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_KEEP_ASSETS = "public, max-age=31536000, immutable"


class PageError(Exception):
    """An error that is shown as a page."""

    def __init__(self, status: HTTPStatus, title: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.title = title
        self.text = text


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file beside the templates."""

    media: str
    content: bytes

    @cached_property
    def version(self) -> str:
        """A hash of the content."""
        return hashlib.sha256(self.content).hexdigest()[:12]


class Pages:
    """The templates, loaded on demand. The tokens of this relay are masked in every page, wherever they come from."""

    def __init__(self, settings: Settings) -> None:
        self._secrets = Secrets.of(settings, shortest=PAGE_CHARACTERS)
        self._assets = _assets()
        self._templates = Environment(
            loader=FunctionLoader(_template),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.globals |= {
            "url": url,
            "asset": self._asset_url,
            "spark": sparkline,
            "exactly": glob.escape,
            "reasons": list(Reason),
            "max_per_form": MAX_PER_FORM,
        }
        self._templates.filters |= {
            "number": filters.number,
            "rate": filters.rate,
            "duration": duration,
            "moment": filters.moment,
            "short_digest": filters.short_digest,
            "plural": filters.plural,
            "with_code": filters.with_code,
        }
        self._templates.globals["parts"] = self._templates.get_template("parts.html").module

    def page(self, name: str, session: Session | None, *, status: int = 200, **shown: Any) -> Response:
        """Return a page."""
        text = self._templates.get_template(f"{name}.html").render(session=session, here=name, **shown)
        content = self._secrets.mask(text).encode(errors="replace")  # JSON may have half a surrogate pair
        return HTMLResponse(content, status)

    def live(self, name: str, session: Session, **shown: Any) -> str:
        """Return the live parts of a page: the blocks of its template whose names begin with `live_`."""
        template = self._templates.get_template(f"{name}.html")
        context = template.new_context({"session": session, "here": name, **shown})
        parts = [block(context) for part, block in template.blocks.items() if part.startswith("live_")]
        return self._secrets.mask("".join(text for part in parts for text in part))

    def asset(self, name: str) -> Response:
        """Return an asset, or raise 404."""
        asset = self._assets.get(name)
        if asset is None:
            raise HTTPException(404)
        return Response(asset.content, media_type=asset.media, headers={"Cache-Control": _KEEP_ASSETS})

    def _asset_url(self, name: str) -> str:
        return url(f"assets/{name}", {"v": self._assets[name].version})


def url(path: str = "", query: Mapping[str, str | int] | None = None, **more: str | int) -> str:
    """Return the URL of a page of the console, with any values in its query."""
    fields = {name: value for name, value in {**(query or {}), **more}.items() if value != ""}
    text = f"{ROOT}/{path}"
    return f"{text}?{urlencode(fields, errors='replace')}" if fields else text


def redirect(to: str) -> Response:
    """Return the response to a form: a GET of another page."""
    return RedirectResponse(to, 303)


def local_path(path: str) -> str:
    """Return a path of the console, or its first page for anything that could lead elsewhere."""
    is_local = path.startswith(f"{ROOT}/") and path.isascii() and path.isprintable() and "\\" not in path
    return path if is_local else url()


class HeadersMiddleware:
    """Adds `HEADERS` to all responses of an ASGI app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _template(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _assets() -> dict[str, Asset]:
    found = {}
    for each in files(__package__).joinpath("assets").iterdir():
        media = _MEDIA.get(each.name.rpartition(".")[2])
        if media is not None:
            found[each.name] = Asset(media=media, content=each.read_bytes())
    return found
