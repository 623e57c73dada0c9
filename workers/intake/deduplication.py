"""Is an event news? Compared with what the instance's state says, not with a window of time."""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from relay.queue.state import REMEMBERED_IDS, SEEN_STEP_MS, Accepted, Delivered, written_arrival

if TYPE_CHECKING:
    from relay.queue.inbox import Redriven


class Clock(NamedTuple):
    """Redis's time in milliseconds, and how many milliseconds a `time` may be ahead of it."""

    now: int
    max_skew_ms: float

    def believed(self, time: int, arrived: int) -> Believed:
        """Bound a `time` from the future by the event's arrival, which may itself be ahead if the clock was set back.

        One from a wrong clock counts as the whole second of the arrival: times are often given without a fraction.
        """
        moment = min(arrived, self.now)
        if time <= moment:
            return Believed(time)
        if time <= moment + self.max_skew_ms:
            return Believed(moment)
        return Believed(moment - moment % 1000, ahead_ms=time - moment)

    def without_future(self, state: Accepted) -> Accepted:
        """Take times from the future out of a state: an older version believed them, or Redis's clock was wrong.

        The newest known time then counts as the arrival's, if that is not from the future, too.
        """
        latest = self.now + self.max_skew_ms
        if max(state.time or 0, state.repeat_time, state.confirmed) <= latest:
            return state
        time = state.time
        if time is not None and time > latest:
            time = state.at if state.at <= latest else None
        return state._replace(
            time=time,
            repeat_time=state.repeat_time if state.repeat_time <= latest else 0,
            confirmed=state.confirmed if state.confirmed <= latest else 1,
        )


class Believed(NamedTuple):
    """A `time` as far as it is believed, and by how much it was ahead of Redis's clock, 0 if within the bound."""

    time: int
    ahead_ms: int = 0


class Decision(StrEnum):
    """What an event is to its instance."""

    NEW = "new"
    CHANGED = "changed"
    REASSERTED = "reasserted"
    DUPLICATE = "duplicate"
    STALE = "stale"

    @property
    def is_news(self) -> bool:
        """Tell whether the API must be told."""
        return self is not Decision.DUPLICATE and self is not Decision.STALE


def judge(
    state: Accepted | None,
    delivered: Delivered | None,
    *,
    digest: str,
    event_id: str,
    time: int | None,
    arrived: int,
    reassert_after_ms: float,
    forget_after_ms: float = inf,
    sequence: int = 0,
    redriven: Redriven | None = None,
    resync: bool = False,
    is_ahead: bool = False,
) -> tuple[Decision, Accepted | None]:
    """Judge an event and return the decision with the instance's state after it.

    `time` is when the deployment happened, where the producer knew; one in the future is taken as the arrival's.
    `sequence` is its place among those that arrived in the same millisecond. All times are milliseconds since the
    epoch. The order of the questions matters: a late retry of an accepted event carries an old time, and is a
    duplicate, not stale.

    An event that is `redriven` counts from when it first arrived, so that it undoes nothing that was accepted or
    confirmed since. Where nothing is known any more, one as old as what was forgotten is stale. One that is forced is
    news whatever was accepted, and counts from now.

    The time of one that `is_ahead` was replaced by its arrival's second; it confirms what runs until its arrival.

    A `resync` is no report: nobody saw the digest run. It only has the API told once more what it was told last, and
    leaves the state as it is, but for the mark that it is on its way.
    """
    if resync:
        return _resync(state, delivered, digest, arrived)
    if time is not None:
        time = min(time, redriven.arrived if redriven else arrived)
    decision = _decision(
        state,
        delivered,
        digest=digest,
        event_id=event_id,
        time=time,
        arrived=arrived,
        reassert_after_ms=reassert_after_ms,
        forget_after_ms=forget_after_ms,
        redriven=redriven,
    )
    if decision.is_news:
        came = (arrived, sequence) if redriven is None or redriven.force else redriven.arrival
        repeat_time = state.repeat_time if state and state.repeat_time > _time_of(delivered) else 0
        return decision, _accepted(state, digest, event_id, time, came=came, seen=arrived, repeat_time=repeat_time)
    if state is None:
        return decision, None
    if state.confirmed and redriven is None and digest == state.digest and event_id not in state.ids:
        state = state._replace(confirmed=max(state.confirmed, arrived if time is None or is_ahead else time))
    return decision, _seen(state, time if decision is Decision.DUPLICATE else None, arrived)


def _decision(
    state: Accepted | None,
    delivered: Delivered | None,
    *,
    digest: str,
    event_id: str,
    time: int | None,
    arrived: int,
    reassert_after_ms: float,
    forget_after_ms: float,
    redriven: Redriven | None,
) -> Decision:
    if state is None:
        is_old = redriven is not None and not redriven.force and arrived - redriven.arrived >= forget_after_ms
        return Decision.STALE if is_old else Decision.NEW
    if redriven and redriven.force and state.digest:
        return Decision.REASSERTED if digest == state.digest else Decision.CHANGED
    if event_id in state.ids:
        return Decision.DUPLICATE
    if digest == state.digest:
        due = redriven is None and _reassert(state, delivered, arrived, reassert_after_ms)
        return Decision.REASSERTED if due else Decision.DUPLICATE
    overtaken = redriven is not None and max(state.arrival, (state.confirmed, 0)) > redriven.arrival
    is_forced = redriven is not None and redriven.force
    if not is_forced and (_is_older(time, state) or overtaken):
        return Decision.STALE
    return Decision.CHANGED if state.digest else Decision.NEW


def _resync(
    state: Accepted | None, delivered: Delivered | None, digest: str, asked: int
) -> tuple[Decision, Accepted | None]:
    """Judge what a resync asks for: told again is only what was last accepted and last delivered, and once."""
    if state is None or digest != state.digest:
        return Decision.STALE, state
    if delivered is None or (digest, written_arrival(*state.arrival)) != (delivered.digest, delivered.came):
        return Decision.DUPLICATE, state  # what was accepted is still on its way
    if state.resynced <= delivered.at < asked:
        return Decision.REASSERTED, state._replace(resynced=asked)
    return Decision.DUPLICATE, state  # on its way for another resync, or told since this one was asked for


def _is_older(time: int | None, state: Accepted) -> bool:
    return time is not None and state.time is not None and time < state.time


def _reassert(state: Accepted, delivered: Delivered | None, arrived: int, reassert_after_ms: float) -> bool:
    """Tell whether it is time to deliver the same digest again: once, not for each report until that is done.

    Whether it was delivered does not matter: what was deleted from its outbox would be taken for known for ever.
    """
    return arrived - max(delivered.at if delivered else 0, state.at) >= reassert_after_ms


def _accepted(
    state: Accepted | None, digest: str, event_id: str, time: int | None, *,
    came: tuple[int, int], seen: int, repeat_time: int,
) -> Accepted:  # fmt: skip
    at, sequence = came
    if state is None:
        return Accepted(digest, time, at, seen, (event_id,), sequence)
    others = [known for known in state.ids if known != event_id]
    ids = (*others, event_id)[-REMEMBERED_IDS:]
    time = _newest(state.time, time)
    return Accepted(digest, time, at, seen, ids, sequence, confirmed=state.confirmed, repeat_time=repeat_time)


def _seen(state: Accepted, time: int | None, arrived: int) -> Accepted:
    seen = arrived if arrived - state.seen >= SEEN_STEP_MS else state.seen
    newest = _newest(state.time, time)
    repeat_time = state.repeat_time if newest == state.time else newest or 0
    return state._replace(time=newest, seen=seen, repeat_time=repeat_time)


def _time_of(delivered: Delivered | None) -> int:
    return (delivered and delivered.time) or 0


def _newest(known: int | None, given: int | None) -> int | None:
    """Return the newest known time: an event without one does not erase what is known."""
    if known is None or given is None:
        return given if known is None else known
    return max(known, given)
