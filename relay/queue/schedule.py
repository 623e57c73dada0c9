"""The schedule of a destination's outboxes: which of them are due, for the poller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.queue import scripts

if TYPE_CHECKING:
    from relay.queue.shard import Shard

#: Environments that are due while the circuit is open. One of them sends the probe; several, because some may turn
#: out to be empty, or leased by a run.
PROBE_ENVIRONMENTS = 3

#: Added to the longest pause of a retry: a retry that is later was scheduled before the clock was set back.
PAUSE_MARGIN_SECONDS = 600.0

_WAITING = scripts.declare(
    "waiting", keys=("inbox", "schedule", "health"), arguments=("wanted", "skip", "probes", "longest_pause_ms")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Entries in the inbox, environments whose outbox is due, and when the next one is, None for none."""

    inbox: int
    due: list[str]
    next_due_seconds: float | None


def longest_pause_seconds(backoff_max: float, lease: float) -> float:
    """Return how far ahead a retry may be scheduled."""
    return 2 * max(backoff_max, lease) + PAUSE_MARGIN_SECONDS


def read_waiting(
    shard: Shard, destination: str, *, count: int, skip: int = 0, longest_pause_seconds: float
) -> Waiting:
    """Return what waits: of the due environments up to `count`, after the first `skip`.

    While the destination is throttled or unavailable none is due; while its circuit is open, a few to probe with.
    """
    keys = shard.keys
    call = _WAITING.call(
        {"inbox": keys.inbox, "schedule": keys.schedule(destination), "health": keys.destination(destination)},
        {
            "wanted": count,
            "skip": skip,
            "probes": PROBE_ENVIRONMENTS,
            "longest_pause_ms": round(longest_pause_seconds * 1000),
        },
    )
    now, inbox, later, *due = scripts.run(shard.client, call)
    return Waiting(
        inbox=int(inbox),
        due=[name.decode() for name in due],
        next_due_seconds=(float(later) - int(now)) / 1000 if later else None,
    )
