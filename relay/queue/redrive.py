"""Redriving: dead letters go back to the inbox, as new arrivals that remember when they came first.

Each is moved in one step with others of its page, so that whatever is killed when, it is either dead or in the inbox.
One redrive goes on at a time, under a lease.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from relay import clock
from relay.errors import LeaseLost
from relay.queue import leases, scripts
from relay.queue.dead_letters import revived, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.queue.dead_letters import DeadLetter, Filters
    from relay.queue.keys import Keys
    from relay.queue.scripts import Argument

#: How long a redrive that died keeps the next one waiting. Renewed with every move, and by `keep`.
LEASE_SECONDS = 15.0

_REDRIVE = scripts.load("redrive")


class Moved(NamedTuple):
    """Letters moved, and whether the queue took no more: `queue.max_backlog` events wait."""

    letters: int
    full: bool


class Progress(NamedTuple):
    """How far a redrive is. `full` says that it ended because the queue took no more."""

    looked_at: int
    moved: int
    full: bool


class Redrive:
    """One redrive while it holds the lease; raises `LeaseLost` when it does not any more."""

    def __init__(self, client: Redis, keys: Keys, *, max_backlog: int, force: bool = False) -> None:
        self.client = client
        self.keys = keys
        self._max_backlog = max_backlog
        self._force = force
        self._token = leases.new_token()
        self._renewed_at = 0.0

    def begin(self) -> bool:
        """Take the lease; False when another redrive has it."""
        self._renewed_at = clock.uptime()
        lease = self.keys.redrive_lease
        if self.client.set(lease, self._token, nx=True, px=round(LEASE_SECONDS * 1000)):
            return True
        holder: object = self.client.get(lease)
        return holder == self._token.encode()  # then the answer to a first try was lost

    def move(self, letters: Sequence[DeadLetter]) -> Moved:
        """Move letters to the inbox, in their order, all that are still there or as many as the queue takes."""
        return self._run(letters, LEASE_SECONDS)

    def keep(self) -> None:
        """Renew the lease, if it is time to."""
        if clock.uptime() - self._renewed_at > LEASE_SECONDS / 3:
            self._run((), LEASE_SECONDS)

    def end(self) -> None:
        """Let go of the lease, if it is still ours."""
        scripts.run(self.client, self._call((), 0))

    def _run(self, letters: Sequence[DeadLetter], lease_seconds: float) -> Moved:
        asked = clock.uptime()
        held, *reply = scripts.run(self.client, self._call(letters, lease_seconds))
        if not held:
            raise LeaseLost("another redrive has taken over")
        self._renewed_at = asked
        return Moved(reply[0], bool(reply[1]))

    def _call(self, letters: Sequence[DeadLetter], lease_seconds: float) -> scripts.Call:
        keys = self.keys
        args: list[Argument] = [self._token, round(lease_seconds * 1000), self._max_backlog]
        for letter in letters:
            fields = revived(letter, force=self._force)
            args += [letter.letter_id, 2 * len(fields)]
            args += [text for field in fields for text in field]
        return scripts.Call(_REDRIVE, (keys.redrive_lease, keys.dead, keys.inbox, keys.counts, keys.internal), args)


def redrive_all(
    redrive: Redrive, filters: Filters, *, limit: int | None = None, rate: int | None = None
) -> Iterator[Progress]:
    """Move all letters that match, oldest first; yield how far it is after each step.

    `limit` is how many at most, `rate` how many a second at most. Has to be begun, and is to be ended by the caller.
    """
    looked_at = moved = 0
    for page in walk(redrive.client, redrive.keys, filters):
        redrive.keep()
        looked_at += page.looked_at
        wanted = page.letters if limit is None else page.letters[: limit - moved]
        for part in _parts(wanted, rate):
            started = time.monotonic()
            done = redrive.move(part)
            moved += done.letters
            yield Progress(looked_at, moved, done.full)
            if done.full:
                return
            if rate is not None:
                time.sleep(max(0.0, started + done.letters / rate - time.monotonic()))
        if limit is not None and moved >= limit:
            return
        yield Progress(looked_at, moved, full=False)


def _parts(letters: list[DeadLetter], rate: int | None) -> Iterator[list[DeadLetter]]:
    """Split a page so that no part of it takes longer than a second at that rate."""
    size = rate or max(1, len(letters))
    for start in range(0, len(letters), size):
        yield letters[start : start + size]
