"""The stand-in on a socket: as a process (`serve`) and inside another one (`Sandbox`)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
import time
from typing import TYPE_CHECKING, Final, Self, TypeVar

from relay import hosts
from relay.errors import ConfigurationError
from relay.sandbox.faults import parse_rules
from relay.sandbox.settings import SandboxSettings
from relay.sandbox.standin import StandIn

try:
    from relay.sandbox.connection import Connection
except ImportError as error:  # pragma: no cover - a bare install
    raise ConfigurationError("the sandbox needs httptools: pip install 'deployment-relay[gateway]'") from error

try:
    import uvloop as event_loops
except ImportError:  # pragma: no cover - where uvloop has no wheel; slower, and the same otherwise
    event_loops = asyncio  # type: ignore[misc,assignment,unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from relay.sandbox.faults import FaultRule
    from relay.sandbox.record import Counts, RecordedRequest

#: How long a line of the record file waits in memory at most, in seconds.
FLUSH_SECONDS: Final = 0.2
#: How often connections are checked for idle and slow clients, in seconds; more often for short time-outs.
PATIENCE_CHECK_SECONDS: Final = 1.0
#: Connections that the kernel holds until they are accepted.
BACKLOG: Final = 1024
#: How long `Sandbox` waits for its thread to start or to end, in seconds.
THREAD_SECONDS: Final = 10.0

_Result = TypeVar("_Result")


class Listener:
    """A stand-in that listens; belongs to the event loop it was started in."""

    def __init__(self, settings: SandboxSettings, standin: StandIn) -> None:
        self._settings = settings
        self._standin = standin
        self._connections: set[Connection] = set()
        self._numbers = itertools.count(1)
        self._server: asyncio.Server
        self._chores: list[asyncio.Task[None]] = []
        self.url = ""

    async def start(self) -> None:
        """Listen; ConfigurationError if the address cannot be had."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        try:
            listening = hosts.listen(settings.host, settings.port, backlog=BACKLOG)
            self._server = await loop.create_server(self._connect, sock=listening, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {settings.host} port {settings.port}: {error}") from error
        self.url = hosts.url_of(listening)
        check_seconds = min(PATIENCE_CHECK_SECONDS, settings.request_timeout_seconds / 4)
        self._chores = [
            loop.create_task(_again_and_again(FLUSH_SECONDS, self._standin.counters.flush)),
            loop.create_task(_again_and_again(check_seconds, self._check_patience)),
        ]

    async def stop(self) -> None:
        """Close everything; answers still to come are not given. The record file is complete after."""
        self._server.close()
        for chore in self._chores:
            chore.cancel()
        for connection in tuple(self._connections):
            connection.abandon()
        await asyncio.sleep(0)  # the transports close in the loop's next round
        self._standin.counters.close()

    def _connect(self) -> Connection:
        return Connection(self._standin, self._settings, next(self._numbers), self._connections)

    def _check_patience(self) -> None:
        now = time.monotonic()
        for connection in tuple(self._connections):
            connection.check_patience(now)


async def _again_and_again(seconds: float, act: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        act()


def serve(settings: SandboxSettings, *, announce: Callable[[str], None]) -> None:
    """Run a stand-in until SIGTERM or SIGINT; `announce` gets the URL once it listens."""
    standin = _stand_in(settings)
    with asyncio.Runner(loop_factory=event_loops.new_event_loop) as runner:
        runner.run(_serve(settings, standin, announce))


async def _serve(settings: SandboxSettings, standin: StandIn, announce: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    listener = Listener(settings, standin)
    await listener.start()
    announce(listener.url)
    await stopped.wait()
    await listener.stop()


def _stand_in(settings: SandboxSettings) -> StandIn:
    try:
        return StandIn(settings)
    except OSError as error:
        raise ConfigurationError(f"the record file cannot be opened: {error}") from error


class Sandbox:
    """A stand-in in a thread of this process, with an event loop of its own.

        with Sandbox(token="secret") as api:
            api.faults = [{"kind": "status", "sequence": [503, 202]}]
            ...  # post to api.url
            requests = api.wait_for(2)

    Everything may be called from any thread; what was received can still be read after the end.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        port: int = 0,
        record: Path | None = None,
        keep: int = SandboxSettings.keep,
        request_timeout_seconds: float = SandboxSettings.request_timeout_seconds,
        idle_timeout_seconds: float = SandboxSettings.idle_timeout_seconds,
    ) -> None:
        self._settings = SandboxSettings(
            port=port,
            token=token,
            record=record,
            keep=keep,
            request_timeout_seconds=request_timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
        )
        self._standin = _stand_in(self._settings)
        self._listener = Listener(self._settings, self._standin)
        self._changed = threading.Condition()
        self._watchers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._standin.counters.on_change = self._notify

    def start(self) -> Self:
        """Listen; returns when requests can be sent."""
        loop: asyncio.AbstractEventLoop = event_loops.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop,), name="relay-sandbox", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listener.start(), loop).result(THREAD_SECONDS)
        except BaseException:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(THREAD_SECONDS)
            raise
        self._loop, self._thread = loop, thread
        return self

    def close(self) -> None:
        """Stop; the record file is complete after. A second call does nothing."""
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._listener.stop(), loop).result(THREAD_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(THREAD_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, without a path: any path not under `/_sandbox/` is the API."""
        return self._listener.url

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests held, oldest first."""
        return self._ask(self._standin.counters.requests)

    def counts(self) -> Counts:
        """Give the sums of everything received."""
        return self._ask(self._standin.counters.counts)

    @property
    def faults(self) -> tuple[FaultRule, ...]:
        """The rules in force. Set a list of rules as JSON has them; their counts and times begin then."""
        return self._ask(self._standin.faults.rules)

    @faults.setter
    def faults(self, rules: Iterable[object]) -> None:
        parsed = parse_rules(list(rules))
        self._ask(lambda: self._standin.faults.replace(parsed))

    def reset(self) -> None:
        """Forget requests, counts and faults."""
        self._ask(self._standin.reset)

    def wait_for(self, count: int, timeout_seconds: float = 10.0, *, accepted: bool = False) -> list[RecordedRequest]:
        """Wait until so many requests were received (with `accepted`: processed) and give them all.

        TimeoutError, with the counts, if they have not come in time.
        """
        counters = self._standin.counters
        with self._changed:
            self._watchers += 1
            try:
                arrived = self._changed.wait_for(
                    lambda: (counters.accepted if accepted else counters.received) >= count, timeout_seconds
                )
            finally:
                self._watchers -= 1
        if not arrived:
            raise TimeoutError(f"{count} requests did not come in {timeout_seconds} s: {self.counts()}")
        return self.requests

    def _notify(self) -> None:
        if self._watchers:
            with self._changed:
                self._changed.notify_all()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(_cancel_the_rest())
        finally:
            loop.close()

    def _ask(self, question: Callable[[], _Result]) -> _Result:
        """Put a question to the event loop's thread, or here if that has ended."""
        loop = self._loop
        if loop is None:
            return question()

        async def answer() -> _Result:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), loop).result(THREAD_SECONDS)


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    for task in rest:
        with contextlib.suppress(asyncio.CancelledError):
            await task
