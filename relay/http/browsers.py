"""Requests that a page of another site makes a browser send: refused. Pure.

A browser on the operator's machine reaches what listens on loopback, and sends there what any page tells it to:

- A request to another site. Browsers say so: `Sec-Fetch-Site`, and `Origin` where they are older or the page came
  without TLS.
- A request to a name of the page's own that its DNS server turned to 127.0.0.1 (DNS rebinding). For the browser that
  is the same site, and the page may read the answers. Only `Host` shows it, which then has a name that is none of
  this machine's.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from relay.hosts import is_loopback
from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from relay.settings import GatewaySettings

_USUAL_PORTS = {"http": 80, "https": 443}


class Hosts:
    """The names under which the gateway is reached: `gateway.hosts`, and on loopback those of this machine."""

    def __init__(self, named: tuple[str, ...], *, is_local: bool) -> None:
        self._named = frozenset(_host_of(each) for each in named)
        #: Whether the gateway is reached from this machine alone, so that `Host` is checked.
        self.is_local = is_local

    @classmethod
    def of(cls, settings: GatewaySettings) -> Self:
        """Take them from the settings."""
        return cls(settings.hosts, is_local=is_loopback(settings.host))

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Refuse, on loopback, a request to a name that is none of ours."""
        if self.has_own_host(headers):
            return
        raise Refused(
            HTTPStatus.MISDIRECTED_REQUEST,
            "the Host header is none of this machine's names; add the name of a proxy to gateway.hosts",
        )

    def has_own_host(self, headers: Mapping[str, str]) -> bool:
        """Return whether `Host` may be so: not checked beyond loopback, and never left out by a browser."""
        host = headers.get("host")
        return not self.is_local or host is None or self._is_ours(_host_of(host))

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Refuse what a browser says a page of another site sent."""
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin")
        is_own_origin = origin is None or self._is_own_origin(origin, headers.get("host", ""))
        match None if site is None else site.strip().lower():
            case None:
                is_ours = is_own_origin
            case "none":  # an operator's doing, or that of an extension of their browser, which no site's page is
                is_ours = is_own_origin or not (origin or "").lower().startswith(("http:", "https:"))
            case given:
                is_ours = given == "same-origin"
        if not is_ours:
            raise Refused(HTTPStatus.FORBIDDEN, "a page of another site may not send this (Sec-Fetch-Site, Origin)")

    def _is_ours(self, host: str) -> bool:
        return is_loopback(host) or host in self._named

    def _is_own_origin(self, origin: str, host: str) -> bool:
        """Return whether a page of this origin is ours: it has the request's host and port, or a proxy's name.

        The scheme is a proxy's to know, which may end TLS: so the port that `Host` leaves out is the origin's.
        """
        try:
            parts, asked = urlsplit(origin.strip().lower()), urlsplit(f"//{host.strip().lower()}")
            usual = _USUAL_PORTS[parts.scheme]
            theirs, ours = (parts.hostname, parts.port or usual), (asked.hostname, asked.port or usual)
        except (KeyError, ValueError):
            return False
        is_proxys = parts.hostname in self._named and theirs[1] == usual  # a proxy may have changed `Host`
        return is_proxys or (theirs == ours and parts.hostname is not None)


def _host_of(header: str) -> str:
    """Return the host of a `Host` header or a setting, without its port, in lower case."""
    try:
        return (urlsplit(f"//{header.strip().lower()}").hostname or "").rstrip(".")
    except ValueError:
        return ""
