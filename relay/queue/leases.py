"""Leases: one drain at a time for the inbox and for each outbox; and wakeups, one ring at a time for each.

A lease is a key with the drain's token that expires. Every script that commits compares the token, so a drain
that was paused past its lease cannot commit over its successor.

Beside it lies the mark of the *run*, which does not expire: a drain that finds another's knows that it died at work.
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

#: Drains that may die with one entry alone in hand before it is taken for what kills them.
MAX_DEATHS = 3

#: Longer than any time between two signs of life.
NO_GAP_MS = 1 << 52

_ACQUIRE = scripts.load("acquire")
_HANDLE = scripts.load("handle")
_RING = scripts.load("wake")


def new_token() -> str:
    """Return a token that no other drain has."""
    return secrets.token_hex(8)


class Lease(NamedTuple):
    """A lease that was taken. `cursor` is an outbox's, '' for none yet; `unfinished` drains before did not let go.

    `dataset` is the id of the data set that an outbox lies in. Ages of events are reckoned from `steady_since` on, in
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
    """Return the call that takes a lease; `acquired` reads its reply. `outbox` is the keys of cursor and data set.

    `gap_ms` is how far apart two signs of life may be for ages to be reckoned across them; 0 for any.
    """
    keys = (wakeup, lease, run, counts, *(outbox or ()))
    args: list[scripts.Argument] = [token, round(lease_seconds * 1000)]
    args += [secrets.token_hex(8), gap_ms or NO_GAP_MS] if outbox else []
    return scripts.Call(_ACQUIRE, keys, args)


def acquired(reply: list[Any]) -> Lease | None:
    """Read the reply of an acquisition; None when another drain is at it."""
    return Lease(reply[1].decode(), int(reply[2]), reply[3].decode(), int(reply[4])) if reply[0] else None


def handle(client: Redis, lease: str, run: str, token: str, entry_id: str) -> int:
    """Note the entry that is in hand alone; return how many drains died with it alone in theirs."""
    deaths = int(scripts.run(client, scripts.Call(_HANDLE, (lease, run), (token, entry_id))))
    if deaths < 0:
        raise LeaseLost("another drain has taken over")
    return deaths


class Why(StrEnum):
    """Why a wakeup is rung."""

    #: Something new waits, or a drain left something.
    WORK = "work"
    #: An outbox's time has come, and nobody is at it: a retry, a hold's end, or a drain or wakeup that got lost.
    DUE = "due"


def to_wake(
    client: Redis, counts: str, drains: Sequence[tuple[str, str]], wakeup_seconds: float, why: Why
) -> list[int]:
    """Return the positions of those runs, given as (lease, wakeup), that need a wake-up, and count them."""
    if not drains:
        return []
    keys = [counts, *(key for drain in drains for key in drain)]
    reply = scripts.run(client, scripts.Call(_RING, keys, (round(wakeup_seconds * 1000), why)))
    return [position - 1 for position in reply]
