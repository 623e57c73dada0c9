"""The circuit breaker's decisions: the state that an answer moves a destination to. Pure.

The circuit opens on a run of failures without a success between them, or at once when the token is refused. While it
is open, single events probe the destination; the answer to a probe closes the circuit or opens it again.
"""

from __future__ import annotations

from relay.destinations.outcome import Delivered, Outcome, Refused, Retry, Unauthorized
from relay.queue.health import HealthState

#: Failures in a row, of all workers together, that open the circuit.
FAILURES = 20

#: The first pause of an open circuit. It doubles with each probe that fails, up to the longest of its state: a
#: rotated token is to be noticed soon.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = {
    HealthState.UNAVAILABLE: 30.0,
    HealthState.MISCONFIGURED: 30.0,
    HealthState.UNAUTHORIZED: 2.0,
    HealthState.THROTTLED: 60.0,
}

_TOO_MANY_REQUESTS = 429


def decide_state(outcome: Outcome, *, circuit: str, failures: int, own_fault: bool) -> HealthState | None:
    """Return the state that an answer moves a destination to, None if it changes nothing.

    `circuit` is the state of an open circuit, "" while it is closed; `failures` are those in a row, with this one;
    `own_fault` is whether a refused token is the event's own fault.
    """
    if not circuit:
        match outcome:
            case Unauthorized() if not own_fault:
                return HealthState.UNAUTHORIZED
            case Retry(slowly=slowly) if failures >= FAILURES:
                return HealthState.MISCONFIGURED if slowly else HealthState.UNAVAILABLE
        return None
    return _decide_after_probe(outcome, HealthState(circuit))


def _decide_after_probe(outcome: Outcome, state: HealthState) -> HealthState:
    match outcome:
        case Delivered():
            return HealthState.HEALTHY
        case Unauthorized():
            return HealthState.UNAUTHORIZED
        case Refused() | Retry(slowly=True):  # an answer, which proves neither the token nor the URL
            return HealthState.HEALTHY if state in {HealthState.UNAVAILABLE, HealthState.THROTTLED} else state
        case Retry(status=status, throttle_seconds=asked):
            asks_for_pause = status == _TOO_MANY_REQUESTS or asked is not None
            if state is HealthState.MISCONFIGURED or (state is HealthState.THROTTLED and asks_for_pause):
                return state  # a wrong URL stays wrong while nothing answers there, or a later 404 would close it
    return HealthState.UNAVAILABLE
