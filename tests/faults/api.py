"""The sandbox's server with a behaviour per request and a journal, for the fault scenarios.

Each request goes into the journal before any response: number, event id (from its `Idempotency-Key`), digest of the
body, instance, connection, clock; then, in a row of its own, the status and how the exchange ended. The journal is a
file, to be read after a failure, and the same rows are `attempts`.

    api.behave(Response(status=503))                         all requests from now on
    api.behave(lambda attempt: Response(status=422) if attempt.repository.endswith("/bad") else OK)
    api.reset_next(ResetAt.ACCEPT, 5)                        connections or requests without a behaviour

An attempt is *processed* when its whole request was read and the behaviour did not reject it: then the API has taken
the event, whether or not the client gets the response.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from relay.sandbox.connection import Ending, Limits, Responder
from relay.sandbox.response import Reset, ResetAt, Response, Step
from relay.sandbox.server import LoopThread, Server

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from relay.sandbox.connection import Connection
    from relay.sandbox.contract import Request

OK = Response()
STALL = Response(hangs=True)
GARBAGE = Response(raw=b"\x16\x03\x01\x00\xa5 this is not HTTP \x00\xff\r\n\r\n", closes=True)
TWICE = Response(raw=OK.head() + Response(status=500).head())


def interim_flood(count: int) -> Response:
    """Return `count` interim responses, then a 202."""
    return Response(raw=b"HTTP/1.1 102 Processing\r\n\r\n" * count + OK.head())


@dataclass(slots=True)
class Attempt:
    """One request that was read whole; clocks are time.monotonic()."""

    number: int
    event_id: str
    body_hash: str
    instance: str
    repository: str
    environment: str
    digest: str
    connection: int
    peer_port: int
    port: int
    authorization: str
    read_at: float
    #: Earlier attempts with this id.
    earlier: int
    status: int = 0
    processed: bool = False
    status_sent: bool = False
    ended_at: float | None = None
    #: None while it is in flight.
    ended: Ending | None = None

    @property
    def end_is_unknowable(self) -> bool:
        """The API took it and the client cannot know so: a repeat of it is legitimate."""
        return self.processed and self.ended in {Ending.CUT, Ending.LEFT} and not self.status_sent


Behaviour = Callable[[Attempt], Response]


class Api(Responder):
    """The API of a scenario; a context manager. `behave` may be called at any time, from any thread."""

    def __init__(self, journal: Path) -> None:
        self.attempts: list[Attempt] = []
        #: Resets that were carried out.
        self.resets: Counter[ResetAt] = Counter()
        #: Exceptions of a behaviour: defects of the test, which `Ground` reports.
        self.errors: list[BaseException] = []
        self.accepted_connections = 0
        self.port = 0
        self._behaviour: Behaviour = lambda _: OK
        self._to_reset: Counter[ResetAt] = Counter()
        self._earlier: Counter[str] = Counter()
        self._in_flight: dict[Connection, tuple[Attempt, Response]] = {}
        self._instances: dict[str, str] = {}
        self._journal = journal.open("wb", buffering=0)
        self._thread = LoopThread("api")
        self._server = Server(self, Limits(request_timeout_seconds=600, idle_timeout_seconds=600))

    def __enter__(self) -> Self:
        self.port = self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.call(self._server.close())
        self._thread.stop()
        self._journal.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/report"

    def listen(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> int:
        """Listen on one more port and return it."""
        return int(self._thread.call(self._server.listen(host, tls=tls)).rpartition(":")[2])

    def behave(self, behaviour: Behaviour | Response) -> None:
        """Respond to the requests from now on like this."""
        self._behaviour = behaviour if callable(behaviour) else lambda _: behaviour

    def reset_next(self, where: ResetAt, count: int = 1) -> None:
        """Reset the next connections at their accept, or requests after their headers."""
        assert where in {ResetAt.ACCEPT, ResetAt.HEADERS}, f"use Response(reset={where!r})"
        self._to_reset[where] += count

    def close_idle(self, *, by_reset: bool = False) -> int:
        """Close the connections without a request in flight; return how many."""
        return self._for_idle(lambda connection: connection.reset() if by_reset else connection.close())

    def send_to_idle(self, data: bytes) -> int:
        """Send unrequested bytes on each such connection; return how many there are."""
        return self._for_idle(lambda connection: connection.send(data))

    # What it saw

    @property
    def connections(self) -> list[Connection]:
        """The open connections."""
        return list(self._server.connections)

    @property
    def in_flight(self) -> int:
        """Requests read and not answered."""
        return len(self._in_flight)

    def in_flight_of(self, ports: Iterable[int]) -> int:
        """Return the requests in flight from these ports of the client."""
        return sum(connection.peer_port in ports for connection in list(self._in_flight))

    def has_closed(self, ports: set[int]) -> bool:
        """Return whether no connection from these ports of the client is open."""
        return all(connection.peer_port not in ports for connection in self.connections)

    def processed_ids(self) -> Counter[str]:
        """Return how many times each event was taken."""
        return Counter(attempt.event_id for attempt in list(self.attempts) if attempt.processed)

    def repeats(self) -> int:
        """Return how many times events were taken beyond the first."""
        return sum(copies - 1 for copies in self.processed_ids().values())

    def unknowable(self) -> int:
        """Return the attempts that were taken and whose end the client cannot know: T, and K of killed processes."""
        return sum(attempt.end_is_unknowable for attempt in list(self.attempts))

    def received(self, since: float, until: float) -> int:
        """Return the number of requests read in a window of time.monotonic()."""
        return sum(since <= attempt.read_at < until for attempt in list(self.attempts))

    def longest_silence(self, since: float, until: float) -> float:
        """Return the longest time without a request in a window, in seconds."""
        clocks = [a.read_at for a in list(self.attempts) if since <= a.read_at < until]
        return max(b - a for a, b in zip([since, *clocks], [*clocks, until], strict=True))

    def _for_idle(self, act: Callable[[Connection], None]) -> int:
        async def for_idle() -> int:
            idle = [connection for connection in self.connections if not connection.is_busy]
            for connection in idle:
                act(connection)
            return len(idle)

        return self._thread.call(for_idle())

    # Called in its event loop

    def on_connect(self, connection: Connection) -> Iterable[Step] | None:  # noqa: ARG002 - the server's
        self.accepted_connections += 1
        return self._reset_steps(ResetAt.ACCEPT)

    def on_headers(self, connection: Connection) -> Iterable[Step] | None:  # noqa: ARG002 - the server's
        return self._reset_steps(ResetAt.HEADERS)

    def _reset_steps(self, where: ResetAt) -> Iterable[Step] | None:
        if self._to_reset[where] <= 0:
            return None
        self._to_reset[where] -= 1
        self.resets[where] += 1
        return [Reset()]

    def on_request(self, connection: Connection, request: Request) -> Iterable[Step]:
        key = request.headers.get(b"idempotency-key", b"").decode("latin-1")
        event_id = key.rpartition(".")[0] or key  # a worker's key begins with it
        instance, repository, environment, digest = _parse(request.body)
        attempt = Attempt(
            number=len(self.attempts) + 1,
            event_id=event_id,
            body_hash=hashlib.blake2b(request.body, digest_size=8).hexdigest(),
            instance=self._instances.setdefault(instance, instance),
            repository=repository,
            environment=environment,
            digest=digest,
            connection=connection.number,
            peer_port=connection.peer_port,
            port=connection.port,
            authorization=request.headers.get(b"authorization", b"").decode("latin-1"),
            read_at=time.monotonic(),
            earlier=self._earlier[event_id],
        )
        self._earlier[event_id] += 1
        self._write(">", attempt.number, event_id, attempt.body_hash, instance, connection.number, attempt.read_at)
        try:
            response = self._behaviour(attempt)
        except Exception as error:  # noqa: BLE001 - reported by the ground, at the end
            self.errors.append(error)
            response = Response(status=500)
        attempt.status, attempt.processed = response.status, response.is_processed
        self._in_flight[connection] = attempt, response
        self.attempts.append(attempt)
        return response.steps(closes=request.closes)

    def on_end(self, connection: Connection, ending: Ending, *, has_status: bool) -> None:
        attempt, response = self._in_flight.pop(connection)
        attempt.status_sent, attempt.ended, attempt.ended_at = has_status, ending, time.monotonic()
        if ending is Ending.CUT and response.reset:
            self.resets[response.reset] += 1
        self._write("<", attempt.number, attempt.status, ending, attempt.ended_at)

    def _write(self, *parts: object) -> None:
        self._journal.write(("\t".join(map(str, parts)) + "\n").encode())


def _parse(body: bytes) -> tuple[str, str, str, str]:
    """Return instance, repository, environment and digest; blanks for a body that is not an event."""
    try:
        event = json.loads(body)
        repository, _, digest = event["image"]["url"].partition("@")
        environment = event["environment"]["name"]
        platform = event["platform"]
        parts = (platform.get("os"), platform.get("architecture"), platform.get("variant"))
        name = event["image"].get("name", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", "", "", ""
    return f"{environment}|{repository}|{name}|{'/'.join(filter(None, parts))}", repository, environment, digest
