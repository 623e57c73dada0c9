"""`GatewayProducer`: `Producer` for places that cannot reach Redis."""

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
    from relay.producer.base import Checked
    from relay.queue.receipts import Receipt

#: How long one attempt may take in all, so that a gateway that hangs leaves time for another.
ATTEMPT_SECONDS = 10.0

#: The pause before the next attempt: the bound that it begins with and the longest; and the longest `Retry-After`.
PAUSE_SECONDS = (0.2, 5.0)
RETRY_AFTER_MAX_SECONDS = 15.0

#: Bytes of an answer that are read at most: a thousand ids, or a thousand reasons why not.
MAX_ANSWER_BYTES = 2 * 1024 * 1024

_READ_BYTES = 65_536
_CA_FILE = "producer.gateway_ca_file (RELAY_PRODUCER__GATEWAY_CA_FILE)"
_RANDOM = random.Random()  # noqa: S311 - jitter is no secret

#: What may stand in a header behind "Bearer".
_TOKEN = re.compile(r"[\x21-\x7e]*")

#: What may be another time: the connection, not the request. Not the certificate, which `_lasts` tells apart.
_PASSING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, TimeoutError)


class GatewayProducer(BaseProducer):
    """Reports deployments through a gateway. For one thread; connects at the first report and again when it must.

        with GatewayProducer("https://relay.example.com", token="…") as producer:
            producer.report("ghcr.io/acme/api@sha256:…", environment="production")

    URL and token are those of the settings unless given: RELAY_GATEWAY_URL, and RELAY_GATEWAY_TOKEN or
    RELAY_GATEWAY_TOKEN_FILE. For https:// proxies and certificates follow the environment as `requests` has it; http://
    goes through no proxy, which would see the token. A netrc file does not replace the token, and no redirect is
    followed with it.

    What fails for now is repeated with the same ids for `producer.gateway_timeout` in all. Then raises `QueueFull` or
    `QueueUnavailable`; after the last, events may be enqueued or not: report them again with the same `id`, and they
    count once. Raises `InvalidEvent` for what can never be delivered, and `GatewayRefused` for a wrong token or URL.
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
            raise ConfigurationError("the gateway's token has characters that no token has; is it another file?")
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

    def _sender(self, *, receipts: bool) -> Callable[[list[Checked]], list[Outcome]]:  # noqa: ARG002 - a gateway always keeps them
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
        """Send lines until the gateway has dealt with each."""
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
        """Make attempts, each with its seconds, until one returns None; when time is over, raise the last's error."""
        give_up_at = time.monotonic() + within_seconds
        initial, maximum = PAUSE_SECONDS
        again = TryAgain(error=self._unreachable(TimeoutError("there was no time to ask it")))
        for attempts in itertools.count(1):
            left = give_up_at - time.monotonic()
            if left <= 0:  # as well if the pause took longer than it was to
                raise again.error
            try:
                answered = attempt(min(ATTEMPT_SECONDS, left))
            except _PASSING as error:
                answered = TryAgain(error=self._unreachable(error))
            except requests.RequestException as error:
                raise self._unreachable(error) from None
            except OSError as error:  # requests' own, for certificates that are not where they are said to be
                raise ConfigurationError(f"{error}: mend {self._authorities_from}") from error
            if answered is None:
                return
            again = answered
            pause = pause_seconds(attempts, initial=initial, maximum=maximum, random=_RANDOM)
            pause = max(pause, min(again.after_seconds, RETRY_AFTER_MAX_SECONDS))
            if pause >= give_up_at - time.monotonic():
                raise again.error
            time.sleep(pause)

    def _ask(self, method: str, url: str, seconds: float, content: bytes | None = None) -> Answer:
        """Make one attempt, which ends within that many seconds whatever the other side does."""
        session = self._session
        outcome: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                outcome.put(_exchange(session, method, url, seconds=seconds, content=content, ca_file=self._ca_file))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                outcome.put(error)

        threading.Thread(target=ask, name="gateway", daemon=True).start()
        try:
            got = outcome.get(timeout=seconds)
        except queue.Empty:
            self._session = self._new_session()  # the old one is that thread's, which its next time-out ends
            raise TimeoutError(f"no whole answer within {seconds:.0f} s") from None
        if isinstance(got, Exception):
            if _lasts(got):
                raise self._unreachable(got) from None
            raise got
        return got

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        session.auth = self._bearer
        session.headers["Accept-Encoding"] = "identity"
        if urlsplit(self._settings.gateway_url).scheme == "http":
            session.trust_env = False  # a proxy of the environment would see the token
        return session

    def _unreachable(self, error: Exception) -> QueueUnavailable:
        unavailable = QueueUnavailable(f"the gateway at {self._settings.gateway_url}: {_because(error)}")
        unavailable.__cause__ = error
        return unavailable

    def close(self) -> None:
        """Close the connections. Reporting again opens new ones."""
        self._session.close()


class _Bearer(AuthBase):
    """Puts the token on requests; that there is an `auth` keeps requests from taking a netrc file's."""

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
                raise GatewayRefused(f"its answer has over {MAX_ANSWER_BYTES} bytes; is the gateway's URL right?")
        answer_headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(status=response.status_code, headers=answer_headers, content=bytes(answered))


def _lasts(error: Exception) -> bool:
    """Tell a certificate that is not trusted from what passes: waiting makes it no better."""
    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _because(error: Exception) -> str:
    """Say in a few words why a request failed: the end of the chain that requests and urllib3 wrap it in."""
    if _lasts(error):
        return f"its certificate is not trusted: name its authority with {_CA_FILE} or REQUESTS_CA_BUNDLE"
    inner = error.args[0] if error.args else error
    reason = str(getattr(inner, "reason", None) or inner)
    return reason.rpartition(": ")[2].strip("()'\"") or type(error).__name__
