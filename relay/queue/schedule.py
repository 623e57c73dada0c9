"""When to look at which outbox: what the poller asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.queue import scripts

if TYPE_CHECKING:
    from redis import Redis

    from relay.queue.keys import Keys

#: Environments that are called while the circuit is open. One of them gets the probe; several, because some may turn
#: out to be empty or at work.
PROBERS = 3

_LOOK = scripts.load("look")


#: What is added to the longest pause of a retry before one is taken for scheduled by a clock that was set back since.
PAUSE_MARGIN_SECONDS = 600.0


def longest_pause_seconds(backoff_max: float, lease: float) -> float:
    """Return how far ahead a retry may be due; one that is farther ahead is from before the clock was set back."""
    return 2 * max(backoff_max, lease) + PAUSE_MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Sight:
    """What waits. `next_due_seconds` is from now, None if no outbox waits for a later time."""

    inbox: int
    due: list[str]
    next_due_seconds: float | None


def look(client: Redis, keys: Keys, destination: str, *, count: int, skip: int = 0, longest_pause: float) -> Sight:
    """Return what waits: the inbox, and up to `count` environments that are due, after the first `skip`.

    While the destination is held none is due; while its circuit is open, a few to probe with. One that is due later
    than
    the `longest_pause` in seconds is due.
    """
    look_keys = (keys.inbox, keys.schedule(destination), keys.destination(destination))
    call = scripts.Call(_LOOK, look_keys, (count, skip, PROBERS, round(longest_pause * 1000)))
    now, inbox, later, *due = scripts.run(client, call)
    return Sight(
        inbox=int(inbox),
        due=[name.decode() for name in due],
        next_due_seconds=(float(later) - int(now)) / 1000 if later else None,
    )
