"""Which data set this is: a random id that lies in it, and is gone when it is lost."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, cast

from relay.queue import scripts

if TYPE_CHECKING:
    from redis import Redis

    from relay.queue.keys import Keys

#: The message for operators if the data set is not the one of before.
LOST = (
    "the data set in Redis has changed: it was flushed, or a failover led to an empty or another Redis. Accepted "
    "events that were not delivered are lost, unless you restore them. Have every producer report its whole current "
    "state: no state is known, so all of it is delivered again. Deliveries continue with the new data set"
)

#: What is done after a long time by Redis's clock, and must not be done early because that was stepped.
EXPIRE, FORGET = "expire", "forget"

#: The part of such a time that may pass between two signs of life. A clock that was stepped farther, or that time
#: without any worker, begins the time anew: then it ends late, and never more than this part early.
GAP_PART = 0.5

_BEAT = scripts.load("beat")


def longest_gap_ms(seconds: float) -> int:
    """Return how far apart two signs of life may be for a time of so many seconds to be reckoned across them."""
    return round(seconds * 1000 * GAP_PART)


def is_steady(client: Redis, keys: Keys, *, now: int, seconds: float) -> bool:
    """Return whether Redis's clock is known to have run on for so long, with workers at work; `now` is its time.

    True where no worker has noted anything yet.
    """
    beat_at, steady_since = cast("list[bytes | None]", client.hmget(keys.dataset, ["beat_at", f"steady:{FORGET}"]))
    if beat_at is not None and abs(now - int(beat_at)) > longest_gap_ms(seconds):
        return False
    return steady_since is None or (now - int(steady_since) >= 0 and now - int(steady_since) > seconds * 1000)


def beat(
    client: Redis, keys: Keys, worker: str, *,
    keep_seconds: float, known: str = "", expire_after: float = 0.0, forget_after: float = 0.0,
) -> str:  # fmt: skip
    """Give a worker's sign of life, and return the data set's id; another than `known` is counted as a reset.

    It notes when the reckoning of those two times begins anew: after a gap between signs of life that is as long as
    `GAP_PART` of them, or a clock that was set back by as much.
    """
    script_keys = (keys.worker(worker), keys.dataset, keys.counts, keys.workers)
    args: list[scripts.Argument] = [str(time.time()), round(keep_seconds * 1000), known, secrets.token_hex(8), worker]
    for use, seconds in ((EXPIRE, expire_after), (FORGET, forget_after)):
        args += (use, longest_gap_ms(seconds)) if seconds else ()
    reply: bytes = scripts.run(client, scripts.Call(_BEAT, script_keys, args))
    return reply.decode()
