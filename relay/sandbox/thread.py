"""The sandbox as a process (`serve`) and in a thread of another one (`Sandbox`)."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Self, TypeVar

from relay.errors import ConfigurationError
from relay.sandbox.api import SandboxApi
from relay.sandbox.connection import Limits
from relay.sandbox.faults import parse_rules
from relay.sandbox.server import LoopThread, Server, new_event_loop
from relay.sandbox.settings import SandboxSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from relay.sandbox.faults import FaultRule
    from relay.sandbox.record import Counts, RecordedRequest

_Result = TypeVar("_Result")


def serve(settings: SandboxSettings, *, announce: Callable[[str], None]) -> None:
    """Run the sandbox until SIGTERM or SIGINT; `announce` gets the URL once it listens."""
    api = _api(settings)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(settings, api, announce))


async def _serve(settings: SandboxSettings, api: SandboxApi, announce: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = Server(api, Limits())
    announce(await server.listen(settings.host, settings.port))
    await stopped.wait()
    await server.close()
    api.records.close()


def _api(settings: SandboxSettings) -> SandboxApi:
    try:
        return SandboxApi(settings)
    except OSError as error:
        raise ConfigurationError(f"the record file cannot be opened: {error}") from error


class Sandbox:
    """The sandbox in a thread of this process, with an event loop of its own.

        with Sandbox(token="secret") as api:
            api.faults = [{"kind": "status", "sequence": [503, 202]}]
            ...  # post to api.url
            requests = api.wait_for(2)

    All methods may be called from any thread. The records can still be read after the end.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        port: int = 0,
        record: Path | None = None,
        keep: int = SandboxSettings.keep,
        limits: Limits | None = None,
    ) -> None:
        self._settings = SandboxSettings(port=port, token=token, record=record, keep=keep)
        self._api = _api(self._settings)
        self._server = Server(self._api, limits or Limits())
        self._changed = threading.Condition()
        self._waiters = 0
        self._thread: LoopThread | None = None
        self._api.records.on_change = self._notify
        self.url = ""  #: without a path: each path outside `/_sandbox/` is the API

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Listen; return when requests can be sent."""
        thread = LoopThread("relay-sandbox")
        try:
            self.url = thread.call(self._server.listen(self._settings.host, self._settings.port))
        except BaseException:
            thread.stop()
            raise
        self._thread = thread
        return self

    def close(self) -> None:
        """Stop and complete the record file. A second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.call(self._server.close())
            thread.stop()
            self._api.records.close()

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests in memory, oldest first."""
        return self._read(self._api.records.requests)

    def counts(self) -> Counts:
        """Return the sums over all requests."""
        return self._read(self._api.records.counts)

    @property
    def faults(self) -> tuple[FaultRule, ...]:
        """The rules in force. Set a list of rules as in JSON; their counts and times begin then."""
        return self._read(self._api.faults.rules)

    @faults.setter
    def faults(self, rules: Iterable[object]) -> None:
        parsed = parse_rules(list(rules))
        self._read(lambda: self._api.faults.replace(parsed))

    def reset(self) -> None:
        """Remove records, counts and faults."""
        self._read(self._api.reset)

    def wait_for(self, count: int, timeout_seconds: float = 10.0, *, accepted: bool = False) -> list[RecordedRequest]:
        """Wait until this many requests were received (with `accepted`: processed) and return them all.

        Raise TimeoutError, with the counts, after the time-out.
        """
        records = self._api.records
        with self._changed:
            self._waiters += 1
            try:
                is_enough = self._changed.wait_for(
                    lambda: (records.accepted if accepted else records.received) >= count, timeout_seconds
                )
            finally:
                self._waiters -= 1
        if not is_enough:
            raise TimeoutError(f"{count} requests did not come in {timeout_seconds} s: {self.counts()}")
        return self.requests

    def _notify(self) -> None:
        if self._waiters:
            with self._changed:
                self._changed.notify_all()

    def _read(self, read: Callable[[], _Result]) -> _Result:
        """Call a function in the event loop's thread, or here once that has ended."""
        if self._thread is None:
            return read()

        async def call() -> _Result:
            return read()

        return self._thread.call(call())
