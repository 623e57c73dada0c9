"""Deduplication: each rule alone, and all of them together against a naive model."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.queue.inbox import Redriven
from relay.queue.state import REMEMBERED_IDS, SEEN_STEP_MS, Accepted, Delivered
from workers.intake.deduplication import (
    Believed,
    Clock,
    Decision,
    Report,
    decide_redrive,
    decide_report,
    decide_resync,
)

NOW = 1_750_000_000_000
MINUTE = 60_000
DAY = 86_400_000
A, B, C = "sha256:a", "sha256:b", "sha256:c"


class Event(NamedTuple):
    digest: str
    event_id: str
    time: int | None = None
    enqueued_at: int = NOW


def told(
    state: Accepted | None, event: Event, *, delivered: Delivered | None = None, reassert_after_ms: float = DAY
) -> tuple[Decision, Accepted]:
    return decide_report(state, delivered, Report(*event), reassert_after_ms=reassert_after_ms)


def decisions(*events: Event) -> list[Decision]:
    """Judge events of one instance, none of which is delivered yet."""
    state, result = None, []
    for event in events:
        decision, state = told(state, event)
        result.append(decision)
    return result


def accepted(*events: Event) -> Accepted:
    """Return the state that these events leave."""
    state = None
    for event in events:
        _, state = told(state, event)
    assert state is not None
    return state


NEW, CHANGED, REASSERTED = Decision.NEW, Decision.CHANGED, Decision.REASSERTED
DUPLICATE, STALE = Decision.DUPLICATE, Decision.STALE
LAST_IDS = [Event(f"sha256:{n}", f"e{n}") for n in range(REMEMBERED_IDS + 1)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([Event(A, "1")], [NEW], id="first of its instance is new"),
        pytest.param([Event(A, "1"), Event(B, "2")], [NEW, CHANGED], id="another digest is a change"),
        pytest.param([Event(A, "1"), Event(A, "2")], [NEW, DUPLICATE], id="same digest is a duplicate"),
        pytest.param([Event(A, "1"), Event(A, "1")], [NEW, DUPLICATE], id="a retry is a duplicate"),
        pytest.param([Event(A, "1"), Event(B, "1")], [NEW, DUPLICATE], id="same id is a duplicate"),
        pytest.param(
            [Event(A, "1"), Event(B, "2"), Event(A, "1")],
            [NEW, CHANGED, DUPLICATE],
            id="a retry after another event came between is a duplicate",
        ),
        pytest.param([Event(A, "1"), Event(B, "2"), Event(A, "3")], [NEW, CHANGED, CHANGED], id="a rollback is news"),
        pytest.param(
            [Event(A, "1", NOW), Event(B, "2", NOW - 1)], [NEW, STALE], id="older than the last accepted is stale"
        ),
        pytest.param(
            [Event(A, "1", NOW), Event(B, "2", NOW)], [NEW, CHANGED], id="as old as the last accepted is not stale"
        ),
        pytest.param(
            [Event(A, "1", NOW - 1), Event(B, "2", NOW)], [NEW, CHANGED], id="newer than the last accepted is news"
        ),
        pytest.param(
            [Event(A, "1", NOW), Event(B, "2")], [NEW, CHANGED], id="without a time the order of arrival counts"
        ),
        pytest.param(
            [Event(A, "1"), Event(B, "2", NOW - DAY)],
            [NEW, CHANGED],
            id="after one without a time the order of arrival counts",
        ),
        pytest.param(
            [Event(A, "1", NOW), Event(B, "2"), Event(C, "3", NOW - 1)],
            [NEW, CHANGED, STALE],
            id="an event without a time does not erase the known one",
        ),
        pytest.param(
            [Event(A, "1", NOW + DAY), Event(B, "2", NOW + MINUTE, NOW + MINUTE)],
            [NEW, CHANGED],
            id="a future time is taken as the arrival's",
        ),
        pytest.param(
            [Event(A, "1", NOW + DAY), Event(B, "2", NOW - 1, NOW + MINUTE)],
            [NEW, STALE],
            id="a future time is no less than the arrival's",
        ),
        pytest.param(
            [Event(A, "1", NOW - 5), Event(B, "2", NOW), Event(A, "1", NOW - 5)],
            [NEW, CHANGED, DUPLICATE],
            id="a late retry with its old time is a duplicate, not stale",
        ),
        pytest.param(
            [Event(A, "1", NOW), Event(A, "2", NOW - 5)],
            [NEW, DUPLICATE],
            id="the same digest with an older time is a duplicate, not stale",
        ),
        pytest.param(
            [Event(A, "1", NOW - 5), Event(A, "2", NOW), Event(B, "3", NOW - 1)],
            [NEW, DUPLICATE, STALE],
            id="a duplicate advances the known time",
        ),
        pytest.param(
            [Event(A, "1", NOW), Event(A, "2", NOW - 5), Event(B, "3", NOW - 1)],
            [NEW, DUPLICATE, STALE],
            id="an older duplicate does not set the known time back",
        ),
        pytest.param(
            [Event(A, "1", NOW - 9), Event(B, "2", NOW - 10), Event(B, "2", NOW - 10)],
            [NEW, STALE, STALE],
            id="a stale event stays stale when it is retried",
        ),
        pytest.param(
            [*LAST_IDS[:-1], LAST_IDS[0]],
            [NEW, *[CHANGED] * (REMEMBERED_IDS - 1), DUPLICATE],
            id="the last eight ids are remembered",
        ),
        pytest.param(
            [*LAST_IDS, LAST_IDS[0]], [NEW, *[CHANGED] * (REMEMBERED_IDS + 1)], id="the ninth to last is forgotten"
        ),
    ],
)
def test_event_is_judged_by_what_was_accepted_before(events: list[Event], expected: list[Decision]) -> None:
    assert decisions(*events) == expected


def test_eight_ids_are_remembered() -> None:
    assert REMEMBERED_IDS == 8


@pytest.mark.parametrize(
    ("delivered", "event", "expected"),
    [
        (Delivered(A, None, NOW), Event(A, "2", None, NOW + DAY), REASSERTED),
        (Delivered(A, None, NOW), Event(A, "2", NOW - 5, NOW + DAY), REASSERTED),
        (Delivered(A, None, NOW), Event(A, "2", None, NOW + DAY - 1), DUPLICATE),
        (Delivered(A, None, NOW), Event(A, "1", None, NOW + DAY), DUPLICATE),
        (Delivered(B, None, NOW), Event(A, "2", None, NOW + DAY), REASSERTED),
        (None, Event(A, "2", None, NOW + DAY), REASSERTED),
        (None, Event(A, "2", None, NOW + DAY - 1), DUPLICATE),
    ],
    ids=[
        "delivered that long ago is told again",
        "whatever time it says",
        "delivered not that long ago is a duplicate",
        "a retry asserts nothing",
        "accepted that long ago and never delivered is told again: another digest was",
        "accepted that long ago and never delivered is told again: nothing was",
        "accepted not that long ago is a duplicate",
    ],
)
def test_digest_reported_long_after_its_delivery_is_reasserted(
    delivered: Delivered | None, event: Event, expected: Decision
) -> None:
    decision, _ = told(accepted(Event(A, "1", NOW)), event, delivered=delivered)

    assert decision is expected


@pytest.mark.parametrize("decision", list(Decision))
def test_duplicate_and_stale_are_not_delivered(decision: Decision) -> None:
    assert decision.should_deliver is (decision.value in {"new", "changed", "reasserted"})


def test_news_is_the_state_from_then_on() -> None:
    state = accepted(Event(A, "1", NOW - 5), Event(B, "2", NOW - 1, NOW + MINUTE))

    assert state == Accepted(B, NOW - 1, NOW + MINUTE, NOW + MINUTE, ("1", "2"))


def test_reasserted_event_is_the_state_from_then_on() -> None:
    _, state = told(accepted(Event(A, "1", NOW)), Event(A, "2", None, NOW + DAY), delivered=Delivered(A, None, NOW))

    assert state == Accepted(A, NOW, NOW + DAY, NOW + DAY, ("1", "2"))


@pytest.mark.parametrize(
    "event", [Event(A, "1"), Event(A, "2"), Event(B, "3", NOW - DAY)], ids=["by id", "by digest", "stale"]
)
@pytest.mark.parametrize(
    ("later", "seen"),
    [(0, NOW), (SEEN_STEP_MS - 1, NOW), (SEEN_STEP_MS, NOW + SEEN_STEP_MS), (DAY - 1, NOW + DAY - 1)],
)
def test_what_is_no_news_refreshes_only_seen_and_hourly_at_most(event: Event, later: int, seen: int) -> None:
    state = accepted(Event(A, "1", NOW))

    decision, after = told(state, event._replace(enqueued_at=NOW + later))

    assert not decision.should_deliver
    assert after == state._replace(seen=seen)


# What was dead before

#: Accepted when, of which digest and time: the state that a redriven event of B meets.
MINUTES = [NOW + minute * MINUTE for minute in range(10)]


def redriven(
    state: Accepted | None,
    *,
    digest: str = B,
    event_id: str = "dead",
    time: int | None = None,
    came: tuple[int, int] = (MINUTES[3], 5),
    force: bool = False,
    delivered: Delivered | None = None,
    forget_after_ms: float = DAY,
) -> tuple[Decision, Accepted]:
    """Judge an event that came in minute 3, died, and is redriven in minute 9."""
    report = Report(digest, event_id, time, MINUTES[9])
    return decide_redrive(state, delivered, report, Redriven(1, *came, force), forget_after_ms=forget_after_ms)


@pytest.mark.parametrize(
    ("state", "time", "delivered", "expected"),
    [
        pytest.param(None, None, None, NEW, id="nothing is known"),
        pytest.param(Accepted(A, None, MINUTES[2], NOW, ("1",)), None, None, CHANGED, id="accepted before it came"),
        pytest.param(Accepted(A, None, MINUTES[4], NOW, ("1",)), None, None, STALE, id="accepted after it came"),
        pytest.param(Accepted(A, None, MINUTES[7], NOW, ("1",)), None, None, STALE, id="accepted after it died"),
        pytest.param(Accepted(A, None, MINUTES[3], NOW, ("1",), 4), None, None, CHANGED, id="just before it"),
        pytest.param(Accepted(A, None, MINUTES[3], NOW, ("1",), 6), None, None, STALE, id="just after it"),
        pytest.param(Accepted(A, MINUTES[1], MINUTES[2], NOW, ("1",)), MINUTES[0], None, STALE, id="older by time"),
        pytest.param(Accepted(A, MINUTES[0], MINUTES[2], NOW, ("1",)), MINUTES[1], None, CHANGED, id="newer by time"),
        pytest.param(
            Accepted(A, MINUTES[0], MINUTES[4], NOW, ("1",)), MINUTES[1], None, STALE, id="newer by time, came before"
        ),
        pytest.param(Accepted(A, None, MINUTES[2], NOW, ("1",)), MINUTES[1], None, CHANGED, id="only its time"),
        pytest.param(Accepted(A, MINUTES[1], MINUTES[2], NOW, ("1",)), None, None, CHANGED, id="only the other"),
        pytest.param(Accepted(B, None, MINUTES[2], NOW, ("1",)), None, None, DUPLICATE, id="same digest before"),
        pytest.param(Accepted(B, None, MINUTES[7], NOW, ("1",)), None, None, DUPLICATE, id="same digest since"),
        pytest.param(
            Accepted(B, None, MINUTES[2], NOW, ("1",)), None, Delivered(B, None, MINUTES[2]), DUPLICATE,
            id="delivered long ago, and no report of today",
        ),
        pytest.param(Accepted(A, None, MINUTES[2], NOW, ("dead",)), None, None, DUPLICATE, id="reported again since"),
        pytest.param(
            Accepted(A, None, MINUTES[4], NOW, ("1",)), None, Delivered(A, None, MINUTES[6]), STALE,
            id="accepted after it came, and delivered",
        ),
    ],
)  # fmt: skip
def test_redriven_event_is_judged_as_of_when_it_first_came(
    state: Accepted | None, time: int | None, delivered: Delivered | None, expected: Decision
) -> None:
    decision, after = redriven(state, time=time, delivered=delivered)

    assert decision is expected
    if decision.should_deliver:
        assert (after.digest, after.arrival, after.seen) == (B, (MINUTES[3], 5), MINUTES[9])
    else:
        assert state is not None
        assert (after.digest, after.arrival, after.ids) == (state.digest, state.arrival, state.ids)


def test_redriven_event_older_than_what_is_forgotten_is_stale_where_nothing_is_known() -> None:
    assert redriven(None, forget_after_ms=6 * MINUTE + 1)[0] is NEW
    assert redriven(None, forget_after_ms=6 * MINUTE) == (STALE, None)
    assert redriven(None, forget_after_ms=6 * MINUTE, force=True)[0] is NEW


GIVEN_BACK = Accepted(A, None, MINUTES[1], NOW, ("1",), confirmed=1)


@pytest.mark.parametrize(
    ("event", "confirmed"),
    [
        pytest.param(Event(A, "2", None, MINUTES[5]), MINUTES[5], id="by a report: when it arrived"),
        pytest.param(Event(A, "2", MINUTES[2], MINUTES[5]), MINUTES[2], id="by a report with a time: then"),
        pytest.param(Event(A, "1", None, MINUTES[5]), 1, id="not by a repeat of what was accepted"),
        pytest.param(Event(B, "1", None, MINUTES[5]), 1, id="not by another digest under a known id"),
    ],
)
def test_what_was_given_back_is_confirmed(event: Event, confirmed: int) -> None:
    decision, state = told(GIVEN_BACK, event)

    assert (decision, state.confirmed) == (DUPLICATE, confirmed)
    assert redriven(state)[0] is (STALE if confirmed > MINUTES[3] else CHANGED)


def test_what_was_confirmed_stays_so_whatever_is_reported_next() -> None:
    state = GIVEN_BACK._replace(confirmed=MINUTES[5])
    assert told(state, Event(A, "2", MINUTES[2], MINUTES[6]))[1].confirmed == MINUTES[5]
    assert told(state, Event(C, "3", None, MINUTES[6]))[1].confirmed == MINUTES[5]
    assert redriven(state, digest=A, event_id="2")[1].confirmed == MINUTES[5]


def test_what_was_never_given_back_needs_no_confirming_and_duplicates_write_nothing() -> None:
    state = accepted(Event(A, "1"))
    assert told(state, Event(A, "2", None, NOW + MINUTE)) == (DUPLICATE, state)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, NEW),
        (Accepted(A, MINUTES[8], MINUTES[8], NOW, ("1", "dead")), CHANGED),
        (Accepted(B, MINUTES[8], MINUTES[8], NOW, ("dead", "1")), REASSERTED),
    ],
)
def test_forced_event_should_deliver_and_counts_from_now(state: Accepted | None, expected: Decision) -> None:
    decision, after = redriven(state, time=MINUTES[0], force=True)

    assert decision is expected
    assert (after.digest, after.arrival) == (B, (MINUTES[9], 0))
    assert after.ids == (*(["1"] if state else []), "dead"), "settling looks for it at the end, and once"


def test_redriven_event_with_a_time_in_the_future_has_that_of_its_first_arrival() -> None:
    _, state = redriven(None, time=MINUTES[8])

    assert state.time == MINUTES[3]


# Against a model that keeps all of history


class Past(NamedTuple):
    event: Event
    decision: Decision

    @property
    def time(self) -> int | None:
        return None if self.event.time is None else min(self.event.time, self.event.enqueued_at)


def naive(history: list[Past], delivered: Delivered | None, event: Event, reassert_after_ms: int) -> Decision:
    """Say what design.md says, from the whole history."""
    news = [past for past in history if past.decision.should_deliver]
    if not news:
        return Decision.NEW
    if event.event_id in [past.event.event_id for past in news[-8:]]:
        return Decision.DUPLICATE
    current = news[-1].event.digest
    if event.digest == current:
        since = max(delivered.at if delivered else 0, news[-1].event.enqueued_at)
        return Decision.REASSERTED if event.enqueued_at - since >= reassert_after_ms else Decision.DUPLICATE
    known = [past.time for past in history if past.decision is not Decision.STALE and past.time is not None]
    if event.time is not None and known and min(event.time, event.enqueued_at) < max(known):
        return Decision.STALE
    return Decision.CHANGED


steps = st.tuples(
    st.sampled_from([A, B, C]),
    st.integers(0, 14).map(str),
    st.none() | st.integers(-20, 5),  # the deployment's time, from the arrival
    st.integers(0, 10),  # the arrival, from the one before
    st.booleans(),  # is what is accepted delivered after it?
)


@given(st.lists(steps, max_size=40), st.integers(1, 15))
def test_any_history_is_judged_as_the_naive_model_does(
    given_steps: list[tuple[str, str, int | None, int, bool]], reassert_after_ms: int
) -> None:
    history: list[Past] = []
    state, delivered, now = None, None, NOW
    for digest, event_id, age, later, then_delivered in given_steps:
        now += later
        event = Event(digest, event_id, None if age is None else now + age, now)
        expected = naive(history, delivered, event, reassert_after_ms)

        decision, state = told(state, event, delivered=delivered, reassert_after_ms=reassert_after_ms)

        assert decision is expected
        history.append(Past(event, decision))
        last = [past for past in history if past.decision.should_deliver][-1].event
        assert (state.digest, state.at) == (last.digest, last.enqueued_at)
        assert len(state.ids) <= REMEMBERED_IDS
        if then_delivered:
            delivered = Delivered(state.digest, state.time, now)


# What a resync asks for

#: Accepted in minute 2, told to the API in minute 4; a resync is asked for in minute 6.
CAME = f"{MINUTES[2]}-3"
KNOWN = Accepted(A, None, MINUTES[2], MINUTES[3], ("1", "2"), 3)
TOLD = Delivered(A, None, MINUTES[4], CAME)


@pytest.mark.parametrize(
    ("state", "delivered", "expected"),
    [
        pytest.param(KNOWN, TOLD, REASSERTED, id="accepted and delivered"),
        pytest.param(None, None, STALE, id="nothing is known any more"),
        pytest.param(None, TOLD, STALE, id="what was accepted died"),
        pytest.param(KNOWN._replace(digest=B), TOLD, STALE, id="another was accepted since"),
        pytest.param(KNOWN._replace(digest=B), Delivered(B, None, MINUTES[4], CAME), STALE, id="and was delivered"),
        pytest.param(KNOWN, None, DUPLICATE, id="on its way for the first time"),
        pytest.param(KNOWN, Delivered(B, None, MINUTES[4], CAME), DUPLICATE, id="on its way after another"),
        pytest.param(
            KNOWN, Delivered(A, None, MINUTES[1], f"{MINUTES[0]}"), DUPLICATE, id="on its way after a rollback"
        ),
        pytest.param(KNOWN, TOLD._replace(at=MINUTES[7]), DUPLICATE, id="told since it was asked for"),
        pytest.param(KNOWN, TOLD._replace(at=MINUTES[6]), DUPLICATE, id="told in that millisecond"),
        pytest.param(KNOWN._replace(resynced=MINUTES[5]), TOLD, DUPLICATE, id="on its way for another resync"),
        pytest.param(KNOWN._replace(resynced=MINUTES[3]), TOLD, REASSERTED, id="an earlier resync was delivered"),
    ],
)
def test_resync_repeats_what_was_accepted_and_delivered(
    state: Accepted | None, delivered: Delivered | None, expected: Decision
) -> None:
    decision, after = resync(state, delivered)

    assert decision is expected
    if expected is REASSERTED:
        assert after == state._replace(resynced=MINUTES[6]), "no id, time, place or sight of it changes"
        assert resync(after, delivered)[0] is DUPLICATE, "asked for twice, it is told once"
        assert resync(after, delivered._replace(at=MINUTES[7]), asked=MINUTES[8])[0] is REASSERTED
    else:
        assert after == state


def test_what_is_reported_after_a_resync_is_judged_as_if_there_had_been_none() -> None:
    _, after = resync(KNOWN, TOLD)
    for event in (Event(A, "3"), Event(B, "3"), Event(B, "1"), Event(A, "3", None, NOW + DAY * 2)):
        with_it, without = (told(state, event, delivered=TOLD) for state in (after, KNOWN))
        assert with_it[0] is without[0]
        assert with_it[1]._replace(resynced=0) == without[1]
    assert redriven(after, came=(MINUTES[3], 0)) == redriven(KNOWN, came=(MINUTES[3], 0))


def resync(
    state: Accepted | None, delivered: Delivered | None, asked: int = MINUTES[6]
) -> tuple[Decision, Accepted | None]:
    return decide_resync(state, delivered, A, asked)


# Clocks that are ahead

CLOCK = Clock(NOW + 500, max_skew_ms=5 * MINUTE)


@pytest.mark.parametrize(
    ("time", "arrived", "expected"),
    [
        (NOW - DAY, NOW, Believed(NOW - DAY)),
        (NOW + 300, NOW + 400, Believed(NOW + 300)),
        (NOW + 401, NOW + 400, Believed(NOW + 400)),
        (NOW + 400 + 5 * MINUTE, NOW + 400, Believed(NOW + 400)),
        (NOW + 401 + 5 * MINUTE, NOW + 400, Believed(NOW, 5 * MINUTE + 1)),
        (NOW + DAY, NOW + DAY, Believed(NOW, DAY - 500)),
        (NOW + 600, NOW + DAY, Believed(NOW + 500)),
    ],
    ids=[
        "the past is believed",
        "as is the arrival's second",
        "a little ahead counts as the arrival's",
        "so does as much as the bound",
        "more comes from a wrong clock, and counts as the arrival's second",
        "an entry's own id may be ahead: Redis's clock bounds it",
        "and bounds what is a little ahead of it",
    ],
)
def test_a_time_is_bounded_by_the_arrival_and_by_redis(time: int, arrived: int, expected: Believed) -> None:
    assert CLOCK.believed(time, arrived) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (Accepted(A, NOW - 1, NOW, NOW, ()), Accepted(A, NOW - 1, NOW, NOW, ())),
        (Accepted(A, NOW + DAY, NOW, NOW, ()), Accepted(A, NOW, NOW, NOW, ())),
        (Accepted(A, NOW + DAY, NOW + DAY, NOW, ()), Accepted(A, None, NOW + DAY, NOW, ())),
        (
            Accepted(A, NOW, NOW, NOW, (), repeat_time=NOW + DAY, confirmed=NOW + DAY),
            Accepted(A, NOW, NOW, NOW, (), repeat_time=0, confirmed=1),
        ),
    ],
    ids=["none is ahead", "the arrival is known", "the arrival is ahead, too", "what repeats told"],
)
def test_a_state_that_an_older_version_wrote_has_no_time_from_the_future(state: Accepted, expected: Accepted) -> None:
    assert CLOCK.without_future(state) == expected
