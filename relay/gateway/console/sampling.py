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
    """One look. `flows` is by environment, in the order of their names."""

    flows: dict[str, Flow]
    workers: list[str]
    took_seconds: float


class Sampler:
    """Looks while it runs. Ten thousand environments take it half a second, so every ten seconds."""

    def __init__(self, shard: Shard) -> None:
        self.history = History()
        self._shard = shard
        self._latest: Sample | None = None
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Look until cancelled; while Redis is away, look for it."""
        while True:
            try:
                sample = await self._look()
            except QueueUnavailable:
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:  # noqa: BLE001 - an edge; the console lives on
                _log.exception("the console could not look at the environments")
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                await asyncio.sleep(max(PAUSE_SECONDS, PAUSE_FACTOR * sample.took_seconds))

    async def latest(self) -> Sample:
        """Return the last look; the first is waited for. Raises `QueueUnavailable`."""
        return self._latest or await self._look()

    async def _look(self) -> Sample:
        async with self._looking:
            self._latest = sample = await self._shard.ask(look)
        delivered = {name: flow.delivered for name, flow in sample.flows.items()}
        self.history.note({ALL: sum(delivered.values()), **delivered}, time.monotonic())
        return sample


def look(client: Redis, keys: Keys) -> Sample:
    """Look once."""
    started = time.monotonic()
    names = environment_names(client, keys, DEFAULT_ENDPOINT)
    flows = read_flows(client, keys, DEFAULT_ENDPOINT, names)
    return Sample(flows=flows, workers=living(client, keys), took_seconds=time.monotonic() - started)
