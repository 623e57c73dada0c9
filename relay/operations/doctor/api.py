"""Check of the deployment API: whether it answers, at this URL, to this token. Creates no deployment.

That API documents no health check. So the relay POSTs an *empty object*, of which no deployment can be made: an API
that reads the body first refuses it (400, 422), and one that checks the token first refuses that (401, 403). If the
body is refused, the same request is sent once more *without* a token. Only if that gets 401 or 403 is the token known
to have been checked and accepted. An API that reads the body first cannot be checked this way, and a note says so.

A probe cannot tell whether the token may report for each environment, nor how the API behaves under load.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError, NewConnectionError

from relay.errors import ConfigurationError
from relay.operations.finding import Finding, fault, note, ok, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from relay.settings import ApiSettings, Settings

#: Bytes of an answer that are read.
MAX_BODY_BYTES = 4096

#: Characters of an answer that are shown.
EXCERPT_CHARACTERS = 120

#: Difference between the clocks from which it is reported: a Date is in whole seconds, and older by the network
#: delay.
SKEW_SECONDS = 5.0

#: A body of which no API makes a deployment.
EMPTY = b"{}"

_REFUSED_BODY = frozenset({400, 415, 422})
_REFUSED_TOKEN = frozenset({401, 403})
_NO_SUCH_URL = frozenset({404, 405, 410})
_NOT_NOW = frozenset({408, 425, 429})


class Failure(Enum):
    """Why there was no answer, and what to do."""

    DNS = "its name cannot be resolved", "fix the host in RELAY_API_URL, or DNS"
    TLS = (
        "its certificate or TLS is not accepted",
        "set api.ca_file for an authority of your own, or fix the certificate; this machine's clock matters too",
    )
    REFUSED = "the connection is refused", "check that the API runs, and that RELAY_API_URL has the right port"
    CONNECT = "no connection can be made", "check the network, the firewall and the proxy (HTTPS_PROXY) on the way"
    TIMEOUT = "no answer came in time", "check the API, or raise api.timeout"
    BROKEN = (
        "the connection broke before an answer came",
        "check RELAY_API_URL and the proxies on the way",
    )


#: Exceptions by failure, the most specific first.
_KINDS: tuple[tuple[Failure, tuple[type[BaseException], ...]], ...] = (
    (Failure.TLS, (ssl.SSLError, requests.exceptions.SSLError)),
    (Failure.DNS, (socket.gaierror,)),
    (Failure.REFUSED, (ConnectionRefusedError,)),
    (Failure.CONNECT, (requests.ConnectTimeout, NewConnectionError)),
    (Failure.TIMEOUT, (requests.Timeout, TimeoutError)),
)


class ProbeAnswer(NamedTuple):
    """An answer to the probe; `skew_seconds` is how far the API's clock is ahead, None without a Date."""

    status: int
    location: str = ""
    excerpt: str = ""
    skew_seconds: float | None = None


def check_api(settings: Settings, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Probe the API."""
    try:
        api = settings.require_api()
        token = api.read_token()
    except ConfigurationError as error:
        yield fault("api", str(error), "nothing can be delivered before; a machine that only produces needs none")
        return
    where = _where(api.url)
    first = probe(api, token, clock)
    if isinstance(first, Failure):
        what, do = first.value
        yield fault(
            "api", f"the API at {where} is not reachable: {what}", f"{do}; waiting events are kept and retried"
        )
        return
    bare = probe(api, None, clock) if first.status in _REFUSED_BODY else None
    yield decide_answer(where, first, bare if isinstance(bare, ProbeAnswer) else None)
    if first.skew_seconds is not None:
        yield decide_skew(first.skew_seconds)


def probe(api: ApiSettings, token: str | None, clock: Callable[[], float] = time.time) -> ProbeAnswer | Failure:
    """POST an empty object. Follow no redirect, and use only proxies of the environment."""
    session = requests.Session()
    session.trust_env = False  # a netrc would replace the token
    proxies = get_environ_proxies(api.url) if api.url.startswith("https:") else {}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    timeouts = (api.connect_timeout, api.timeout)
    verify = str(api.ca_file) if api.ca_file else True
    before = clock()
    try:
        with closing(session), session.post(
            api.url, data=EMPTY, headers=headers, timeout=timeouts, verify=verify, proxies=proxies,
            allow_redirects=False, stream=True,
        ) as response:  # fmt: skip
            after = clock()
            return ProbeAnswer(
                status=response.status_code,
                location=_where(urljoin(api.url, response.headers.get("Location", ""))),
                excerpt=_excerpt(response),
                skew_seconds=_skew(response.headers.get("Date"), before, after),
            )
    except (requests.RequestException, OSError, ValueError) as error:
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """Return why there was no answer, from the exception of `requests` and its causes."""
    causes = list(_causes(error))
    for failure, kinds in _KINDS:
        if any(isinstance(each, kinds) for each in causes):
            return failure
    return Failure.BROKEN


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes; urllib3 keeps some in `args` and `reason`."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        each = pending.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]


def decide_answer(where: str, answer: ProbeAnswer, bare: ProbeAnswer | None) -> Finding:
    """Return what an answer means; `bare` is the answer to the request without a token, if it was sent."""
    status, said = answer.status, f"HTTP {answer.status}{f', “{answer.excerpt}”' if answer.excerpt else ''}"
    if status in _REFUSED_TOKEN:
        return fault(
            "api",
            f"the API refuses the token: it expired, is wrong, or may not report ({said})",
            "put a valid one in RELAY_API_TOKEN_FILE, or in RELAY_API_TOKEN and restart the workers; nothing is lost",
        )
    if status in _NO_SUCH_URL:
        return fault(
            "api",
            f"the API knows no such URL, or takes no POST there: {where} ({said})",
            "fix RELAY_API_URL and restart the workers",
        )
    if 300 <= status < 400:  # noqa: PLR2004 - HTTP's own classes
        return fault(
            "api",
            f"{where} redirects to {answer.location or 'nowhere'} (HTTP {status}), and the relay follows no "
            "redirect: the token would go to another host",
            "set RELAY_API_URL to that address if it is the API's, and restart the workers",
        )
    if status in _NOT_NOW:
        return warning(
            "api",
            f"the API limits the rate or asks to retry later ({said}), so nothing is known of the token",
            "wait, or have the limit raised; an api.rate_limit below it avoids the refusals",
        )
    if status >= 500:  # noqa: PLR2004 - the same
        return fault(
            "api",
            f"the API is failing ({said})",
            "check the API; waiting events are kept and retried automatically",
        )
    return _accepted(where, said, answer, bare)


def _accepted(where: str, said: str, answer: ProbeAnswer, bare: ProbeAnswer | None) -> Finding:
    if answer.status not in _REFUSED_BODY:
        return warning(
            "api",
            f"{where} answers an empty object with {said}; a deployment API would refuse it, so nothing is known of "
            "URL and token",
            "check that RELAY_API_URL is the API's, and not a page or proxy in front of it",
        )
    if bare is not None and bare.status in _REFUSED_TOKEN:
        return ok(
            "api", f"the API at {where} answers and accepts the token (whether for all environments is not known)"
        )
    return note(
        "api",
        f"the API at {where} answers, and reads the body before the token ({said}): whether it accepts the token is "
        "not known",
        "`relay status` shows whether events are delivered",
    )


def decide_skew(seconds: float) -> Finding:
    """Return whether the clocks agree; `seconds` is how far the API's is ahead."""
    if abs(seconds) < SKEW_SECONDS:
        return ok("clock.api", "this machine's clock and the API's agree")
    return warning(
        "clock.api",
        f"this machine's clock is {abs(seconds):,.0f} s {'behind' if seconds > 0 else 'ahead of'} the API's",
        "check NTP here: tokens and certificates are valid for a period",
    )


def _skew(date: str | None, before: float, after: float) -> float | None:
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return None
    return theirs - min(max(theirs, before - 1), after)  # a Date is cut to its second


def _where(url: str) -> str:
    """Return a URL without the parts that may be secret: user, query, fragment."""
    try:
        parts = urlsplit(url)
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        host = name + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "an address that cannot be read"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _excerpt(response: requests.Response) -> str:
    """Return the beginning of the body, reading a bounded part of it; empty if the connection breaks."""
    try:
        # read1 returns what has arrived: reading more of a slow answer could take all of the check's time.
        read = getattr(response.raw, "read1", response.raw.read)
        body = read(MAX_BODY_BYTES, decode_content=False)
    except (HTTPError, OSError):  # the status is enough
        return ""
    text = body.decode("utf-8", "replace").strip()
    return "".join(letter if letter.isprintable() else " " for letter in text)[:EXCERPT_CHARACTERS]
