"""The decisions: when an echo is due and a worker deaf, and what is old enough to be forgotten."""

from __future__ import annotations

import signal

import pytest
from celery.worker import state

from relay.queue.state import SEEN_STEP_MS
from workers import shutdown
from workers.scheduling.broker_probe import Hearing
from workers.scheduling.forgetting import every_seconds, seen_before

DAY = 86_400.0


def test_a_worker_that_hears_is_never_deaf() -> None:
    hearing = Hearing(60)
    for now in range(0, 600, 5):
        assert hearing.is_due(now)
        hearing.sent(now)
        assert not hearing.is_due(now + 1)
        assert not hearing.is_deaf(now + 4)
        hearing.heard()


def test_a_worker_is_deaf_once_nothing_was_heard_for_long() -> None:
    hearing = Hearing(60)
    for now in range(0, 65, 5):
        hearing.sent(now)
        assert not hearing.is_deaf(min(now, 60))
    assert hearing.is_deaf(61)


def test_a_lost_echo_is_made_good_by_the_next() -> None:
    hearing = Hearing(60)
    hearing.sent(0)
    hearing.sent(5)
    hearing.heard()
    assert not hearing.is_deaf(100)


def test_a_broker_that_takes_nothing_says_nothing_of_our_hearing() -> None:
    hearing = Hearing(60)
    hearing.sent(0)
    hearing.failed(59)
    assert not hearing.is_deaf(119)
    hearing.sent(119)
    assert not hearing.is_deaf(179)
    assert hearing.is_deaf(180)


def test_a_short_patience_sends_more_often() -> None:
    assert Hearing(4).interval_seconds == 1
    assert Hearing(3600).interval_seconds == 5


@pytest.mark.parametrize(
    ("forget_after", "every"), [(90 * DAY, DAY), (30 * DAY, DAY), (3 * DAY, DAY / 10), (60, 60), (0.1, 60)]
)
def test_walks_are_made_daily_or_more_often_if_little_is_kept(forget_after: float, every: float) -> None:
    assert every_seconds(forget_after) == every


@pytest.mark.parametrize("forget_after", [90 * DAY, 1.0])
def test_nothing_is_forgotten_that_may_have_been_seen_within_the_time(forget_after: float) -> None:
    """What is noted as seen may have been seen a step later, and was not noted again."""
    now = 10**13
    latest_sight = seen_before(now, forget_after) - 1 + SEEN_STEP_MS - 1
    assert now - latest_sight > forget_after * 1000


def test_the_first_signal_to_a_worker_that_leaves_by_itself_is_not_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would cut off what is in flight."""
    ended: list[int] = []
    monkeypatch.setattr(shutdown, "_stopping", True)  # it left by itself
    monkeypatch.setattr(state, "should_stop", 70)
    step = shutdown.StoppingStep.__new__(shutdown.StoppingStep)
    step._was_asked, step._has_signals = False, True
    monkeypatch.setattr(step, "_end", ended.append, raising=False)
    monkeypatch.setattr(step, "_say", lambda _: None, raising=False)

    step._asked(signal.SIGTERM, None)
    assert not ended
    assert state.should_stop == 70, "its own code is kept"

    step._asked(signal.SIGTERM, None)
    assert ended == [128 + signal.SIGTERM]
