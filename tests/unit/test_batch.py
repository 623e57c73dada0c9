"""Order of each instance: one entry in flight, the others blocked until its outcome is committed."""

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
    COMMIT_DEAD,
    COMMIT_ENTRIES,
    NO_TRIALS,
    Claimed,
    DeadEntry,
    DeferredEntry,
    OutboxEntry,
    Outcomes,
    Retry,
    Superseded,
    Trials,
    after,
)
from workers.delivery.batch import Batch

KEYS = Keys().of_outbox("default", "production")
X, Y, Z = "x", "y", "z"


def entry(number: int, instance: str = X, *, trials: Trials = NO_TRIALS, deferred: bool = False) -> OutboxEntry:
    return OutboxEntry(
        f"{number}-0", b"{}", f"e{number}", instance, f"sha256:{number}", "", "", number, trials, deferred
    )


def tried(times: int) -> Trials:
    return Trials(attempts=times, answers=times, first=1)


def claimed(*fresh: OutboxEntry, due: tuple[OutboxEntry | Retry, ...] = ()) -> Claimed:
    return Claimed(
        now_ms=0,
        cursor=after(fresh[-1].entry_id) if fresh else None,
        fresh=list(fresh),
        retries=[one if isinstance(one, Retry) else Retry(one) for one in due],
        health=Health(),
        is_paused=False,
    )


def batch_of(*fresh: OutboxEntry, due: tuple[OutboxEntry | Retry, ...] = (), latest_only: bool = False) -> Batch:
    batch = Batch("", latest_only=latest_only)
    batch.add(claimed(*fresh, due=due))
    return batch


def sent(batch: Batch) -> list[OutboxEntry]:
    """Send all that may be sent."""
    result = []
    while batch.ready:
        result.append(batch.send_next())
    return result


def commit(batch: Batch) -> Outcomes:
    outcomes = batch.begin_commit()
    batch.committed(outcomes)
    return outcomes


def dead(dead: OutboxEntry) -> DeadEntry:
    return DeadEntry(dead, "refused", "HTTP 400", 400)


# What may be sent


def test_of_each_instance_the_first_is_sent_and_the_others_are_blocked() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, X), entry(4, X), entry(5, Z))

    assert sent(batch) == [entry(1, X), entry(2, Y), entry(5, Z)]
    assert batch.in_flight == 3
    assert batch.size == 5


def test_an_entry_that_is_claimed_later_is_blocked_as_well() -> None:
    batch = batch_of(entry(1, X))
    sent(batch)
    batch.add(claimed(entry(2, X), entry(3, Y)))

    assert sent(batch) == [entry(3, Y)]


@pytest.mark.parametrize("outcome", ["delivered", "dead"])
def test_the_next_is_sent_once_the_outcome_of_the_first_is_committed_not_answered(outcome: str) -> None:
    batch = batch_of(entry(1), entry(2), entry(3))
    (first,) = sent(batch)

    if outcome == "delivered":
        batch.deliver(first, 0)
    else:
        batch.bury(dead(first))
    assert not batch.ready
    outcomes = batch.begin_commit()
    assert not batch.ready
    batch.committed(outcomes)

    assert sent(batch) == [entry(2)]
    assert batch.size == 2


def test_instance_that_is_done_is_blocked_no_more() -> None:
    batch = batch_of(entry(1))
    batch.deliver(sent(batch)[0], 0)
    commit(batch)
    batch.add(claimed(entry(2)))

    assert sent(batch) == [entry(2)]


# Retries


def test_retry_defers_the_entries_that_it_blocks_in_order() -> None:
    batch = batch_of(entry(1, X), entry(2, X), entry(3, Y), entry(4, X))
    first, _ = sent(batch)
    batch.defer(first, 2.5)

    outcomes = commit(batch)

    assert outcomes.deferred == [DeferredEntry(first, 2.5, (entry(2, X), entry(4, X)))]
    assert not batch.ready
    assert batch.size == 1


def test_nothing_overtakes_a_retry_that_is_not_committed_yet() -> None:
    """Redis does not know of the retry yet, so a take in between brings the next one as fresh."""
    batch = batch_of(entry(1))
    batch.defer(sent(batch)[0], 1.0)
    batch.add(claimed(entry(2)))

    assert sent(batch) == []


def test_due_retry_is_sent_again_and_defers_no_others() -> None:
    due = entry(1, trials=tried(3), deferred=True)
    batch = batch_of(due=(due,))
    assert batch.retried == [X]
    assert sent(batch) == [due]

    batch.defer(due, 4.0)

    assert commit(batch).deferred == [DeferredEntry(due, 4.0)]
    assert batch.retried == []
    assert batch.size == 0


@pytest.mark.parametrize("outcome", ["delivered", "dead"])
def test_claimed_retry_counts_until_it_is_committed(outcome: str) -> None:
    due = entry(1, trials=tried(1), deferred=True)
    batch = batch_of(due=(due,))
    sent(batch)
    if outcome == "delivered":
        batch.deliver(due, 0)
    else:
        batch.bury(dead(due))
    assert batch.retried == [X]

    commit(batch)

    assert batch.retried == []
    assert batch.size == 0


def test_retry_that_is_claimed_again_is_not_sent_twice() -> None:
    """A claimed retry is due again after one lease, also for the run that claimed it."""
    due = entry(1, trials=tried(1), deferred=True)
    batch = batch_of(due=(due,))
    batch.add(claimed(due=(due,)))

    assert sent(batch) == [due]


# Only the latest of an instance


def superseded(*entries: OutboxEntry) -> list[Superseded]:
    return [Superseded(one.entry_id, one.instance, one.deferred) for one in entries]


def retry(latest: OutboxEntry, *earlier: OutboxEntry) -> Retry:
    return Retry(latest, superseded(*earlier))


def test_every_event_is_sent_unless_only_the_latest_counts() -> None:
    batch = batch_of(entry(1), entry(2), due=(entry(3, Y, deferred=True),))

    assert sent(batch) == [entry(3, Y, deferred=True), entry(1)]
    assert commit(batch).superseded == []


def test_the_latest_of_an_instance_is_sent_and_the_earlier_ones_are_superseded() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, X), entry(4, X), latest_only=True)

    assert sent(batch) == [entry(4, X), entry(2, Y)]
    assert commit(batch).superseded == superseded(entry(3, X), entry(1, X))
    assert batch.size == 2
    assert batch.cursor == "2-0"


def test_an_entry_in_flight_is_never_superseded_and_the_latest_that_it_blocks_is_next() -> None:
    batch = batch_of(entry(1), latest_only=True)
    (first,) = sent(batch)
    batch.add(claimed(entry(2), entry(3)))
    batch.add(claimed(entry(4)))
    assert not batch.ready, "two of one instance would be in flight"
    assert commit(batch).superseded == superseded(entry(2), entry(3))

    batch.deliver(first, 0)
    commit(batch)

    assert sent(batch) == [entry(4)]


def test_an_entry_is_superseded_until_the_moment_it_is_sent() -> None:
    """It became ready when the one before it was settled, and a later one came before it went."""
    batch = batch_of(entry(1), entry(2), latest_only=True)
    assert sent(batch) == [entry(2)]
    batch.add(claimed(entry(3)))
    batch.deliver(entry(2), 0)
    commit(batch)
    batch.add(claimed(entry(4)))

    assert sent(batch) == [entry(4)]
    assert commit(batch).superseded == superseded(entry(3))


def test_a_retry_defers_the_one_that_will_replace_it() -> None:
    """Redis finds the latest by itself when the retry is due."""
    batch = batch_of(entry(1), latest_only=True)
    (first,) = sent(batch)
    batch.add(claimed(entry(2), entry(3)))
    batch.defer(first, 1.0)
    outcomes = commit(batch)

    assert outcomes.deferred == [DeferredEntry(first, 1.0, (entry(3),))]
    assert outcomes.superseded == superseded(entry(2))
    assert batch.size == 0


def test_a_retry_is_claimed_with_the_entries_that_it_supersedes() -> None:
    latest = entry(3, deferred=True)
    batch = batch_of(due=(retry(latest, entry(1, deferred=True), entry(2, deferred=True)),), latest_only=True)

    assert sent(batch) == [latest]
    assert commit(batch).superseded == superseded(entry(1, deferred=True), entry(2, deferred=True))
    assert batch.retried == [X], "what it supersedes is done, not it"


def test_a_retry_in_flight_is_not_superseded_when_it_is_claimed_again() -> None:
    """After a lease it is; by then a later one may be deferred behind it, and Redis names it as superseded."""
    first = entry(1, deferred=True)
    batch = batch_of(due=(first,), latest_only=True)
    sent(batch)
    batch.add(claimed(due=(retry(entry(2, deferred=True), first),)))

    assert not batch.ready
    assert not batch.uncommitted


def test_a_retry_is_not_replaced_by_a_fresh_entry() -> None:
    """The fresh one was read before the other was deferred; the scripts know the order, the batch does not."""
    batch = batch_of(entry(5, Y), due=(entry(1, X, deferred=True),), latest_only=True)

    assert sent(batch) == [entry(1, X, deferred=True), entry(5, Y)]
    assert commit(batch).superseded == []


# Probing


def test_a_probe_is_the_entry_that_was_tried_least() -> None:
    due = tuple(entry(n, name, trials=tried(n), deferred=True) for n, name in ((4, X), (2, Y), (3, Z)))
    batch = batch_of(due=due)

    assert batch.send_next(least_tried=True) == due[1]
    assert batch.send_next(least_tried=True) == due[2]
    assert batch.send_next() == due[0]
    assert not batch.ready


def test_all_answers_count_as_tried_not_only_those_that_used_up_an_attempt() -> None:
    unlucky = entry(1, X, trials=Trials(attempts=0, answers=9), deferred=True)
    batch = batch_of(entry(3, Z), due=(unlucky, entry(2, Y, trials=tried(1), deferred=True)))

    assert [batch.send_next(least_tried=True).instance for _ in range(3)] == [Z, Y, X]


def test_of_those_tried_alike_the_first_is_the_probe() -> None:
    batch = batch_of(entry(1, X), entry(2, Y))

    assert batch.send_next(least_tried=True) == entry(1, X)


def test_a_probe_is_the_latest_of_its_instance() -> None:
    batch = batch_of(entry(1, X), entry(2, X), latest_only=True)

    assert batch.send_next(least_tried=True) == entry(2, X)


# Where the next run begins


@pytest.mark.parametrize(("given", "cursor"), [("", BEGINNING), ("(7-0", "(7-0"), ("5-0", "5-0")])
def test_cursor_is_the_given_one_until_something_is_claimed(given: str, cursor: str) -> None:
    assert Batch(given).cursor == cursor


def test_cursor_points_at_the_oldest_fresh_entry() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, Z))
    first, second, third = sent(batch)
    assert batch.cursor == "1-0"

    batch.deliver(second, 0)
    commit(batch)
    assert batch.cursor == "1-0"

    batch.deliver(first, 0)
    commit(batch)
    assert batch.cursor == "3-0"

    batch.defer(third, 1.0)
    commit(batch)
    assert batch.cursor == "(3-0"


def test_cursor_passes_the_entries_of_a_commit() -> None:
    batch = batch_of(entry(1, X), entry(2, Y))
    first, second = sent(batch)
    batch.deliver(first, 0)
    batch.defer(second, 1.0)

    batch.begin_commit()

    assert batch.cursor == "(2-0"


def test_retries_do_not_hold_the_cursor_back() -> None:
    batch = batch_of(entry(5, Y), due=(entry(1, X, deferred=True),))

    assert batch.cursor == "5-0"


def test_claim_that_found_nothing_leaves_the_cursor() -> None:
    batch = batch_of(entry(1))
    batch.add(claimed())

    assert batch.read_cursor == "(1-0"


# What is committed


def test_latencies_are_counted_by_bucket() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, Z))
    for one, milliseconds in zip(sent(batch), [1.9, 2.3, 1.8], strict=True):
        batch.deliver(one, milliseconds)

    outcomes = batch.begin_commit()
    assert outcomes.latency == {7: 2, 9: 1}
    assert outcomes.latency_ms == pytest.approx(6.0)


def test_attempts_are_counted_with_the_outcomes_of_their_entries() -> None:
    batch = batch_of(entry(1, X), entry(2, Y), entry(3, Z))
    for seconds, code in ((0.004, "202"), (0.006, "202"), (0.006, "503")):
        batch.uncommitted.attempts.note("delivered" if code == "202" else "retry", code, seconds)

    assert batch.begin_commit().attempts.counts() == {
        "attempt:delivered:202": 2,
        "duration:delivered:0.005": 1,
        "duration:delivered:0.01": 1,
        "duration_us:delivered": 10_000,
        "attempt:retry:503": 1,
        "duration:retry:0.01": 1,
        "duration_us:retry": 6_000,
    }
    assert not batch.begin_commit().attempts.counts()


def test_no_outcome_is_committed_twice() -> None:
    batch = batch_of(entry(1, X), entry(2, Y))
    first, second = sent(batch)
    batch.deliver(first, 0)
    assert batch.begin_commit().delivered == [first]
    batch.deliver(second, 0)

    assert batch.begin_commit().delivered == [second]


def test_a_commit_is_bounded_and_the_cursor_stays_before_what_it_leaves() -> None:
    numbers = range(1, 2 * COMMIT_DEAD + 2)
    batch = batch_of(*(entry(number, f"i{number}") for number in numbers))
    for one in sent(batch):
        batch.bury(dead(one))

    sizes = []
    while batch.uncommitted:
        outcomes = batch.begin_commit()
        sizes.append(len(outcomes.dead))
        assert batch.cursor == (f"{sum(sizes) + 1}-0" if batch.uncommitted else after(f"{numbers[-1]}-0"))
        batch.committed(outcomes)
    assert sizes == [COMMIT_DEAD, COMMIT_DEAD, 1]


def test_each_kind_of_outcome_is_bounded_and_superseded_entries_are_committed_first() -> None:
    batch = batch_of(*(entry(number, f"i{number}") for number in range(2 * COMMIT_ENTRIES + 2)))
    for number, one in enumerate(sent(batch)):
        if number % 2:
            batch.deliver(one, 0)
        else:
            batch.defer(one, 1.0)
    batch.uncommitted.superseded += superseded(*(entry(number, Z) for number in range(2 * COMMIT_ENTRIES)))

    parts = [commit(batch) for _ in range(2)]
    assert [len(part.delivered) for part in parts] == [COMMIT_ENTRIES, 1]
    assert [len(part.deferred) for part in parts] == [COMMIT_ENTRIES, 1]
    assert [len(part.superseded) for part in parts] == [2 * COMMIT_ENTRIES, 0]
    assert not batch.uncommitted


# Any interleaving, against an outbox as Redis keeps it


class Interleavings(RuleBasedStateMachine):
    """`stream`, `deferred` and `due` are what the scripts have committed; the batch is what the run has claimed."""

    latest_only = False

    def __init__(self) -> None:
        super().__init__()
        self.batch = Batch("", latest_only=self.latest_only)
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
        self.batch.add(claimed(*fresh, due=tuple(due)))
        if looked_at:
            self.batch.read_cursor = after(looked_at[-1].entry_id)

    def head(self, name: str) -> Retry:
        """What is due of an instance: its first deferred entry, or its last one with those that it supersedes."""
        by_id = {one.entry_id: one for one in self.stream}
        first, *rest = self.deferred[name]
        if not self.latest_only or not rest:
            return Retry(by_id[first]._replace(trials=self.trials.get(name, NO_TRIALS), deferred=True))
        earlier = [by_id[entry_id]._replace(deferred=True) for entry_id in (first, *rest[:-1])]
        return retry(by_id[rest[-1]]._replace(deferred=True), *earlier)

    @precondition(lambda self: self.batch.ready)
    @rule(least_tried=st.booleans())
    def send(self, least_tried: bool) -> None:  # noqa: FBT001
        one = self.batch.send_next(least_tried=least_tried)
        assert one.instance not in [other.instance for other in self.flying], "two of one instance in flight"
        given_up = {each.entry_id for each in self.batch.uncommitted.superseded}
        oldest = next(
            other for other in self.stream if other.instance == one.instance and other.entry_id not in given_up
        )
        assert one.entry_id == oldest.entry_id, "an older one of the instance is not settled"
        number = self.numbered(one.entry_id)
        assert number >= self.last_sent.get(one.instance, 0), "an older one was sent after a newer"
        self.last_sent[one.instance] = number
        self.flying.append(one)

    def answered(self, data: st.DataObject) -> OutboxEntry:
        return self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), outcome=st.sampled_from(["deliver", "bury", "defer"]))
    def answer(self, data: st.DataObject, outcome: str) -> None:
        one = self.answered(data)
        match outcome:
            case "deliver":
                self.batch.deliver(one, 0)
            case "bury":
                self.batch.bury(dead(one))
            case "defer":
                tried_again = one.trials._replace(answers=one.trials.answers + 1)
                self.batch.defer(one._replace(trials=tried_again), 1.0)

    @precondition(lambda self: self.batch.uncommitted)
    @rule()
    def commit(self) -> None:
        outcomes = self.batch.begin_commit()
        self.supersede(outcomes.superseded)
        gone = [*outcomes.delivered, *(dead.entry for dead in outcomes.dead)]
        ids = {one.entry_id for one in gone}
        self.stream = [one for one in self.stream if one.entry_id not in ids]
        for one in gone:
            if one.deferred:
                self.undefer(one)
        for parking in outcomes.deferred:
            self.defer(parking)
        self.nothing_is_left_behind(self.batch.cursor)
        self.batch.committed(outcomes)

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

    def defer(self, parking: DeferredEntry) -> None:
        waiting = self.deferred.setdefault(parking.entry.instance, [])
        waiting += [one.entry_id for one in (parking.entry, *parking.blocked) if one.entry_id not in waiting]
        assert waiting == sorted(waiting, key=self.numbered), "deferred out of order"
        self.trials[parking.entry.instance] = parking.entry.trials

    @rule()
    def time_passes(self) -> None:
        """All pauses are over; a claimed retry stays claimed."""
        self.due |= set(self.deferred) - set(self.batch.retried)

    @rule()
    def a_lease_passes(self) -> None:
        """A claimed retry is due again, though the run has not committed it."""
        self.due |= set(self.deferred)

    def nothing_is_left_behind(self, cursor: str) -> None:
        waiting = {entry_id for ids in self.deferred.values() for entry_id in ids}
        start = 0 if cursor == BEGINNING else self.numbered(cursor) + cursor.startswith("(")
        behind = [one.entry_id for one in self.stream if self.numbered(one.entry_id) < start]
        assert set(behind) <= waiting, "another run would not find these"

    @invariant()
    def in_flight_is_counted(self) -> None:
        assert self.batch.in_flight == len(self.flying)

    @rule()
    def all_goes_well_from_here(self) -> None:
        """Whatever happened before, all of it can be delivered, and the last of each instance is the last sent."""
        last = {one.instance: self.numbered(one.entry_id) for one in self.stream}
        for _ in range(10 * (len(self.stream) + 1)):
            if self.batch.uncommitted:
                self.commit()
            self.time_passes()
            self.take(100, 3)
            while self.batch.ready:
                self.send(least_tried=False)
            while self.flying:
                self.batch.deliver(self.flying.pop(), 0)
        assert self.stream == []
        assert self.batch.size == 0
        assert last.items() <= self.last_sent.items()


class LatestOnly(Interleavings):
    """The same, where only the latest of an instance counts."""

    latest_only = True


TestInterleavings = Interleavings.TestCase
TestLatestOnly = LatestOnly.TestCase
for case in (TestInterleavings, TestLatestOnly):
    case.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
