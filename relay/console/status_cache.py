"""How the relay is, looked at again and again at a bounded cost: one look for all pages, and rates of the looks."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relay.console.history import History
from relay.console.redact import known_secrets, redacted
from relay.errors import QueueUnavailable
from relay.operations.diagnosis import diagnose
from relay.queue.status import read_status
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from redis import Redis

    from relay.console.queue_client import QueueClient
    from relay.operations.finding import Finding
    from relay.queue.dead_letters import DeadLetter
    from relay.queue.keys import Keys
    from relay.queue.status import Status
    from relay.settings import Settings

#: The pause between two looks: at least this long, and so many times as long as a look took.
PAUSE_SECONDS, PAUSE_FACTOR = 2.0, 20

#: In the history, what all environments delivered together; no environment has this name.
ALL = ""

_log = logging.getLogger("relay.console")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedStatus:
    """One look, what is wrong by it, and when it began, by a steady clock."""

    seen: Status
    findings: list[Finding]
    began: float
    took_seconds: float


class StatusCache:
    """Looks while it runs, and once more for who comes between. Ten thousand environments take it half a second."""

    def __init__(self, queue: QueueClient, settings: Settings) -> None:
        self.history = History()
        self._queue = queue
        self._settings = settings
        self._latest: CachedStatus | None = None
        self._looking: asyncio.Task[CachedStatus] | None = None
        self._expired = 0.0

    async def run(self) -> None:
        """Look until cancelled; while Redis is away, look for it."""
        try:
            while True:
                rest_seconds = await self._look_and_rest()
                await asyncio.sleep(rest_seconds)
        finally:
            if self._looking is not None:
                self._looking.cancel()

    def expire(self) -> None:
        """Let no look count that began before: something was changed, and who changed it wants to see it."""
        self._expired = time.monotonic()

    async def latest(self) -> CachedStatus:
        """Return a look that is as new as its cost allows; raises `QueueUnavailable`."""
        latest = self._latest
        if latest is None or self._is_old(latest):
            latest = await self._look()
            if latest.began < self._expired:  # it was under way before
                latest = await self._look()
        return latest

    def _is_old(self, sample: CachedStatus) -> bool:
        age_seconds = time.monotonic() - sample.began
        return sample.began < self._expired or age_seconds >= PAUSE_FACTOR * sample.took_seconds

    async def _look_and_rest(self) -> float:
        try:
            sample = await self._look()
        except QueueUnavailable:
            return PAUSE_SECONDS
        except Exception:  # noqa: BLE001 - an edge; the console lives on
            _log.exception("the console could not look at the relay")
            return PAUSE_SECONDS
        return max(PAUSE_SECONDS, PAUSE_FACTOR * sample.took_seconds)

    async def _look(self) -> CachedStatus:
        """Look, or wait for the look under way: it is the same for all, and so is its failure."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._take())
        return await asyncio.shield(self._looking)

    async def _take(self) -> CachedStatus:
        self._latest = sample = await self._queue.ask(lambda client, keys: look(client, keys, self._settings))
        delivered = {each.environment: each.delivered for each in sample.seen.environments}
        self.history.note({ALL: sum(delivered.values()), **delivered}, sample.began)
        return sample


def look(client: Redis, keys: Keys, settings: Settings) -> CachedStatus:
    """Look once, as `relay status` does, and say what is wrong in the same words."""
    began = time.monotonic()
    seen = read_status(client, keys, DEFAULT_DESTINATION, settings.queue)
    if seen.newest_dead is not None:
        seen = replace(seen, newest_dead=_without_credentials(seen.newest_dead, settings))
    return CachedStatus(seen=seen, findings=diagnose(seen), began=began, took_seconds=time.monotonic() - began)


def _without_credentials(letter: DeadLetter, settings: Settings) -> DeadLetter:
    """Mask what looks like a credential in what the API answered."""
    detail = redacted(letter.death.get("detail", ""), known_secrets(settings))
    return replace(letter, death={**letter.death, "detail": detail})
