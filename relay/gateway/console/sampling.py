"""What every environment is doing, looked at again and again at a bounded cost, for order, search and rates."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.errors import QueueUnavailable
from relay.gateway.console.history import History
from relay.keys import DEFAULT_ENDPOINT
from relay.store.counts import Flow, environment_names, read_flows
from relay.store.workers import living

if TYPE_CHECKING:
    from redis import Redis

    from relay.gateway.console.shard import Shard
    from relay.keys import Keys

#: The pause between two looks: at least this long, and so many times as long as a look took.
PAUSE_SECONDS, PAUSE_FACTOR = 2.0, 20

#: In the history, what all environments delivered together; no environment has this name.
ALL = ""

_log = logging.getLogger("relay.gateway.console")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look, and when it was, by a steady clock. `flows` is in the order of the environments' names."""

    at: float

    flows: dict[str, Flow]
    workers: list[str]
    took_seconds: float


class Sampler:
    """Looks while it runs, and once more for who comes between. Ten thousand environments take it half a second."""

    def __init__(self, shard: Shard) -> None:
        self.history = History()
        self._shard = shard
        self._latest: Sample | None = None
        self._looking: asyncio.Task[Sample] | None = None

    async def run(self) -> None:
        """Look until cancelled; while Redis is away, look for it."""
        try:
            while True:
                rest_seconds = await self._look_and_rest()
                await asyncio.sleep(rest_seconds)
        finally:
            if self._looking is not None:
                self._looking.cancel()

    async def latest(self) -> Sample:
        """Return a look that is as new as its cost allows; raises `QueueUnavailable`."""
        latest = self._latest
        if latest is not None and time.monotonic() - latest.at < PAUSE_FACTOR * latest.took_seconds:
            return latest
        return await self._look()

    async def _look_and_rest(self) -> float:
        try:
            sample = await self._look()
        except QueueUnavailable:
            return PAUSE_SECONDS
        except Exception:  # noqa: BLE001 - an edge; the console lives on
            _log.exception("the console could not look at the environments")
            return PAUSE_SECONDS
        return max(PAUSE_SECONDS, PAUSE_FACTOR * sample.took_seconds)

    async def _look(self) -> Sample:
        """Look, or wait for the look under way: it is the same for all, and so is its failure."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._take())
        return await asyncio.shield(self._looking)

    async def _take(self) -> Sample:
        self._latest = sample = await self._shard.ask(look)
        delivered = {name: flow.delivered for name, flow in sample.flows.items()}
        self.history.note({ALL: sum(delivered.values()), **delivered}, sample.at)
        return sample


def look(client: Redis, keys: Keys) -> Sample:
    """Look once."""
    started = time.monotonic()
    names = environment_names(client, keys, DEFAULT_ENDPOINT)
    flows = read_flows(client, keys, DEFAULT_ENDPOINT, names)
    workers = living(client, keys)
    ended = time.monotonic()
    return Sample(at=ended, flows=flows, workers=workers, took_seconds=ended - started)
