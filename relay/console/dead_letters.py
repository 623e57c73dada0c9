"""The dead letters' pages: reading of a list, a count or one letter, and the actions on them."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError
from redis.exceptions import RedisError

from relay.errors import LeaseLost
from relay.queue import dead_letters
from relay.queue.dead_letters import Filters, Reason
from relay.queue.redrive import Redrive, redrive_all
from relay.redaction import PAGE_CHARACTERS, Secrets
from relay.settings import PositiveDuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis import Redis

    from relay.console.queue_client import QueueClient
    from relay.queue.dead_letters import DeadLetter
    from relay.queue.keys import Keys
    from relay.settings import Settings

#: Letters of one page, and the maximum that is scanned for it, in letters (they may be large) and in seconds.
ROWS, MAX_SCANNED, SCAN_SECONDS = 50, 10_000, 2.0

#: Maximum that one form moves or drops, in letters and in seconds; it can be sent again for the rest.
MAX_PER_FORM, FORM_SECONDS = 5_000, 3.0

#: Maximum characters of a field on a letter's page, of a detail in the list, and of a filter.
_LONGEST_FIELD, _LONGEST_DETAIL, _LONGEST_FILTER = 20_000, 300, 1024

#: Maximum digits of a time in milliseconds.
_TIME_DIGITS = 15

#: Advice for each reason.
HELP = {
    Reason.INVALID: "Intake could not read the entry. Fix the producer; redrive only if a setting caused it.",
    Reason.REFUSED: "The destination refused it for good. See its response; fix the cause there, then redrive.",
    Reason.FORBIDDEN: "The destination refused this event while it accepted others with the same token. Grant the "
    "token that right, then redrive.",
    Reason.EXHAUSTED: "It failed delivery.max_attempts times. Redrive once the destination accepts it.",
    Reason.EXPIRED: "It waited longer than delivery.max_age. Redrive if it still matters.",
    Reason.WORKER_CRASH: "The worker process crashed on it three times. Report a defect, with this letter.",
}

_FIELDS = ("environment", "reason", "image", "newer", "older")

#: Why an action stopped early.
Why = Literal["", "busy", "full", "more", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A selection of dead letters: the form's fields, the filters, and the faults of fields that cannot be read."""

    environment: str = ""
    reason: str = ""
    image: str = ""
    newer: str = ""
    older: str = ""
    filters: Filters = dead_letters.EVERYTHING
    faults: tuple[str, ...] = ()

    @classmethod
    def of(cls, form: Mapping[str, str]) -> Selection:
        """Parse a query or a form; `until`, in Redis milliseconds, excludes letters that died after it was shown."""
        given = {name: form.get(name, "").strip()[:_LONGEST_FILTER] for name in _FIELDS}
        faults = []
        ages: dict[str, float | None] = {"newer": None, "older": None}
        for name in ages:
            try:
                ages[name] = TypeAdapter(PositiveDuration).validate_python(given[name]) if given[name] else None
            except ValidationError:
                faults.append(f"{given[name]!a} is no duration: write 90s, 12h or 30d")
        if given["reason"] and given["reason"] not in set(Reason):
            faults.append(f"there is no reason {given['reason']!a}")
        until = form.get("until", "")
        is_time = until.isascii() and until.isdecimal() and len(until) <= _TIME_DIGITS
        filters = Filters(
            environment=given["environment"] or None,
            reasons=frozenset({given["reason"]} if given["reason"] else ()),
            image=given["image"] or None,
            newer_than_seconds=ages["newer"],
            older_than_seconds=ages["older"],
            dead_until=int(until) if is_time else None,
        )
        return cls(**given, filters=filters, faults=tuple(faults))

    @property
    def query(self) -> dict[str, str]:
        """The form's fields that are set."""
        return {name: value for name in _FIELDS if (value := getattr(self, name))}


class Row(NamedTuple):
    """A letter in the list; `detail` is redacted and shortened."""

    letter: DeadLetter
    detail: str


class Page(NamedTuple):
    """A page of the list. `now` in Redis milliseconds; `next` is where the next page begins, None after the last."""

    rows: list[Row]
    next: str | None
    total: int
    now: int


class Counted(NamedTuple):
    """The number of selected letters by reason; `more` if not all were scanned."""

    by_reason: Counter[str]
    more: bool
    now: int


class ActionResult(NamedTuple):
    """The number of letters, and why there were not more."""

    letters: int
    why: Why


class Details(NamedTuple):
    """One letter with its texts, redacted and shortened; `body` is empty if it is no JSON."""

    letter: DeadLetter
    detail: str
    body: str
    fields: list[tuple[str, str]]
    history: list[tuple[str, int]]
    help: str


async def read_page(queue: QueueClient, settings: Settings, selection: Selection, before: str) -> Page:
    """Return a page of selected letters, newest first, older than the id `before`; none if the filter has a fault."""

    def read(client: Redis, keys: Keys) -> Page:
        rows, following = [], None
        if not selection.faults:
            found = dead_letters.newest(
                client, keys, selection.filters,
                limit=ROWS, max_scanned=MAX_SCANNED, max_seconds=SCAN_SECONDS, after=before,
            )  # fmt: skip
            secrets, following = Secrets.of(settings, shortest=PAGE_CHARACTERS), found.after
            rows = [
                Row(each, secrets.excerpt(each.cause.get("detail", ""), _LONGEST_DETAIL)) for each in found.letters
            ]
        return Page(rows, following, dead_letters.count(client, keys), _now(client))

    return await queue.ask(read)


async def count(queue: QueueClient, selection: Selection) -> Counted:
    """Count the selected letters, up to the maximum that is scanned."""

    def read(client: Redis, keys: Keys) -> Counted:
        now, started = _now(client), time.monotonic()
        reasons: Counter[str] = Counter()
        for letters, scanned in dead_letters.limited(dead_letters.walk(client, keys, selection.filters), None):
            reasons.update(letter.reason for letter in letters)
            if scanned >= MAX_SCANNED or time.monotonic() - started > SCAN_SECONDS:
                return Counted(reasons, more=True, now=now)
        return Counted(reasons, more=False, now=now)

    return await queue.ask(read)


async def read_details(queue: QueueClient, settings: Settings, letter_id: str) -> Details | None:
    """Return one letter, None if it does not exist."""

    def read(client: Redis, keys: Keys) -> Details | None:
        letter = dead_letters.find(client, keys, letter_id)
        return None if letter is None else details_of(letter, Secrets.of(settings, shortest=PAGE_CHARACTERS))

    return await queue.ask(read)


def details_of(letter: DeadLetter, secrets: Secrets) -> Details:
    """Return a letter with its texts."""

    def shown(value: bytes | str) -> str:
        text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
        return secrets.excerpt(text, _LONGEST_FIELD)

    return Details(
        letter=letter,
        detail=shown(letter.cause.get("detail", "")),
        body=shown(_indented(letter.body)) if letter.body else "",
        fields=[(shown(name), shown(value)) for name, value in letter.fields],
        history=list(_history(letter)),
        help=next((text for reason, text in HELP.items() if reason == letter.reason), ""),
    )


def _indented(body: Any) -> str:
    """Format a body as far as it is shown: indentation makes a deeply nested one a thousand times longer."""
    written, size = [], 0
    for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(body):
        written.append(piece)
        size += len(piece)
        if size > 2 * _LONGEST_FIELD:
            break
    return "".join(written)


def _history(letter: DeadLetter) -> Iterator[tuple[str, int]]:
    redriven, death = letter.redriven, letter.cause
    if redriven is None:
        yield "enqueued", letter.arrival[0]
    else:
        yield "first enqueued", redriven.arrived
        times = f"redriven {redriven.times} times" if redriven.times > 1 else "redriven once"
        yield f"enqueued again ({times})", letter.arrival[0]
    for name, label in (("first", "first attempt"), ("last", "last attempt")):
        if death.get(name, "").isdecimal():
            yield label, int(death[name])
    yield "dead-lettered", letter.dead_since


async def redrive_set(queue: QueueClient, selection: Selection, *, max_backlog: int, force: bool) -> ActionResult:
    """Redrive the selected letters, up to the maximum of a form."""

    def move(redrive: Redrive) -> ActionResult:
        moved, started = 0, time.monotonic()
        for progress in redrive_all(redrive, selection.filters, limit=MAX_PER_FORM):
            moved = progress.moved
            if progress.is_full:
                return ActionResult(moved, "full")
            if time.monotonic() - started > FORM_SECONDS:
                return ActionResult(moved, "more")
        return ActionResult(moved, "more" if moved >= MAX_PER_FORM else "")

    return await queue.ask(
        lambda client, keys: _under_lease(Redrive(client, keys, max_backlog=max_backlog, force=force), move)
    )


async def redrive_one(queue: QueueClient, letter_id: str, *, max_backlog: int, force: bool) -> ActionResult:
    """Redrive one letter."""

    def act(client: Redis, keys: Keys) -> ActionResult:
        letter = dead_letters.find(client, keys, letter_id)
        if letter is None:
            return ActionResult(0, "gone")

        def move(redrive: Redrive) -> ActionResult:
            moved = redrive.move([letter])
            return ActionResult(moved.letters, "full" if moved.is_full else "" if moved.letters else "gone")

        return _under_lease(Redrive(client, keys, max_backlog=max_backlog, force=force), move)

    return await queue.ask(act)


def _under_lease(redrive: Redrive, move: Callable[[Redrive], ActionResult]) -> ActionResult:
    if not redrive.acquire():
        return ActionResult(0, "busy")
    try:
        return move(redrive)
    except LeaseLost:
        return ActionResult(0, "busy")
    finally:
        with suppress(RedisError):  # then the lease expires
            redrive.release()


async def drop_set(queue: QueueClient, selection: Selection) -> ActionResult:
    """Drop the selected letters, up to the maximum of a form."""

    def act(client: Redis, keys: Keys) -> ActionResult:
        dropped, started = 0, time.monotonic()
        pages = dead_letters.walk(client, keys, selection.filters)
        for letters, _ in dead_letters.limited(pages, MAX_PER_FORM):
            dropped += dead_letters.drop(client, keys, letters)
            if time.monotonic() - started > FORM_SECONDS:
                return ActionResult(dropped, "more")
        return ActionResult(dropped, "more" if dropped >= MAX_PER_FORM else "")

    return await queue.ask(act)


async def drop_one(queue: QueueClient, letter_id: str) -> ActionResult:
    """Drop one letter."""

    def act(client: Redis, keys: Keys) -> ActionResult:
        letter = dead_letters.find(client, keys, letter_id)
        dropped = dead_letters.drop(client, keys, [letter] if letter else [])
        return ActionResult(dropped, "" if dropped else "gone")

    return await queue.ask(act)


def _now(client: Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)
