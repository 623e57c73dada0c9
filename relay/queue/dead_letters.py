"""Dead letters: what could not be taken in or delivered, with its reason, until it is redriven or dropped.

An entry of the stream `dead` begins with the fields that the event had where it died: those of an outbox, or for one
that intake could not read, the producer's own, whatever they are. What commit_delivery.lua and intake.py
append to them begins with `reason`, and it wins over fields of the same names before it.
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

#: Letters of one page at first and at most, bytes of a page that are aimed at, and by how much it grows at most.
FIRST_PAGE, MOST_PAGE, PAGE_BYTES, PAGE_GROWTH = 50, 500, 4_194_304, 4

#: Bytes that are kept of a value of a letter that is larger than a page, and fields and values at each end of it.
KEPT_BYTES, KEPT_PARTS = 65_536, 64

#: Fields of an unreadable entry that a redrive gives back: as many as its dead letter keeps.
MAX_FIELDS = 32

_PAGE = scripts.load("dead_page")
_DROP = scripts.load("drop")

#: Fields of an event that died in an outbox, as its producer gave them.
_GIVEN_BACK = (b"event", b"id", b"source", b"time", b"receipt", b"resync")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STREAM_ID = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")

#: The characters that make a pattern of a text.
_GLOB = frozenset("*?[")


class Reason(StrEnum):
    """Why an event became a dead letter."""

    #: Intake could not read it.
    INVALID = "invalid"
    #: The API refused it: 4xx or 3xx.
    REFUSED = "refused"
    #: The API refused it with 403, though it took others with the same token.
    FORBIDDEN = "forbidden"
    #: It was tried `delivery.max_attempts` times.
    EXHAUSTED = "exhausted"
    #: It waited longer than `delivery.max_age`.
    EXPIRED = "expired"
    #: Whatever handled it died of it.
    WORKER_CRASH = "worker_crash"


Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class DeadLetter:
    """An entry of the stream `dead`. What it has not, or cannot be read, is empty or None; nothing here raises."""

    letter_id: str
    #: The event's fields where it died, and what was appended at its death.
    fields: Fields
    death: dict[str, str]

    @classmethod
    def of(cls, letter_id: bytes, flat: Sequence[bytes]) -> DeadLetter:
        """Read an entry as Redis returns it to a script."""
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        names = [name for name, _ in pairs]
        own = len(pairs) if b"reason" not in names else len(names) - 1 - names[::-1].index(b"reason")
        death = {_readable(name): _readable(value) for name, value in pairs[own:]}
        return cls(letter_id.decode(), pairs[:own], death)

    @property
    def died(self) -> int:
        """When it became a dead letter, in milliseconds since the epoch."""
        return int(self.letter_id.partition("-")[0])

    @property
    def reason(self) -> str:
        """One of `Reason`, if one of our scripts wrote it."""
        return self.death.get("reason", "")

    @property
    def was_accepted(self) -> bool:
        """Tell whether it died in an outbox; else intake could not read it."""
        return "attempts" in self.death

    @cached_property
    def named(self) -> dict[bytes, bytes]:
        """The event's fields by name; the last counts of those that come twice."""
        return dict(self.fields)

    @cached_property
    def body(self) -> Mapping[str, Any]:
        """The event as JSON, as far as it is an object."""
        try:
            document = json.loads(self.named.get(b"event", b""))
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, Mapping) else {}

    @property
    def image(self) -> str:
        """The image's reference, as it was given."""
        return self._part("image", "url")

    @property
    def environment(self) -> str:
        """The environment's name, as far as the event gave it."""
        return self.death.get("environment") or self._part("environment", "name")

    @property
    def event_id(self) -> str:
        """The event's id: the producer's, or else the entry's in the inbox."""
        given = self.named.get(b"id") or self.body.get("id") or self.death.get("entry", "")
        return _readable(given) if isinstance(given, bytes) else str(given)

    @property
    def source(self) -> str:
        """Who reported it."""
        return _readable(self.named.get(b"source", b""))

    @property
    def arrival(self) -> tuple[int, int]:
        """When it came to the inbox, the last time if it was redriven, and its place in that millisecond."""
        entry = self.death.get("entry", "")
        if self.was_accepted:
            entry = f"{_readable(self.named.get(b'arrived', b''))}-{_readable(self.named.get(b'sequence', b'0'))}"
        milliseconds, _, sequence = (entry if _STREAM_ID.fullmatch(entry) else self.letter_id).partition("-")
        return int(milliseconds), int(sequence)

    @property
    def redriven(self) -> Redriven | None:
        """What its last redrive said, if there was one."""
        try:
            return Redriven.decode(_readable(self.named.get(b"redriven", b"")))
        except ValueError:
            return None

    def _part(self, part: str, name: str) -> str:
        value = self.body.get(part)
        value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) else ""


def revived(letter: DeadLetter, *, force: bool) -> list[tuple[bytes, bytes]]:
    """Return the inbox entry of a letter that is redriven: as its producer gave it, and `redriven` before.

    An outbox's `time` is in milliseconds, a producer's is RFC 3339.
    """
    entry = [(b"redriven", _next_redrive(letter, force=force).encode().encode())]
    if not letter.was_accepted:
        return entry + [field for field in letter.fields if field[0] != b"redriven"][:MAX_FIELDS]
    given = [(name, letter.named.get(name, b"")) for name in _GIVEN_BACK]
    return entry + [(name, _rfc3339(value) if name == b"time" else value) for name, value in given if value]


def _next_redrive(letter: DeadLetter, *, force: bool) -> Redriven:
    before = letter.redriven
    if before is not None:
        return Redriven(before.times + 1, *min(before.arrival, letter.arrival), force)
    return Redriven(1, *letter.arrival, force)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which dead letters; each that is given must match. Ages count from when a letter died."""

    #: A pattern of the environment's name.
    environment: str | None = None
    reasons: frozenset[str] = frozenset()
    #: A pattern of the whole image reference, or without `*`, `?` and `[` a part of it.
    image: str | None = None
    older_than_seconds: float | None = None
    newer_than_seconds: float | None = None
    #: A moment, in Redis milliseconds: what died later is not meant.
    died_until: int | None = None
    event_ids: frozenset[str] = frozenset()

    def match(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is meant, its age apart: that is where a walk begins and ends."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.event_ids or letter.event_id in self.event_ids)
            and (self.environment is None or fnmatchcase(letter.environment, self.environment))
            and (self.image is None or _is_like(letter.image, self.image))
        )

    def bounds(self, now: int) -> tuple[int, int | None]:
        """Return the first and the last millisecond in which a letter that is meant may have died."""
        first = 0 if self.newer_than_seconds is None else now - round(self.newer_than_seconds * 1000)
        lasts = [] if self.died_until is None else [self.died_until]
        lasts += [] if self.older_than_seconds is None else [now - round(self.older_than_seconds * 1000)]
        return max(0, first), min(lasts, default=None)


EVERYTHING = Filters()


class Page(NamedTuple):
    """The letters of one page that match, how many letters it had, and the id of the last of them."""

    letters: list[DeadLetter]
    looked_at: int
    last: str


class Some(NamedTuple):
    """Letters that match, and where to go on: behind this id, None at the end."""

    letters: list[DeadLetter]
    behind: str | None


def count(client: Redis, keys: Keys) -> int:
    """Return how many dead letters lie there."""
    return int(client.xlen(keys.dead))


def find(client: Redis, keys: Keys, letter_id: str) -> DeadLetter | None:
    """Return the letter of this id, None also for what is no letter's id."""
    if not _STREAM_ID.fullmatch(letter_id):
        return None
    reply = _read(client, keys, "XRANGE", letter_id, letter_id, 1)
    return reply[0] if reply else None


def newest_of_all(client: Redis, keys: Keys) -> DeadLetter | None:
    """Return the letter that died last."""
    reply = _read(client, keys, "XREVRANGE", "+", "-", 1)
    return reply[0] if reply else None


def walk(
    client: Redis, keys: Keys, filters: Filters = EVERYTHING, *, newest_first: bool = False, behind: str = ""
) -> Iterator[Page]:
    """Go through the letters that match, page by page, from behind a letter's id if one is given.

    Never more than a page is in memory. Ends at the newest letter that stood there at the start: what dies meanwhile
    is not met.
    """
    first, last = _ends(client, keys, filters)
    if last is None:
        return
    command, start, end = ("XREVRANGE", last, first) if newest_first else ("XRANGE", first, last)
    start = f"({behind}" if _STREAM_ID.fullmatch(behind) else start
    wanted = FIRST_PAGE
    while page := _read(client, keys, command, start, end, wanted):
        yield Page([letter for letter in page if filters.match(letter)], len(page), page[-1].letter_id)
        start = f"({page[-1].letter_id}"
        wanted = _next_count(page, wanted)


def newest(
    client: Redis, keys: Keys, filters: Filters, *, limit: int, look_at: int, look_seconds: float, behind: str = ""
) -> Some:
    """Return the newest letters that match, the newest first, having looked at about so many and so long at most."""
    found: list[DeadLetter] = []
    looked_at, started = 0, time.monotonic()
    for page in walk(client, keys, filters, newest_first=True, behind=behind):
        room = limit - len(found)
        found += page.letters[:room]
        if len(page.letters) > room:
            return Some(found, found[-1].letter_id)
        looked_at += page.looked_at
        if looked_at >= look_at or time.monotonic() - started > look_seconds:
            return Some(found, page.last)
    return Some(found, None)


def limited(pages: Iterator[Page], limit: int | None) -> Iterator[tuple[list[DeadLetter], int]]:
    """Pass on each page's letters until there were `limit`, with how many were looked at so far."""
    looked_at = passed = 0
    for page in pages:
        looked_at += page.looked_at
        letters = page.letters if limit is None else page.letters[: limit - passed]
        passed += len(letters)
        yield letters, looked_at
        if passed == limit:
            return


def _ends(client: Redis, keys: Keys, filters: Filters) -> tuple[str, str | None]:
    """Return between which ids a walk goes; no last one if there is nothing to walk to."""
    seconds, microseconds = client.time()
    first, before = filters.bounds(seconds * 1000 + microseconds // 1000)
    newest = _read(client, keys, "XREVRANGE", "+", "-", 1)
    if not newest:
        return "-", None
    last = newest[0].letter_id if before is None or newest[0].died <= before else str(max(0, before))
    return str(first), last


def _read(client: Redis, keys: Keys, *arguments: str | int) -> list[DeadLetter]:
    bounds = (PAGE_BYTES, KEPT_BYTES, KEPT_PARTS)
    reply = scripts.run(client, scripts.Call(_PAGE, (keys.dead,), (*arguments, *bounds)))
    return [DeadLetter.of(letter_id, flat or ()) for letter_id, flat in reply]


def _next_count(page: list[DeadLetter], wanted: int) -> int:
    """Return how many letters to read next, so that a page stays near `PAGE_BYTES` whatever producers put in."""
    size = sum(len(name) + len(value) for letter in page for name, value in letter.fields)
    fitting = max(1, PAGE_BYTES * len(page) // max(1, size))
    return min(MOST_PAGE, fitting, wanted * PAGE_GROWTH)


def drop(client: Redis, keys: Keys, letters: Sequence[DeadLetter]) -> int:
    """Delete a page's letters for good, and return how many of them were still there."""
    if not letters:
        return 0
    ids = [letter.letter_id for letter in letters]
    return int(scripts.run(client, scripts.Call(_DROP, (keys.dead, keys.counts), ids)))


def _is_like(text: str, wanted: str) -> bool:
    return fnmatchcase(text, wanted) if _GLOB & set(wanted) else wanted in text


def moment(milliseconds: int) -> str:
    """Write milliseconds since the epoch as RFC 3339."""
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")


def _rfc3339(milliseconds: bytes) -> bytes:
    try:
        return moment(int(milliseconds)).encode()
    except (ValueError, OverflowError):
        return milliseconds  # none of ours; intake says so


def _readable(value: bytes) -> str:
    return value.decode(errors="replace")
