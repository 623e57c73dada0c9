"""The pause before a retry: anywhere below a bound that doubles up to a maximum."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.backoff import pause_seconds


class Unlucky(Random):
    """Draws the longest pause."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def bound(attempt: int, *, initial: float = 0.5, maximum: float = 300.0) -> float:
    return pause_seconds(attempt, initial=initial, maximum=maximum, random=Unlucky())


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (10, 256.0), (11, 300.0), (12, 300.0), (1_000_000_000, 300.0)],
)
def test_bound_doubles_up_to_the_maximum(attempt: int, seconds: float) -> None:
    assert bound(attempt) == seconds


@given(st.integers(1, 10**9), st.floats(0.001, 100), st.floats(0.001, 100_000), st.randoms(use_true_random=False))
def test_pause_is_never_negative_nor_beyond_its_bound(
    attempt: int, initial: float, maximum: float, random: Random
) -> None:
    pause = pause_seconds(attempt, initial=initial, maximum=maximum, random=random)

    assert 0 <= pause <= bound(attempt, initial=initial, maximum=maximum) <= maximum


@given(st.integers(1, 10**9), st.floats(0.001, 100), st.floats(0.001, 100_000))
def test_bound_of_the_next_attempt_is_twice_as_far_or_the_maximum(
    attempt: int, initial: float, maximum: float
) -> None:
    here = bound(attempt, initial=initial, maximum=maximum)

    assert bound(attempt + 1, initial=initial, maximum=maximum) == min(2 * here, maximum)


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0.001, 100), st.floats(0.001, 100_000))
def test_pause_is_as_far_towards_its_bound_as_was_drawn(
    attempt: int, drawn: float, initial: float, maximum: float
) -> None:
    class Drawn(Random):
        def random(self) -> float:
            return drawn

    pause = pause_seconds(attempt, initial=initial, maximum=maximum, random=Drawn())

    assert pause == pytest.approx(drawn * bound(attempt, initial=initial, maximum=maximum))


def test_jitter_is_full() -> None:
    random = Random(42)
    pauses = [pause_seconds(5, initial=1.0, maximum=300.0, random=random) for _ in range(10_000)]

    assert min(pauses) < 0.1
    assert max(pauses) > 15.9
    assert mean(pauses) == pytest.approx(8.0, rel=0.05)
