"""Order for each instance: one in flight, the others behind it until what became of it is committed."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.queue.health import Health
from relay.queue.keys import Keys
from relay.queue.outbox import (
    BEGINNING,
    NO_TRIALS,
    Death,
    Due,
    OutboxEntry,
    Parking,
    Settlement,
    Superseded,
    Taken,
    Trials,
    after,
)
from workers.delivery.batch import Batch

KEYS = Keys().of_outbox("default", "production")
X, Y, Z = "x", "y", "z"


def entry(number: int, instance: str = X, *, trials: Trials = NO_TRIALS, deferred: bool = False) -> OutboxEntry:
    return OutboxEntry(f"{number}-0", b"{}", f"e{number}", instance, f"sha256:{number}", "", number, trials, deferred)


def tried(times: int) -> Trials:
    return Trials(attempts=times, answers=times, first=1)


def taken(*fresh: OutboxEntry, due: tuple[OutboxEntry | Due, ...] = ()) -> Taken:
    return Taken(
        now=0,
        cursor=after(fresh[-1].entry_id) if fresh else None,
        fresh=list(fresh),
        due=[one if isinstance(one, Due) else Due(one, ()) for one in due],
        health=Health(),
        paused=False,
    )


def batch_of(*fresh: OutboxEntry, due: tuple[OutboxEntry | Due, ...] = (), latest_only: bool = False) -> Batch:
    batch = Batch(KEYS, "token", "", latest_only=latest_only)
    batch.add(taken(*fresh, due=due))
    return batch


def sent(batch: Batch) -> list[OutboxEntry]:
    """Send all that may be sent."""
    result = []
    while batch.is_ready:
        result.append(batch.send_next())
    return result


def settle(batch: Batch) -> Settlement:
    settlement = batch.begin_settling()
    batch.settled(settlement)
    return settlement


def death(dead: OutboxEntry) -> Death:
    return Death(dead, "refused", "HTTP 400", 400)


# Who may go


def test_of_each_instance_the_first_goes_and_the_others_wait_behind() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, X), entry(4, X), entry(5, Z))

    assert sent(batch) == [entry(1, X), entry(2, Y), entry(5, Z)]
    assert batch.in_flight == 3
    assert batch.in_hand == 5


def test_what_comes_later_waits_behind_as_well() -> None:
    batch = batch_of(entry(1, X))
    sent(batch)
    batch.add(taken(entry(2, X), entry(3, Y)))

    assert sent(batch) == [entry(3, Y)]


@pytest.mark.parametrize("fate", ["delivered", "dead"])
def test_the_next_goes_once_what_became_of_the_first_is_settled_not_answered(fate: str) -> None:
    batch = batch_of(entry(1), entry(2), entry(3))
    (first,) = sent(batch)

    if fate == "delivered":
        batch.deliver(first, 0)
    else:
        batch.bury(death(first))
    assert not batch.is_ready
    settlement = batch.begin_settling()
    assert not batch.is_ready
    batch.settled(settlement)

    assert sent(batch) == [entry(2)]
    assert batch.in_hand == 2


def test_instance_that_is_done_starts_afresh() -> None:
    batch = batch_of(entry(1))
    batch.deliver(sent(batch)[0], 0)
    settle(batch)
    batch.add(taken(entry(2)))

    assert sent(batch) == [entry(2)]


# Retries


def test_retry_parks_the_followers_behind_it_in_order() -> None:
    batch = batch_of(entry(1, X), entry(2, X), entry(3, Y), entry(4, X))
    first, _ = sent(batch)
    batch.defer(first, 2.5)

    settlement = settle(batch)

    assert settlement.deferred == [Parking(first, 2.5, (entry(2, X), entry(4, X)))]
    assert not batch.is_ready
    assert batch.in_hand == 1


def test_nothing_overtakes_a_retry_that_is_noted_and_not_yet_settled() -> None:
    """Redis does not know of the retry yet, so a take in between brings the next one as fresh."""
    batch = batch_of(entry(1))
    batch.defer(sent(batch)[0], 1.0)
    batch.add(taken(entry(2)))

    assert sent(batch) == []


def test_retry_that_is_due_goes_again_and_parks_no_followers() -> None:
    due = entry(1, trials=tried(3), deferred=True)
    batch = batch_of(due=(due,))
    assert batch.due_in_hand == [X]
    assert sent(batch) == [due]

    batch.defer(due, 4.0)

    assert settle(batch).deferred == [Parking(due, 4.0, ())]
    assert batch.due_in_hand == []
    assert batch.in_hand == 0


@pytest.mark.parametrize("fate", ["delivered", "dead"])
def test_due_entry_is_in_hand_until_it_is_settled(fate: str) -> None:
    due = entry(1, trials=tried(1), deferred=True)
    batch = batch_of(due=(due,))
    sent(batch)
    if fate == "delivered":
        batch.deliver(due, 0)
    else:
        batch.bury(death(due))
    assert batch.due_in_hand == [X]

    settle(batch)

    assert batch.due_in_hand == []
    assert batch.in_hand == 0


def test_due_entry_that_is_in_hand_is_not_sent_twice() -> None:
    """It is marked as taken for one lease only; a drain that is at it for longer is given it again."""
    due = entry(1, trials=tried(1), deferred=True)
    batch = batch_of(due=(due,))
    batch.add(taken(due=(due,)))

    assert sent(batch) == [due]


# Only the latest of an instance


def superseded(*entries: OutboxEntry) -> list[Superseded]:
    return [Superseded(one.entry_id, one.instance, one.deferred) for one in entries]


def test_every_event_is_sent_unless_only_the_latest_counts() -> None:
    batch = batch_of(entry(1), entry(2), due=(entry(3, Y, deferred=True),))

    assert sent(batch) == [entry(3, Y, deferred=True), entry(1)]
    assert settle(batch).superseded == []


def test_the_latest_of_an_instance_is_sent_and_the_earlier_ones_are_superseded() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, X), entry(4, X), latest_only=True)

    assert sent(batch) == [entry(4, X), entry(2, Y)]
    assert settle(batch).superseded == superseded(entry(3, X), entry(1, X))
    assert batch.in_hand == 2
    assert batch.cursor == "2-0"


def test_what_is_in_flight_is_never_superseded_and_the_latest_behind_it_goes_next() -> None:
    batch = batch_of(entry(1), latest_only=True)
    (first,) = sent(batch)
    batch.add(taken(entry(2), entry(3)))
    batch.add(taken(entry(4)))
    assert not batch.is_ready, "two of one instance would be in flight"
    assert settle(batch).superseded == superseded(entry(2), entry(3))

    batch.deliver(first, 0)
    settle(batch)

    assert sent(batch) == [entry(4)]


def test_an_entry_is_superseded_until_the_moment_it_is_sent() -> None:
    """It became ready when the one before it was settled, and a later one came before it went."""
    batch = batch_of(entry(1), entry(2), latest_only=True)
    assert sent(batch) == [entry(2)]
    batch.add(taken(entry(3)))
    batch.deliver(entry(2), 0)
    settle(batch)
    batch.add(taken(entry(4)))

    assert sent(batch) == [entry(4)]
    assert settle(batch).superseded == superseded(entry(3))


def test_a_retry_parks_the_one_that_will_replace_it_behind_it() -> None:
    """Redis finds the latest by itself when the retry is due."""
    batch = batch_of(entry(1), latest_only=True)
    (first,) = sent(batch)
    batch.add(taken(entry(2), entry(3)))
    batch.defer(first, 1.0)
    settlement = settle(batch)

    assert settlement.deferred == [Parking(first, 1.0, (entry(3),))]
    assert settlement.superseded == superseded(entry(2))
    assert batch.in_hand == 0


def test_a_due_entry_comes_with_those_that_it_supersedes() -> None:
    latest = entry(3, deferred=True)
    batch = batch_of(due=(Due(latest, ("1-0", "2-0")),), latest_only=True)

    assert sent(batch) == [latest]
    assert settle(batch).superseded == superseded(entry(1, deferred=True), entry(2, deferred=True))
    assert batch.due_in_hand == [X], "what it supersedes is done, not it"


def test_a_due_entry_that_is_in_flight_is_not_superseded_when_it_is_given_again() -> None:
    """After a lease it is; by then a later one may be deferred behind it, and Redis names it as superseded."""
    first = entry(1, deferred=True)
    batch = batch_of(due=(first,), latest_only=True)
    sent(batch)
    batch.add(taken(due=(Due(entry(2, deferred=True), ("1-0",)),)))

    assert not batch.is_ready
    assert not batch.settlement


def test_a_due_entry_is_not_replaced_by_what_is_fresh() -> None:
    """The fresh one was read before the other was deferred; the scripts know the order, the batch does not."""
    batch = batch_of(entry(5, Y), due=(entry(1, X, deferred=True),), latest_only=True)

    assert sent(batch) == [entry(1, X, deferred=True), entry(5, Y)]
    assert settle(batch).superseded == []


# One at a time, after a drain died at this outbox


def test_one_at_a_time_the_next_goes_when_the_last_is_settled() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, Z))
    batch.one_at_a_time = True
    assert batch.ready == 1
    assert sent(batch) == [entry(1, X)]
    assert batch.ready == 0

    batch.in_flight -= 1
    batch.deliver(entry(1, X), 0)
    assert not batch.is_ready, "were the next one deadly, what became of this one would be forgotten"
    settle(batch)

    assert batch.ready == 1
    assert sent(batch) == [entry(2, Y)]


def test_otherwise_all_that_are_ready_may_go() -> None:
    assert batch_of(entry(1, X), entry(2, Y), entry(3, Y)).ready == 2


# Paused


def test_nothing_of_a_paused_environment_goes() -> None:
    batch = batch_of(entry(1, X), entry(2, Y))
    batch.send_next()
    batch.paused = True
    assert (batch.is_ready, batch.ready) == (False, 0)

    batch.paused = False
    assert batch.ready == 1


# Probing


def test_a_probe_is_the_entry_that_was_tried_least() -> None:
    due = tuple(entry(n, name, trials=tried(n), deferred=True) for n, name in ((4, X), (2, Y), (3, Z)))
    batch = batch_of(due=due)

    assert batch.send_next(least_tried=True) == due[1]
    assert batch.send_next(least_tried=True) == due[2]
    assert batch.send_next() == due[0]
    assert not batch.is_ready


def test_what_was_tried_is_all_that_was_answered_not_only_what_used_up_an_attempt() -> None:
    unlucky = entry(1, X, trials=Trials(attempts=0, answers=9), deferred=True)
    batch = batch_of(entry(3, Z), due=(unlucky, entry(2, Y, trials=tried(1), deferred=True)))

    assert [batch.send_next(least_tried=True).instance for _ in range(3)] == [Z, Y, X]


def test_of_those_tried_alike_the_first_is_the_probe() -> None:
    batch = batch_of(entry(1, X), entry(2, Y))

    assert batch.send_next(least_tried=True) == entry(1, X)


def test_a_probe_is_the_latest_of_its_instance() -> None:
    batch = batch_of(entry(1, X), entry(2, X), latest_only=True)

    assert batch.send_next(least_tried=True) == entry(2, X)


# Where the next drain begins


@pytest.mark.parametrize(("given", "cursor"), [("", BEGINNING), ("(7-0", "(7-0"), ("5-0", "5-0")])
def test_cursor_is_the_one_given_until_something_is_in_hand(given: str, cursor: str) -> None:
    assert Batch(KEYS, "token", given).cursor == cursor


def test_cursor_points_at_the_oldest_fresh_entry_in_hand() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, Z))
    first, second, third = sent(batch)
    assert batch.cursor == "1-0"

    batch.deliver(second, 0)
    settle(batch)
    assert batch.cursor == "1-0"

    batch.deliver(first, 0)
    settle(batch)
    assert batch.cursor == "3-0"

    batch.defer(third, 1.0)
    settle(batch)
    assert batch.cursor == "(3-0"


def test_cursor_passes_what_is_being_settled() -> None:
    batch = batch_of(entry(1, X), entry(2, Y))
    first, second = sent(batch)
    batch.deliver(first, 0)
    batch.defer(second, 1.0)

    batch.begin_settling()

    assert batch.cursor == "(2-0"


def test_due_entries_do_not_hold_the_cursor_back() -> None:
    batch = batch_of(entry(5, Y), due=(entry(1, X, deferred=True),))

    assert batch.cursor == "5-0"


def test_take_that_found_nothing_leaves_the_cursor() -> None:
    batch = batch_of(entry(1))
    batch.add(taken())

    assert batch.read_cursor == "(1-0"


# What is settled


def test_latencies_are_counted_by_bucket() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, Z))
    for one, milliseconds in zip(sent(batch), [1.9, 2.3, 1.8], strict=True):
        batch.deliver(one, milliseconds)

    settlement = batch.begin_settling()
    assert settlement.latency == {7: 2, 9: 1}
    assert settlement.latency_ms == pytest.approx(6.0)


def test_attempts_are_counted_with_what_became_of_their_entries() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, Z))
    for seconds, code in ((0.004, "202"), (0.006, "202"), (0.006, "503")):
        batch.count_attempt("delivered" if code == "202" else "retry", code, seconds)

    assert batch.begin_settling().attempts.counts() == {
        "attempt:delivered:202": 2,
        "duration:delivered:0.005": 1,
        "duration:delivered:0.01": 1,
        "duration_us:delivered": 10_000,
        "attempt:retry:503": 1,
        "duration:retry:0.01": 1,
        "duration_us:retry": 6_000,
    }
    assert not batch.begin_settling().attempts.counts()


def test_what_was_settled_is_not_settled_again() -> None:
    batch = batch_of(entry(1, X), entry(2, Y))
    first, second = sent(batch)
    batch.deliver(first, 0)
    assert batch.begin_settling().delivered == [first]
    batch.deliver(second, 0)

    assert batch.begin_settling().delivered == [second]


# Any interleaving, against an outbox as Redis keeps it


class Interleavings(RuleBasedStateMachine):
    """`stream`, `deferred` and `due` are what the scripts have committed; the batch is what the drain has in hand."""

    latest_only = False

    def __init__(self) -> None:
        super().__init__()
        self.batch = Batch(KEYS, "token", "", latest_only=self.latest_only)
        self.numbers = count(1)
        self.stream: list[OutboxEntry] = []
        self.deferred: dict[str, list[str]] = {}
        self.trials: dict[str, Trials] = {}
        self.due: set[str] = set()
        self.flying: list[OutboxEntry] = []
        self.last_sent: dict[str, int] = {}

    def numbered(self, entry_id: str) -> int:
        return int(entry_id.lstrip("(").partition("-")[0])

    @rule(instances=st.lists(st.sampled_from([X, Y, Z]), min_size=1, max_size=4))
    def append(self, instances: list[str]) -> None:
        self.stream += [entry(next(self.numbers), instance) for instance in instances]

    @rule(wanted=st.integers(1, 4), wanted_due=st.integers(0, 3))
    def take(self, wanted: int, wanted_due: int) -> None:
        names = sorted(self.due)[:wanted_due]
        self.due -= set(names)
        due = [self.head(name) for name in names]
        cursor = self.batch.read_cursor
        start = 0 if cursor == BEGINNING else self.numbered(cursor) + cursor.startswith("(")
        looked_at = [one for one in self.stream if self.numbered(one.entry_id) >= start][:wanted]
        fresh = []
        for one in looked_at:
            if one.instance in self.deferred:
                self.deferred[one.instance].append(one.entry_id)
            else:
                fresh.append(one)
        self.batch.add(taken(*fresh, due=tuple(due)))
        if looked_at:
            self.batch.read_cursor = after(looked_at[-1].entry_id)

    def head(self, name: str) -> Due:
        """What is due of an instance: its first deferred entry, or its last one with those that it supersedes."""
        by_id = {one.entry_id: one for one in self.stream}
        first, *rest = self.deferred[name]
        if not self.latest_only or not rest:
            return Due(by_id[first]._replace(trials=self.trials.get(name, NO_TRIALS), deferred=True), ())
        return Due(by_id[rest[-1]]._replace(deferred=True), (first, *rest[:-1]))

    @precondition(lambda self: self.batch.is_ready)
    @rule(least_tried=st.booleans())
    def send(self, least_tried: bool) -> None:  # noqa: FBT001
        one = self.batch.send_next(least_tried=least_tried)
        assert one.instance not in [other.instance for other in self.flying], "two of one instance in flight"
        given_up = {each.entry_id for each in self.batch.settlement.superseded}
        oldest = next(
            other for other in self.stream if other.instance == one.instance and other.entry_id not in given_up
        )
        assert one.entry_id == oldest.entry_id, "an older one of the instance is not settled"
        number = self.numbered(one.entry_id)
        assert number >= self.last_sent.get(one.instance, 0), "an older one was sent after a newer"
        self.last_sent[one.instance] = number
        self.flying.append(one)

    def answered(self, data: st.DataObject) -> OutboxEntry:
        self.batch.in_flight -= 1
        return self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "bury", "defer"]))
    def answer(self, data: st.DataObject, fate: str) -> None:
        one = self.answered(data)
        match fate:
            case "deliver":
                self.batch.deliver(one, 0)
            case "bury":
                self.batch.bury(death(one))
            case "defer":
                tried_again = one.trials._replace(answers=one.trials.answers + 1)
                self.batch.defer(one._replace(trials=tried_again), 1.0)

    @precondition(lambda self: self.batch.settlement)
    @rule()
    def settle(self) -> None:
        settlement = self.batch.begin_settling()
        self.supersede(settlement.superseded)
        gone = [*settlement.delivered, *(dead.entry for dead in settlement.dead)]
        ids = {one.entry_id for one in gone}
        self.stream = [one for one in self.stream if one.entry_id not in ids]
        for one in gone:
            if one.deferred:
                self.undefer(one)
        for parking in settlement.deferred:
            self.defer(parking)
        self.nothing_is_left_behind(self.batch.cursor)
        self.batch.settled(settlement)

    def supersede(self, given_up: list[Superseded]) -> None:
        assert self.latest_only or not given_up
        by_id = {one.entry_id: one for one in self.stream}
        flying = {one.entry_id for one in self.flying}
        for each in given_up:
            one = by_id.pop(each.entry_id)
            assert one.entry_id not in flying, "superseded in flight"
            later = [other for other in by_id.values() if other.instance == one.instance]
            last = max(
                [*map(self.numbered, (other.entry_id for other in later)), self.last_sent.get(one.instance, 0)]
            )
            assert last > self.numbered(one.entry_id), "nothing later is there to replace it"
            waiting = self.deferred.get(one.instance, [])
            assert each.deferred == (one.entry_id in waiting)
            if each.deferred:
                waiting.remove(one.entry_id)
                self.trials.pop(one.instance, None)
        self.stream = list(by_id.values())

    def undefer(self, one: OutboxEntry) -> None:
        waiting = self.deferred[one.instance]
        assert waiting.pop(0) == one.entry_id
        self.trials.pop(one.instance, None)
        if waiting:
            self.due.add(one.instance)
        else:
            del self.deferred[one.instance]

    def defer(self, parking: Parking) -> None:
        waiting = self.deferred.setdefault(parking.entry.instance, [])
        waiting += [one.entry_id for one in (parking.entry, *parking.followers) if one.entry_id not in waiting]
        assert waiting == sorted(waiting, key=self.numbered), "deferred out of order"
        self.trials[parking.entry.instance] = parking.entry.trials

    @rule()
    def time_passes(self) -> None:
        """All pauses are over; what is marked as taken stays so."""
        self.due |= set(self.deferred) - set(self.batch.due_in_hand)

    @rule()
    def a_lease_passes(self) -> None:
        """What is marked as taken comes up again, though the drain is still at it."""
        self.due |= set(self.deferred)

    def nothing_is_left_behind(self, cursor: str) -> None:
        waiting = {entry_id for ids in self.deferred.values() for entry_id in ids}
        start = 0 if cursor == BEGINNING else self.numbered(cursor) + cursor.startswith("(")
        behind = [one.entry_id for one in self.stream if self.numbered(one.entry_id) < start]
        assert set(behind) <= waiting, "another drain would not find these"

    @invariant()
    def in_flight_is_counted(self) -> None:
        assert self.batch.in_flight == len(self.flying)

    @rule()
    def all_goes_well_from_here(self) -> None:
        """Whatever happened before, all of it can be delivered, and the last of each instance is the last sent."""
        last = {one.instance: self.numbered(one.entry_id) for one in self.stream}
        for _ in range(10 * (len(self.stream) + 1)):
            if self.batch.settlement:
                self.settle()
            self.time_passes()
            self.take(100, 3)
            while self.batch.is_ready:
                self.send(least_tried=False)
            while self.flying:
                self.batch.in_flight -= 1
                self.batch.deliver(self.flying.pop(), 0)
        assert self.stream == []
        assert self.batch.in_hand == 0
        assert last.items() <= self.last_sent.items()


class LatestOnly(Interleavings):
    """The same, where only the latest of an instance counts."""

    latest_only = True


TestInterleavings = Interleavings.TestCase
TestLatestOnly = LatestOnly.TestCase
for case in (TestInterleavings, TestLatestOnly):
    case.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
