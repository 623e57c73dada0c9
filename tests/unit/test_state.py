"""The state of an instance is read back as it was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.queue.state import Accepted, Delivered

times = st.integers(0, 4_102_444_800_000)
ids = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20)
states = st.builds(
    Accepted,
    digest=st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__),
    time=st.none() | times,
    at=times,
    seen=times,
    ids=st.lists(ids, max_size=8).map(tuple),
    sequence=st.integers(0, 3),
    resynced=st.integers(0, 3),
    confirmed=st.integers(0, 3),
    repeat_time=st.integers(0, 3),
)


@given(states)
def test_state_is_read_back_as_it_was_written(state: Accepted) -> None:
    assert Accepted.decode(state.encode()) == state


@pytest.mark.parametrize(
    ("state", "written"),
    [
        (Accepted("sha256:a", 5, 6, 7, ("x", "y")), "sha256:a\n5\n6\n7\nx\ny"),
        (Accepted("sha256:a", None, 6, 7, ("x",)), "sha256:a\n\n6\n7\nx"),
        (Accepted("sha256:a", 0, 6, 7, ()), "sha256:a\n0\n6\n7"),
        (Accepted("sha256:a", None, 6, 7, ("x",), 2), "sha256:a\n\n6-2\n7\nx"),
        (Accepted("sha256:a", None, 6, 7, ("x",), resynced=9), "sha256:a\n\n6\n7 9\nx"),
        (Accepted("sha256:a", None, 6, 7, ("x",), repeat_time=9), "sha256:a\n\n6\n7\n\t9\nx"),
    ],
)
def test_state_is_lines_with_an_unknown_time_empty_and_a_first_place_unsaid(state: Accepted, written: str) -> None:
    assert state.encode() == written


@pytest.mark.parametrize(
    ("written", "delivered"),
    [
        ("sha256:a\n5\n6\n4", Delivered("sha256:a", 5, 6, "4")),
        ("sha256:a\n\n6\n4-2", Delivered("sha256:a", None, 6, "4-2")),
    ],
)
def test_delivered_is_read_as_settle_writes_it(written: str, delivered: Delivered) -> None:
    assert Delivered.decode(written) == delivered
