"""Attempts over `requests` in threads: fifty times the cost of libcurl, for those who need its adapters."""

from __future__ import annotations

import contextlib
import functools
import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import BadStatusLine, HTTPException, HTTPResponse, RemoteDisconnected, parse_headers
from itertools import count
from typing import TYPE_CHECKING, Any, Generic

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError

from workers.delivery.transport import (
    HEADERS,
    MAX_BODY_BYTES,
    Answer,
    Failure,
    Request,
    T,
    answer_of,
    bearer,
    header_text,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from relay.settings import ApiSettings

#: Bytes of a body that are read at once.
_CHUNK_BYTES = 4096

#: Interim answers (1xx) that are skipped before one that counts.
MAX_INTERIM_ANSWERS = 100

_SWITCHING_PROTOCOLS = 101


class _Attempt(Generic[T]):
    """One attempt: what `wait` knows of it, and the connection that its thread is at."""

    def __init__(self, request: Request[T], authorization: str, deadline: float) -> None:
        self.request = request
        self.authorization = authorization
        self.deadline = deadline
        self.known: Answer | None = None  # once there is a status
        self.future: Future[None] | None = None
        self.is_connected = False
        self._lock = threading.Lock()
        self._is_over = False
        self._connection: HTTPConnection | None = None

    def go_by(self, connection: HTTPConnection) -> None:
        """Note the connection before it is used; `TimeoutError` once the attempt is over: nothing goes out then."""
        with self._lock:
            if self._is_over:
                raise TimeoutError("the attempt is over")
            self._connection = connection

    def let_go(self) -> None:
        """Note that the connection may serve another attempt from here on."""
        with self._lock:
            self._connection = None

    def end(self) -> None:
        """Let nothing more go out, and wake the thread, whatever it waits for on its connection."""
        if self.future:
            self.future.cancel()
        with self._lock:
            self._is_over = True
            wire = self._connection and self._connection.sock
            if wire:
                with contextlib.suppress(OSError):  # it has ended by itself
                    socket.socket.shutdown(wire, socket.SHUT_RDWR)  # not TLS's own, which is not thread-safe


class _Wire(HTTPConnection):
    """A connection that can be ended from outside and is kept only if the answer was all that came by it."""

    def connect(self) -> None:
        _current.attempt.go_by(self)
        super().connect()
        _current.attempt.go_by(self)  # connecting can take long
        _current.attempt.is_connected = True

    def request(self, *args: Any, **kwargs: Any) -> None:
        _current.attempt.go_by(self)
        _current.attempt.is_connected = self.sock is not None
        self.response_class = functools.partial(_Response, wire=self, attempt=_current.attempt)  # type: ignore[assignment]
        super().request(*args, **kwargs)


class _SecureWire(_Wire, HTTPSConnection):
    pass


class _Response(HTTPResponse):
    """Notes its status at once, skips interim answers, and gives up its connection if that holds more than itself."""

    def __init__(self, *args: Any, wire: HTTPConnection, attempt: _Attempt[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wire = wire
        self._attempt = attempt

    def _read_status(self) -> tuple[str, int, str]:
        # http.client skips a 100 only, and takes any other interim answer for the final one.
        for _ in range(MAX_INTERIM_ANSWERS):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == _SWITCHING_PROTOCOLS:
                self._attempt.known = Answer(status)
                return version, status, reason
            parse_headers(self.fp)
        raise HTTPException("too many interim answers")

    def _close_conn(self) -> None:
        is_alone = not self._holds_more()
        super()._close_conn()  # type: ignore[misc]
        self._attempt.let_go()
        if not is_alone:
            self._wire.close()

    def _holds_more(self) -> bool:
        """Tell whether something came with the answer that is not of it."""
        wire = self._wire.sock
        if wire is None or self.isclosed():
            return False
        timeout = wire.gettimeout()
        try:
            wire.settimeout(0)
            return bool(self.fp.peek(1))
        except (OSError, ValueError):
            return False
        finally:
            with contextlib.suppress(OSError):
                wire.settimeout(timeout)


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Wire


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureWire


class _Current(threading.local):
    """The attempt that this thread is at: urllib3 has no other way to hand it to a connection."""

    attempt: _Attempt[Any]


_POOLS = {"http": _Pool, "https": _SecurePool}
_current = _Current()


class _Session(requests.Session):
    """Sees no redirect anywhere: even one that is not followed, `requests` would read whole into memory."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - the signature is theirs
        return None


class RequestsTransport(Generic[T]):
    """One process's connections to one destination.

    `requests` bounds connecting and the wait for each part of an answer, not the whole. So `wait` does: an
    attempt past `api.timeout` is answered as timed out, or with its status if that was read, and its connection is
    shut, which ends its thread. Not promised: that a thread ends at once which resolves a name or agrees on TLS;
    it sends nothing when it is done with that.
    """

    def __init__(self, api: ApiSettings, *, connections: int) -> None:
        self._api = api
        self._session = _Session()
        self._session.trust_env = False  # a netrc entry would replace our token
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, _Adapter(pool_maxsize=connections))
        if api.url.startswith("https://"):
            self._session.proxies.update(get_environ_proxies(api.url))
        if api.ca_file:
            self._session.verify = str(api.ca_file)
        self._executor = ThreadPoolExecutor(connections, thread_name_prefix="relay-post")
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._numbers = count()
        self._attempts: dict[int, _Attempt[T]] = {}
        self._authorization = ""
        self.reload_token()

    def reload_token(self) -> bool:
        """Read the token again; the requests sent from here on carry it. Tell whether it is another."""
        before, self._authorization = self._authorization, bearer(self._api)
        return self._authorization != before

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet returned by `wait`."""
        return len(self._attempts)

    def send(self, request: Request[T]) -> None:
        """Start one attempt."""
        number = next(self._numbers)
        attempt = _Attempt(request, self._authorization, time.monotonic() + self._api.timeout)
        self._attempts[number] = attempt
        attempt.future = self._executor.submit(self._run, number, attempt)

    def let_go(self) -> None:
        """Nothing: each attempt has a thread, which began at once."""

    def wait(self, timeout_seconds: float) -> list[tuple[T, Answer]]:
        """Wait until something was answered or the time is over; return what was."""
        until = time.monotonic() + timeout_seconds
        answered: list[tuple[T, Answer]] = []
        while self._attempts and not (answered and self._answers.empty()):
            first = next(iter(self._attempts.values())).deadline  # all have the same time, so the oldest ends first
            try:
                number, answer = self._answers.get(timeout=max(0.0, min(until, first) - time.monotonic()))
            except queue.Empty:
                answered += self._time_out()
                break
            if attempt := self._attempts.pop(number, None):
                answered.append((attempt.request.tag, answer))
        return answered

    def abandon(self) -> None:
        """Drop what is in flight; whether the API took it is not known."""
        for attempt in self._attempts.values():
            attempt.end()
        self._attempts.clear()

    def close(self) -> None:
        """Drop what is in flight and close the connections."""
        self.abandon()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _time_out(self) -> list[tuple[T, Answer]]:
        now = time.monotonic()
        late = [number for number, attempt in self._attempts.items() if attempt.deadline <= now]
        timed_out = []
        for number in late:
            attempt = self._attempts.pop(number)
            attempt.end()
            timed_out.append(
                (attempt.request.tag, attempt.known or _failed(attempt, Failure.TIMEOUT, "no whole answer in time"))
            )
        return timed_out

    def _run(self, number: int, attempt: _Attempt[T]) -> None:
        _current.attempt = attempt
        try:
            with self._post(attempt) as response:
                attempt.known = _answer(response, b"", attempt.authorization)
                body = _read(response)  # a success's too: a body left unread would cost its connection
                self._answers.put((number, _answer(response, body, attempt.authorization)))
        except Exception as error:  # noqa: BLE001 - the edge of a thread: an attempt always gets an answer
            self._answers.put((number, attempt.known or _failed(attempt, _failure(error), type(error).__name__)))
        finally:
            attempt.let_go()

    def _post(self, attempt: _Attempt[T]) -> requests.Response:
        return self._session.post(
            self._api.url,
            data=attempt.request.body,
            headers={
                **HEADERS,
                "Authorization": attempt.authorization,
                "Accept-Encoding": "identity",  # nothing to unpack, so nothing that unpacks without bound
                "Idempotency-Key": header_text(attempt.request.idempotency_key),
            },
            timeout=(self._api.connect_timeout, self._api.timeout),
            allow_redirects=False,  # never carry the token to another host
            stream=True,
        )


def _answer(response: requests.Response, body: bytes, authorization: str) -> Answer:
    if 200 <= response.status_code < 300:
        return Answer(status=response.status_code)
    return answer_of(response.status_code, response.raw.headers.getlist, body, authorization)


def _read(response: requests.Response) -> bytes:
    """Read the body to its bound, or to where it breaks off: the status counts all the same."""
    body = b""
    with contextlib.suppress(HTTPError, OSError, ValueError):
        while len(body) < MAX_BODY_BYTES and (part := response.raw.read1(_CHUNK_BYTES)):
            body += part
    return body


def _failed(attempt: _Attempt[T], failure: Failure, detail: str) -> Answer:
    if not attempt.is_connected and failure in {Failure.TIMEOUT, Failure.RESET}:
        failure = Failure.CONNECT  # nothing has gone out, so no event is to blame
    return Answer(failure=failure, excerpt=detail)


def _failure(error: Exception) -> Failure:
    match error:
        case requests.exceptions.SSLError():
            return Failure.TLS
        case requests.exceptions.ConnectTimeout() | requests.exceptions.ProxyError():
            return Failure.CONNECT
        case requests.exceptions.Timeout():
            return Failure.TIMEOUT
        case requests.exceptions.ConnectionError():
            return _connection_failure(_causes(error))
        case _:
            return Failure.PROTOCOL


def _connection_failure(causes: list[object]) -> Failure:
    if any(isinstance(cause, NameResolutionError) for cause in causes):
        return Failure.DNS
    if any(isinstance(cause, BadStatusLine) and not isinstance(cause, RemoteDisconnected) for cause in causes):
        return Failure.PROTOCOL
    return Failure.RESET if any("Connection aborted" in str(cause) for cause in causes) else Failure.CONNECT


def _causes(error: BaseException) -> list[object]:
    """Return an error and what it wraps, as `requests` and urllib3 wrap: by an argument, or by a retry's reason."""
    causes: list[object] = [error]
    for cause in causes:
        if isinstance(cause, BaseException):
            causes += [inner for inner in (*cause.args, getattr(cause, "reason", None)) if inner is not None]
    return causes
