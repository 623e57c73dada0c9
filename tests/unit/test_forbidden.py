"""The decision whether a refused token is the fault of the token or of one event."""

from __future__ import annotations

import pytest

from relay.queue.outbox import NO_TRIALS, Trials
from workers.delivery.forbidden import FORBIDDEN, TokenFault, decide_token_fault


def innocent(trials: Trials) -> TokenFault:
    return TokenFault(trials, own_fault=False, is_forbidden=False)


SEEN_BEFORE = Trials(attempts=2, answers=5, first=17)


@pytest.mark.parametrize("trials", [NO_TRIALS, SEEN_BEFORE._replace(forbidden=99, successes=1)])
@pytest.mark.parametrize("successes", [0, 1000])
def test_no_event_is_forbidden_by_a_401(trials: Trials, successes: int) -> None:
    assert not decide_token_fault(trials, 401, successes=successes, successes_when_sent=0).is_forbidden


def test_a_401_that_comes_again_while_others_pass_is_an_events_own_fault_and_holds_nobody_up() -> None:
    first = decide_token_fault(NO_TRIALS, 401, successes=7, successes_when_sent=7)
    assert not first.own_fault
    for times, successes in enumerate((8, 9, 12, 400), start=2):
        again = decide_token_fault(first.trials, 401, successes=successes, successes_when_sent=successes)
        assert again == TokenFault(Trials(forbidden=times, successes=successes), own_fault=True, is_forbidden=False)
        first = again
    assert decide_token_fault(first.trials, 401, successes=400, successes_when_sent=400) == innocent(first.trials)


@pytest.mark.parametrize(("successes", "own_fault"), [(7, False), (8, True)], ids=["nothing passed", "others passed"])
def test_the_first_403_is_an_events_own_fault_if_others_passed_while_it_was_under_way(
    successes: int,
    own_fault: bool,  # noqa: FBT001
) -> None:
    assert decide_token_fault(SEEN_BEFORE, 403, successes=successes, successes_when_sent=7) == TokenFault(
        SEEN_BEFORE._replace(forbidden=1, successes=successes), own_fault, is_forbidden=False
    )


def test_a_403_is_confirmed_by_what_passed_since_the_last() -> None:
    trials = SEEN_BEFORE._replace(forbidden=1, successes=7)

    # What passed between the two counts, even if nothing did while the second was under way.
    assert decide_token_fault(trials, 403, successes=8, successes_when_sent=8) == TokenFault(
        trials._replace(forbidden=2, successes=8), own_fault=True, is_forbidden=False
    )


@pytest.mark.parametrize("forbidden", [1, FORBIDDEN - 1, FORBIDDEN])
def test_a_403_with_nothing_passed_since_the_last_does_not_count(forbidden: int) -> None:
    trials = SEEN_BEFORE._replace(forbidden=forbidden, successes=7)

    assert decide_token_fault(trials, 403, successes=7, successes_when_sent=7) == innocent(trials)


def test_an_event_is_forbidden_at_its_last_confirmed_403_and_not_before() -> None:
    trials, decisions = NO_TRIALS, []
    for successes in range(10, 10 + FORBIDDEN):
        fault = decide_token_fault(trials, 403, successes=successes, successes_when_sent=successes)
        trials = fault.trials
        decisions.append(fault.is_forbidden)

    assert decisions == [False] * (FORBIDDEN - 1) + [True]
    assert trials == Trials(forbidden=FORBIDDEN, successes=10 + FORBIDDEN - 1)


def test_no_event_is_forbidden_while_everything_gets_a_403() -> None:
    trials = NO_TRIALS
    for _ in range(100):
        trials, own_fault, is_forbidden = decide_token_fault(trials, 403, successes=7, successes_when_sent=7)
        assert not own_fault
        assert not is_forbidden


def test_the_403_after_others_stopped_passing_is_not_the_one_that_condemns() -> None:
    """The token expires when an event is one short of forbidden: no event passes since, so it may be the token."""
    trials = Trials(forbidden=FORBIDDEN - 1, successes=7)

    assert not decide_token_fault(trials, 403, successes=7, successes_when_sent=7).is_forbidden
    assert decide_token_fault(trials, 403, successes=8, successes_when_sent=7).is_forbidden
