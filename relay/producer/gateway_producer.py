"""`GatewayProducer`: reports through a gateway, where Redis is not reachable."""

from __future__ import annotations

import itertools
import math
import queue
import random
import re
import threading
import time
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from relay.backoff import pause_seconds
from relay.errors import ConfigurationError, GatewayRefused, QueueUnavailable
from relay.producer import gateway_requests
from relay.producer.base import BaseProducer, Outcome, adding_enqueued, send_valid, with_id
from relay.producer.gateway_requests import Answer, TryAgain
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from relay.events.event import DeploymentEvent
    from relay.producer.base import Given
    from relay.queue.receipts import Receipt

#: Maximum duration of an attempt, so that a gateway that hangs leaves time for another one.
ATTEMPT_SECONDS = 10.0

#: Upper bounds of the first pause before a retry and of any pause; and the maximum `Retry-After` that is respected.
PAUSE_SECONDS = (0.2, 5.0)
RETRY_AFTER_MAX_SECONDS = 15.0

#: Maximum bytes of a response: a thousand ids, or a thousand reasons.
MAX_ANSWER_BYTES = 2 * 1024 * 1024

_READ_BYTES = 65_536
_CA_FILE = "producer.gateway_ca_file (RELAY_PRODUCER__GATEWAY_CA_FILE)"
_RANDOM = random.Random()  # noqa: S311 - jitter is no secret

#: Characters of a token in a header.
_TOKEN = re.compile(r"[\x21-\x7e]*")

#: Errors of the connection, which may pass; `_is_permanent` excludes those about the certificate.
_PASSING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, TimeoutError)


class GatewayProducer(BaseProducer):
    """Reports deployments through a gateway. For one thread; connects at the first report and again when it must.

        with GatewayProducer("https://relay.example.com", token="…") as producer:
            producer.report("ghcr.io/acme/api@sha256:…", environment="production")

    URL and token default to the settings: RELAY_GATEWAY_URL, and RELAY_GATEWAY_TOKEN or RELAY_GATEWAY_TOKEN_FILE. For
    https:// proxies and certificates follow the environment, as in `requests`. http:// uses no proxy, which would see
    the token. A netrc file does not replace the token, and no redirect is followed with it.

    Temporary failures are retried with the same ids for `producer.gateway_timeout`. Then `QueueFull` or
    `QueueUnavailable` is raised. After the latter, events may be enqueued or not: report them again with the same
    `id`, and they count once. Raises `GatewayRefused` for a wrong token or URL.
    """

    chunk_size = gateway_requests.MAX_EVENTS

    def __init__(
        self, gateway_url: str | None = None, *, token: str | None = None, settings: Settings | None = None
    ) -> None:
        arguments = {"gateway_url": gateway_url, "gateway_token": token}
        given = {name: value for name, value in arguments.items() if value is not None}
        if settings is not None and given:
            raise TypeError("give either settings, or gateway_url and token")
        self._settings = (settings or Settings.load(producer=given)).producer
        if not self._settings.gateway_url:
            raise ConfigurationError("no gateway to report to: set RELAY_GATEWAY_URL")
        found = token if token is not None else self._settings.read_gateway_token()
        if not _TOKEN.fullmatch(found):
            raise ConfigurationError("the gateway's token has characters that no token has: check the file")
        self._bearer = _Bearer(found)
        self._ca_file = str(self._settings.gateway_ca_file) if self._settings.gateway_ca_file else None
        self._authorities_from = _CA_FILE if self._ca_file else "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"
        self._session = self._new_session()

    def receipts(self, ids: Sequence[str], *, within_seconds: float = math.inf) -> Iterator[Receipt | None]:
        """Yield the receipt of each event, None where there is none (any more).

        Each costs a request of at most `producer.gateway_timeout`; all take at most `within_seconds`.
        """
        give_up_at = time.monotonic() + within_seconds
        for event_id in ids:
            left = give_up_at - time.monotonic()
            yield self._receipt(event_id, min(left, self._settings.gateway_timeout))

    def _sender(self, *, receipts: bool) -> Callable[[list[Given]], list[Outcome]]:  # noqa: ARG002 - a gateway always keeps them
        return partial(send_valid, send=self._send)

    def _send(self, events: Sequence[DeploymentEvent]) -> list[Outcome]:
        """Report events in requests as large as allowed."""
        outcomes: list[Outcome] = []
        lines = [gateway_requests.line_of(with_id(event)) for event in events]
        with adding_enqueued(outcomes):
            for request in gateway_requests.requests_of(lines):
                outcomes += self._report(request)
        return outcomes

    def _report(self, lines: Sequence[bytes]) -> list[Outcome]:
        """Send lines until each has an outcome."""
        outcomes: list[Outcome | None] = [None] * len(lines)

        def attempt(seconds: float) -> TryAgain | None:
            left = [place for place, outcome in enumerate(outcomes) if outcome is None]
            content = b"\n".join(lines[place] for place in left)
            url = gateway_requests.reports_url(self._settings.gateway_url)
            read = gateway_requests.read_report(self._ask("POST", url, seconds, content), len(left))
            for place, outcome in zip(left, read.outcomes, strict=False):
                outcomes[place] = outcome
            return read if isinstance(read, TryAgain) and None in outcomes else None

        with adding_enqueued(outcomes):
            self._until_done(attempt, self._settings.gateway_timeout)
        return [outcome for outcome in outcomes if outcome is not None]

    def _receipt(self, event_id: str, within_seconds: float) -> Receipt | None:
        found: Receipt | None = None

        def attempt(seconds: float) -> TryAgain | None:
            nonlocal found
            url = gateway_requests.receipt_url(self._settings.gateway_url, event_id)
            read = gateway_requests.read_receipt(self._ask("GET", url, seconds))
            if isinstance(read, TryAgain):
                return read
            found = read
            return None

        self._until_done(attempt, within_seconds)
        return found

    def _until_done(self, attempt: Callable[[float], TryAgain | None], within_seconds: float) -> None:
        """Make attempts, each with its seconds, until one returns None; at the deadline raise the last error."""
        give_up_at = time.monotonic() + within_seconds
        initial, maximum = PAUSE_SECONDS
        again = TryAgain(error=self._unreachable(TimeoutError("no time was left for a request")))
        for attempts in itertools.count(1):
            left = give_up_at - time.monotonic()
            if left <= 0:  # also if the pause took longer than planned
                raise again.error
            try:
                answered = attempt(min(ATTEMPT_SECONDS, left))
            except _PASSING as error:
                answered = TryAgain(error=self._unreachable(error))
            except requests.RequestException as error:
                raise self._unreachable(error) from None
            except OSError as error:  # raised by requests if certificate files are missing
                raise ConfigurationError(f"{error}: correct {self._authorities_from}") from error
            if answered is None:
                return
            again = answered
            pause = pause_seconds(attempts, initial=initial, maximum=maximum, random=_RANDOM)
            pause = max(pause, min(again.after_seconds, RETRY_AFTER_MAX_SECONDS))
            if pause >= give_up_at - time.monotonic():
                raise again.error
            time.sleep(pause)

    def _ask(self, method: str, url: str, seconds: float, content: bytes | None = None) -> Answer:
        """Make one attempt, bounded by that many seconds: requests' own time-out starts again with each byte."""
        session = self._session
        outcome: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                outcome.put(_exchange(session, method, url, seconds=seconds, content=content, ca_file=self._ca_file))
            except Exception as error:  # noqa: BLE001 - raised in the waiting thread
                outcome.put(error)

        threading.Thread(target=ask, name="gateway", daemon=True).start()
        try:
            got = outcome.get(timeout=seconds)
        except queue.Empty:
            self._session = self._new_session()  # the old one belongs to that thread until its time-out
            raise TimeoutError(f"no whole answer within {seconds:.0f} s") from None
        if isinstance(got, Exception):
            if _is_permanent(got):
                raise self._unreachable(got) from None
            raise got
        return got

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        session.auth = self._bearer
        session.headers["Accept-Encoding"] = "identity"
        if urlsplit(self._settings.gateway_url).scheme == "http":
            session.trust_env = False  # a proxy would see the token
        return session

    def _unreachable(self, error: Exception) -> QueueUnavailable:
        unavailable = QueueUnavailable(f"the gateway at {self._settings.gateway_url}: {_because(error)}")
        unavailable.__cause__ = error
        return unavailable

    def close(self) -> None:
        """Close the connections. Reporting again opens new ones."""
        self._session.close()


class _Bearer(AuthBase):
    """Adds the token to requests; an `auth` also keeps requests from using a netrc file."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _exchange(
    session: requests.Session, method: str, url: str, *, seconds: float, content: bytes | None, ca_file: str | None
) -> Answer:
    headers: Mapping[str, str] = {} if content is None else {"Content-Type": "application/x-ndjson"}
    with session.request(
        method,
        url,
        data=content,
        headers=headers,
        timeout=seconds,
        allow_redirects=False,
        stream=True,
        verify=ca_file,  # None: as the environment has it
    ) as response:
        answered = bytearray()
        for part in response.iter_content(_READ_BYTES):
            answered += part
            if len(answered) > MAX_ANSWER_BYTES:
                raise GatewayRefused(f"its answer has over {MAX_ANSWER_BYTES} bytes: check the gateway's URL")
        answer_headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(status=response.status_code, headers=answer_headers, content=bytes(answered))


def _is_permanent(error: Exception) -> bool:
    """Return whether the certificate is not trusted, which waiting does not change."""
    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _because(error: Exception) -> str:
    """Return in a few words why a request failed: the innermost error that requests and urllib3 wrap."""
    if _is_permanent(error):
        return f"its certificate is not trusted: name its authority with {_CA_FILE} or REQUESTS_CA_BUNDLE"
    inner = error.args[0] if error.args else error
    reason = str(getattr(inner, "reason", None) or inner)
    return reason.rpartition(": ")[2].strip("()'\"") or type(error).__name__
