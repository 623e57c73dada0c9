"""What an answer does to a destination's circuit, whole; and whose fault a 403 is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.queue.health import UNHEALTHY, HealthState
from relay.queue.outbox import NO_TRIALS, Trials
from workers.delivery.circuit_breaker import (
    FAILURES,
    FORBIDDEN,
    LONGEST_PAUSE_SECONDS,
    Open,
    Suspicion,
    move_of,
    suspect,
)
from workers.delivery.outcome import Delivered, Refused, Retry, Unauthorized

if TYPE_CHECKING:
    from workers.delivery.circuit_breaker import Move
    from workers.delivery.outcome import Outcome

UNAVAILABLE = Open(HealthState.UNAVAILABLE)
MISCONFIGURED = Open(HealthState.MISCONFIGURED)
UNAUTHORIZED = Open(HealthState.UNAUTHORIZED)
THROTTLED = Open(HealthState.THROTTLED)

OUTCOMES: dict[str, Outcome] = {
    "delivered": Delivered(),
    "refused": Refused("HTTP 422", 422),
    "retry": Retry("HTTP 500", 500),
    "retry, no attempt used": Retry("connect", uses_attempt=False, is_pushback=True),
    "retry, with a hold": Retry("HTTP 429", 429, hold_seconds=5.0, uses_attempt=False),
    "retry slowly": Retry("HTTP 404", 404, slowly=True),
    "401": Unauthorized("HTTP 401", 401),
    "403": Unauthorized("HTTP 403", 403),
}

BELOW, AT_LIMIT, ABOVE = FAILURES - 1, FAILURES, 10 * FAILURES

#: Why the circuit is open ('' for closed) → outcome → move; what else counts is below.
TABLE: dict[str, dict[str, Move]] = {
    "": {
        "delivered": "stay",
        "refused": "stay",
        "retry": "stay",
        "retry, no attempt used": "stay",
        "retry, with a hold": "stay",
        "retry slowly": "stay",
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "unavailable": {
        "delivered": "close",
        "refused": "close",
        "retry": UNAVAILABLE,
        "retry, no attempt used": UNAVAILABLE,
        "retry, with a hold": UNAVAILABLE,
        "retry slowly": "close",
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "misconfigured": {
        "delivered": "close",
        "refused": MISCONFIGURED,
        "retry": MISCONFIGURED,
        "retry, no attempt used": MISCONFIGURED,
        "retry, with a hold": MISCONFIGURED,
        "retry slowly": MISCONFIGURED,
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "throttled": {
        "delivered": "close",
        "refused": "close",
        "retry": UNAVAILABLE,
        "retry, no attempt used": UNAVAILABLE,
        "retry, with a hold": THROTTLED,
        "retry slowly": "close",
        "401": UNAUTHORIZED,
        "403": UNAUTHORIZED,
    },
    "unauthorized": {
        "delivered": "close",
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
CLOSED_AT_LIMIT: dict[str, Move] = {
    "retry": UNAVAILABLE,
    "retry, no attempt used": UNAVAILABLE,
    "retry, with a hold": UNAVAILABLE,
    "retry slowly": MISCONFIGURED,
}
OWN_FAULT: dict[str, Move] = {"401": "stay", "403": "stay"}


@pytest.mark.parametrize("own_fault", [False, True], ids=["", "own fault"])
@pytest.mark.parametrize("failures", [0, 1, BELOW, AT_LIMIT, ABOVE])
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("circuit", TABLE)
def test_what_an_answer_does_to_the_circuit(circuit: str, outcome: str, failures: int, own_fault: bool) -> None:  # noqa: FBT001
    expected = TABLE[circuit][outcome]
    if not circuit and failures >= FAILURES:
        expected = CLOSED_AT_LIMIT.get(outcome, expected)
    if not circuit and own_fault:
        expected = OWN_FAULT.get(outcome, expected)

    assert move_of(OUTCOMES[outcome], circuit=circuit, failures=failures, own_fault=own_fault) == expected


def test_each_reason_that_opens_a_circuit_has_a_longest_pause() -> None:
    assert set(LONGEST_PAUSE_SECONDS) == set(UNHEALTHY)
    assert set(TABLE) == {"", *LONGEST_PAUSE_SECONDS}


# Whose fault it is


def innocent(trials: Trials) -> Suspicion:
    return Suspicion(trials, own_fault=False, is_forbidden=False)


SEEN_BEFORE = Trials(attempts=2, answers=5, first=17)


@pytest.mark.parametrize("trials", [NO_TRIALS, SEEN_BEFORE._replace(forbidden=99, successes=1)])
@pytest.mark.parametrize("successes", [0, 1000])
def test_no_event_is_forbidden_by_a_401(trials: Trials, successes: int) -> None:
    assert not suspect(trials, 401, successes=successes, successes_when_sent=0).is_forbidden


def test_a_401_that_comes_again_while_others_pass_is_an_events_own_fault_and_holds_nobody_up() -> None:
    first = suspect(NO_TRIALS, 401, successes=7, successes_when_sent=7)
    assert not first.own_fault
    for times, successes in enumerate((8, 9, 12, 400), start=2):
        again = suspect(first.trials, 401, successes=successes, successes_when_sent=successes)
        assert again == Suspicion(Trials(forbidden=times, successes=successes), own_fault=True, is_forbidden=False)
        first = again
    assert suspect(first.trials, 401, successes=400, successes_when_sent=400) == innocent(first.trials)


@pytest.mark.parametrize(("successes", "own_fault"), [(7, False), (8, True)], ids=["nothing passed", "others passed"])
def test_the_first_403_is_an_events_own_fault_if_others_passed_while_it_was_under_way(
    successes: int,
    own_fault: bool,  # noqa: FBT001
) -> None:
    assert suspect(SEEN_BEFORE, 403, successes=successes, successes_when_sent=7) == Suspicion(
        SEEN_BEFORE._replace(forbidden=1, successes=successes), own_fault, is_forbidden=False
    )


def test_a_403_is_confirmed_by_what_passed_since_the_last() -> None:
    trials = SEEN_BEFORE._replace(forbidden=1, successes=7)

    # What passed between the two counts, even if nothing did while the second was under way.
    assert suspect(trials, 403, successes=8, successes_when_sent=8) == Suspicion(
        trials._replace(forbidden=2, successes=8), own_fault=True, is_forbidden=False
    )


@pytest.mark.parametrize("forbidden", [1, FORBIDDEN - 1, FORBIDDEN])
def test_a_403_with_nothing_passed_since_the_last_does_not_count(forbidden: int) -> None:
    trials = SEEN_BEFORE._replace(forbidden=forbidden, successes=7)

    assert suspect(trials, 403, successes=7, successes_when_sent=7) == innocent(trials)


def test_an_event_is_forbidden_at_its_last_confirmed_403_and_not_before() -> None:
    trials, decisions = NO_TRIALS, []
    for successes in range(10, 10 + FORBIDDEN):
        suspicion = suspect(trials, 403, successes=successes, successes_when_sent=successes)
        trials = suspicion.trials
        decisions.append(suspicion.is_forbidden)

    assert decisions == [False] * (FORBIDDEN - 1) + [True]
    assert trials == Trials(forbidden=FORBIDDEN, successes=10 + FORBIDDEN - 1)


def test_no_event_is_forbidden_while_everything_gets_a_403() -> None:
    trials = NO_TRIALS
    for _ in range(100):
        trials, own_fault, is_forbidden = suspect(trials, 403, successes=7, successes_when_sent=7)
        assert not own_fault
        assert not is_forbidden


def test_the_403_after_others_stopped_passing_is_not_the_one_that_condemns() -> None:
    """The token expires when an event is one short of forbidden: nobody passes since, so it may be the token."""
    trials = Trials(forbidden=FORBIDDEN - 1, successes=7)

    assert not suspect(trials, 403, successes=7, successes_when_sent=7).is_forbidden
    assert suspect(trials, 403, successes=8, successes_when_sent=7).is_forbidden
