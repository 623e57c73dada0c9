"""Idempotency keys: what the API may recognise a repeated request by.

A key is a hash of the data set's random id, the event's id, environment, instance and digest, and its place among all
enqueued events. All of that lies in the data set, so all attempts of one event carry the same key: by any worker,
after a restart and after a redrive.

The place tells an event apart that is accepted anew under an id that its instance has forgotten, and one whose
redrive is forced: with the old key an API that honours keys would drop them as repeats, and they would count as
delivered. An event without an id has its inbox entry's, which is only a time and a number: two Redis servers, or one
whose data set was lost, give equal ones to different events. The data set's id tells those apart; the instance and
the digest tell apart several images that were reported under one id.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.queue.outbox import OutboxEntry

#: Bytes of the hash; the key has twice as many hex digits.
HASH_BYTES = 16

#: Characters of the event's id that a key begins with, so that the API's log can be searched for an event.
READABLE_CHARACTERS = 64


class IdempotencyKeys:
    """The keys of one data set: `job-7.9f86d081884c7d659a2feaa0c55ad015`."""

    def __init__(self, dataset: str) -> None:
        self._begun = blake2b(dataset.encode(), digest_size=HASH_BYTES)

    def of(self, environment: str, entry: OutboxEntry) -> str:
        """Return the key of an event, the same for each attempt."""
        event_id = entry.event_id
        hashed = self._begun.copy()
        hashed.update(f"\n{event_id}\n{environment}\n{entry.instance}\n{entry.digest}\n{entry.arrival}".encode())
        readable = event_id[:READABLE_CHARACTERS] if event_id.isascii() else "event"
        return f"{readable}.{hashed.hexdigest()}"
