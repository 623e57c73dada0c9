"""Where is an event, and what became of it? Whatever Redis still knows of an id.

A receipt tells at once; beside it the inbox, the outboxes, the dead letters and the ids that the states remember are
gone through, a page at a time and no farther than a bound. Changes nothing.
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

#: Entries of a stream that one round trip reads; fewer, because they may be large.
BOUNDED_PAGE = 100

#: Entries of each kind, and states, that are looked at unless told otherwise.
LOOK_AT = 100_000


class Place(StrEnum):
    """Where something is known of an event."""

    RECEIPT = "receipt"
    INBOX = "inbox"
    OUTBOX = "outbox"
    DEAD = "dead"
    #: The state has it as the last that was accepted of its instance.
    CURRENT = "current"
    #: The state remembers its id, and accepted others of its instance since.
    EARLIER = "earlier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One thing that is known of an event. Times are Redis milliseconds."""

    place: Place
    #: Since when that is so, as far as is known.
    at: int | None = None
    environment: str = ""
    #: The instance's key, or of what was not taken in yet, nothing.
    instance: str = ""
    digest: str = ""
    #: What a receipt says, or why a letter died.
    status: str = ""
    detail: str = ""
    #: The dead letter's id.
    letter: str = ""
    #: Attempts so far.
    attempts: int = 0
    #: When it is tried next.
    due: int | None = None
    #: When it was delivered.
    delivered: int | None = None


class Looked(NamedTuple):
    """How far a search went in one kind of thing: at how many of how many."""

    at: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What is known of an event, and how far it was searched for."""

    event_id: str
    sightings: Sequence[Sighting]
    looked: dict[str, Looked]

    @property
    def is_complete(self) -> bool:
        """Tell whether all was looked at that there is."""
        return all(looked.at >= looked.of for looked in self.looked.values())


def trace(
    client: Redis, keys: Keys, destination: str, event_id: str, *,
    environments: Sequence[str] | None = None, look_at: int = LOOK_AT,
) -> Trace:  # fmt: skip
    """Search for an event, in these environments or all. A Redis that is away raises `RedisError`."""
    names = counters.environment_names(client, keys, destination) if environments is None else environments
    outboxes = [keys.of_outbox(destination, name) for name in names]
    search = _Search(client, keys, event_id, look_at)
    sightings = [*search.receipt(), *search.inbox(), *search.outboxes(outboxes), *search.letters()]
    sightings += search.states(outboxes)
    return Trace(event_id=event_id, sightings=sightings, looked=search.looked)


class _Search:
    def __init__(self, client: Redis, keys: Keys, event_id: str, look_at: int) -> None:
        self.looked: dict[str, Looked] = {}
        self._client, self._keys = client, keys
        self._id, self._wanted = event_id, event_id.encode()
        self._look_at = look_at

    def receipt(self) -> Iterator[Sighting]:
        """Yield what was written down for whoever asks."""
        found = receipts.read(self._client, self._keys, self._id)
        if found is not None:
            yield Sighting(
                place=Place.RECEIPT,
                at=found.at,
                status=found.status,
                detail=": ".join(filter(None, (found.reason, found.detail))) if found.status.is_failure else "",
            )

    def inbox(self) -> Iterator[Sighting]:
        """Yield entries that wait to be taken in; one without an id goes by its entry's."""
        total = int(self._client.xlen(self._keys.inbox))
        looked = 0
        for entry_id, fields in self._entries(self._keys.inbox, self._look_at):
            looked += 1
            if fields.get(b"id", b"").strip() == self._wanted or (b"id" not in fields and entry_id == self._wanted):
                yield Sighting(place=Place.INBOX, at=_milliseconds(entry_id))
        self.looked["inbox"] = Looked(looked, max(looked, total))

    def outboxes(self, outboxes: Sequence[OutboxKeys]) -> Iterator[Sighting]:
        """Yield entries that are on their way to the API."""
        waiting = self._lengths([outbox.outbox for outbox in outboxes], "xlen")
        looked = 0
        for outbox, length in zip(outboxes, waiting, strict=True):
            if not length or looked >= self._look_at:
                continue
            for entry_id, fields in self._entries(outbox.outbox, self._look_at - looked):
                looked += 1
                if fields[b"id"] == self._wanted:
                    yield self._on_its_way(outbox, entry_id, fields)
        self.looked["outboxes"] = Looked(looked, max(looked, sum(waiting)))

    def _on_its_way(self, outbox: OutboxKeys, entry_id: bytes, fields: dict[bytes, bytes]) -> Sighting:
        instance = fields[b"instance"].decode()
        due = self._client.zscore(outbox.due, instance)
        trials = cast("bytes | None", self._client.hget(outbox.attempts, instance))
        return Sighting(
            place=Place.OUTBOX,
            at=_milliseconds(entry_id),
            environment=outbox.environment,
            instance=instance,
            digest=fields[b"digest"].decode(),
            attempts=Trials.decode(trials or b"").answers,
            due=None if due is None else round(due),
        )

    def letters(self) -> Iterator[Sighting]:
        """Yield dead letters, the newest first."""
        total = dead_letters.count(self._client, self._keys)
        looked = 0
        wanted = Filters(event_ids=frozenset({self._id}))
        for page in dead_letters.walk(self._client, self._keys, wanted, newest_first=True):
            looked += page.looked_at
            for letter in page.letters:
                yield Sighting(
                    place=Place.DEAD,
                    at=letter.died,
                    environment=letter.environment,
                    digest=letter.image.partition("@")[2],
                    status=letter.reason,
                    detail=letter.death.get("detail", ""),
                    letter=letter.letter_id,
                )
            if looked >= self._look_at:
                break
        self.looked["dead letters"] = Looked(looked, max(looked, total))

    def states(self, outboxes: Sequence[OutboxKeys]) -> Iterator[Sighting]:
        """Yield instances that remember the id."""
        sizes = self._lengths([outbox.accepted for outbox in outboxes], "hlen")
        looked = 0
        for outbox, size in zip(outboxes, sizes, strict=True):
            if not size or looked >= self._look_at:
                continue
            for instance, state in self._client.hscan_iter(outbox.accepted, count=PAGE):
                looked += 1
                if self._wanted in state:  # decoding each would cost more than all the rest
                    yield from self._remembered(outbox, instance, Accepted.decode(state.decode()))
                if looked >= self._look_at:
                    break
        self.looked["instances"] = Looked(looked, max(looked, sum(sizes)))

    def _remembered(self, outbox: OutboxKeys, instance: bytes, state: Accepted) -> Iterator[Sighting]:
        if self._id not in state.ids:
            return
        if state.ids[-1] != self._id or not state.digest:
            yield Sighting(place=Place.EARLIER, environment=outbox.environment, instance=instance.decode())
            return
        last = cast("bytes | None", self._client.hget(outbox.delivered, instance.decode()))
        told = Delivered.decode(last.decode()) if last else None
        arrived = told is not None and (told.digest, told.came) == (state.digest, written_arrival(*state.arrival))
        yield Sighting(
            place=Place.CURRENT,
            at=state.at,
            environment=outbox.environment,
            instance=instance.decode(),
            digest=state.digest,
            delivered=told.at if told and arrived else None,
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
