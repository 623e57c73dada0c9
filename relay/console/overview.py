"""The overview page: findings, the destination's health, counters, and environments. Pure."""

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
    from relay.console.status_cache import CachedStatus
    from relay.operations.finding import Finding
    from relay.queue.counters import EnvironmentCounts
    from relay.queue.status import Status

#: Environments of one page.
ROWS = 50

#: Maximum characters of a search, and digits of a page's number.
_LONGEST_SEARCH, _PAGE_DIGITS = 255, 6


class Search(NamedTuple):
    """The environments to show: those with `text` in their names, on a page counted from 1."""

    text: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Search:
        """Parse a query; unreadable values are ignored."""
        page = query.get("page", "")
        is_number = page.isascii() and page.isdecimal() and len(page) <= _PAGE_DIGITS
        return cls(query.get("q", "").strip()[:_LONGEST_SEARCH], max(1, int(page)) if is_number else 1)


class Row(NamedTuple):
    """One environment, with its recent delivery rates."""

    counts: EnvironmentCounts
    chart: Sparkline | None
    rate: float | None


class Destination(NamedTuple):
    """The destination's health; `level` is the badge's colour."""

    state: HealthState
    level: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page, with the environments that match the search."""

    status: Status
    findings: list[Finding]
    destination: Destination
    chart: Sparkline | None
    rate: float | None
    span_milliseconds: float
    rows: list[Row]
    search: Search
    pages: int
    matching: int


def page_of(cached: CachedStatus, history: History, search: Search) -> Page:
    """Return the page of a status."""
    status = cached.status
    matching = ordered(status.environments, search.text)
    pages = max(1, -(-len(matching) // ROWS))
    search = search._replace(page=min(search.page, pages))
    rates = history.rates(ALL)
    return Page(
        status=status,
        findings=cached.findings,
        destination=destination_of(status.health, status.now),
        chart=draw(rates),
        rate=rates[-1] if rates else None,
        span_milliseconds=history.span_seconds(time.monotonic()) * 1000,
        rows=[_row(each, history) for each in matching[(search.page - 1) * ROWS : search.page * ROWS]],
        search=search,
        pages=pages,
        matching=len(matching),
    )


def ordered(environments: Iterable[EnvironmentCounts], text: str) -> list[EnvironmentCounts]:
    """Return the environments with a text in their names, those with the most waiting events first."""
    text = text.casefold()
    found = (each for each in environments if text in each.environment.casefold())
    return sorted(found, key=lambda each: (-each.waiting, each.environment))


def destination_of(health: Health, now: int) -> Destination:
    """Return a destination's health for the page; `now` in Redis milliseconds."""
    state = health.state(now)
    is_unhealthy = state is not HealthState.HEALTHY
    level = "bad" if health.openings else "warn" if is_unhealthy or health.failures else "good"
    return Destination(state, level, describe(health, now))


def _row(each: EnvironmentCounts, history: History) -> Row:
    rates = history.rates(each.environment)
    return Row(each, draw(rates), rates[-1] if rates else None)
