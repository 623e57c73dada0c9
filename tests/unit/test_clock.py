"""The clock for leases."""

from __future__ import annotations

import time

import pytest

from relay import clock


def test_uptime_includes_time_in_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("only Linux has CLOCK_BOOTTIME")
    clocks = []

    def clock_gettime(which: int) -> float:
        clocks.append(which)
        return 5.0

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    assert clock.uptime() == 5.0
    assert clocks == [time.CLOCK_BOOTTIME]


def test_uptime_is_monotonic_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_CLOCK", None)
    before = time.monotonic()
    assert before <= clock.uptime() <= time.monotonic()
