"""Redrive: moves dead letters back to the inbox, with the time of their first arrival.

One script moves a part of a page, so at every moment each event is either a dead letter or in the inbox, also if a
process is killed. Redrives hold a lease: one at a time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from relay import clock
from relay.errors import LeaseLost
from relay.queue import leases, scripts
from relay.queue.dead_letters import inbox_entry, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.queue.dead_letters import DeadLetter, Filters
    from relay.queue.keys import Keys
    from relay.queue.scripts import Argument

#: Duration of the lease, renewed with every move and by `renew`. A redrive that dies blocks the next one this long.
LEASE_SECONDS = 15.0

_REDRIVE = scripts.load("redrive")


class Moved(NamedTuple):
    """Dead letters moved, and whether the move ended because `queue.max_backlog` events wait."""

    letters: int
    is_full: bool


class Progress(NamedTuple):
    """Progress of a redrive in dead letters; `is_full` if it ended because the queue is full."""

    scanned: int
    moved: int
    is_full: bool


class Redrive:
    """A redrive under its lease. Its methods raise `LeaseLost` if another redrive has taken over."""

    def __init__(self, client: Redis, keys: Keys, *, max_backlog: int, force: bool = False) -> None:
        self.client = client
        self.keys = keys
        self._max_backlog = max_backlog
        self._force = force
        self._token = leases.new_token()
        self._renewed_at = 0.0

    def acquire(self) -> bool:
        """Acquire the lease; return False if another redrive holds it."""
        self._renewed_at = clock.uptime()
        lease = self.keys.redrive_lease
        if self.client.set(lease, self._token, nx=True, px=round(LEASE_SECONDS * 1000)):
            return True
        holder: object = self.client.get(lease)
        return holder == self._token.encode()  # the reply to a first attempt was lost

    def move(self, letters: Sequence[DeadLetter]) -> Moved:
        """Move existing dead letters to the inbox, in order, until the queue is full."""
        return self._run(letters, LEASE_SECONDS)

    def renew(self) -> None:
        """Renew the lease if a third of its duration has passed."""
        if clock.uptime() - self._renewed_at > LEASE_SECONDS / 3:
            self._run((), LEASE_SECONDS)

    def release(self) -> None:
        """Release the lease, if it is still held."""
        scripts.run(self.client, self._call((), 0))

    def _run(self, letters: Sequence[DeadLetter], lease_seconds: float) -> Moved:
        asked_at = clock.uptime()
        is_held, *reply = scripts.run(self.client, self._call(letters, lease_seconds))
        if not is_held:
            raise LeaseLost("another redrive has taken over")
        self._renewed_at = asked_at
        return Moved(reply[0], bool(reply[1]))

    def _call(self, letters: Sequence[DeadLetter], lease_seconds: float) -> scripts.Call:
        keys = self.keys
        args: list[Argument] = [self._token, round(lease_seconds * 1000), self._max_backlog]
        for letter in letters:
            fields = inbox_entry(letter, force=self._force)
            args += [letter.letter_id, 2 * len(fields)]
            args += [text for field in fields for text in field]
        return scripts.Call(_REDRIVE, (keys.redrive_lease, keys.dead, keys.inbox, keys.counts, keys.internal), args)


def redrive_all(
    redrive: Redrive, filters: Filters, *, limit: int | None = None, rate: int | None = None
) -> Iterator[Progress]:
    """Move all matching dead letters, oldest first, and yield the progress after each move.

    `limit` is the maximum number, `rate` the maximum per second. The caller acquires and releases the lease.
    """
    scanned = moved = 0
    for page in walk(redrive.client, redrive.keys, filters):
        redrive.renew()
        scanned += page.scanned
        wanted = page.letters if limit is None else page.letters[: limit - moved]
        for part in _parts(wanted, rate):
            started = time.monotonic()
            done = redrive.move(part)
            moved += done.letters
            yield Progress(scanned, moved, done.is_full)
            if done.is_full:
                return
            if rate is not None:
                time.sleep(max(0.0, started + done.letters / rate - time.monotonic()))
        if limit is not None and moved >= limit:
            return
        yield Progress(scanned, moved, is_full=False)


def _parts(letters: list[DeadLetter], rate: int | None) -> Iterator[list[DeadLetter]]:
    """Split a page into parts of at most one second at that rate."""
    size = rate or max(1, len(letters))
    for start in range(0, len(letters), size):
        yield letters[start : start + size]
