"""The rules of deduplication and accounting, restated for the tests. Imports nothing of the relay.

The stateful model, the fault suite's oracle and the test of the demo's estate share these rules. They compare events
by id, digest, time and rank (the position in the order of arrival), and do not know Redis, scripts or streams.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Ids of accepted events that an instance remembers.
REMEMBERED_IDS = 8

#: Position of an event in the order of arrival. The first number of an inbox entry's position is its milliseconds.
Rank = tuple[int, int]


class Decision(StrEnum):
    """What deduplication says of an event."""

    NEW = "new"
    CHANGED = "changed"
    REASSERTED = "reasserted"
    DUPLICATE = "duplicate"
    STALE = "stale"

    @property
    def is_delivered(self) -> bool:
        return self in {Decision.NEW, Decision.CHANGED, Decision.REASSERTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One event at intake. `time` is in any unit; `ran_at` is when a duplicate shows that its digest ran."""

    event_id: str
    digest: str
    rank: Rank
    time: float | None = None
    ran_at: float = 0
    is_redriven: bool = False
    is_forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An event that was accepted. `newest` is the newest time known of its instance then, its own included."""

    event_id: str
    digest: str
    rank: Rank
    newest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known of one instance at one destination.

    `last` is the event last accepted; None if only `repeated_at` is left of it, because it became a dead letter.
    `newest` is the newest time, `repeated_at` the newest time that a duplicate alone brought. `confirmed_at` is until
    when the restored digest is known to have run: 1 after a restore, 0 before any.
    """

    last: Accepted | None = None
    newest: float | None = None
    ids: tuple[str, ...] = ()
    confirmed_at: float = 0
    repeated_at: float | None = None

    @property
    def digest(self) -> str:
        return self.last.digest if self.last else ""

    @property
    def is_empty(self) -> bool:
        return self.last is None and self.repeated_at is None


def decide(report: Report, state: State) -> Decision:
    """Return the decision on an event, given its instance's state."""
    if state.is_empty:
        return Decision.NEW
    if report.is_forced and state.last:
        return Decision.REASSERTED if report.digest == state.digest else Decision.CHANGED
    if report.event_id in state.ids or report.digest == state.digest:
        return Decision.DUPLICATE
    is_older = report.time is not None and state.newest is not None and report.time < state.newest
    if is_older and not report.is_forced:
        return Decision.STALE
    if state.last is None:
        return Decision.NEW
    is_overtaken = report.is_redriven and max(state.last.rank, (state.confirmed_at, 0)) > report.rank
    return Decision.STALE if is_overtaken else Decision.CHANGED


def after(report: Report, state: State, decision: Decision) -> State:
    """Return the instance's state after a decision."""
    if decision is Decision.STALE:
        return state
    newest = latest(state.newest, report.time)
    if decision is Decision.DUPLICATE:
        confirmed_at = state.confirmed_at
        if confirmed_at and not report.is_redriven and report.event_id not in state.ids:
            confirmed_at = max(confirmed_at, report.ran_at)
        repeated_at = state.repeated_at if newest == state.newest else newest
        return replace(state, newest=newest, confirmed_at=confirmed_at, repeated_at=repeated_at)
    others = tuple(each for each in state.ids if each != report.event_id)
    ids = (*others, report.event_id)[-REMEMBERED_IDS:] if report.event_id else others
    last = Accepted(event_id=report.event_id, digest=report.digest, rank=report.rank, newest=newest)
    return replace(state, last=last, newest=newest, ids=ids)


def restore(state: State, dead_id: str, delivered: Accepted | None) -> State:
    """Return the instance's state after an event became a dead letter: the event last delivered counts again.

    The newest time that counts again is the one known when that event was accepted, or what a duplicate brought
    since. If the dead event had the same digest, its reports still say that the digest ran. Of two events with one
    id, which takes a forced redrive, the earlier one's dead letter restores the state of the later one.
    """
    ids = tuple(each for each in state.ids if each != dead_id)
    if state.last is None or state.last.event_id != dead_id:
        return replace(state, ids=ids)
    if delivered is None:
        return State(
            newest=state.repeated_at, ids=ids if state.repeated_at is not None else (), repeated_at=state.repeated_at
        )
    newest = latest(delivered.newest, state.repeated_at)
    if delivered.digest == state.digest:
        newest = latest(newest, state.newest)
    return replace(state, last=delivered, newest=newest, ids=ids, confirmed_at=state.confirmed_at or 1)


def decisions(reports: Iterable[tuple[object, Report]]) -> list[Decision]:
    """Return the decision on each event, given as instance and event, in the order of arrival."""
    states: dict[object, State] = {}
    decided = []
    for instance, report in reports:
        state = states.get(instance, State())
        decided.append(decide(report, state))
        states[instance] = after(report, state, decided[-1])
    return decided


#: Where an event may be at the end; invalid and unrouted events are dead letters.
OUTCOMES = ("delivered", "duplicate", "stale", "superseded", "unsupported", "dead")


def unaccounted(counts: Mapping[str, int]) -> int:
    """Return the events that are in no count, or negative those in two; 0 at every moment.

    The sum of both accounting identities, of a shard with one destination: `added = invalid + unrouted + taken in +
    waiting` and `routed + redriven = delivered + duplicate + stale + superseded + unsupported + dead + waiting`.
    """
    return counts["added"] + counts["redriven"] - sum(counts.get(name, 0) for name in OUTCOMES) - counts["waiting"]


def latest(*times: float | None) -> float | None:
    """Return the newest of the times that are known."""
    return max((time for time in times if time is not None), default=None)
