"""The transport: requests side by side over libcurl, at microseconds each. It retries nothing and decides nothing.

- An attempt is one POST, or none: nothing is repeated that may have gone out. HTTP/1.1, no redirects, no netrc.
- One deadline bounds the whole attempt. A status that was read counts, even if the rest of its answer never comes.
- A bounded part of an answer is read, and a smaller one kept, without the token.
- Bytes that follow an answer unasked end their connection. (Bytes that come after the next request went out look like
  its answer to any client.)
- A proxy from the environment (HTTPS_PROXY, NO_PROXY) is used for https alone, where it sees neither token nor event.

Three habits of libcurl need a counter-measure:

- When a kept-alive connection ends without a byte of an answer, libcurl sends the request again, up to five times
  (`Curl_retry_request`), though the destination may have processed it. A body from a callback that cannot be rewound
  makes libcurl fail instead (`E_SEND_FAIL_REWIND`, a reset).
- It checks only once a second whether kept connections still live. So each is checked right before a request uses it;
  if it is closed, or holds bytes, the request goes by a fresh connection, and nothing is sent twice.
- It checks its clock before its sockets. After a pause of the process, or a slow Redis, it would report time-outs for
  requests whose answers had come. So those answers are read first, with the time-outs suspended.

Not covered: the destination closes a connection while a request is on its way. Whether it processed the request
cannot be known; the event is sent again later, with the same idempotency key.
"""

from __future__ import annotations

import select
import time
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import pycurl

from relay.destinations import deployment_api
from relay.destinations.answer import MAX_BODY_BYTES, Answer, Failure, excerpt_of, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.settings import ApiSettings

    _Connection = tuple[str | int, ...]  # both ends' addresses and ports
    _Poll = Callable[[int], Sequence[object]]

_FAILURES = {
    pycurl.E_COULDNT_RESOLVE_HOST: Failure.DNS,
    pycurl.E_COULDNT_RESOLVE_PROXY: Failure.DNS,
    pycurl.E_COULDNT_CONNECT: Failure.CONNECT,
    97: Failure.CONNECT,  # CURLE_PROXY, which pycurl does not name
    pycurl.E_OPERATION_TIMEDOUT: Failure.TIMEOUT,
    pycurl.E_SSL_CONNECT_ERROR: Failure.TLS,
    pycurl.E_PEER_FAILED_VERIFICATION: Failure.TLS,
    pycurl.E_SSL_CACERT_BADFILE: Failure.TLS,
    pycurl.E_SSL_CERTPROBLEM: Failure.TLS,
    pycurl.E_SSL_CIPHER: Failure.TLS,
    pycurl.E_SSL_ISSUER_ERROR: Failure.TLS,
    pycurl.E_SEND_ERROR: Failure.RESET,
    pycurl.E_SEND_FAIL_REWIND: Failure.RESET,
    pycurl.E_RECV_ERROR: Failure.RESET,
    pycurl.E_GOT_NOTHING: Failure.RESET,
    pycurl.E_PARTIAL_FILE: Failure.RESET,
}

#: Milliseconds that one wait for sockets lasts at most.
_SELECT_MS = 1000

#: The time between two calls of libcurl after which answers may have come that it would report as time-outs.
_LATE_SECONDS = 0.1

#: Header lines of an answer that are kept at most, and the bytes of one; the others are ignored.
MAX_HEADERS = 100
MAX_HEADER_BYTES = 2048

_GO, _ABORT = pycurl.PREREQFUNC_OK, pycurl.PREREQFUNC_ABORT


class Request(NamedTuple):
    """A body to POST; `tag` is the caller's and comes back with the answer."""

    tag: Any
    body: bytes
    idempotency_key: str


class _Handle:
    """One of libcurl's handles, and the attempt that it makes just now; it outlives its attempts.

    The methods that are libcurl's callbacks run for each request, so they do next to nothing.
    """

    __slots__ = (
        "_kept", "_timeout_ms", "body", "connection", "curl", "ends_at", "headers", "is_stale", "request", "token",
    )  # fmt: skip

    def __init__(self, api: ApiSettings, kept: dict[_Connection, _Poll]) -> None:
        self._kept = kept
        self._timeout_ms = 0
        self.headers: list[bytes] = []
        self.body = bytearray()
        self.curl = _new_curl(api)
        self.curl.setopt(pycurl.PREREQFUNCTION, self.check_connection)
        self.curl.setopt(pycurl.HEADERFUNCTION, self.keep_header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self.keep_body)

    def prepare(self, request: Request, token: str, headers: list[str], timeout_seconds: float) -> None:
        """Prepare an attempt."""
        self.request = request
        self.token = token
        self.ends_at = time.monotonic() + timeout_seconds
        self.set_timeout(timeout_seconds)
        self.curl.setopt(pycurl.HTTPHEADER, headers)
        self.curl.setopt(pycurl.POSTFIELDSIZE, len(request.body))
        self.rewind()

    def rewind(self) -> None:
        """Prepare to send the request from its first byte."""
        self.connection: _Connection | None = None
        self.is_stale = False
        self.headers.clear()
        self.body.clear()
        # Not POSTFIELDS: a body that libcurl can read again, it sends again.
        self.curl.setopt(pycurl.READFUNCTION, BytesIO(self.request.body).read)

    def set_timeout(self, seconds: float) -> None:
        """Bound the attempt, from its start."""
        milliseconds = max(1, round(seconds * 1000))  # 0 would be no bound
        if milliseconds != self._timeout_ms:
            self.curl.setopt(pycurl.TIMEOUT_MS, milliseconds)
            self._timeout_ms = milliseconds

    def suspend_timeout(self) -> None:
        """Let the attempt last longer than its bound until `restore_timeout`."""
        self.curl.setopt(pycurl.TIMEOUT_MS, 0)

    def restore_timeout(self) -> None:
        """Apply the bound again, to the time since the attempt's start."""
        self.curl.setopt(pycurl.TIMEOUT_MS, self._timeout_ms)

    def check_connection(self, *connection: str | int) -> Any:
        """Stop the request if it is about to use a kept connection that is closed or holds bytes."""
        self.connection = connection
        poll = self._kept.get(connection)
        if poll and poll(0):
            self.is_stale = True
            return _ABORT
        return _GO

    def keep_header(self, line: bytes) -> None:
        """Keep a header line of the last answer; those of interim answers are dropped."""
        if line[:5] == b"HTTP/":
            self.headers.clear()
        elif len(self.headers) < MAX_HEADERS and len(line) <= MAX_HEADER_BYTES:
            self.headers.append(line)

    def keep_body(self, chunk: bytes) -> int | None:
        """Keep a part of the body; returning less than its length makes libcurl end the transfer."""
        if len(self.body) + len(chunk) > MAX_BODY_BYTES:
            return -1
        self.body += chunk
        return None

    def header_values(self, name: str) -> list[str]:
        """Return the values of a header, in their order; trailers are left out."""
        values = []
        for line in self.headers:
            if line == b"\r\n":
                break
            key, _, value = line.decode("latin-1").partition(":")
            if key.lower() == name.lower():
                values.append(value.strip())
        return values

    def answer(self, code: int) -> Answer:
        """Return the attempt's answer; `code` is libcurl's."""
        status = self.curl.getinfo(pycurl.RESPONSE_CODE)
        if 200 <= status < 300:  # the destination has the event, even if the rest of its answer never came
            return Answer(status)
        if status >= 300:
            return read_answer(status, self.header_values, self.body, self.token)
        failure = _FAILURES.get(code, Failure.PROTOCOL)
        if self.connection is None and failure in {Failure.TIMEOUT, Failure.RESET}:
            failure = Failure.CONNECT  # nothing has gone out, so it is no fault of the event
        if code == pycurl.E_SEND_FAIL_REWIND:
            return Answer(failure=failure, excerpt="the kept-alive connection was closed without an answer")
        detail = excerpt_of(self.curl.errstr().encode(), self.token)
        return Answer(failure=failure, excerpt=detail or "an answer without a status")


class CurlTransport:
    """One process's connections to one destination. Not thread-safe; make it after the fork."""

    def __init__(self, api: ApiSettings, *, connections: int) -> None:
        self._api = api
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._free: list[_Handle] = []
        self._busy: dict[Any, _Handle] = {}
        #: A poll of each kept connection's socket, the least recently used first. Closed ones are among them.
        self._kept: dict[_Connection, _Poll] = {}
        self._max_kept = 4 * connections
        self._answered: list[tuple[Any, Answer]] = []
        self._late_from = time.monotonic() + _LATE_SECONDS
        self._headers: list[str] = []
        self._token = ""
        self.reload_token()

    def reload_token(self) -> bool:
        """Read the token again, for the requests sent from here on; return whether it changed.

        Raise `ConfigurationError` if it cannot be read or sent; the previous one then stays.
        """
        token = self._api.read_token()
        headers = deployment_api.headers(token)
        if token == self._token:
            return False
        self._token = token
        self._headers = [f"{name}: {value}" for name, value in headers.items()]
        self._headers.append("Expect:")  # no 100-continue: it would cost a round trip
        return True

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet returned by `wait`."""
        return len(self._busy) + len(self._answered)

    def send(self, request: Request) -> None:
        """Start one attempt. libcurl sends nothing, and counts no time, before `flush` or `wait`."""
        handle = self._free.pop() if self._free else _Handle(self._api, self._kept)
        key = deployment_api.header_text(request.idempotency_key)
        headers = [*self._headers, f"{deployment_api.IDEMPOTENCY_KEY}: {key}"]
        handle.prepare(request, self._token, headers, self._api.timeout)
        self._busy[handle.curl] = handle
        self._multi.add_handle(handle.curl)

    def flush(self) -> None:
        """Send the requests that were started, now and not at the next `wait`."""
        self._perform()

    def wait(self, timeout_seconds: float) -> list[tuple[Any, Answer]]:
        """Wait until a request is answered or the time is over; return the answers by their requests' tags."""
        self._perform()
        if not self._answered and self._busy and timeout_seconds > 0:
            timer_ms = self._multi.timeout()  # until libcurl's own timers are due, -1 for never
            pause = min(timeout_seconds, (timer_ms if timer_ms >= 0 else _SELECT_MS) / 1000)
            self._late_from += pause
            self._multi.select(pause)
            self._perform()
        answered, self._answered = self._answered, []
        return answered

    def abandon(self) -> None:
        """Drop the requests in flight; whether the destination processed them is not known."""
        for handle in self._busy.values():
            self._multi.remove_handle(handle.curl)
            handle.curl.close()
        self._busy.clear()
        self._answered.clear()

    def close(self) -> None:
        """Drop the requests in flight and close the connections."""
        self.abandon()
        for handle in self._free:
            handle.curl.close()
        self._free.clear()
        self._kept.clear()
        self._multi.close()

    def _perform(self) -> None:
        """Let libcurl send and receive, and collect the answers."""
        now = time.monotonic()
        if now > self._late_from:
            self._read_late_answers()
        self._late_from = now + _LATE_SECONDS
        self._multi.perform()
        more = True
        while more:
            more, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                handle = self._busy[curl]
                self._finish(handle, handle.answer(0))
            for curl, code, _ in failed:
                handle = self._busy[curl]
                if not handle.is_stale:
                    self._finish(handle, handle.answer(code))
                    continue
                if handle.connection:
                    self._kept.pop(handle.connection, None)
                handle.rewind()
                left = handle.ends_at - time.monotonic()
                if left > 0:
                    self._send_by_fresh_connection(handle, left)
                    more = True
                else:
                    excerpt = "no time was left for another connection"
                    self._finish(handle, Answer(failure=Failure.CONNECT, excerpt=excerpt))

    def _read_late_answers(self) -> None:
        """Read the answers that came before now, with the time-outs of their requests suspended.

        A request that has not gone out keeps its time-out: it must not go out late.
        """
        sent = [handle for handle in self._busy.values() if handle.connection]
        for handle in sent:
            handle.suspend_timeout()
        self._multi.perform()
        for handle in sent:
            handle.restore_timeout()

    def _send_by_fresh_connection(self, handle: _Handle, seconds: float) -> None:
        self._multi.remove_handle(handle.curl)
        handle.set_timeout(seconds)
        handle.curl.setopt(pycurl.FRESH_CONNECT, 1)
        self._multi.add_handle(handle.curl)
        self._multi.perform()
        handle.curl.setopt(pycurl.FRESH_CONNECT, 0)

    def _finish(self, handle: _Handle, answer: Answer) -> None:
        """Keep the answer, and have the connection checked before its next use, if it is kept."""
        if handle.connection is not None:
            socket = handle.curl.getinfo(pycurl.ACTIVESOCKET)
            if socket >= 0:
                poll = self._kept.pop(handle.connection, None) or _poll_of(socket)
                self._kept[handle.connection] = poll
                if len(self._kept) > self._max_kept:
                    del self._kept[next(iter(self._kept))]
        self._answered.append((handle.request.tag, answer))
        del self._busy[handle.curl]
        self._multi.remove_handle(handle.curl)
        self._free.append(handle)


def _poll_of(socket: int) -> _Poll:
    watch = select.poll()
    watch.register(socket, select.POLLIN)
    return watch.poll


def _new_curl(api: ApiSettings) -> Any:
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, api.url)
    curl.setopt(pycurl.POST, 1)
    curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)  # the token must not reach another host
    curl.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    if api.url.startswith("http://"):
        curl.setopt(pycurl.PROXY, "")  # not even one from the environment: it would see the token
    curl.setopt(pycurl.TCP_NODELAY, 1)
    curl.setopt(pycurl.TCP_KEEPALIVE, 1)
    curl.setopt(pycurl.CONNECTTIMEOUT_MS, round(api.connect_timeout * 1000))
    if api.ca_file:
        curl.setopt(pycurl.CAINFO, str(api.ca_file))
    return curl
