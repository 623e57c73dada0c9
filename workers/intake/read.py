"""Parse inbox entries: each becomes an event with its defaults, or is rejected with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from relay import failpoints
from relay.errors import InvalidEvent
from relay.logs import LineLimit, get_logger
from relay.queue import bounded, inbox
from relay.queue.dead_letters import Reason

if TYPE_CHECKING:
    from relay.events.event import Defaults, DeploymentEvent
    from relay.queue.inbox import InboxEntry, Redriven
    from relay.queue.shard import Shard

#: Entries that one log line names.
MAX_NAMED = 5

#: Characters of an error message that a dead letter keeps.
_DETAIL_CHARACTERS = 500

_log = get_logger(__name__)
_forged_lines = LineLimit()


class Rejected(NamedTuple):
    """An entry that becomes a dead letter."""

    entry: InboxEntry
    detail: str
    reason: Reason = Reason.INVALID


class Parsed(NamedTuple):
    """An entry whose event is complete. `event_id` is the producer's, or else the entry's own."""

    entry_id: str
    event: DeploymentEvent
    event_id: str
    environment: str
    instance: str
    digest: str
    #: When the deployment happened, in milliseconds, where the producer knew.
    time: int | None
    #: When the entry was added to the inbox, and its place among those of that millisecond.
    enqueued_at: int
    sequence: int
    redriven: Redriven | None = None
    is_resync: bool = False
    #: The id that a receipt is asked for by, "" for none.
    receipt_id: str = ""


def parse_all(entries: list[InboxEntry], defaults: Defaults, max_bytes: int) -> tuple[list[Parsed], list[Rejected]]:
    """Parse entries; an event may have `max_bytes`."""
    parsed, rejected = [], []
    for entry in entries:
        if failpoints.KILLS_EVENTS:
            failpoints.handling("intake", entry.given_id)
        result = parse(entry, defaults, max_bytes)
        if isinstance(result, Parsed):
            parsed.append(result)
        else:
            rejected.append(result)
    return parsed, rejected


def parse(entry: InboxEntry, defaults: Defaults, max_bytes: int) -> Parsed | Rejected:
    """Parse one entry; a fault is returned, never raised."""
    body = entry.body
    if entry.unreadable is not None:
        return Rejected(entry, entry.unreadable[:_DETAIL_CHARACTERS])
    if body is None:
        return Rejected(entry, "the entry has no field `event`")
    if len(body) > max_bytes:
        return Rejected(entry, f"the event is {len(body)} bytes, and queue.max_event_bytes is {max_bytes}")
    try:
        event = entry.event(defaults)
        is_internal = entry.is_internal
        redriven = entry.redriven() if is_internal else None
    except InvalidEvent as error:
        return Rejected(entry, str(error)[:_DETAIL_CHARACTERS])
    instance = event.instance
    enqueued_at, sequence = entry.place
    return Parsed(
        entry.entry_id,
        event,
        event.id or entry.entry_id,
        instance.environment,
        instance.key,
        event.image.digest,
        None if event.time is None else int(event.time.timestamp() * 1000),
        enqueued_at,
        sequence,
        redriven,
        is_internal and entry.is_resync,
        entry.receipt_id,
    )


def without_forged_fields(shard: Shard, entries: list[InboxEntry]) -> list[InboxEntry]:
    """Return the entries without internal fields that a producer wrote: such an event is a report like any other."""
    internal = [entry.entry_id for entry in entries if entry.is_internal]
    if not internal:
        return entries
    forged = set(internal) - inbox.authentic(shard.client, shard.keys, internal)
    if number := _forged_lines.add(len(forged)):
        _log.warning(
            "%d entries had the field `redriven` or `resync`, which only a redrive or a resync may write: ignored",
            number,
            entries=sorted(forged)[:MAX_NAMED],
        )
    return [entry.without_internal_fields() if entry.entry_id in forged else entry for entry in entries]


def too_large(entry: InboxEntry, max_event_bytes: int) -> Rejected:
    """Reject an entry that was not read whole."""
    assert entry.oversize is not None  # noqa: S101 - the caller has checked
    size = f"{'' if entry.oversize.is_exact else 'at least '}{entry.oversize.size}"
    detail = (
        f"the entry is {size} bytes in size and was not read whole: an event has at most {max_event_bytes} "
        f"(queue.max_event_bytes), an entry {inbox.MAX_FIELDS} fields; the beginnings of its first "
        f"{bounded.KEPT_FIELDS} fields are kept"
    )
    _log.warning("an entry of the inbox is too large and was dead-lettered without being read whole", detail=detail)
    return Rejected(entry, detail)
