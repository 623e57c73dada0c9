"""The window: up by one for each window of successes that filled it, halved when the API pushes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.delivery.concurrency_limit import SHRINK, ConcurrencyLimit


def window(size: int, most: int = 32) -> ConcurrencyLimit:
    made = ConcurrencyLimit(most)
    made.adopt(size)
    return made


def succeed(made: ConcurrencyLimit, times: int, *, was_full: bool = True) -> None:
    for _ in range(times):
        made.succeeded(was_full=was_full)


def test_a_window_that_is_not_set_is_the_largest() -> None:
    assert ConcurrencyLimit(32).window == 32
    assert window(0).window == 32


@pytest.mark.parametrize(("shared", "size"), [(1, 1), (31, 31), (32, 32), (33, 32), (500, 32)])
def test_the_shared_size_is_taken_over_up_to_the_largest(shared: int, size: int) -> None:
    assert window(shared).window == size


@pytest.mark.parametrize("size", [1, 4, 31])
def test_it_grows_by_one_for_each_full_window_of_successes(size: int) -> None:
    made = window(size)
    succeed(made, size - 1)
    assert (made.window, made.take_change()) == (size, 0)

    succeed(made, 1)
    assert (made.window, made.take_change()) == (size + 1, 1)


def test_growth_adds_up_until_it_is_reported() -> None:
    made = window(2)
    succeed(made, 2 + 3 + 4)

    assert (made.window, made.take_change()) == (5, 3)
    assert made.take_change() == 0, "reported once"


def test_growth_that_is_not_reported_yet_survives_an_update_of_the_shared_window() -> None:
    """Else the same successes would soon grow it a second time."""
    made = window(4)
    succeed(made, 4)
    made.adopt(4)
    succeed(made, 4)
    assert (made.window, made.take_change()) == (5, 1)

    made.adopt(5)
    assert made.window == 5


def test_a_window_that_is_not_full_needs_no_growth() -> None:
    made = window(1)
    succeed(made, 1000, was_full=False)

    assert (made.window, made.take_change()) == (1, 0)


def test_it_grows_no_further_than_the_largest() -> None:
    made = window(3, most=4)
    succeed(made, 1000)

    assert (made.window, made.take_change()) == (4, 1)


def test_one_push_back_or_a_wave_of_them_is_one_change() -> None:
    made = window(16)
    for _ in range(16):
        made.pushed_back()

    assert made.take_change() == SHRINK
    assert made.take_change() == 0


def test_push_back_outweighs_growth_whichever_came_first() -> None:
    made = window(1)
    succeed(made, 1)
    made.pushed_back()
    assert made.take_change() == SHRINK

    made.adopt(1)
    made.pushed_back()
    succeed(made, 10)
    assert made.take_change() == SHRINK
    assert made.window == 1, "no growth before the others know of the push-back"


def test_successes_before_a_push_back_do_not_count_towards_growth_after_it() -> None:
    made = window(4)
    succeed(made, 3)
    made.pushed_back()
    made.take_change()
    succeed(made, 3)

    assert made.take_change() == 0


@given(
    most=st.integers(1, 8),
    steps=st.lists(st.sampled_from(["full", "not full", "push back", "adopt", "take"]), max_size=80),
    shared=st.integers(0, 20),
)
def test_it_is_never_less_than_one_nor_more_than_the_largest(most: int, steps: list[str], shared: int) -> None:
    made = ConcurrencyLimit(most)
    for step in steps:
        match step:
            case "full" | "not full":
                made.succeeded(was_full=step == "full")
            case "push back":
                made.pushed_back()
            case "adopt":
                made.adopt(shared)
            case "take":
                assert SHRINK <= made.take_change() <= most
        assert 1 <= made.window <= most
