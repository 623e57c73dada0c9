"""HTML, with the headers that every page has."""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import escape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from relay.console import filters, sparkline
from relay.console.dead_letters import MOST_AT_ONCE
from relay.console.redact import known_secrets, without
from relay.operations.status import duration
from relay.queue.dead_letters import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.console.session import Session
    from relay.settings import Settings

#: Where the console is.
ROOT = "/console"

#: Nothing but our own files and forms; nobody may frame us, learn of us, or keep a page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # `no-referrer` would make the Origin of our own forms `null`
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: An asset's media type by its name's end. Its URL has its content's hash, so it may be kept.
_MEDIA = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_KEEP_ASSETS = "public, max-age=31536000, immutable"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file beside the templates."""

    media: str
    content: bytes

    @cached_property
    def version(self) -> str:
        """Change when the content does."""
        return hashlib.sha256(self.content).hexdigest()[:12]


class Pages:
    """The templates, loaded as they are needed. No page has a token of this relay in it, whoever put it there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
            "most": MOST_AT_ONCE,
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
        """Render a page."""
        text = self._templates.get_template(f"{name}.html").render(session=session, here=name, **shown)
        return HTMLResponse(self._clean(text).encode(errors="replace"), status)  # JSON may hold half a character

    def live(self, name: str, session: Session, **shown: Any) -> str:
        """Render only the parts of a page that change: its template's blocks whose names begin with `live_`."""
        template = self._templates.get_template(f"{name}.html")
        context = template.new_context({"session": session, "here": name, **shown})
        parts = [block(context) for part, block in template.blocks.items() if part.startswith("live_")]
        return self._clean("".join(text for part in parts for text in part))

    def asset(self, name: str) -> Response | None:
        """Return an asset, None if there is none of this name."""
        asset = self._assets.get(name)
        if asset is None:
            return None
        return Response(asset.content, media_type=asset.media, headers={"Cache-Control": _KEEP_ASSETS})

    def _clean(self, text: str) -> str:
        secrets = known_secrets(self._settings)
        return without(without(text, secrets), map(escape, secrets))

    def _asset_url(self, name: str) -> str:
        return url(f"assets/{name}", {"v": self._assets[name].version})


def url(path: str = "", query: Mapping[str, str | int] | None = None, **more: str | int) -> str:
    """Return the URL of a page of the console, whatever is in the values."""
    fields = {name: value for name, value in {**(query or {}), **more}.items() if value != ""}
    text = f"{ROOT}/{path}"
    return f"{text}?{urlencode(fields, errors='replace')}" if fields else text


def redirect(to: str) -> Response:
    """Lead a browser on after a form, to be got."""
    return RedirectResponse(to, 303)


def _template(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _assets() -> dict[str, Asset]:
    found = {}
    for each in files(__package__).joinpath("assets").iterdir():
        media = _MEDIA.get(each.name.rpartition(".")[2])
        if media is not None:
            found[each.name] = Asset(media=media, content=each.read_bytes())
    return found
