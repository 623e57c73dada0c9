"""Cache of the status that `relay status` prints: one reading for all pages, at a bounded cost, and its history."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relay.console.history import History
from relay.errors import QueueUnavailable
from relay.operations.diagnosis import diagnose
from relay.queue.status import read_status
from relay.redaction import PAGE_CHARACTERS, Secrets

if TYPE_CHECKING:
    from redis import Redis

    from relay.console.queue_client import QueueClient
    from relay.operations.finding import Finding
    from relay.queue.keys import Keys
    from relay.queue.status import Status
    from relay.settings import Settings

#: The pause between two readings: at least this time, and this multiple of the time that a reading takes.
PAUSE_SECONDS, PAUSE_FACTOR = 2.0, 20

#: The name in the history of all environments together; no environment has it.
ALL = ""

_log = logging.getLogger("relay.console")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedStatus:
    """One reading with its findings; `began` by the monotonic clock."""

    status: Status
    findings: list[Finding]
    began: float
    took_seconds: float


class StatusCache:
    """Reads the status periodically while it runs, and on demand. 10,000 environments take half a second."""

    def __init__(self, queue: QueueClient, settings: Settings) -> None:
        self.history = History()
        self._queue = queue
        self._settings = settings
        self._latest: CachedStatus | None = None
        self._reading: asyncio.Task[CachedStatus] | None = None
        self._expired = 0.0

    async def run(self) -> None:
        """Read until cancelled, also while Redis is unavailable."""
        try:
            while True:
                pause_seconds = PAUSE_SECONDS
                try:
                    read = await self._read()
                    pause_seconds = max(PAUSE_SECONDS, PAUSE_FACTOR * read.took_seconds)
                except QueueUnavailable:
                    pass
                except Exception:  # noqa: BLE001 - the edge of the task: the next reading may succeed
                    _log.exception("the console could not read the status")
                await asyncio.sleep(pause_seconds)
        finally:
            if self._reading is not None:
                self._reading.cancel()

    def expire(self) -> None:
        """Invalidate all readings that began before now, so that a page shows the change just made."""
        self._expired = time.monotonic()

    async def latest(self) -> CachedStatus:
        """Return a reading that is as recent as its cost allows; raise `QueueUnavailable`."""
        latest = self._latest
        if latest is None or self._is_old(latest):
            latest = await self._read()
            if latest.began < self._expired:  # it was under way at the change
                latest = await self._read()
        return latest

    def _is_old(self, cached: CachedStatus) -> bool:
        age_seconds = time.monotonic() - cached.began
        return cached.began < self._expired or age_seconds >= PAUSE_FACTOR * cached.took_seconds

    async def _read(self) -> CachedStatus:
        """Return a new reading, or the result or error of the one under way."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_once())
        return await asyncio.shield(self._reading)

    async def _read_once(self) -> CachedStatus:
        self._latest = cached = await self._queue.ask(lambda client, keys: read(client, keys, self._settings))
        delivered = {each.environment: each.delivered for each in cached.status.environments}
        self.history.note({ALL: sum(delivered.values()), **delivered}, cached.began)
        return cached


def read(client: Redis, keys: Keys, settings: Settings) -> CachedStatus:
    """Read the status once, with its findings; credentials in the newest dead letter are masked."""
    began = time.monotonic()
    status = read_status(client, keys, settings.destination, settings.queue)
    if status.newest_dead is not None:
        death = status.newest_dead.cause
        secrets = Secrets.of(settings, shortest=PAGE_CHARACTERS)
        detail = secrets.mask_credentials(death.get("detail", ""))
        status = replace(status, newest_dead=replace(status.newest_dead, cause={**death, "detail": detail}))
    return CachedStatus(status=status, findings=diagnose(status), began=began, took_seconds=time.monotonic() - began)
