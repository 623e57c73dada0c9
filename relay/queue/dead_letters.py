"""Dead letters: events that could not be processed or delivered, kept with the reason until redriven or dropped.

An entry of the stream `dead` begins with the event's own fields: those of its outbox entry, or those of the producer
if intake could not read it. The fields that the scripts append begin with the last `reason`, and take precedence over
fields of the same names before it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.queue import scripts
from relay.queue.inbox import Redriven

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.queue.keys import Keys

#: Dead letters of the first page, and of the largest.
FIRST_PAGE, MAX_PAGE = 50, 500

#: Intended size of a page in bytes, and the factor by which the number of its dead letters may grow.
PAGE_BYTES, PAGE_GROWTH = 4_194_304, 4

#: Of a dead letter larger than a page: bytes kept of each value, and fields and values kept at each end.
KEPT_BYTES, KEPT_PARTS = 65_536, 64

#: Fields of an unreadable entry that a redrive restores: as many as its dead letter keeps.
MAX_FIELDS = 32

_PAGE = scripts.load("dead_page")
_DROP = scripts.load("drop")

#: Fields of an outbox entry that come from the producer.
_PRODUCER_FIELDS = (b"event", b"id", b"source", b"time", b"receipt", b"resync")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STREAM_ID = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")

#: Characters that make a text a pattern.
_GLOB = frozenset("*?[")


class Reason(StrEnum):
    """Why an event became a dead letter."""

    #: Intake could not read it.
    INVALID = "invalid"
    #: The destination refused it: 4xx or 3xx.
    REFUSED = "refused"
    #: The destination refused it with 403, and accepted others with the same token.
    FORBIDDEN = "forbidden"
    #: Its `delivery.max_attempts` attempts failed.
    EXHAUSTED = "exhausted"
    #: It was older than `delivery.max_age`.
    EXPIRED = "expired"
    #: Workers crashed while they processed it.
    WORKER_CRASH = "worker_crash"


Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class DeadLetter:
    """An entry of the stream `dead`. A missing or unreadable value is empty or None; no property raises."""

    letter_id: str
    #: The event's own fields.
    fields: Fields
    #: The fields that the scripts appended: reason, detail, status, attempts, ….
    cause: dict[str, str]

    @classmethod
    def parse(cls, letter_id: bytes, flat: Sequence[bytes]) -> DeadLetter:
        """Parse an entry as a script returns it."""
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        names = [name for name, _ in pairs]
        own = len(pairs) if b"reason" not in names else len(names) - 1 - names[::-1].index(b"reason")
        cause = {_text(name): _text(value) for name, value in pairs[own:]}
        return cls(letter_id.decode(), pairs[:own], cause)

    @property
    def dead_since(self) -> int:
        """When it became a dead letter, in milliseconds since the epoch."""
        return int(self.letter_id.partition("-")[0])

    @property
    def reason(self) -> str:
        """One of `Reason`, if this version wrote it."""
        return self.cause.get("reason", "")

    @property
    def was_accepted(self) -> bool:
        """Return whether it comes from an outbox; else intake could not read it."""
        return "attempts" in self.cause

    @cached_property
    def named(self) -> dict[bytes, bytes]:
        """The event's fields by name; of a repeated name, the last."""
        return dict(self.fields)

    @cached_property
    def body(self) -> Mapping[str, Any]:
        """The event's JSON, empty if it is no object."""
        try:
            document = json.loads(self.named.get(b"event", b""))
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, Mapping) else {}

    @property
    def image(self) -> str:
        """The image reference, as the producer gave it."""
        return self._part("image", "url")

    @property
    def environment(self) -> str:
        """The environment's name, empty if the event has none."""
        return self.cause.get("environment") or self._part("environment", "name")

    @property
    def event_id(self) -> str:
        """The event's id: the producer's, or else that of its inbox entry."""
        given = self.named.get(b"id") or self.body.get("id") or self.cause.get("entry", "")
        return _text(given) if isinstance(given, bytes) else str(given)

    @property
    def source(self) -> str:
        """The producer's source."""
        return _text(self.named.get(b"source", b""))

    @property
    def arrival(self) -> tuple[int, int]:
        """When it was last enqueued, in milliseconds, and its sequence number in that millisecond."""
        entry = self.cause.get("entry", "")
        if self.was_accepted:
            entry = f"{_text(self.named.get(b'arrived', b''))}-{_text(self.named.get(b'sequence', b'0'))}"
        milliseconds, _, sequence = (entry if _STREAM_ID.fullmatch(entry) else self.letter_id).partition("-")
        return int(milliseconds), int(sequence)

    @property
    def redriven(self) -> Redriven | None:
        """The record of its last redrive, if there was one."""
        try:
            return Redriven.decode(_text(self.named.get(b"redriven", b"")))
        except ValueError:
            return None

    def _part(self, part: str, name: str) -> str:
        value = self.body.get(part)
        value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) else ""


def inbox_entry(letter: DeadLetter, *, force: bool) -> list[tuple[bytes, bytes]]:
    """Return the inbox entry that redrives a dead letter: `redriven`, then the fields as the producer gave them.

    An outbox's `time` is in milliseconds, a producer's is RFC 3339.
    """
    entry = [(b"redriven", _next_redrive(letter, force=force).encode().encode())]
    if not letter.was_accepted:
        return entry + [field for field in letter.fields if field[0] != b"redriven"][:MAX_FIELDS]
    fields = [(name, letter.named.get(name, b"")) for name in _PRODUCER_FIELDS]
    return entry + [(name, _rfc3339(value) if name == b"time" else value) for name, value in fields if value]


def _next_redrive(letter: DeadLetter, *, force: bool) -> Redriven:
    last = letter.redriven
    if last is not None:
        return Redriven(last.times + 1, *min(last.arrival, letter.arrival), force)
    return Redriven(1, *letter.arrival, force)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """A selection of dead letters; all given criteria must match. An age is the time since the dead-lettering."""

    #: A glob for the environment's name.
    environment: str | None = None
    reasons: frozenset[str] = frozenset()
    #: A glob for the whole image reference, or without `*`, `?` and `[` a part of it.
    image: str | None = None
    older_than_seconds: float | None = None
    newer_than_seconds: float | None = None
    #: Excludes dead letters newer than this, in Redis milliseconds.
    dead_until: int | None = None
    event_ids: frozenset[str] = frozenset()

    def match(self, letter: DeadLetter) -> bool:
        """Return whether all criteria except the age match; the age bounds the walk."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.event_ids or letter.event_id in self.event_ids)
            and (self.environment is None or fnmatchcase(letter.environment, self.environment))
            and (self.image is None or _is_like(letter.image, self.image))
        )

    def bounds(self, now: int) -> tuple[int, int | None]:
        """Return the first and the last millisecond of the selected dead letters; None for no end."""
        first = 0 if self.newer_than_seconds is None else now - round(self.newer_than_seconds * 1000)
        lasts = [] if self.dead_until is None else [self.dead_until]
        lasts += [] if self.older_than_seconds is None else [now - round(self.older_than_seconds * 1000)]
        return max(0, first), min(lasts, default=None)


EVERYTHING = Filters()


class Page(NamedTuple):
    """The matching dead letters of a page, the number of all its dead letters, and the id of the last of them."""

    letters: list[DeadLetter]
    scanned: int
    last: str


class Found(NamedTuple):
    """Matching dead letters, and the id after which to continue; None at the end."""

    letters: list[DeadLetter]
    after: str | None


def count(client: Redis, keys: Keys) -> int:
    """Return the number of dead letters."""
    return int(client.xlen(keys.dead))


def find(client: Redis, keys: Keys, letter_id: str) -> DeadLetter | None:
    """Return the dead letter with an id; None also if the text is no such id."""
    if not _STREAM_ID.fullmatch(letter_id):
        return None
    reply = _read(client, keys, "XRANGE", letter_id, letter_id, 1)
    return reply[0] if reply else None


def find_newest(client: Redis, keys: Keys) -> DeadLetter | None:
    """Return the newest dead letter."""
    reply = _read(client, keys, "XREVRANGE", "+", "-", 1)
    return reply[0] if reply else None


def walk(
    client: Redis, keys: Keys, filters: Filters = EVERYTHING, *, newest_first: bool = False, after: str = ""
) -> Iterator[Page]:
    """Yield the matching dead letters page by page, from after an id if one is given.

    At most one page is in memory. The walk ends at the dead letter that was the newest at its start.
    """
    first, last = _ends(client, keys, filters)
    if last is None:
        return
    command, start, end = ("XREVRANGE", last, first) if newest_first else ("XRANGE", first, last)
    start = f"({after}" if _STREAM_ID.fullmatch(after) else start
    wanted = FIRST_PAGE
    while page := _read(client, keys, command, start, end, wanted):
        yield Page([letter for letter in page if filters.match(letter)], len(page), page[-1].letter_id)
        start = f"({page[-1].letter_id}"
        wanted = _next_count(page, wanted)


def newest(
    client: Redis, keys: Keys, filters: Filters, *, limit: int, max_scanned: int, max_seconds: float, after: str = ""
) -> Found:
    """Return the newest matching dead letters, newest first; stop after about `max_scanned` or `max_seconds`."""
    found: list[DeadLetter] = []
    scanned, started = 0, time.monotonic()
    for page in walk(client, keys, filters, newest_first=True, after=after):
        room = limit - len(found)
        found += page.letters[:room]
        if len(page.letters) > room:
            return Found(found, found[-1].letter_id)
        scanned += page.scanned
        if scanned >= max_scanned or time.monotonic() - started > max_seconds:
            return Found(found, page.last)
    return Found(found, None)


def limited(pages: Iterator[Page], limit: int | None) -> Iterator[tuple[list[DeadLetter], int]]:
    """Yield each page's dead letters up to `limit` in all, with the number of scanned ones so far."""
    scanned = yielded = 0
    for page in pages:
        scanned += page.scanned
        letters = page.letters if limit is None else page.letters[: limit - yielded]
        yielded += len(letters)
        yield letters, scanned
        if yielded == limit:
            return


def _ends(client: Redis, keys: Keys, filters: Filters) -> tuple[str, str | None]:
    """Return the first and the last id of a walk; no last one if there is no dead letter."""
    seconds, microseconds = client.time()
    first, end = filters.bounds(seconds * 1000 + microseconds // 1000)
    newest = find_newest(client, keys)
    if newest is None:
        return "-", None
    return str(first), newest.letter_id if end is None or newest.dead_since <= end else str(max(0, end))


def _read(client: Redis, keys: Keys, *arguments: str | int) -> list[DeadLetter]:
    bounds = (PAGE_BYTES, KEPT_BYTES, KEPT_PARTS)
    reply = scripts.run(client, scripts.Call(_PAGE, (keys.dead,), (*arguments, *bounds)))
    return [DeadLetter.parse(letter_id, flat or ()) for letter_id, flat in reply]


def _next_count(page: list[DeadLetter], wanted: int) -> int:
    """Return the number of dead letters to read next, so that a page stays near `PAGE_BYTES`."""
    size = sum(len(name) + len(value) for letter in page for name, value in letter.fields)
    fitting = max(1, PAGE_BYTES * len(page) // max(1, size))
    return min(MAX_PAGE, fitting, wanted * PAGE_GROWTH)


def drop(client: Redis, keys: Keys, letters: Sequence[DeadLetter]) -> int:
    """Delete dead letters, and return how many of them still existed."""
    if not letters:
        return 0
    ids = [letter.letter_id for letter in letters]
    return int(scripts.run(client, scripts.Call(_DROP, (keys.dead, keys.counts), ids)))


def _is_like(text: str, wanted: str) -> bool:
    return fnmatchcase(text, wanted) if _GLOB & set(wanted) else wanted in text


def moment(milliseconds: int) -> str:
    """Format milliseconds since the epoch as RFC 3339."""
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")


def _rfc3339(milliseconds: bytes) -> bytes:
    try:
        return moment(int(milliseconds)).encode()
    except (ValueError, OverflowError):
        return milliseconds  # intake reports it as invalid


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
