"""Lists in messages."""

from __future__ import annotations

import pytest

from relay.text import some_of


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["b", "a", "c"], "b, a, c"),
        (["a", "b", "c", 4], "a, b, c and 1 more"),
        (range(2003), "0, 1, 2 and 2,000 more"),
    ],
)
def test_the_first_few_are_named_and_the_rest_is_counted(names: list[object], text: str) -> None:
    assert some_of(names) == text
