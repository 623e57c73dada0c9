"""Does the reporting API answer, at this URL, to this token? Asked without creating a deployment.

The API documents no way to ask after its health. So an *empty object* is POSTed: no deployment can be made of it, so
an API that reads it refuses it (400, 422), and one that looks at the token first refuses that (401, 403). Where the
body is refused, the same is sent once more *without* a token: only if that gets 401 or 403 is it known that the token
was looked at, and accepted. An API that reads the body first cannot be asked this way, and that is said.

What no probe can tell: whether the token may report for each environment, and how the API fares under load.
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
from relay.operations.doctor.result import Result, fault, note, ok, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from relay.settings import ApiSettings, Settings

#: Bytes of an answer that are read, and of them shown.
MAX_BODY_BYTES = 4096
EXCERPT_CHARACTERS = 120

#: An answer's date is in whole seconds, and was written before it travelled.
SKEW_SECONDS = 5.0

#: What no API makes a deployment of.
EMPTY = b"{}"

_REFUSED_BODY = frozenset({400, 415, 422})
_REFUSED_TOKEN = frozenset({401, 403})
_NO_SUCH_URL = frozenset({404, 405, 410})
_NOT_NOW = frozenset({408, 425, 429})


class Failure(Enum):
    """Why there was no answer: what it is, and what to do."""

    DNS = "its name cannot be resolved", "mend the host in RELAY_API_URL, or see to DNS"
    TLS = (
        "its certificate or TLS is not accepted",
        "set api.ca_file for an authority of your own, or mend the certificate; this machine's clock matters too",
    )
    REFUSED = "the connection is refused", "see whether the API runs, and whether RELAY_API_URL has the right port"
    CONNECT = "no connection can be made", "see to the network, the firewall and the proxy (HTTPS_PROXY) on the way"
    TIMEOUT = "no answer came in time", "see to the API, or raise api.timeout"
    BROKEN = "the connection broke before an answer came", "see whether RELAY_API_URL is an HTTP API, and to proxies"


#: What says so, in the order of what says most.
_KINDS: tuple[tuple[Failure, tuple[type[BaseException], ...]], ...] = (
    (Failure.TLS, (ssl.SSLError, requests.exceptions.SSLError)),
    (Failure.DNS, (socket.gaierror,)),
    (Failure.REFUSED, (ConnectionRefusedError,)),
    (Failure.CONNECT, (requests.ConnectTimeout, NewConnectionError)),
    (Failure.TIMEOUT, (requests.Timeout, TimeoutError)),
)


class Answer(NamedTuple):
    """What came back; `skew_seconds` is how far the API's clock is ahead of ours, None if it does not tell."""

    status: int
    location: str = ""
    excerpt: str = ""
    skew_seconds: float | None = None


def examine(settings: Settings, clock: Callable[[], float] = time.time) -> Iterator[Result]:
    """Probe the API and judge."""
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
            "api", f"the API at {where} is not reachable: {what}", f"{do}; what waits is kept, and tried again"
        )
        return
    bare = probe(api, None, clock) if first.status in _REFUSED_BODY else None
    yield judge(where, first, bare if isinstance(bare, Answer) else None)
    if first.skew_seconds is not None:
        yield skew(first.skew_seconds)


def probe(api: ApiSettings, token: str | None, clock: Callable[[], float] = time.time) -> Answer | Failure:
    """POST an empty object, follow nothing, take nothing but proxies from the environment; read a bounded part."""
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
            return Answer(
                status=response.status_code,
                location=_where(urljoin(api.url, response.headers.get("Location", ""))),
                excerpt=_excerpt(response),
                skew_seconds=_skew(response.headers.get("Date"), before, after),
            )
    except (requests.RequestException, OSError, ValueError) as error:
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """Return what kept an answer away, from what `requests` raised and what that was caused by."""
    causes = list(_causes(error))
    for failure, kinds in _KINDS:
        if any(isinstance(each, kinds) for each in causes):
            return failure
    return Failure.BROKEN


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from; urllib3 keeps some in `args` and `reason`."""
    seen: set[int] = set()
    open_ends = [error]
    while open_ends:
        each = open_ends.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        open_ends += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]


def judge(where: str, answer: Answer, bare: Answer | None) -> Result:
    """Say what an answer to the probe tells; `bare` is the one to the same without a token, if that was asked."""
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
            "mend RELAY_API_URL and restart the workers",
        )
    if 300 <= status < 400:  # noqa: PLR2004 - HTTP's own classes
        return fault(
            "api",
            f"{where} redirects to {answer.location or 'nowhere'} (HTTP {status}), and the relay follows none: the "
            "token would go to another place",
            "set RELAY_API_URL to that address if it is the API's, and restart the workers",
        )
    if status in _NOT_NOW:
        return warning(
            "api",
            f"the API limits the rate or asks to come later ({said}), so of the token nothing is known",
            "wait, or have the limit raised; api.rate_limit below it spares the refusals",
        )
    if status >= 500:  # noqa: PLR2004 - the same
        return fault(
            "api",
            f"the API is failing ({said})",
            "see to the API; what waits is kept, and tried again by itself",
        )
    return _accepted(where, said, answer, bare)


def _accepted(where: str, said: str, answer: Answer, bare: Answer | None) -> Result:
    if answer.status not in _REFUSED_BODY:
        return warning(
            "api",
            f"{where} answers an empty object with {said}; a reporting API would refuse it, so of URL and token "
            "nothing is known",
            "see that RELAY_API_URL is the API's, and no page or proxy before it",
        )
    if bare is not None and bare.status in _REFUSED_TOKEN:
        return ok(
            "api", f"the API at {where} answers and accepts the token (whether for all environments is not told)"
        )
    return note(
        "api",
        f"the API at {where} answers, and reads the body before the token ({said}): whether it accepts the token is "
        "not known",
        "`relay status` shows whether events are delivered",
    )


def skew(seconds: float) -> Result:
    """Judge how far the API's clock is ahead of ours."""
    if abs(seconds) < SKEW_SECONDS:
        return ok("clock.api", "this machine's clock and the API's agree")
    return warning(
        "clock.api",
        f"this machine's clock is {abs(seconds):,.0f} s {'behind' if seconds > 0 else 'ahead of'} the API's",
        "see to NTP here: tokens and certificates are valid from one time to another",
    )


def _skew(date: str | None, before: float, after: float) -> float | None:
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return None
    return theirs - min(max(theirs, before - 1), after)  # a Date is cut to its second


def _where(url: str) -> str:
    """Return an address without what may be secret in it: user, query, fragment."""
    try:
        parts = urlsplit(url)
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        host = name + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "an address that cannot be read"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _excerpt(response: requests.Response) -> str:
    """Read a bounded part of the body and return the beginning of it; '' if it breaks off."""
    try:
        # read1 waits for no more than has come: an answer that drips would take all of the check's time.
        read = getattr(response.raw, "read1", response.raw.read)
        body = read(MAX_BODY_BYTES, decode_content=False)
    except (HTTPError, OSError):  # the status counts, whatever becomes of the rest
        return ""
    text = body.decode("utf-8", "replace").strip()
    return "".join(letter if letter.isprintable() else " " for letter in text)[:EXCERPT_CHARACTERS]
