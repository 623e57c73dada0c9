"""Dead letters: which there are, one of them whole, and what an operator decides about them."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError
from redis.exceptions import RedisError

from relay.console.redact import excerpt, known_secrets
from relay.errors import LeaseLost
from relay.queue import dead_letters
from relay.queue.dead_letters import Filters, Reason
from relay.queue.redrive import Redrive, redrive_all
from relay.settings import PositiveDuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis import Redis

    from relay.console.queue_client import QueueClient
    from relay.queue.dead_letters import DeadLetter
    from relay.queue.keys import Keys
    from relay.settings import Settings

#: Letters of one page, how many are looked at for one, and for how long; they may be large.
ROWS, LOOK_AT, LOOK_SECONDS = 50, 10_000, 2.0

#: What one form moves or drops at most, in letters and in seconds; it can be sent again for the rest.
MOST_AT_ONCE, MOST_SECONDS = 5_000, 3.0

#: Characters of a field that its page shows, and of an answer that the list does.
_LONGEST_SHOWN, _LONGEST_LINE = 20_000, 300

#: Characters of a filter that count.
_LONGEST_FILTER = 1024

#: What helps against each reason.
HELP = {
    Reason.INVALID: "Intake could not read the entry. Mend the producer; redrive only if a setting was in the way.",
    Reason.REFUSED: "The API refused it for good. See its answer; mend what is wrong there, then redrive.",
    Reason.FORBIDDEN: "The API refused this event while it took others with the same token. Give the token that "
    "right, then redrive.",
    Reason.EXHAUSTED: "It failed delivery.max_attempts times. Redrive once the API takes it.",
    Reason.EXPIRED: "It waited longer than delivery.max_age. Redrive if it still matters.",
    Reason.WORKER_CRASH: "Whatever handled it died of it, three times. Report it as a defect, with this letter.",
}

Action = Literal["redrive", "drop"]

#: Why an action did not do all.
Why = Literal["", "busy", "full", "more", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which letters: as the form says it, as `filters` mean it, and what of the form cannot be read."""

    environment: str = ""
    reason: str = ""
    image: str = ""
    newer: str = ""
    older: str = ""
    filters: Filters = dead_letters.EVERYTHING
    faults: tuple[str, ...] = ()

    @classmethod
    def of(cls, form: Mapping[str, str]) -> Asked:
        """Read a query or a form; `until`, in Redis milliseconds, keeps out what died after it was looked at."""
        given = {
            name: form.get(name, "").strip()[:_LONGEST_FILTER]
            for name in ("environment", "reason", "image", "newer", "older")
        }
        faults = []
        ages: dict[str, float | None] = {}
        for name in ("newer", "older"):
            try:
                ages[name] = _duration(given[name]) if given[name] else None
            except ValueError:
                faults.append(f"{given[name]!a} is no duration: write 90s, 12h or 30d")
                ages[name] = None
        if given["reason"] and given["reason"] not in set(Reason):
            faults.append(f"there is no reason {given['reason']!a}")
        filters = Filters(
            environment=given["environment"] or None,
            reasons=frozenset({given["reason"]} if given["reason"] else ()),
            image=given["image"] or None,
            newer_than_seconds=ages["newer"],
            older_than_seconds=ages["older"],
            died_until=_until(form.get("until", "")),
        )
        return cls(**given, filters=filters, faults=tuple(faults))

    @property
    def query(self) -> dict[str, str]:
        """The form's fields that say something."""
        fields = {name: getattr(self, name) for name in ("environment", "reason", "image", "newer", "older")}
        return {name: value for name, value in fields.items() if value}


class Line(NamedTuple):
    """A letter in the list, with what is said of its death, redacted and cut."""

    letter: DeadLetter
    detail: str


class Listed(NamedTuple):
    """A page of the list. `now` in Redis milliseconds, `behind` where the next page begins, None after the last."""

    lines: list[Line]
    behind: str | None
    total: int
    now: int


class Counted(NamedTuple):
    """How many letters a set has, by reason; `more` if they were not all looked at."""

    by_reason: Counter[str]
    more: bool
    now: int


class Done(NamedTuple):
    """What an action did, and why not more."""

    letters: int
    why: Why


class Whole(NamedTuple):
    """One letter with its texts, redacted and cut to what a page can show; `body` is empty if it is no JSON."""

    letter: DeadLetter
    detail: str
    body: str
    fields: list[tuple[str, str]]
    history: list[tuple[str, int]]
    help: str


async def listed(queue: QueueClient, settings: Settings, asked: Asked, behind: str) -> Listed:
    """Return a page of the newest; an empty one for a filter that cannot be read."""

    def look(client: Redis, keys: Keys) -> Listed:
        lines, further = [], None
        if not asked.faults:
            some = dead_letters.newest(
                client, keys, asked.filters, limit=ROWS, look_at=LOOK_AT, look_seconds=LOOK_SECONDS, behind=behind
            )
            secrets, further = known_secrets(settings), some.behind
            lines = [
                Line(each, excerpt(each.death.get("detail", ""), secrets, _LONGEST_LINE)) for each in some.letters
            ]
        return Listed(lines, further, dead_letters.count(client, keys), _now(client))

    return await queue.ask(look)


async def counted(queue: QueueClient, asked: Asked) -> Counted:
    """Count a set, as far as one action would look."""

    def look(client: Redis, keys: Keys) -> Counted:
        now, started = _now(client), time.monotonic()
        reasons: Counter[str] = Counter()
        for letters, looked_at in dead_letters.limited(dead_letters.walk(client, keys, asked.filters), None):
            reasons.update(letter.reason for letter in letters)
            if looked_at >= LOOK_AT or time.monotonic() - started > LOOK_SECONDS:
                return Counted(reasons, more=True, now=now)
        return Counted(reasons, more=False, now=now)

    return await queue.ask(look)


async def whole(queue: QueueClient, settings: Settings, letter_id: str) -> Whole | None:
    """Return one letter, None if there is none of this id (any more)."""

    def look(client: Redis, keys: Keys) -> Whole | None:
        letter = dead_letters.find(client, keys, letter_id)
        return None if letter is None else opened(letter, known_secrets(settings))

    return await queue.ask(look)


def opened(letter: DeadLetter, secrets: tuple[str, ...]) -> Whole:
    """Make a letter's texts."""

    def text(value: str) -> str:
        return excerpt(value, secrets, _LONGEST_SHOWN)

    return Whole(
        letter=letter,
        detail=text(letter.death.get("detail", "")),
        body=text(_indented(letter.body)) if letter.body else "",
        fields=[(text(_text(name)), text(_text(value))) for name, value in letter.fields],
        history=list(_history(letter)),
        help=next((text for reason, text in HELP.items() if reason == letter.reason), ""),
    )


def _indented(body: Any) -> str:
    """Write a body a line for each value, as far as it is shown: a deep one is a thousand times longer then."""
    written, size = [], 0
    for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(body):
        written.append(piece)
        size += len(piece)
        if size > 2 * _LONGEST_SHOWN:
            break
    return "".join(written)


async def redrive_set(queue: QueueClient, asked: Asked, *, max_backlog: int, force: bool) -> Done:
    """Send a set again, as much of it as one form does."""

    def act(client: Redis, keys: Keys) -> Done:
        run = Redrive(client, keys, max_backlog=max_backlog, force=force)
        return _under_lease(run, lambda: _redrive(run, asked.filters))

    return await queue.ask(act)


async def redrive_one(queue: QueueClient, letter_id: str, *, max_backlog: int, force: bool) -> Done:
    """Send one letter again."""

    def act(client: Redis, keys: Keys) -> Done:
        letter = dead_letters.find(client, keys, letter_id)
        if letter is None:
            return Done(0, "gone")
        run = Redrive(client, keys, max_backlog=max_backlog, force=force)

        def move() -> Done:
            moved = run.move([letter])
            return Done(moved.letters, "full" if moved.full else "" if moved.letters else "gone")

        return _under_lease(run, move)

    return await queue.ask(act)


async def drop_set(queue: QueueClient, asked: Asked) -> Done:
    """Drop a set, as much of it as one form does."""

    def act(client: Redis, keys: Keys) -> Done:
        dropped, started = 0, time.monotonic()
        pages = dead_letters.walk(client, keys, asked.filters)
        for letters, _ in dead_letters.limited(pages, MOST_AT_ONCE):
            dropped += dead_letters.drop(client, keys, letters)
            if _is_over(started):
                return Done(dropped, "more")
        return Done(dropped, "more" if dropped >= MOST_AT_ONCE else "")

    return await queue.ask(act)


async def drop_one(queue: QueueClient, letter_id: str) -> Done:
    """Drop one letter."""

    def act(client: Redis, keys: Keys) -> Done:
        letter = dead_letters.find(client, keys, letter_id)
        dropped = dead_letters.drop(client, keys, [letter] if letter else [])
        return Done(dropped, "" if dropped else "gone")

    return await queue.ask(act)


def _redrive(run: Redrive, filters: Filters) -> Done:
    moved, started = 0, time.monotonic()
    for progress in redrive_all(run, filters, limit=MOST_AT_ONCE):
        moved = progress.moved
        if progress.full:
            return Done(moved, "full")
        if _is_over(started):
            return Done(moved, "more")
    return Done(moved, "more" if moved >= MOST_AT_ONCE else "")


def _under_lease(run: Redrive, act: Callable[[], Done]) -> Done:
    if not run.begin():
        return Done(0, "busy")
    try:
        return act()
    except LeaseLost:
        return Done(0, "busy")
    finally:
        with suppress(RedisError):  # then the lease expires by itself
            run.end()


def _is_over(started: float) -> bool:
    return time.monotonic() - started > MOST_SECONDS


def _history(letter: DeadLetter) -> Iterator[tuple[str, int]]:
    redriven, death = letter.redriven, letter.death
    if redriven is not None:
        yield "first came", redriven.arrived
        yield (
            f"came again (redriven {redriven.times} times)" if redriven.times > 1 else "came again (redriven once)",
            letter.arrival[0],
        )
    else:
        yield "came", letter.arrival[0]
    for name, said in (("first", "first attempt"), ("last", "last attempt")):
        if death.get(name, "").isdecimal():
            yield said, int(death[name])
    yield "died", letter.died


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _duration(text: str) -> float:
    try:
        return TypeAdapter(PositiveDuration).validate_python(text)
    except ValidationError as error:
        raise ValueError(text) from error


def _until(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else None  # noqa: PLR2004 - longer is no time


def _now(client: Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)
