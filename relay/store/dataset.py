"""Which data set this is: a random id that lies in it, and is gone when it is lost."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from relay.store import scripts

if TYPE_CHECKING:
    from redis import Redis

    from relay.keys import Keys

#: What an operator is told of another data set than before.
LOST = (
    "the data set in Redis is not the one of a moment ago: it was flushed, or a failover came to an empty or another "
    "Redis. What was accepted and not delivered is lost, unless you restore it. Have every producer report its whole "
    "current state: nothing is known any more, so all is delivered again. Deliveries go on with the new data set"
)

_BEAT = scripts.load("beat")


def beat(client: Redis, keys: Keys, worker: str, *, keep_seconds: float, known: str = "") -> str:
    """Give a worker's sign of life, and return the data set's id; another than `known` is counted as a reset."""
    script_keys = (keys.worker(worker), keys.dataset, keys.counts, keys.workers)
    args = (str(time.time()), round(keep_seconds * 1000), known, secrets.token_hex(8), worker)
    reply: bytes = scripts.run(client, scripts.Call(_BEAT, script_keys, args))
    return reply.decode()
