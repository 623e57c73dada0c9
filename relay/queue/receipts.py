"""Receipts: the outcome of an event, for a producer that asks for it.

A receipt is kept for an event whose inbox entry has an `id` and a field `receipt`: while the event waits, and for
`queue.receipt_for` once its outcome is known. append.lua begins it; commit_intake.lua and commit_delivery.lua
set it in the step that makes it so. Lines: status, when that was in Redis milliseconds, and a reason and
a detail:

    dead          why
    duplicate     the id of the event that it repeats, and `delivered` or `waiting`
    superseded    `id` for an event whose id was accepted before, and another digest since; that digest

In Redis an event that waits is `queued` in the inbox and `accepted` in an outbox. A last line `repeated` is there
while an event that was delivered lies in the inbox once more: whether it is superseded is known when it is taken in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from relay.queue.keys import Keys

_ACCEPTED = "accepted"
_REPEATED = "\nrepeated"

#: Details of a duplicate: whether the event that it repeats was delivered.
DELIVERED, WAITING = "delivered", "waiting"

#: Reason of an event that is superseded because of its id.
BY_ID = "id"


class Status(StrEnum):
    """What became of an event so far."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    STALE = "stale"
    SUPERSEDED = "superseded"
    DEAD = "dead"

    @property
    def is_final(self) -> bool:
        """Return whether nothing more becomes of it, a redrive apart."""
        return self is not Status.QUEUED

    @property
    def is_failure(self) -> bool:
        """Return whether the API was not told of the event."""
        return self in {Status.DEAD, Status.SUPERSEDED, Status.STALE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of an event, since when in Redis milliseconds, and why."""

    status: Status
    at: int
    reason: str = ""
    detail: str = ""
    #: Reported again, and that is not taken in yet.
    is_repeated: bool = False

    @property
    def is_final(self) -> bool:
        """Return whether this is the answer to the latest report under the id, a redrive apart."""
        return self.status.is_final and not self.is_repeated

    @classmethod
    def decode(cls, value: bytes) -> Receipt:
        """Read a key's value; a `ValueError` if it is none of ours."""
        text = value.decode(errors="replace")
        status, at, *why = text.removesuffix(_REPEATED).split("\n", 3)
        reason, detail = (*why, "", "")[:2]
        known = Status.QUEUED if status == _ACCEPTED else Status(status)
        is_repeated = known is Status.DELIVERED and text.endswith(_REPEATED)
        return cls(status=known, at=int(at), reason=reason, detail=detail, is_repeated=is_repeated)


def read(client: Redis, keys: Keys, event_id: str) -> Receipt | None:
    """Return an event's receipt; None if it asked for none, never came, or its receipt is not kept any more."""
    return _decoded(client.get(keys.receipt(event_id)))


def read_many(client: Redis, keys: Keys, ids: Sequence[str]) -> list[Receipt | None]:
    """`read` for many events in one round trip."""
    replies: Any = client.mget([keys.receipt(event_id) for event_id in ids]) if ids else []
    return [_decoded(reply) for reply in replies]


async def read_async(client: AsyncRedis, keys: Keys, event_id: str) -> Receipt | None:
    """`read`, for asyncio."""
    return _decoded(await client.get(keys.receipt(event_id)))


def _decoded(value: Any) -> Receipt | None:
    return None if value is None else Receipt.decode(value)
