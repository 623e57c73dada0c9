"""The inbox: where producers add events and intake takes them.

An entry's fields are the contract with every producer: `event` (the API's JSON body), and optionally `id`,
`source`, `time`. `XADD {relay:0}:inbox * event '<body>'` is a complete producer. An entry with an `id` may have the
field `receipt`, which requests a receipt (relay/queue/receipts.py). A redrive adds the field `redriven`, a resync
`resync`. Both are internal: they are ignored unless the entry's id is in the hash `internal`, which a producer's
Redis user cannot write.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from redis.exceptions import OutOfMemoryError, ResponseError

from relay.errors import InvalidEvent
from relay.events.event import MAX_ID_BYTES, DeploymentEvent
from relay.queue import bounded, scripts
from relay.queue.entries import EVENT, ID, INTERNAL, RECEIPT, REDRIVEN, RESYNC, SOURCE, TIME, UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis import Redis

    from relay.events.event import Defaults
    from relay.queue.keys import Keys
    from relay.queue.scripts import Argument, Call

#: How long a call that added events is remembered: longer than a client's retries of it take.
MARK_MILLISECONDS = 60_000

#: The advice if memory is short.
_MORE_MEMORY = "raise its maxmemory if this does not pass as events are delivered"

_APPEND = scripts.load("append")

#: Bytes of an entry, and fields, with which it is still read whole: an event of a mebibyte, although far too large,
#: is kept with all its bytes. A larger entry is cut.
OVERSIZE_BYTES, MAX_FIELDS = 2_097_152, 1000

#: Bytes of the stream that may be read at once.
READ_BYTES = 16_777_216

#: Entries of one listpack at most: Redis's default of `stream-node-max-entries`.
NODE_ENTRIES = 100

#: Times that a smaller number of entries is tried.
_GUESSES = 3


#: Milliseconds since the epoch have thirteen digits until the year 2286.
_REDRIVEN = re.compile(r"([0-9]{1,9}) ([0-9]{1,16})-([0-9]{1,16})( force)?")


class Redriven(NamedTuple):
    """What an event carries that was dead before: the field `redriven` of its entry, wherever that lies.

    Written as `<times> <arrived>-<sequence>[ force]`; `arrived` is in milliseconds since the epoch.
    """

    #: How often by now.
    times: int
    #: When the event first came to the inbox.
    arrived: int
    #: Its place among those that came in the same millisecond.
    sequence: int
    #: Whether to deliver it whatever was accepted since.
    force: bool = False

    @property
    def arrival(self) -> tuple[int, int]:
        """The event's place among all that came."""
        return self.arrived, self.sequence

    def encode(self) -> str:
        """Write it as the field's value."""
        return f"{self.times} {self.arrived}-{self.sequence}{' force' if self.force else ''}"

    @classmethod
    def decode(cls, value: str) -> Self:
        """Read the field's value; a `ValueError` if it is none."""
        match = _REDRIVEN.fullmatch(value)
        if match is None:
            raise ValueError("is not what a redrive writes")
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4] is not None)


class Oversize(NamedTuple):
    """What is kept of an entry that is too large: fields and values in order, and its size in bytes.

    `size` is that of the part that was read unless it `is_exact`.
    """

    kept: tuple[bytes, ...]
    size: int
    is_exact: bool


class InboxEntry(NamedTuple):
    """An inbox entry as it lies in the stream. `oversize` is set if it was not read whole."""

    entry_id: str
    fields: dict[bytes, bytes]
    oversize: Oversize | None = None

    @property
    def size(self) -> int:
        """The size of its fields' names and values in bytes."""
        return sum(map(len, self.fields)) + sum(map(len, self.fields.values()))

    @property
    def place(self) -> tuple[int, int]:
        """When Redis added it, in milliseconds since the epoch, and its place in that millisecond."""
        milliseconds, _, sequence = self.entry_id.partition("-")
        return int(milliseconds), int(sequence)

    @property
    def body(self) -> bytes | None:
        """The event's JSON."""
        return self.fields.get(EVENT)

    @property
    def given_id(self) -> str:
        """The producer's id as text, "" for none; it may be one that no event can have."""
        return self.fields.get(ID, b"").decode(errors="replace")

    @property
    def unreadable(self) -> str | None:
        """Why the message that the entry stands for could not be parsed; None for an ordinary entry."""
        why = self.fields.get(UNREADABLE)
        return None if why is None else why.decode(errors="replace")

    @property
    def receipt_id(self) -> str:
        """The id that a receipt is asked for by, "" for none."""
        if RECEIPT not in self.fields or len(self.fields.get(ID, b"")) > MAX_ID_BYTES:
            return ""
        return self.given_id.strip()

    @property
    def is_resync(self) -> bool:
        """Whether it only repeats what is known."""
        return RESYNC in self.fields

    @property
    def is_internal(self) -> bool:
        """Whether it has a field that only a redrive or a resync may write."""
        return REDRIVEN in self.fields or RESYNC in self.fields

    def event(self, defaults: Defaults) -> DeploymentEvent:
        """Parse the event with its envelope and its defaults; raise `InvalidEvent`."""
        fields = self.fields
        return DeploymentEvent.parse_completed(
            fields[EVENT],
            defaults,
            id=_text(fields, ID),
            source=_text(fields, SOURCE),
            time=_text(fields, TIME),
        )

    def redriven(self) -> Redriven | None:
        """Parse the field `redriven`; None if there is none. Raise `InvalidEvent`."""
        value = _text(self.fields, REDRIVEN)
        if value is None:
            return None
        try:
            return Redriven.decode(value)
        except ValueError as error:
            raise InvalidEvent(REDRIVEN.decode(), str(error)) from None

    def without_internal_fields(self) -> InboxEntry:
        """Return the entry as a report like any other."""
        return self._replace(fields={name: self.fields[name] for name in self.fields if name not in INTERNAL})

    def kept_fields(self, most: int) -> list[tuple[bytes, bytes]]:
        """Return the fields that its dead letter keeps: the first ones, and `redriven` beside them.

        One that was not read whole keeps no internal field: a cut event cannot be redriven.
        """
        if self.oversize is None:
            found = list(self.fields.items())
            return found[: most + (found[:1] != [] and found[0][0] == REDRIVEN)]
        kept = self.oversize.kept
        return [field for field in zip(kept[::2], kept[1::2], strict=True) if field[0] not in INTERNAL]


def _text(fields: dict[bytes, bytes], name: bytes) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidEvent(name.decode(), "is not UTF-8") from None


def append_call(
    keys: Keys,
    entries: Iterable[Mapping[str, Any]],
    max_backlog: int,
    memory_watermark: float = 1.0,
    receipt_seconds: float = 86_400.0,
    *,
    call: str = "",
    mark_milliseconds: int | None = None,
    internal: bool = False,
) -> Call:
    """Return the call that adds entries as they are, all or none, once even if it is applied twice.

    A receipt that an entry asks for is kept that long while the event waits. `full_because` reads the error of a
    queue that is full. Calls of one name, made within the time of their mark, are one. `internal` has intake believe
    the internal fields of the entries; a producer's Redis user may not say so.
    """
    script_keys = [keys.inbox, keys.counts, keys.appended(call or secrets.token_hex(8))]
    mark = MARK_MILLISECONDS if mark_milliseconds is None else mark_milliseconds
    if internal:
        script_keys.append(keys.internal)
    args: list[Argument] = [max_backlog, memory_watermark, mark, round(receipt_seconds * 1000), int(internal)]
    for fields in entries:
        args.append(2 * len(fields))
        for name, value in fields.items():
            args += (name, value)
        if "receipt" in fields:
            script_keys.append(keys.receipt(fields["id"]))
    return scripts.Call(_APPEND, script_keys, args)


def full_because(error: Exception) -> str | None:
    """Say why nothing was added because there is no room; None for any other error.

    Redis's own refusal at `maxmemory` (OOM) counts: a user who may not INFO gets no farther than that, and what
    else lies in that Redis may have filled it up. Redis before 7 words it as an error of the script.
    """
    message = str(error)
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in message:
        return f"Redis is out of memory: {_MORE_MEMORY}"
    _, memory_full, used = message.partition("MEMORYFULL ")
    if memory_full:
        return f"Redis is short of memory: {used}, past queue.memory_watermark: {_MORE_MEMORY}"
    _, queue_full, waiting = message.partition("QUEUEFULL ")
    return waiting if queue_full else None


def fields_of(event: DeploymentEvent) -> dict[str, Any]:
    """Return an event as an entry's fields: `event` in bytes, the others, where given, as text."""
    fields: dict[str, Any] = {"event": event.body()}
    if event.id:
        fields["id"] = event.id
    if event.source:
        fields["source"] = event.source
    if event.time:
        fields["time"] = event.time.isoformat()
    return fields


def head(
    client: Redis, keys: Keys, count: int, *, most_bytes: int = OVERSIZE_BYTES, is_careful: bool = False
) -> list[InboxEntry]:
    """Return the first entries, oldest first; of one that is larger than `most_bytes` what is kept, and alone.

    They are read together where their listpacks are certainly no larger than `READ_BYTES`. Else, and always if
    `is_careful`, the first is read alone, without ever being held whole.
    """
    together = 1 if is_careful else _readable(client, keys, count)
    if not together:
        return []
    if is_careful or together < 0:
        first = bounded.first(client, keys.inbox, most_bytes=most_bytes, most_fields=MAX_FIELDS)
        return [] if first is None else [_bounded(first)]
    reply: Any = client.xrange(keys.inbox, count=together)
    entries = [InboxEntry(entry_id.decode(), fields or {}) for entry_id, fields in reply]
    for position, entry in enumerate(entries):
        if len(entry.fields) > MAX_FIELDS or entry.size > most_bytes:
            return entries[:position] or [_shortened(entry)]
    return entries


def most_bytes(max_event_bytes: int) -> int:
    """Return how large an entry may be to be read whole, where an event may be so large."""
    return max(OVERSIZE_BYTES, 2 * max_event_bytes)


def _readable(client: Redis, keys: Keys, count: int) -> int:
    """Return how many of the first entries may be read together; 0 if there is none, -1 if not even one is certain.

    MEMORY USAGE with k samples is at least the average size of the first k listpacks times the number of all but the
    last. At most `NODE_ENTRIES` entries lie in one, and a large one lies alone, so the length bounds that number from
    below.
    """
    length = 0
    for _ in range(_GUESSES):
        pipeline = client.pipeline(transaction=False)
        pipeline.xlen(keys.inbox)
        pipeline.memory_usage(keys.inbox, samples=count)
        length, used = pipeline.execute(raise_on_error=False)
        if isinstance(length, Exception):
            raise length
        if length == 0 or used is None:
            return 0
        if isinstance(used, Exception):
            if isinstance(used, ResponseError):  # not known there, or not permitted
                return -1
            raise used
        most = used * count // max(count, length // NODE_ENTRIES - 1)
        if most <= READ_BYTES:
            return int(min(count, length))
        if count == 1:
            break
        count = max(1, count * READ_BYTES // most)
    return -1


def _bounded(entry: bounded.BoundedEntry) -> InboxEntry:
    fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
    if entry.is_whole:
        return InboxEntry(entry.entry_id, fields)
    return InboxEntry(entry.entry_id, fields, Oversize(tuple(entry.flat), entry.size, entry.is_exact))


def _shortened(entry: InboxEntry) -> InboxEntry:
    flat = bounded.shortened([part for field in entry.fields.items() for part in field][: 2 * bounded.KEPT_FIELDS])
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return InboxEntry(entry.entry_id, fields, Oversize(tuple(flat), entry.size, is_exact=True))


def authentic(client: Redis, keys: Keys, entry_ids: Sequence[str]) -> set[str]:
    """Return those of these entries whose internal fields a redrive or a resync wrote, and no producer.

    Those that were there before the first batch of this version count as authentic, because older versions noted
    none. Later entries cannot have such ids: Redis refuses an id that is not above the last one.
    """
    pipeline = client.pipeline(transaction=False)
    pipeline.hmget(keys.internal, entry_ids)
    pipeline.hget(keys.dataset, "internal_after")
    pipeline.hexists(keys.counts, "taken")
    noted, after, was_in_use = pipeline.execute()
    known = {entry_id for entry_id, is_noted in zip(entry_ids, noted, strict=True) if is_noted}
    if after is None:
        return set(entry_ids) if was_in_use else known
    last = _order(after.decode())
    return known | {entry_id for entry_id in entry_ids if _order(entry_id) <= last}


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def wait(client: Redis, keys: Keys, after: str, seconds: float) -> str | None:
    """Wait for an entry later than `after` and return its id, or None when none came in time."""
    return bounded.wait(client, {keys.inbox: after}, seconds)
