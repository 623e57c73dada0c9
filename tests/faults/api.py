"""The reporting API as a test wants it: on raw sockets, with a journal, and as nasty as the behaviour says.

Each request goes into the journal before anything is answered: number, event id (its `Idempotency-Key`), digest of
the body, instance, connection, clock; then, in a row of its own, what was answered or how it was cut. The journal is
a file, for whoever looks after a failure, and the same rows are `attempts`. Nothing here shares code with the relay.

    api.behave(Answer(503))                                  all requests from now on
    api.behave(lambda attempt: Answer(422) if attempt.repository.endswith("/bad") else OK)
    api.cut_next(Cut.ACCEPT, 5)                              before there is a request to ask about

An attempt is *processed* when its whole request was read and the behaviour did not reject it: then the API has taken
the event, whether or not the client ever hears of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

T = TypeVar("T")

#: Bytes of a huge body that are handed to the socket at once.
CHUNK = 65_536

#: Seconds between the last bytes before a cut and the cut, for them to arrive.
BEFORE_CUT_SECONDS = 0.02


class Cut(StrEnum):
    """Where the API resets the connection."""

    ACCEPT = "at accept"
    HEADERS = "after the request's headers"
    REQUEST = "after the request"
    STATUS_LINE = "after the status line"
    BODY = "in the body"


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of one request; all times are seconds.

    `processed` says whether the API took the event; left out, a 2xx did. `drip` is the pause after each byte, of
    everything or with `drip_body` only of the body. `huge` is the length of a body of blanks instead of `body`.
    `length` is the Content-Length that is claimed. `raw` is sent instead of all of that, as it is.
    """

    status: int = 202
    _: KW_ONLY
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0
    stall: bool = False
    drip: float = 0.0
    drip_body: bool = False
    cut: Cut | None = None
    huge: int = 0
    length: int | None = None
    raw: bytes | None = None
    close: bool = False
    processed: bool | None = None

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300 if self.processed is None else self.processed

    @property
    def is_plain(self) -> bool:
        """Tell whether it is one write, now."""
        return not (self.delay or self.stall or self.drip or self.cut or self.huge or self.raw is not None)

    def head(self) -> bytes:
        length = self.length if self.length is not None else self.huge or len(self.body)
        lines = [f"HTTP/1.1 {self.status} Scripted", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["Connection: close"] if self.close else []
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


OK = Answer()
STALL = Answer(stall=True)
GARBAGE = Answer(raw=b"\x16\x03\x01\x00\xa5 this is no HTTP \x00\xff\r\n\r\n", close=True)
TWICE = Answer(raw=OK.head() + Answer(500).head())


def interim_flood(count: int) -> Answer:
    """`count` interim answers, then a 202."""
    return Answer(raw=b"HTTP/1.1 102 Processing\r\n\r\n" * count + OK.head())


@dataclass(slots=True)
class Attempt:
    """One request whose whole text was read; clocks are time.monotonic()."""

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
    #: How many attempts with this id came before.
    earlier: int
    status: int = 0
    processed: bool = False
    status_sent: bool = False
    ended_at: float | None = None
    #: "answered", "cut" by us, or "left" by the client; "" while it is under way.
    ended: str = ""

    @property
    def end_is_unknowable(self) -> bool:
        """The API took it and the client cannot have seen so: a repeat of it is legitimate."""
        return self.processed and self.ended in {"cut", "left"} and not self.status_sent


Behaviour = Callable[[Attempt], Answer]


class Api:
    """The stand-in; a context manager. `behave` may be called at any time, from any thread."""

    def __init__(self, journal: Path) -> None:
        self.attempts: list[Attempt] = []
        #: Cuts that were carried out, wherever they were asked for.
        self.cuts: Counter[Cut] = Counter()
        #: What a behaviour raised: a fault of the test, which `Ground` reports.
        self.errors: list[BaseException] = []
        self.accepted_connections = 0
        self.port = 0
        self._behaviour: Behaviour = lambda _: OK
        self._to_cut: Counter[Cut] = Counter()
        self._seen: Counter[str] = Counter()
        self._connections: dict[int, _Connection] = {}
        self._closed_ports: set[int] = set()
        self._instances: dict[str, str] = {}
        self._journal = journal.open("wb", buffering=0)
        self._loop = LoopThread("api")
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> Self:
        self.port = self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._close())
        self._loop.stop()
        self._journal.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/report"

    def listen(self, host: str = "127.0.0.1", ssl_context: ssl.SSLContext | None = None) -> int:
        """Listen on one more port and return it."""

        async def listen() -> int:
            make = asyncio.get_running_loop().create_server
            server = await make(lambda: _Connection(self), host, 0, ssl=ssl_context, backlog=1024)
            self._servers.append(server)
            return int(server.sockets[0].getsockname()[1])

        return self._loop.run(listen())

    def behave(self, behaviour: Behaviour | Answer) -> None:
        """Answer the requests from now on like this."""
        self._behaviour = behaviour if callable(behaviour) else lambda _: behaviour

    def cut_next(self, where: Cut, count: int = 1) -> None:
        """Reset the next connections at their accept, or requests after their headers."""
        assert where in {Cut.ACCEPT, Cut.HEADERS}, f"Answer(cut={where!r}) is the way"
        self._to_cut[where] += count

    def close_idle(self, *, by_reset: bool = False) -> int:
        """Close the connections by which no request has come that is not answered; return how many."""
        return self._with_idle(lambda transport: reset(transport) if by_reset else transport.close())

    def say_to_idle(self, data: bytes) -> int:
        """Send bytes that nobody asked for by each such connection; return how many there are."""
        return self._with_idle(lambda transport: transport.write(data))

    # What it saw

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """Requests read and not answered."""
        return sum(connection.attempt is not None for connection in list(self._connections.values()))

    def has_closed(self, ports: set[int]) -> bool:
        """Tell whether of the clients' connections from these ports none is open."""
        return all(connection.peer_port not in ports for connection in list(self._connections.values()))

    def processed_ids(self) -> Counter[str]:
        """How many times each event was taken."""
        return Counter(attempt.event_id for attempt in list(self.attempts) if attempt.processed)

    def repeats(self) -> int:
        """Return how many times events were taken beyond the first."""
        return sum(copies - 1 for copies in self.processed_ids().values())

    def unknowable(self) -> int:
        """T, and what was in flight of killed processes: attempts taken whose end the client cannot know."""
        return sum(attempt.end_is_unknowable for attempt in list(self.attempts))

    def received(self, since: float, until: float) -> int:
        """Requests read in a window of time.monotonic()."""
        return sum(since <= attempt.read_at < until for attempt in list(self.attempts))

    def longest_silence(self, since: float, until: float) -> float:
        """The longest time without a request in a window, in seconds."""
        clocks = [a.read_at for a in list(self.attempts) if since <= a.read_at < until]
        return max(b - a for a, b in zip([since, *clocks], [*clocks, until], strict=True))

    def _with_idle(self, act: Callable[[asyncio.Transport], None]) -> int:
        async def with_idle() -> int:
            idle = [c for c in list(self._connections.values()) if c.attempt is None and not c.transport.is_closing()]
            for connection in idle:
                act(connection.transport)
            return len(idle)

        return self._loop.run(with_idle())

    # Called on its loop

    def _accept(self, connection: _Connection) -> bool:
        self.accepted_connections += 1
        self._connections[id(connection)] = connection
        return not self._cuts_here(Cut.ACCEPT)

    def _cuts_here(self, where: Cut) -> bool:
        if self._to_cut[where] <= 0:
            return False
        self._to_cut[where] -= 1
        self.cuts[where] += 1
        return True

    def _note(
        self, connection: _Connection, event_id: str, authorization: str, body: bytes
    ) -> tuple[Attempt, Answer]:
        instance, repository, environment, digest = _read(body)
        attempt = Attempt(
            number=len(self.attempts) + 1,
            event_id=event_id,
            body_hash=hashlib.blake2b(body, digest_size=8).hexdigest(),
            instance=self._instances.setdefault(instance, instance),
            repository=repository,
            environment=environment,
            digest=digest,
            connection=connection.number,
            peer_port=connection.peer_port,
            port=connection.port,
            authorization=authorization,
            read_at=time.monotonic(),
            earlier=self._seen[event_id],
        )
        self._seen[event_id] += 1
        self._write(">", attempt.number, event_id, attempt.body_hash, instance, connection.number, attempt.read_at)
        try:
            answer = self._behaviour(attempt)
        except Exception as error:  # noqa: BLE001 - told by the ground, at the end
            self.errors.append(error)
            answer = Answer(500)
        attempt.status, attempt.processed = answer.status, answer.is_taken
        self.attempts.append(attempt)
        return attempt, answer

    def _end(self, attempt: Attempt, how: str) -> None:
        attempt.ended, attempt.ended_at = how, time.monotonic()
        self._write("<", attempt.number, attempt.status, how, attempt.ended_at)

    def _write(self, *parts: object) -> None:
        self._journal.write(("\t".join(map(str, parts)) + "\n").encode())

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self._connections.values()):
            connection.transport.abort()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, api: Api) -> None:
        self._api = api
        self._buffer = b""
        self._playing: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.attempt: Attempt | None = None
        self.number = self.peer_port = self.port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.peer_port = transport.get_extra_info("peername")[1]
        self.port = transport.get_extra_info("sockname")[1]
        self.number = self._api.accepted_connections + 1
        if not self._api._accept(self):
            reset(transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._api._connections.pop(id(self), None)
        if self._playing:
            self._playing.cancel()
        self._done("left")

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.attempt is None:
            self._read()

    def _read(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        headers = _headers(head)
        if self._api._cuts_here(Cut.HEADERS):
            reset(self.transport)
            return
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        key, authorization = headers.get("idempotency-key", ""), headers.get("authorization", "")
        event_id = key.rpartition(".")[0] or key  # what a worker's key begins with
        self.attempt, answer = self._api._note(self, event_id, authorization, rest[:length])
        if answer.is_plain:
            self._write_whole(answer)
        else:
            self._playing = asyncio.get_running_loop().create_task(self._play(self.attempt, answer))

    def _write_whole(self, answer: Answer) -> None:
        assert self.attempt
        self.attempt.status_sent = True
        self._done("answered")  # noted before: the client cannot have seen it earlier than this
        self.transport.write(answer.head() + answer.body)
        self._after(answer)

    def _after(self, answer: Answer) -> None:
        if answer.close:
            self.transport.close()
        elif self._buffer:
            self._read()

    async def _play(self, attempt: Attempt, answer: Answer) -> None:
        if answer.delay:
            await asyncio.sleep(answer.delay)
        if answer.stall:
            await asyncio.Event().wait()  # until the client leaves
        if answer.cut is Cut.REQUEST:
            self._cut(answer.cut)
        elif answer.raw is not None:
            attempt.status_sent = answer.raw.startswith(b"HTTP/1.1 ")
            self._done("answered")
            self.transport.write(answer.raw)
            self._after(answer)
        elif answer.drip or answer.cut or answer.huge:
            await self._send_in_parts(attempt, answer)
        else:
            self._write_whole(answer)

    async def _send_in_parts(self, attempt: Attempt, answer: Answer) -> None:
        head = answer.head()
        if answer.cut is Cut.STATUS_LINE:
            head = head[: head.index(b"\r\n") + 2]
        await self._drip(head, 0.0 if answer.drip_body else answer.drip)
        attempt.status_sent = True
        if answer.cut is Cut.BODY:
            self.transport.write(answer.body[: len(answer.body) // 2])
        elif answer.cut is None and answer.huge:
            for start in range(0, answer.huge, CHUNK):
                self.transport.write(b" " * min(CHUNK, answer.huge - start))
                await self._room.wait()
                await asyncio.sleep(0)  # else nobody would tell that the client has left
        elif answer.cut is None:
            await self._drip(answer.body, answer.drip)
        if answer.cut:
            await asyncio.sleep(BEFORE_CUT_SECONDS)
            self._cut(answer.cut)
        else:
            self._done("answered")
            self._after(answer)

    async def _drip(self, data: bytes, pause: float) -> None:
        if not pause:
            self.transport.write(data)
            return
        for byte in data:
            self.transport.write(bytes((byte,)))
            await asyncio.sleep(pause)

    def _cut(self, where: Cut) -> None:
        self._api.cuts[where] += 1
        self._done("cut")
        reset(self.transport)

    def _done(self, how: str) -> None:
        attempt, self.attempt = self.attempt, None
        if attempt:
            self._api._end(attempt, how)


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def stop(self) -> None:
        async def cancel_all() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def reset(transport: asyncio.BaseTransport) -> None:
    """Close a connection with RST instead of FIN, whatever is unsent."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _read(body: bytes) -> tuple[str, str, str, str]:
    """Return instance, repository, environment and digest; blanks for a body that is none."""
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
