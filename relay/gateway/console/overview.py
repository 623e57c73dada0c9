"""The first page: is anything wrong, how is the API, what waits where."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from relay.gateway.console.attention import Finding, Seen, findings, meaning
from relay.gateway.console.sampling import ALL
from relay.gateway.console.sparkline import Sparkline, draw
from relay.keys import DEFAULT_ENDPOINT
from relay.store import counts, endpoint, pausing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

    from relay.gateway.console.sampling import Sample, Sampler
    from relay.gateway.console.shard import Shard
    from relay.keys import Keys
    from relay.settings import Settings
    from relay.store.counts import EnvironmentCounts, Flow, Ledger
    from relay.store.endpoint import Health

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One environment."""

    counts: EnvironmentCounts
    oldest_seconds: float | None
    drawn: Sparkline | None
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How the API is, in words."""

    state: str
    level: str
    meaning: str
    health: Health
    held_seconds: float
    probe_seconds: float | None
    probing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The page."""

    findings: list[Finding]
    endpoint: Endpoint
    ledger: Ledger
    inbox: int
    inbox_seconds: float | None
    workers: list[str]
    drawn: Sparkline | None
    rate: float | None
    span_seconds: float
    rows: list[Row]
    asked: Asked
    pages: int
    matching: int
    environments: int


class _Look(NamedTuple):
    """What Redis says for one page, all of it bounded."""

    now: int
    ledger: Ledger
    health: Health
    rows: list[EnvironmentCounts]
    paused: int
    inbox: int
    inbox_oldest: int | None
    memory: float | None


async def see(shard: Shard, sampler: Sampler, settings: Settings, asked: Asked) -> Overview:
    """Look at what the page shows; raises `QueueUnavailable`."""
    sample = await sampler.latest()
    matching = ordered(sample.flows, asked.wanted)
    pages = max(1, -(-len(matching) // ROWS))
    asked = asked._replace(page=min(asked.page, pages))
    names = matching[(asked.page - 1) * ROWS : asked.page * ROWS]
    seen = await shard.ask(lambda client, keys: _look(client, keys, names))
    rates = sampler.history.rates(ALL)
    return Overview(
        findings=findings(_seen(seen, sample, settings)),
        endpoint=describe(seen.health, seen.now),
        ledger=seen.ledger,
        inbox=seen.inbox,
        inbox_seconds=_age(seen.inbox_oldest, seen.now),
        workers=sample.workers,
        drawn=draw(rates),
        rate=rates[-1] if rates else None,
        span_seconds=sampler.history.span_seconds(time.monotonic()),
        rows=[_row(each, seen.now, sampler) for each in seen.rows],
        asked=asked,
        pages=pages,
        matching=len(matching),
        environments=len(sample.flows),
    )


def ordered(flows: Mapping[str, Flow], wanted: str) -> list[str]:
    """Return the environments with a text in their names, those with the most that waits first."""
    wanted = wanted.casefold()
    names = [name for name in flows if wanted in name.casefold()] if wanted else list(flows)
    return sorted(names, key=lambda name: (-flows[name].waiting, name))


def describe(health: Health, now: int) -> Endpoint:
    """Say in words how an endpoint is."""
    held = health.until > now
    reason = health.circuit if health.openings else health.reason if held else ""
    probing = bool(health.openings) and health.probe_until > now
    next_probe = max(health.until, health.probe_until if probing else 0)
    if health.openings:
        state, level = ("probing" if probing else "circuit open"), "bad"
    elif held:
        state, level = "held", "warn"
    else:
        state, level = ("failing", "warn") if health.failures else ("well", "good")
    return Endpoint(
        state=state,
        level=level,
        meaning=meaning(reason) if reason else "",
        health=health,
        held_seconds=max(0, health.until - now) / 1000,
        probe_seconds=max(0, next_probe - now) / 1000 if health.openings else None,
        probing=probing,
    )


def _look(client: Redis, keys: Keys, names: list[str]) -> _Look:
    seconds, microseconds = client.time()
    first = cast("list[tuple[bytes, Any]]", client.xrange(keys.inbox, count=1))
    memory = client.info("memory")
    most = memory.get("maxmemory", 0)
    return _Look(
        now=seconds * 1000 + microseconds // 1000,
        ledger=counts.read_ledger(client, keys),
        health=endpoint.read(client, keys, DEFAULT_ENDPOINT),
        rows=counts.read_some(client, keys, DEFAULT_ENDPOINT, names),
        paused=len(pausing.paused(client, keys, DEFAULT_ENDPOINT)),
        inbox=client.xlen(keys.inbox),
        inbox_oldest=int(first[0][0].partition(b"-")[0]) if first else None,
        memory=memory["used_memory"] / most if most else None,
    )


def _seen(seen: _Look, sample: Sample, settings: Settings) -> Seen:
    return Seen(
        now=seen.now,
        health=seen.health,
        ledger=seen.ledger,
        workers=sample.workers,
        paused=seen.paused,
        inbox_oldest=seen.inbox_oldest,
        memory=seen.memory,
        memory_watermark=settings.queue.memory_watermark,
        max_backlog=settings.queue.max_backlog,
    )


def _row(each: EnvironmentCounts, now: int, sampler: Sampler) -> Row:
    rates = sampler.history.rates(each.environment)
    return Row(
        counts=each,
        oldest_seconds=_age(each.oldest, now),
        drawn=draw(rates),
        rate=rates[-1] if rates else None,
    )


def _age(since: int | None, now: int) -> float | None:
    return None if since is None else max(0, now - since) / 1000
