"""The first page: is anything wrong, how is the API, what waits where."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from relay.console.sparkline import Sparkline, draw
from relay.console.status_cache import ALL
from relay.operations.status import describe
from relay.queue.health import Health, HealthState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from relay.console.history import History
    from relay.console.status_cache import CachedStatus, StatusCache
    from relay.operations.finding import Finding
    from relay.queue.counters import EnvironmentCounts
    from relay.queue.status import Status

#: Environments of one page.
ROWS = 50

#: Characters of a search that count.
_LONGEST_SEARCH = 255

_PAGE_DIGITS = 6


class Asked(NamedTuple):
    """What part of the environments is to be shown: those with `wanted` in their names; pages count from 1."""

    wanted: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Asked:
        """Read a query; what cannot be read is passed over."""
        page = query.get("page", "")
        is_number = page.isascii() and page.isdecimal() and len(page) <= _PAGE_DIGITS
        return cls(query.get("q", "").strip()[:_LONGEST_SEARCH], max(1, int(page)) if is_number else 1)


class Row(NamedTuple):
    """One environment, and its rate of late."""

    counts: EnvironmentCounts
    drawn: Sparkline | None
    rate: float | None


class Destination(NamedTuple):
    """How the API is: whether its deliveries are held, how bad that is, and all that is known, in words."""

    held: bool
    level: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPage:
    """What was seen, and of it the environments that are asked for."""

    seen: Status
    findings: list[Finding]
    destination: Destination
    drawn: Sparkline | None
    rate: float | None
    span_milliseconds: float
    rows: list[Row]
    asked: Asked
    pages: int
    matching: int


async def see(status: StatusCache, asked: Asked) -> FirstPage:
    """Look at what the page shows; raises `QueueUnavailable`."""
    return show(await status.latest(), status.history, asked)


def show(sample: CachedStatus, history: History, asked: Asked) -> FirstPage:
    """Make the page of a look."""
    seen = sample.seen
    matching = ordered(seen.environments, asked.wanted)
    pages = max(1, -(-len(matching) // ROWS))
    asked = asked._replace(page=min(asked.page, pages))
    rates = history.rates(ALL)
    return FirstPage(
        seen=seen,
        findings=sample.findings,
        destination=how_is(seen.health, seen.now),
        drawn=draw(rates),
        rate=rates[-1] if rates else None,
        span_milliseconds=history.span_seconds(time.monotonic()) * 1000,
        rows=[_row(each, history) for each in matching[(asked.page - 1) * ROWS : asked.page * ROWS]],
        asked=asked,
        pages=pages,
        matching=len(matching),
    )


def ordered(environments: Iterable[EnvironmentCounts], wanted: str) -> list[EnvironmentCounts]:
    """Return the environments with a text in their names, those with the most that waits first."""
    wanted = wanted.casefold()
    found = (each for each in environments if wanted in each.environment.casefold())
    return sorted(found, key=lambda each: (-each.waiting, each.environment))


def how_is(health: Health, now: int) -> Destination:
    """Say how a destination is; `now` in Redis milliseconds."""
    held = health.state(now) is not HealthState.HEALTHY
    level = "bad" if health.openings else "warn" if held or health.failures else "good"
    return Destination(held, level, describe(health, now))


def _row(each: EnvironmentCounts, history: History) -> Row:
    rates = history.rates(each.environment)
    return Row(each, draw(rates), rates[-1] if rates else None)
