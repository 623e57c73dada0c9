"""Checks against requests that a page of another site makes a browser send. Pure.

A browser on the operator's machine reaches servers on loopback, and any page can make it send requests there:

- A cross-site request. Browsers mark it by `Sec-Fetch-Site`, older ones and those of pages without TLS by `Origin`.
- A request to a name of the page's own that its DNS server points to 127.0.0.1 (DNS rebinding). The browser takes it
  for the same site, and the page may read the responses. Only `Host` shows it: the name is none of this machine's.
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
    """The gateway's host names: `gateway.hosts`, and on loopback those of this machine."""

    def __init__(self, named: tuple[str, ...], *, is_local: bool) -> None:
        self._named = frozenset(_host_of(each) for each in named)
        #: Whether the gateway listens on loopback only, so that `Host` is checked.
        self.is_local = is_local

    @classmethod
    def of(cls, settings: GatewaySettings) -> Self:
        """Return the hosts of the settings."""
        return cls(settings.hosts, is_local=is_loopback(settings.host))

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise 421, on loopback, for a request to an unknown host name."""
        if self.has_own_host(headers):
            return
        raise Refused(
            HTTPStatus.MISDIRECTED_REQUEST,
            "the Host header is none of this machine's names; add the name of a proxy to gateway.hosts",
        )

    def has_own_host(self, headers: Mapping[str, str]) -> bool:
        """Return whether `Host` is known. True beyond loopback, and without the header, which every browser sends."""
        host = headers.get("host")
        return not self.is_local or host is None or self._is_ours(_host_of(host))

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Raise 403 for a request that a browser marks as sent by a page of another site."""
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin")
        is_own_origin = origin is None or self._is_own_origin(origin, headers.get("host", ""))
        match None if site is None else site.strip().lower():
            case None:
                is_ours = is_own_origin
            case "none":  # typed by the operator, or sent by a browser extension
                is_ours = is_own_origin or not (origin or "").lower().startswith(("http:", "https:"))
            case given:
                is_ours = given == "same-origin"
        if not is_ours:
            raise Refused(HTTPStatus.FORBIDDEN, "a page of another site may not send this (Sec-Fetch-Site, Origin)")

    def _is_ours(self, host: str) -> bool:
        return is_loopback(host) or host in self._named

    def _is_own_origin(self, origin: str, host: str) -> bool:
        """Return whether the origin has the request's host and port, or a proxy's name.

        The scheme is not compared: a proxy may terminate TLS. A missing port of `Host` is the origin's default.
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
