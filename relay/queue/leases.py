"""Leases: one run at a time for the inbox and for each outbox; and wake-ups, one at a time for each.

A lease is a key with the run's token, and expires. Every script that commits compares the token, so a run that was
paused past its lease cannot commit over its successor.

Beside it lies the run's in-flight marker, which does not expire: a run that finds another's knows that this one died.
"""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.errors import LeaseLost
from relay.queue import scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from relay.queue.scripts import Call

#: Runs that may die with one entry alone in hand before the entry is taken for the cause.
MAX_DEATHS = 3

#: Longer than any time between two heartbeats.
NO_GAP_MS = 1 << 52

_ACQUIRE = scripts.declare(
    "acquire",
    keys=("wakeup", "lease", "run", "counters"),
    arguments=("token", "lease_ms", "new_dataset", "gap_ms"),
)
_HANDLE = scripts.declare("handle", keys=("lease", "run"), arguments=("token", "entry_id"))
_WAKE = scripts.declare("wake", keys=("counters",), arguments=("wakeup_ms", "why"))


def new_token() -> str:
    """Return a token that no other run has."""
    return secrets.token_hex(8)


class Lease(NamedTuple):
    """A lease that was acquired. `cursor` is an outbox's, "" for none yet; `unfinished` runs before did not release.

    `dataset` is the id of the data set that an outbox lies in. Ages of events are measured from `steady_since` on, in
    Redis milliseconds, because its clock was stepped then, or no worker had run for long.
    """

    cursor: str
    unfinished: int
    dataset: str = ""
    steady_since: int = 0


def acquire_call(
    wakeup: str,
    lease: str,
    run: str,
    token: str,
    lease_seconds: float,
    *,
    counts: str,
    outbox: tuple[str, str] | None = None,
    gap_ms: int = 0,
) -> Call:
    """Return the call that acquires a lease; `acquired` parses its reply. `outbox`: the keys of cursor and data set.

    `gap_ms` is how far apart two heartbeats may be for ages to be measured across them; 0 for any.
    """
    return _ACQUIRE.call(
        {"wakeup": wakeup, "lease": lease, "run": run, "counters": counts},
        {
            "token": token,
            "lease_ms": round(lease_seconds * 1000),
            "new_dataset": secrets.token_hex(8),
            "gap_ms": gap_ms or NO_GAP_MS,
        },
        more_keys=outbox or (),
    )


def acquired(reply: list[Any]) -> Lease | None:
    """Parse the reply of an acquisition; None if another run holds the lease."""
    return Lease(reply[1].decode(), int(reply[2]), reply[3].decode(), int(reply[4])) if reply[0] else None


def handle(client: Redis, lease: str, run: str, token: str, entry_id: str) -> int:
    """Set the in-flight marker to one entry; return how many runs died with it. Raise `LeaseLost`."""
    deaths = int(
        scripts.run(client, _HANDLE.call({"lease": lease, "run": run}, {"token": token, "entry_id": entry_id}))
    )
    if deaths < 0:
        raise LeaseLost("another run has acquired the lease")
    return deaths


class Why(StrEnum):
    """Why a wake-up is sent."""

    #: Something was added, or a run left something.
    WORK = "work"
    #: An outbox's time has come and no run holds it: a retry, a recovery, or a run or wake-up that was lost.
    DUE = "due"


def to_wake(
    client: Redis, counts: str, runs: Sequence[tuple[str, str]], wakeup_seconds: float, why: Why
) -> list[int]:
    """Return the positions of those runs, given as keys of lease and wake-up, that need a wake-up, and count them."""
    if not runs:
        return []
    call = _WAKE.call(
        {"counters": counts},
        {"wakeup_ms": round(wakeup_seconds * 1000), "why": why},
        more_keys=[key for run in runs for key in run],
    )
    return [position - 1 for position in scripts.run(client, call)]
