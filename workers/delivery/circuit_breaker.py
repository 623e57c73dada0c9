"""What does one answer say of the destination, and whose fault is a 403?

The circuit of a destination opens on a run of failures with no success between, or at once when the token is
refused.
While it is open single events probe it; what a probe brings closes the circuit or opens it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from relay.queue.health import HealthState
from workers.delivery.outcome import Delivered, Refused, Retry, Unauthorized

if TYPE_CHECKING:
    from relay.queue.outbox import Trials
    from workers.delivery.outcome import Outcome

#: Failures in a row, of all workers together, that open the circuit.
FAILURES = 20

#: The first pause of an open circuit; it doubles with each probe that fails, up to the longest for its reason. A
#: rotated token is to be noticed soon.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = {
    HealthState.UNAVAILABLE: 30.0,
    HealthState.MISCONFIGURED: 30.0,
    HealthState.UNAUTHORIZED: 2.0,
    HealthState.THROTTLED: 60.0,
}

#: 403s (401s before the last count as well) that an event gets, while others pass after each but the last, before it
#: alone is refused.
FORBIDDEN = 3

#: The only answer that an event dies of: it is about its environment. A 401 is about the token, and one that others
#: pass with is tried ever later, and holds nobody up.
_FORBIDDEN_STATUS = 403

#: The status with which an API that throttles answers.
_TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class Open:
    """Hold the destination, and probe it after a pause."""

    reason: HealthState


Move = Open | Literal["close", "stay"]


def move_of(outcome: Outcome, *, circuit: str, failures: int, own_fault: bool) -> Move:
    """Say what an answer does to the circuit.

    `circuit` is the reason for which it is open, '' for closed; `failures` are in a row, with this one if it is one;
    `own_fault` tells that a refused token is the event's own affair.
    """
    if isinstance(outcome, Delivered):
        return "close" if circuit else "stay"
    if circuit:
        return _after_probe(outcome, HealthState(circuit))
    match outcome:
        case Unauthorized() if not own_fault:
            return Open(HealthState.UNAUTHORIZED)
        case Retry(slowly=slowly) if failures >= FAILURES:
            return Open(HealthState.MISCONFIGURED if slowly else HealthState.UNAVAILABLE)
    return "stay"


def _after_probe(outcome: Outcome, circuit: HealthState) -> Move:
    """Say what a probe does that brought no success."""
    match outcome:
        case Refused() | Retry(slowly=True):  # the API is there: enough, if that is what was wrong
            return "close" if circuit in {HealthState.UNAVAILABLE, HealthState.THROTTLED} else Open(circuit)
        case Unauthorized():
            return Open(HealthState.UNAUTHORIZED)
        case Retry(status=status, hold_seconds=asked) if status == _TOO_MANY or asked is not None:
            return Open(circuit if circuit is HealthState.THROTTLED else _after_failure(circuit))
    return Open(_after_failure(circuit))


def _after_failure(circuit: HealthState) -> HealthState:
    # A URL that is wrong stays so while nothing answers there: a 404 must not close the circuit afterwards.
    return circuit if circuit is HealthState.MISCONFIGURED else HealthState.UNAVAILABLE


class Suspicion(NamedTuple):
    """What a refused token means for an event: its trials now, whether it is to blame, and whether that is enough."""

    trials: Trials
    own_fault: bool
    is_forbidden: bool


def suspect(trials: Trials, status: int, *, successes: int, successes_when_sent: int) -> Suspicion:
    """Judge an event that was answered 401 or 403, by what the destination has taken of others.

    `successes` are the destination's so far, of all workers; `successes_when_sent` those when this event was sent.
    """
    confirmed = trials.forbidden > 0 and successes > trials.successes
    times = trials.forbidden + 1 if confirmed else max(1, trials.forbidden)
    return Suspicion(
        trials._replace(forbidden=times, successes=successes),
        own_fault=confirmed or successes > successes_when_sent,
        is_forbidden=status == _FORBIDDEN_STATUS and confirmed and times >= FORBIDDEN,
    )
