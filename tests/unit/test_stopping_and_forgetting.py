"""When the broker counts as silent, what is old enough to be forgotten, and what a stop signal does."""

from __future__ import annotations

import signal

import pytest
from celery.worker import state

from relay.queue.state import SEEN_STEP_MS
from workers.forgetting import every_seconds, seen_before
from workers.scheduling import shutdown
from workers.scheduling.broker_probe import ProbeTimer

DAY = 86_400.0


def test_broker_that_delivers_each_probe_is_never_silent() -> None:
    timer = ProbeTimer(60)
    for now in range(0, 600, 5):
        assert timer.is_due(now)
        timer.sent(now)
        assert not timer.is_due(now + 1)
        assert not timer.is_silent(now + 4)
        timer.received()


def test_broker_is_silent_once_no_probe_was_received_for_long() -> None:
    timer = ProbeTimer(60)
    for now in range(0, 65, 5):
        timer.sent(now)
        assert not timer.is_silent(min(now, 60))
    assert timer.is_silent(61)


def test_one_received_probe_makes_up_for_lost_ones() -> None:
    timer = ProbeTimer(60)
    timer.sent(0)
    timer.sent(5)
    timer.received()
    assert not timer.is_silent(100)


def test_refused_probe_explains_the_silence() -> None:
    timer = ProbeTimer(60)
    timer.sent(0)
    timer.refused(59)
    assert not timer.is_silent(119)
    timer.sent(119)
    assert not timer.is_silent(179)
    assert timer.is_silent(180)


def test_short_limit_sends_probes_more_often() -> None:
    assert ProbeTimer(4).interval_seconds == 1
    assert ProbeTimer(3600).interval_seconds == 5


@pytest.mark.parametrize(
    ("forget_after", "every"), [(90 * DAY, DAY), (30 * DAY, DAY), (3 * DAY, DAY / 10), (60, 60), (0.1, 60)]
)
def test_walks_are_made_daily_or_more_often_if_little_is_kept(forget_after: float, every: float) -> None:
    assert every_seconds(forget_after) == every


@pytest.mark.parametrize("forget_after", [90 * DAY, 1.0])
def test_nothing_is_forgotten_that_may_have_been_seen_within_the_time(forget_after: float) -> None:
    """An instance may have been seen up to one step after the time that is noted."""
    now = 10**13
    last_seen = seen_before(now, forget_after) - 1 + SEEN_STEP_MS - 1
    assert now - last_seen > forget_after * 1000


def test_first_signal_to_a_worker_that_already_stops_does_not_force_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exit_codes: list[int] = []
    monkeypatch.setattr("workers.shutdown._stopping", True)  # it failed
    monkeypatch.setattr(state, "should_stop", 70)
    step = shutdown.StoppingStep.__new__(shutdown.StoppingStep)
    step._was_signalled, step._has_signals = False, True
    monkeypatch.setattr(step, "_exit_now", exit_codes.append, raising=False)
    monkeypatch.setattr(step, "_say", lambda _: None, raising=False)

    step._on_stop_signal(signal.SIGTERM, None)
    assert not exit_codes
    assert state.should_stop == 70, "its own code is kept"

    step._on_stop_signal(signal.SIGTERM, None)
    assert exit_codes == [128 + signal.SIGTERM]
