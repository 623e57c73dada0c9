"""Deduplication: compare an event with the state of its instance, not with a window of time.

`decide_report`, `decide_redrive` and `decide_resync` return the decision and the instance's state after it. All times
are milliseconds since the epoch.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from relay.queue.state import REMEMBERED_IDS, SEEN_STEP_MS, Accepted, Delivered, written_arrival

if TYPE_CHECKING:
    from relay.queue.inbox import Redriven


class Decision(StrEnum):
    """What an event is to its instance."""

    NEW = "new"
    CHANGED = "changed"
    REASSERTED = "reasserted"
    DUPLICATE = "duplicate"
    STALE = "stale"

    @property
    def should_deliver(self) -> bool:
        """Whether the event is to be delivered."""
        return self is not Decision.DUPLICATE and self is not Decision.STALE


class Report(NamedTuple):
    """An event as deduplication sees it."""

    digest: str
    event_id: str
    #: When the deployment happened, where the producer knew.
    time: int | None
    #: When the event was added to the inbox, and its place among those of that millisecond.
    enqueued_at: int
    sequence: int = 0
    #: Whether `time` was ahead of Redis's clock and was replaced by the second of `enqueued_at`.
    is_ahead: bool = False


class Believed(NamedTuple):
    """A `time` as far as it is believed, and by how much it was ahead of Redis's clock, 0 if within the bound."""

    time: int
    ahead_ms: int = 0


class Clock(NamedTuple):
    """Redis's time, and by how much a `time` may be ahead of it."""

    now: int
    max_skew_ms: float

    def believed(self, time: int, enqueued_at: int) -> Believed:
        """Bound a `time` by when the event was enqueued, which is ahead itself if Redis's clock was set back since.

        One from a wrong clock counts as the whole second of that moment: times are often given without a fraction.
        """
        moment = min(enqueued_at, self.now)
        if time <= moment:
            return Believed(time)
        if time <= moment + self.max_skew_ms:
            return Believed(moment)
        return Believed(moment - moment % 1000, ahead_ms=time - moment)

    def without_future(self, state: Accepted) -> Accepted:
        """Remove times in the future from a state: an older version believed them, or Redis's clock was wrong.

        The newest known time is then when the last event was accepted, unless that is in the future, too.
        """
        latest = self.now + self.max_skew_ms
        if (state.time or 0) <= latest and state.repeat_time <= latest and state.confirmed <= latest:
            return state
        time = state.time
        if time is not None and time > latest:
            time = state.at if state.at <= latest else None
        return state._replace(
            time=time,
            repeat_time=state.repeat_time if state.repeat_time <= latest else 0,
            confirmed=state.confirmed if state.confirmed <= latest else 1,
        )


def decide_report(
    state: Accepted | None, delivered: Delivered | None, report: Report, *, reassert_after_ms: float
) -> tuple[Decision, Accepted]:
    """Decide on an event that was reported; a time in the future counts as when it was enqueued.

    The order of the checks matters: a late retry of an accepted event has an old time, and is a duplicate, not stale.
    """
    digest, event_id, time, enqueued_at, sequence, is_ahead = report
    time = time if time is None or time <= enqueued_at else enqueued_at
    if state is None:
        return Decision.NEW, Accepted(digest, time, enqueued_at, enqueued_at, (event_id,), sequence)
    if event_id in state.ids:
        decision = Decision.DUPLICATE
    elif digest == state.digest:
        # Delivered or not: what was deleted from its outbox by hand would be taken for known for ever.
        since = max(delivered.at if delivered else 0, state.at)
        decision = Decision.REASSERTED if enqueued_at - since >= reassert_after_ms else Decision.DUPLICATE
        if decision is Decision.DUPLICATE and state.confirmed:
            state = _confirmed(state, enqueued_at if time is None or is_ahead else time)
    elif _is_older(time, state):
        decision = Decision.STALE
    else:
        decision = Decision.CHANGED if state.digest else Decision.NEW
    if decision.should_deliver:
        return decision, _accepted(state, delivered, report, time, (enqueued_at, sequence))
    return decision, _seen(state, time if decision is Decision.DUPLICATE else None, enqueued_at)


def decide_redrive(
    state: Accepted | None, delivered: Delivered | None, report: Report, redriven: Redriven, *, forget_after_ms: float
) -> tuple[Decision, Accepted | None]:
    """Decide on an event that was a dead letter: it counts from when it was enqueued first.

    So it undoes nothing that was accepted or confirmed since. Where nothing is known any more, an event as old as
    what was forgotten is stale. A forced one is delivered whatever was accepted, and counts from now.
    """
    time = None if report.time is None else min(report.time, redriven.arrived)
    is_forced = redriven.force
    if state is None:
        is_forgotten = not is_forced and report.enqueued_at - redriven.arrived >= forget_after_ms
        decision = Decision.STALE if is_forgotten else Decision.NEW
    elif is_forced and state.digest:
        decision = Decision.REASSERTED if report.digest == state.digest else Decision.CHANGED
    elif report.event_id in state.ids or report.digest == state.digest:
        decision = Decision.DUPLICATE
    else:
        overtaken = max(state.arrival, (state.confirmed, 0)) > redriven.arrival
        is_stale = not is_forced and (overtaken or _is_older(time, state))
        decision = Decision.STALE if is_stale else Decision.CHANGED if state.digest else Decision.NEW
    if decision.should_deliver:
        place = (report.enqueued_at, report.sequence) if is_forced else redriven.arrival
        return decision, _accepted(state, delivered, report, time, place)
    if state is None:
        return decision, None
    return decision, _seen(state, time if decision is Decision.DUPLICATE else None, report.enqueued_at)


def decide_resync(
    state: Accepted | None, delivered: Delivered | None, digest: str, asked_at: int
) -> tuple[Decision, Accepted | None]:
    """Decide on what a resync asks for: only what was last accepted and last delivered is delivered again, and once.

    It is no report: the digest was not seen to run. So it leaves the state as it is, but for the note that it is on
    its way.
    """
    if state is None or digest != state.digest:
        return Decision.STALE, state
    if delivered is None or (digest, written_arrival(*state.arrival)) != (delivered.digest, delivered.came):
        return Decision.DUPLICATE, state  # what was accepted is still on its way
    if state.resynced <= delivered.at < asked_at:
        return Decision.REASSERTED, state._replace(resynced=asked_at)
    return Decision.DUPLICATE, state  # on its way for another resync, or delivered since this one was asked for


def _is_older(time: int | None, state: Accepted) -> bool:
    return time is not None and state.time is not None and time < state.time


def _confirmed(state: Accepted, time: int) -> Accepted:
    """Note that a digest which counts again since a dead letter was seen to run."""
    return state._replace(confirmed=max(state.confirmed, time))


def _accepted(
    state: Accepted | None, delivered: Delivered | None, report: Report, time: int | None, place: tuple[int, int]
) -> Accepted:
    """Return the state once an event is accepted; `place` is where it counts among all that were enqueued."""
    at, sequence = place
    if state is None:
        return Accepted(report.digest, time, at, report.enqueued_at, (report.event_id,), sequence)
    others = [known for known in state.ids if known != report.event_id]
    known_time = (delivered and delivered.time) or 0
    return Accepted(
        report.digest,
        _newest(state.time, time),
        at,
        report.enqueued_at,
        (*others, report.event_id)[-REMEMBERED_IDS:],
        sequence,
        0,
        state.confirmed,
        state.repeat_time if state.repeat_time > known_time else 0,
    )


def _seen(state: Accepted, time: int | None, enqueued_at: int) -> Accepted:
    """Return the state once an event was seen that is not delivered; `time` is that of a duplicate."""
    seen = enqueued_at if enqueued_at - state.seen >= SEEN_STEP_MS else state.seen
    newest = _newest(state.time, time)
    if seen == state.seen and newest == state.time:
        return state
    repeat_time = state.repeat_time if newest == state.time else newest or 0
    return state._replace(time=newest, seen=seen, repeat_time=repeat_time)


def _newest(known: int | None, given: int | None) -> int | None:
    """Return the newest known time: an event without one does not erase what is known."""
    if known is None or given is None:
        return given if known is None else known
    return max(known, given)
