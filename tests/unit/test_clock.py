"""The clock that leases are reckoned with."""

from __future__ import annotations

import time

import pytest

from relay import clock


def test_uptime_counts_the_time_in_suspend_where_the_system_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("only Linux has CLOCK_BOOTTIME")
    asked = []

    def clock_gettime(which: int) -> float:
        asked.append(which)
        return 5.0

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    assert clock.uptime() == 5.0
    assert asked == [time.CLOCK_BOOTTIME]


def test_uptime_is_monotonic_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_CLOCK", None)
    before = time.monotonic()
    assert before <= clock.uptime() <= time.monotonic()
