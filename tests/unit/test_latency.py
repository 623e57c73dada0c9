"""The latency histogram: percentiles are right within a bucket's width, a tenth."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.queue.latency import bucket, percentile, upper_bound_seconds

DAY_MS = 86_400_000

latencies_ms = st.floats(1, 30 * DAY_MS)
ROUNDING = 1e-9


@given(latencies_ms)
def test_bucket_ends_at_most_a_tenth_above_its_values(milliseconds: float) -> None:
    seconds = milliseconds / 1000
    upper = upper_bound_seconds(bucket(milliseconds))

    assert seconds * (1 - ROUNDING) <= upper <= seconds * 1.1 * (1 + ROUNDING)


@given(latencies_ms, latencies_ms)
def test_longer_is_in_no_lower_bucket(one: float, other: float) -> None:
    assert bucket(min(one, other)) <= bucket(max(one, other))


@pytest.mark.parametrize("milliseconds", [1, 0.5, 0, -3])
def test_a_millisecond_and_less_is_the_first_bucket(milliseconds: float) -> None:
    assert bucket(milliseconds) == 0
    assert upper_bound_seconds(0) == 0.001


@given(st.lists(latencies_ms, min_size=1, max_size=200), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_percentile_is_right_within_a_tenth(measured: list[float], share: float) -> None:
    histogram = Counter(bucket(milliseconds) for milliseconds in measured)
    rank = max(1, math.ceil(share * len(measured)))
    exact = sorted(measured)[rank - 1] / 1000

    estimate = percentile(histogram, share)

    assert estimate is not None
    assert exact * (1 - ROUNDING) <= estimate <= exact * 1.1 * (1 + ROUNDING)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_there_is_no_percentile_without_deliveries(share: float) -> None:
    assert percentile({}, share) is None
