"""What an answer does to a destination's circuit, whole; and whose fault a 403 is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.destinations.outcome import Delivered, Refused, Retry, Unauthorized
from relay.queue.health import UNHEALTHY, HealthState
from workers.delivery.circuit_breaker import (
    FAILURES,
    LONGEST_PAUSE_SECONDS,
    decide_state,
)

if TYPE_CHECKING:
    from relay.destinations.outcome import Outcome

UNAVAILABLE = HealthState.UNAVAILABLE
MISCONFIGURED = HealthState.MISCONFIGURED
UNAUTHORIZED = HealthState.UNAUTHORIZED
THROTTLED = HealthState.THROTTLED

OUTCOMES: dict[str, Outcome] = {
    "delivered": Delivered(),
    "refused": Refused("HTTP 422", 422),
    "retry": Retry("HTTP 500", 500),
    "retry, no attempt used": Retry("connect", uses_attempt=False, is_pushback=True),
    "retry, with a hold": Retry("HTTP 429", 429, throttle_seconds=5.0, uses_attempt=False),
    "retry slowly": Retry("HTTP 404", 404, slowly=True),
    "401": Unauthorized("HTTP 401", 401),
    "403": Unauthorized("HTTP 403", 403),
}

BELOW, AT_LIMIT, ABOVE = FAILURES - 1, FAILURES, 10 * FAILURES

#: State of the open circuit ('' for closed) → outcome → state after it; the exceptions are below.
TABLE: dict[str, dict[str, HealthState | None]] = {
    "": {
        "delivered": None,
        "refused": None,
        "retry": None,
        "retry, no attempt used": None,
        "retry, with a hold": None,
        "retry slowly": None,
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "unavailable": {
        "delivered": HealthState.HEALTHY,
        "refused": HealthState.HEALTHY,
        "retry": UNAVAILABLE,
        "retry, no attempt used": UNAVAILABLE,
        "retry, with a hold": UNAVAILABLE,
        "retry slowly": HealthState.HEALTHY,
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "misconfigured": {
        "delivered": HealthState.HEALTHY,
        "refused": MISCONFIGURED,
        "retry": MISCONFIGURED,
        "retry, no attempt used": MISCONFIGURED,
        "retry, with a hold": MISCONFIGURED,
        "retry slowly": MISCONFIGURED,
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "throttled": {
        "delivered": HealthState.HEALTHY,
        "refused": HealthState.HEALTHY,
        "retry": UNAVAILABLE,
        "retry, no attempt used": UNAVAILABLE,
        "retry, with a hold": THROTTLED,
        "retry slowly": HealthState.HEALTHY,
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "unauthorized": {
        "delivered": HealthState.HEALTHY,
        "refused": UNAUTHORIZED,
        "retry": UNAVAILABLE,
        "retry, no attempt used": UNAVAILABLE,
        "retry, with a hold": UNAVAILABLE,
        "retry slowly": UNAUTHORIZED,
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
}

#: What a closed circuit does instead after a run of failures, and when a refused token is the event's own affair.
CLOSED_AT_LIMIT: dict[str, HealthState | None] = {
    "retry": UNAVAILABLE,
    "retry, no attempt used": UNAVAILABLE,
    "retry, with a hold": UNAVAILABLE,
    "retry slowly": MISCONFIGURED,
}
OWN_FAULT: dict[str, HealthState | None] = {"401": None, "403": None}


@pytest.mark.parametrize("own_fault", [False, True], ids=["", "own fault"])
@pytest.mark.parametrize("failures", [0, 1, BELOW, AT_LIMIT, ABOVE])
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("circuit", TABLE)
def test_state_after_an_answer(circuit: str, outcome: str, failures: int, own_fault: bool) -> None:  # noqa: FBT001
    expected = TABLE[circuit][outcome]
    if not circuit and failures >= FAILURES:
        expected = CLOSED_AT_LIMIT.get(outcome, expected)
    if not circuit and own_fault:
        expected = OWN_FAULT.get(outcome, expected)

    assert decide_state(OUTCOMES[outcome], circuit=circuit, failures=failures, own_fault=own_fault) == expected


def test_each_reason_that_opens_a_circuit_has_a_longest_pause() -> None:
    assert set(LONGEST_PAUSE_SECONDS) == set(UNHEALTHY)
    assert set(TABLE) == {"", *LONGEST_PAUSE_SECONDS}
