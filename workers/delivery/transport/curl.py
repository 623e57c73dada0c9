"""Attempts over libcurl's multi interface: one loop, many kept-alive connections, microseconds a request.

Three habits of libcurl are kept from it here. When a kept-alive connection ends without a byte of an answer, it sends
the request again by itself, up to five times (`Curl_retry_request`), though the API may have taken it: so the body
comes from a callback that cannot be rewound, and libcurl fails instead (`E_SEND_FAIL_REWIND`, a reset). And it looks
only once a second whether kept connections still live: so each is looked at right before a request goes by it, and
one that is closed, or holds bytes that nobody asked for, is let go for a fresh one, with nothing sent twice. And it
looks at the clock before the sockets, so that whoever comes back late (from a Redis that did not answer, or because
the process stood still) would be told of time-outs where answers had come: so those are taken first.

What remains: the API closes a connection while a request is on its way. Whether it took it cannot be known; the
event is tried again later, with the same Idempotency-Key.
"""

from __future__ import annotations

import select
import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pycurl

from workers.delivery.transport import (
    HEADERS,
    MAX_BODY_BYTES,
    Answer,
    Failure,
    Request,
    answer_of,
    bearer,
    excerpt_of,
    header_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.settings import ApiSettings

    _Connection = tuple[str | int, ...]  # both ends' addresses and ports

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

#: How late libcurl may get its turn before answers may have come that it would not hear any more.
_LATE_SECONDS = 0.1

#: Header lines of an answer that are kept at most, and the bytes of one; the others are ignored.
MAX_HEADERS = 100
MAX_HEADER_BYTES = 2048

_GO, _ABORT = pycurl.PREREQFUNC_OK, pycurl.PREREQFUNC_ABORT

#: The first status of an answer; below it are interim ones.
_FIRST_FINAL_STATUS = 200


class _Lane:
    """One of libcurl's handles and the attempt that it is at; it outlives its attempts.

    The methods that take libcurl's callbacks cost every POST, so they do next to nothing.
    """

    __slots__ = (
        "_timeout_ms", "authorization", "body", "connection", "ends_at", "handle", "headers", "idle", "is_stale",
        "request",
    )  # fmt: skip

    def __init__(self, api: ApiSettings, idle: dict[_Connection, Callable[[int], Sequence[object]]]) -> None:
        self.idle = idle
        self._timeout_ms = 0
        self.headers: list[bytes] = []
        self.body = bytearray()
        self.handle = _new_handle(api)
        self.handle.setopt(pycurl.PREREQFUNCTION, self.check)
        self.handle.setopt(pycurl.HEADERFUNCTION, self.note)
        self.handle.setopt(pycurl.WRITEFUNCTION, self.take)

    def begin(self, request: Request, authorization: str, headers: list[str], timeout_seconds: float) -> None:
        """Make ready for an attempt."""
        self.request = request
        self.ends_at = time.monotonic() + timeout_seconds
        self.bound(timeout_seconds)
        self.authorization = authorization
        self.handle.setopt(pycurl.HTTPHEADER, headers)
        self.handle.setopt(pycurl.POSTFIELDSIZE, len(request.body))
        self.rewind()

    def rewind(self) -> None:
        """Make ready to send, from the first byte."""
        self.connection: _Connection | None = None
        self.is_stale = False
        self.headers.clear()
        self.body.clear()
        # Not POSTFIELDS: what libcurl can read again, it sends again.
        self.handle.setopt(pycurl.READFUNCTION, BytesIO(self.request.body).read)

    def bound(self, seconds: float) -> None:
        """Have libcurl end what it is given next, or is at, once it took so long."""
        milliseconds = max(1, round(seconds * 1000))  # 0 would be no bound
        if milliseconds != self._timeout_ms:
            self.handle.setopt(pycurl.TIMEOUT_MS, milliseconds)
            self._timeout_ms = milliseconds

    def suspend_bound(self) -> None:
        """Let time pass until `restore_bound`."""
        self.handle.setopt(pycurl.TIMEOUT_MS, 0)

    def restore_bound(self) -> None:
        """Have the time count that has passed, that meanwhile too."""
        self.handle.setopt(pycurl.TIMEOUT_MS, self._timeout_ms)

    def check(self, *connection: str | int) -> Any:
        """Let the request go, unless it would go by a kept connection that has something to say already."""
        self.connection = connection
        is_readable = self.idle.get(connection)
        if is_readable and is_readable(0):
            self.is_stale = True
            return _ABORT
        return _GO

    def note(self, line: bytes) -> None:
        """Keep a header line of the last answer; those of interim ones go."""
        if line[:5] == b"HTTP/":
            self.headers.clear()
        elif len(self.headers) < MAX_HEADERS and len(line) <= MAX_HEADER_BYTES:
            self.headers.append(line)

    def take(self, chunk: bytes) -> int | None:
        """Keep a part of the body; returning less than its length makes libcurl end the transfer."""
        if len(self.body) + len(chunk) > MAX_BODY_BYTES:
            return -1
        self.body += chunk
        return None

    def header_values(self, name: str) -> list[str]:
        """Return the values of a header, in their order; trailers have none."""
        values = []
        for line in self.headers:
            if line == b"\r\n":
                break
            key, _, value = line.decode("latin-1").partition(":")
            if key.lower() == name.lower():
                values.append(value.strip())
        return values

    def answer(self, code: int) -> Answer:
        """Tell what came of the attempt; `code` is libcurl's."""
        status = self.handle.getinfo(pycurl.RESPONSE_CODE)
        if 200 <= status < 300:  # the API has taken it, whatever became of the rest of its answer
            return Answer(status=status)
        if status < _FIRST_FINAL_STATUS:
            return Answer(failure=self._failure(code), excerpt=self._detail(code))
        return answer_of(status, self.header_values, self.body, self.authorization)

    def _failure(self, code: int) -> Failure:
        failure = _FAILURES.get(code, Failure.PROTOCOL)
        if self.connection is None and failure in {Failure.TIMEOUT, Failure.RESET}:
            return Failure.CONNECT  # nothing has gone out, so no event is to blame
        return failure

    def _detail(self, code: int) -> str:
        if code == pycurl.E_SEND_FAIL_REWIND:
            return "the kept-alive connection was closed without an answer"
        return excerpt_of(self.handle.errstr().encode(), self.authorization) or "an answer without a status"


class CurlTransport:
    """One process's connections to one destination. Not thread-safe; make it after the fork."""

    def __init__(self, api: ApiSettings, *, connections: int) -> None:
        self._api = api
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._free: list[_Lane] = []
        self._busy: dict[Any, _Lane] = {}
        self._kept: dict[_Connection, Callable[[int], Sequence[object]]] = {}
        self._max_kept = 4 * connections  # more than can be open, as those that were closed are among them
        self._answered: list[tuple[Any, Answer]] = []
        self._late_from = time.monotonic() + _LATE_SECONDS
        self._headers: list[str] = []
        self._authorization = ""
        self.reload_token()

    def reload_token(self) -> bool:
        """Read the token again; the requests sent from here on carry it. Tell whether it is another."""
        authorization = bearer(self._api)
        if authorization == self._authorization:
            return False
        self._authorization = authorization
        self._headers = [
            *(f"{name}: {value}" for name, value in HEADERS.items()),
            "Expect:",  # no 100-continue: it would cost a round trip
            f"Authorization: {authorization}",
        ]
        return True

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet returned by `wait`."""
        return len(self._busy) + len(self._answered)

    def send(self, request: Request) -> None:
        """Start one attempt."""
        lane = self._free.pop() if self._free else _Lane(self._api, self._kept)
        key = f"Idempotency-Key: {header_text(request.idempotency_key)}"
        lane.begin(request, self._authorization, [*self._headers, key], self._api.timeout)
        self._busy[lane.handle] = lane
        self._multi.add_handle(lane.handle)

    def let_go(self) -> None:
        """Let out what was sent; libcurl does nothing, and counts no time, before it is given a turn."""
        self._advance()

    def wait(self, timeout_seconds: float) -> list[tuple[Any, Answer]]:
        """Wait until something was answered or the time is over; return what was."""
        self._advance()
        if not self._answered and self._busy and timeout_seconds > 0:
            due = self._multi.timeout()  # when libcurl's own timers want a turn: milliseconds, -1 for never
            pause = min(timeout_seconds, (due if due >= 0 else _SELECT_MS) / 1000)
            self._late_from += pause
            self._multi.select(pause)
            self._advance()
        answered, self._answered = self._answered, []
        return answered

    def abandon(self) -> None:
        """Drop what is in flight; whether the API took it is not known."""
        for lane in self._busy.values():
            self._multi.remove_handle(lane.handle)
            lane.handle.close()
        self._busy.clear()
        self._answered.clear()

    def close(self) -> None:
        """Drop what is in flight and close the connections."""
        self.abandon()
        for lane in self._free:
            lane.handle.close()
        self._free.clear()
        self._kept.clear()
        self._multi.close()

    def _turn(self) -> None:
        """Give libcurl a turn."""
        now = time.monotonic()
        if now > self._late_from:
            self._hear()
        self._late_from = now + _LATE_SECONDS
        self._multi.perform()

    def _hear(self) -> None:
        """Take what was answered before any time-out counts; a request that has not gone out must not go now."""
        out = [lane for lane in self._busy.values() if lane.connection]
        for lane in out:
            lane.suspend_bound()
        self._multi.perform()
        for lane in out:
            lane.restore_bound()

    def _advance(self) -> None:
        """Give libcurl a turn, and keep what was answered for `wait`."""
        self._turn()
        more = True
        while more:
            more, succeeded, failed = self._multi.info_read()
            ended = [(handle, 0) for handle in succeeded] + [(handle, code) for handle, code, _ in failed]
            for handle, code in ended:
                lane = self._busy[handle]
                if lane.is_stale:
                    self._send_by_a_fresh_connection(lane)
                    more = True
                else:
                    self._finish(lane, lane.answer(code))

    def _send_by_a_fresh_connection(self, lane: _Lane) -> None:
        """Start an attempt again of which nothing has gone out, while there is time; its connection is closed."""
        if lane.connection:
            self._kept.pop(lane.connection, None)
        lane.rewind()
        left = lane.ends_at - time.monotonic()
        if left <= 0:
            self._finish(lane, Answer(failure=Failure.CONNECT, excerpt="no time was left for another connection"))
            return
        self._multi.remove_handle(lane.handle)
        lane.bound(left)
        lane.handle.setopt(pycurl.FRESH_CONNECT, 1)
        self._multi.add_handle(lane.handle)
        self._multi.perform()
        lane.handle.setopt(pycurl.FRESH_CONNECT, 0)

    def _finish(self, lane: _Lane, answer: Answer) -> None:
        del self._busy[lane.handle]
        self._keep(lane)
        self._multi.remove_handle(lane.handle)
        self._free.append(lane)
        self._answered.append((lane.request.tag, answer))

    def _keep(self, lane: _Lane) -> None:
        """Have the attempt's connection looked at before its next use, if it is kept."""
        socket = lane.handle.getinfo(pycurl.ACTIVESOCKET)
        if lane.connection is None or socket < 0:
            return
        is_readable = self._kept.pop(lane.connection, None)
        if is_readable is None:
            watch = select.poll()
            watch.register(socket, select.POLLIN)
            is_readable = watch.poll
        self._kept[lane.connection] = is_readable  # those not used for longest are first
        if len(self._kept) > self._max_kept:
            del self._kept[next(iter(self._kept))]


def _new_handle(api: ApiSettings) -> Any:
    handle = pycurl.Curl()
    handle.setopt(pycurl.URL, api.url)
    handle.setopt(pycurl.POST, 1)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.FOLLOWLOCATION, 0)  # never carry the token to another host
    handle.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
    handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    if api.url.startswith("http://"):
        handle.setopt(pycurl.PROXY, "")  # not even one from the environment: it would see the token
    handle.setopt(pycurl.TCP_NODELAY, 1)
    handle.setopt(pycurl.TCP_KEEPALIVE, 1)
    handle.setopt(pycurl.CONNECTTIMEOUT_MS, round(api.connect_timeout * 1000))
    if api.ca_file:
        handle.setopt(pycurl.CAINFO, str(api.ca_file))
    return handle
