"""Lookup of an event by its id: where it is, or what became of it. Changes nothing.

Reads its receipt, and scans the inbox, the outboxes, the dead letters and the ids in the instances' states, a page at
a time and up to a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, cast

from relay.queue import bounded, counters, dead_letters, receipts
from relay.queue.dead_letters import Filters
from relay.queue.outbox import Trials
from relay.queue.state import Accepted, Delivered, written_arrival

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.queue.keys import Keys, OutboxKeys

#: Entries or states that one round trip reads.
PAGE = 500

#: Entries of a stream that one round trip reads: fewer, because they may be large.
BOUNDED_PAGE = 100

#: Default maximum of entries scanned of each kind, and of states.
MAX_SCANNED = 100_000


class Place(StrEnum):
    """Where an event was found."""

    RECEIPT = "receipt"
    INBOX = "inbox"
    OUTBOX = "outbox"
    DEAD = "dead"
    #: It is the last accepted event of its instance.
    CURRENT = "current"
    #: Other events of its instance were accepted since; the state still has its id.
    EARLIER = "earlier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One place where an event was found. Times are Redis milliseconds."""

    place: Place
    #: Since when, if known.
    at: int | None = None
    environment: str = ""
    #: The instance's key; empty for an inbox entry.
    instance: str = ""
    digest: str = ""
    #: The receipt's status, or the dead letter's reason.
    status: str = ""
    detail: str = ""
    #: The dead letter's id.
    letter: str = ""
    #: Attempts so far.
    attempts: int = 0
    retry_at: int | None = None
    delivered_at: int | None = None


class Scanned(NamedTuple):
    """How many of one kind were scanned, and how many there are."""

    scanned: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupResult:
    """Where an event was found, and how much was scanned."""

    event_id: str
    traces: Sequence[Trace]
    scanned: dict[str, Scanned]

    @property
    def is_complete(self) -> bool:
        """Whether everything was scanned."""
        return all(each.scanned >= each.total for each in self.scanned.values())


def look_up(
    client: Redis, keys: Keys, destination: str, event_id: str, *,
    environments: Sequence[str] | None = None, max_scanned: int = MAX_SCANNED,
) -> LookupResult:  # fmt: skip
    """Search for an event in these environments, or in all. Raise `RedisError` if Redis is not reachable."""
    names = counters.environment_names(client, keys, destination) if environments is None else environments
    outboxes = [keys.of_outbox(destination, name) for name in names]
    search = _Search(client, keys, event_id, max_scanned)
    traces = [*search.receipt(), *search.inbox(), *search.outboxes(outboxes), *search.dead_letters()]
    traces += search.states(outboxes)
    return LookupResult(event_id=event_id, traces=traces, scanned=search.scanned)


class _Search:
    def __init__(self, client: Redis, keys: Keys, event_id: str, max_scanned: int) -> None:
        self.scanned: dict[str, Scanned] = {}
        self._client, self._keys = client, keys
        self._id, self._wanted = event_id, event_id.encode()
        self._max_scanned = max_scanned

    def receipt(self) -> Iterator[Trace]:
        """Yield the event's receipt."""
        found = receipts.read(self._client, self._keys, self._id)
        if found is not None:
            yield Trace(
                place=Place.RECEIPT,
                at=found.at,
                status=found.status,
                detail=": ".join(filter(None, (found.reason, found.detail))) if found.status.is_failure else "",
            )

    def inbox(self) -> Iterator[Trace]:
        """Yield its inbox entries; an entry without an id has that of the stream."""
        total = int(self._client.xlen(self._keys.inbox))
        scanned = 0
        for entry_id, fields in self._entries(self._keys.inbox, self._max_scanned):
            scanned += 1
            if fields.get(b"id", b"").strip() == self._wanted or (b"id" not in fields and entry_id == self._wanted):
                yield Trace(place=Place.INBOX, at=_milliseconds(entry_id))
        self.scanned["inbox"] = Scanned(scanned, max(scanned, total))

    def outboxes(self, outboxes: Sequence[OutboxKeys]) -> Iterator[Trace]:
        """Yield its outbox entries."""
        waiting = self._lengths([outbox.outbox for outbox in outboxes], "xlen")
        scanned = 0
        for outbox, length in zip(outboxes, waiting, strict=True):
            if not length or scanned >= self._max_scanned:
                continue
            for entry_id, fields in self._entries(outbox.outbox, self._max_scanned - scanned):
                scanned += 1
                if fields[b"id"] == self._wanted:
                    yield self._in_outbox(outbox, entry_id, fields)
        self.scanned["outboxes"] = Scanned(scanned, max(scanned, sum(waiting)))

    def _in_outbox(self, outbox: OutboxKeys, entry_id: bytes, fields: dict[bytes, bytes]) -> Trace:
        instance = fields[b"instance"].decode()
        retry_at = self._client.zscore(outbox.due, instance)
        trials = cast("bytes | None", self._client.hget(outbox.attempts, instance))
        return Trace(
            place=Place.OUTBOX,
            at=_milliseconds(entry_id),
            environment=outbox.environment,
            instance=instance,
            digest=fields[b"digest"].decode(),
            attempts=Trials.decode(trials or b"").answers,
            retry_at=None if retry_at is None else round(retry_at),
        )

    def dead_letters(self) -> Iterator[Trace]:
        """Yield its dead letters, newest first."""
        total = dead_letters.count(self._client, self._keys)
        scanned = 0
        wanted = Filters(event_ids=frozenset({self._id}))
        for page in dead_letters.walk(self._client, self._keys, wanted, newest_first=True):
            scanned += page.scanned
            for letter in page.letters:
                yield Trace(
                    place=Place.DEAD,
                    at=letter.dead_since,
                    environment=letter.environment,
                    digest=letter.image.partition("@")[2],
                    status=letter.reason,
                    detail=letter.cause.get("detail", ""),
                    letter=letter.letter_id,
                )
            if scanned >= self._max_scanned:
                break
        self.scanned["dead letters"] = Scanned(scanned, max(scanned, total))

    def states(self, outboxes: Sequence[OutboxKeys]) -> Iterator[Trace]:
        """Yield the instances whose state has the id."""
        sizes = self._lengths([outbox.accepted for outbox in outboxes], "hlen")
        scanned = 0
        for outbox, size in zip(outboxes, sizes, strict=True):
            if not size or scanned >= self._max_scanned:
                continue
            for instance, state in self._client.hscan_iter(outbox.accepted, count=PAGE):
                scanned += 1
                if self._wanted in state:  # cheaper than decoding each state
                    yield from self._remembered(outbox, instance, Accepted.decode(state.decode()))
                if scanned >= self._max_scanned:
                    break
        self.scanned["instances"] = Scanned(scanned, max(scanned, sum(sizes)))

    def _remembered(self, outbox: OutboxKeys, instance: bytes, state: Accepted) -> Iterator[Trace]:
        if self._id not in state.ids:
            return
        if state.ids[-1] != self._id or not state.digest:
            yield Trace(place=Place.EARLIER, environment=outbox.environment, instance=instance.decode())
            return
        last = cast("bytes | None", self._client.hget(outbox.delivered, instance.decode()))
        delivered = Delivered.decode(last.decode()) if last else None
        is_delivered = delivered is not None and (delivered.digest, delivered.came) == (
            state.digest,
            written_arrival(*state.arrival),
        )
        yield Trace(
            place=Place.CURRENT,
            at=state.at,
            environment=outbox.environment,
            instance=instance.decode(),
            digest=state.digest,
            delivered_at=delivered.at if delivered and is_delivered else None,
        )

    def _entries(self, stream: str, most: int) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
        start = "-"
        while most > 0:
            count = min(BOUNDED_PAGE, most)
            page = bounded.page(self._client, stream, start=start, count=count)
            for entry in page:
                yield entry.entry_id.encode(), dict(zip(entry.flat[::2], entry.flat[1::2], strict=False))
            if len(page) < count:
                return
            most -= len(page)
            start = f"({page[-1].entry_id}"

    def _lengths(self, script_keys: Sequence[str], command: str) -> list[int]:
        pipeline = self._client.pipeline(transaction=False)
        for key in script_keys:
            getattr(pipeline, command)(key)
        return cast("list[int]", pipeline.execute())


def _milliseconds(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
