"""What the watcher does after a failure."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from relay.errors import ClusterUnavailable
from relay.kubernetes.retry_policy import (
    PAUSE_SECONDS,
    RESUMES,
    RETRY_AFTER_MAX_SECONDS,
    Next,
    Step,
    decide_step,
    pause_seconds,
)

STATUSES = [None, *range(300, 600)]


def after(status: int | None, *, retry_after: float = 0, **situation: Any) -> Next:
    """Return what follows the first failure of a watch, unless another situation is given."""
    error = ClusterUnavailable("told to fail", status=status, retry_after_seconds=retry_after)
    usual: dict[str, Any] = {"is_watching": True, "has_listed": True, "failures": 1}
    return decide_step(error, **usual | situation, random=Random(1))


def test_a_listing_that_failed_is_made_anew_unless_it_was_a_wrong_question() -> None:
    first = {status: after(status, is_watching=False, has_listed=False).step for status in STATUSES}
    assert {status for status, step in first.items() if step is Step.GIVE_UP} == {400, 422}
    assert set(first.values()) == {Step.GIVE_UP, Step.LIST}
    assert {after(status, is_watching=False).step for status in STATUSES} == {Step.LIST}


def test_a_watch_that_failed_is_resumed_unless_its_place_is_gone() -> None:
    steps = {status: after(status).step for status in STATUSES}
    assert {status for status, step in steps.items() if step is not Step.RESUME} == {410}
    assert steps[410] is Step.LIST


def test_what_cannot_be_resumed_again_and_again_is_listed() -> None:
    """A listing would not fix missing rights, and would add load to an overloaded server."""
    steps = {status: after(status, failures=RESUMES).step for status in STATUSES}
    assert {status for status, step in steps.items() if step is not Step.LIST} == {401, 403, 429}
    assert after(500, failures=RESUMES + 1).step is Step.RESUME


@pytest.mark.parametrize("is_watching", [True, False])
def test_credentials_are_read_again_when_the_server_does_not_know_us(*, is_watching: bool) -> None:
    assert {status for status in STATUSES if after(status, is_watching=is_watching).renew} == {401, 403}


def test_a_place_that_is_gone_costs_no_pause_the_first_time() -> None:
    assert after(410).after_seconds == 0
    assert after(410, failures=3).after_seconds > 0


def test_the_first_place_that_is_gone_costs_no_pause_after_other_failures_either() -> None:
    assert after(410, failures=7, is_first_gone=True).after_seconds == 0
    assert after(410, failures=7, is_first_gone=True, is_watching=False).after_seconds > 0
    assert after(500, failures=7, is_first_gone=True).after_seconds > 0


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (1e9, RETRY_AFTER_MAX_SECONDS)])
def test_retry_after_is_waited_for_within_bounds(asked: float, waited: float) -> None:
    assert after(429, retry_after=asked).after_seconds == waited
    assert after(503, is_watching=False, retry_after=asked).after_seconds == waited


def test_the_pause_is_random_and_its_bound_doubles_up_to_a_maximum() -> None:
    initial, maximum = PAUSE_SECONDS
    for failures in (1, 2, 3, 5, 10, 10_000):
        pauses = [pause_seconds(failures, Random(seed)) for seed in range(200)]
        bound = min(maximum, initial * 2 ** min(failures - 1, 30))
        assert max(pauses) <= bound
        assert max(pauses) > bound * 0.9
        assert min(pauses) < bound * 0.1
