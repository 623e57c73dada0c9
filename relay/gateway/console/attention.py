"""What is wrong, and what to do about it, in the words of whoever is called at night; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from relay.gateway.console.words import duration, number, plural
from relay.store.endpoint import MEANING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relay.store.counts import Ledger
    from relay.store.endpoint import Health

#: The part of `queue.max_backlog` from which it is worth a word.
_NEARLY_FULL = 0.8

#: An event that waits this long in the inbox waits for a worker.
_LONG_IN_INBOX_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence; `level` is how bad it is."""

    level: Literal["bad", "warn", "note"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the findings are made of. `now` in Redis milliseconds, `memory` the used part of Redis's `maxmemory`."""

    now: int
    health: Health
    ledger: Ledger
    workers: Sequence[str]
    paused: int
    inbox_oldest: int | None
    memory: float | None
    memory_watermark: float
    max_backlog: int


def findings(seen: Seen) -> list[Finding]:
    """Return what is wrong, the worst first."""
    order = ("bad", "warn", "note")
    return sorted(_findings(seen), key=lambda finding: order.index(finding.level))


def _findings(seen: Seen) -> Iterator[Finding]:
    if seen.memory is not None and seen.memory >= seen.memory_watermark:
        yield Finding(
            level="bad",
            text=f"Redis has used {seen.memory:.0%} of its maxmemory: producers are told that the queue is full; "
            "raise maxmemory, or let deliveries catch up",
        )
    if not seen.workers:
        yield Finding(level="bad", text="no worker gives a sign of life: nothing is delivered until one runs")
    yield from _of_endpoint(seen.health, seen.now)
    yield from _of_queue(seen)
    if seen.paused:
        yield Finding(
            level="warn",
            text=f"{plural(seen.paused, 'environment is', 'environments are')} paused by an operator; "
            "events keep queueing there",
        )
    if seen.ledger.unaccounted:
        yield Finding(
            level="bad",
            text=f"{plural(seen.ledger.unaccounted, 'event is', 'events are')} unaccounted for: report this defect",
        )
    if seen.ledger.dead_waiting:
        yield Finding(
            level="note",
            text=f"{plural(seen.ledger.dead_waiting, 'dead letter waits', 'dead letters wait')} for a decision",
        )


def _of_endpoint(health: Health, now: int) -> Iterator[Finding]:
    reasons = [health.circuit] if health.openings else []
    if health.until > now and health.reason not in reasons:
        reasons.append(health.reason)
    for reason in reasons:
        yield Finding(level="bad", text=meaning(reason))


def _of_queue(seen: Seen) -> Iterator[Finding]:
    waiting, most = seen.ledger.waiting, seen.max_backlog
    if waiting >= most:
        yield Finding(
            level="bad", text=f"the queue is full: {number(waiting)} events wait, and producers are refused"
        )
    elif waiting >= _NEARLY_FULL * most:
        yield Finding(
            level="warn", text=f"the queue is {waiting / most:.0%} full: past {number(most)} no more is taken"
        )
    if seen.inbox_oldest is not None and (age := (seen.now - seen.inbox_oldest) / 1000) > _LONG_IN_INBOX_SECONDS:
        yield Finding(
            level="bad", text=f"events wait in the inbox for {duration(age)}: no worker takes them in, or too few do"
        )


def meaning(reason: str) -> str:
    """Say what a hold's reason means and what to do."""
    return next((text for known, text in MEANING.items() if known == reason), f"deliveries are held: {reason}")
