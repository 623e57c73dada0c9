"""A small model of the relay, kept by watching the streams in Redis.

The model knows the reports and the API's answers. After each script it compares the streams with those before: an
entry must have left its stream for a reason that the rules give, must be counted as that, and must leave its
instance's state as the rules say. The rules are those of tests/rules.py, which share no code with the workers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import rules
from outboxes import BESIDE

from relay.queue.counters import read_counters
from relay.queue.leases import MAX_DEATHS
from relay.queue.state import Accepted, Delivered
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from redis import Redis

    from relay.queue.keys import Keys

#: First parts of the keys that remain at rest; keys that only a run needs must be gone.
REMEMBERED = {
    "appended",
    "changes",
    "clock_ahead",
    "contested",
    "counts",
    "dataset",
    "dead",
    "destination",
    "environments",
    "inbox",
    "latency",
    "state",
}

EntryId = tuple[int, int]
Fields = dict[str, str]


class AnswerKind(Enum):
    """Meaning of an answer of the API for an event, by the table of the delivery rules."""

    DELIVERED = "delivered"
    #: Uses up an attempt.
    FAILED = "failed"
    #: The destination's fault: uses up no attempt.
    LATER = "later"
    UNAUTHORIZED = "unauthorized"
    REFUSED = "refused"


class Place(Enum):
    """Place of an event."""

    INBOX = "inbox"
    OUTBOX = "outbox"
    DEAD = "dead"
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Event:
    """One report. `order` is its position among all reports; `accepted` is set once it was accepted."""

    name: str
    environment: str
    instance: str
    digest: str
    event_id: str
    time: float | None
    entry: str
    order: EntryId
    accepted: rules.Accepted | None = None
    readable: bool = True
    place: Place = Place.INBOX
    redriven: bool = False
    forced: bool = False
    outcome: str = ""
    #: Since it was last accepted: answers that count as attempts, and answers of 403.
    attempts: int = 0
    forbidden: int = 0

    @property
    def rank(self) -> EntryId:
        return self.accepted.rank if self.accepted else (0, 0)

    @property
    def where(self) -> tuple[str, str]:
        return self.environment, self.instance

    def __repr__(self) -> str:
        return f"{self.name} ({self.environment}, {self.place.value} {self.entry} {self.outcome})"


@dataclass(eq=False, slots=True)
class Post:
    """One request. `processed` is None until it is known whether the API took it."""

    run: Run
    event: Event
    entry: str
    processed: bool | None = None
    answer: AnswerKind | None = None


@dataclass(eq=False, slots=True)
class Run:
    """A run in the model: the answers that it got, and whether its process has ended."""

    name: str
    latest: bool = False
    expires: bool = False
    has_ended: bool = False
    answered: dict[tuple[str, str], AnswerKind] = field(default_factory=dict)


class Outbox(NamedTuple):
    """Redis's data of one environment."""

    entries: dict[str, Fields]
    accepted: dict[str, str]
    delivered: dict[str, str]
    counts: Counter[str]
    deferred: list[tuple[str, str]]
    due: set[str]
    attempts: dict[str, str]
    lease: str


class Snapshot(NamedTuple):
    """Redis's data of the whole shard."""

    inbox: dict[str, Fields]
    dead: dict[str, Fields]
    counts: Counter[str]
    lease: str
    redrive_lease: str
    outboxes: dict[str, Outbox]


def snapshot(client: Redis, keys: Keys, environments: Collection[str]) -> Snapshot:
    pipeline = client.pipeline(transaction=False)
    pipeline.xrange(keys.inbox).xrange(keys.dead).hgetall(keys.counts)
    pipeline.get(keys.intake_lease).get(keys.redrive_lease)
    for name in environments:
        of = keys.of_outbox(DEFAULT_DESTINATION, name)
        pipeline.xrange(of.outbox).hgetall(of.accepted).hgetall(of.delivered).hgetall(of.counts)
        pipeline.zrange(of.deferred, 0, -1).zrange(of.due, 0, -1).hgetall(of.attempts).get(of.lease)
    inbox, dead, counts, lease, redrive_lease, *rest = pipeline.execute()
    outboxes = {}
    for number, name in enumerate(environments):
        entries, accepted, delivered, own, deferred, due, attempts, held = rest[8 * number : 8 * number + 8]
        outboxes[name] = Outbox(
            _stream(entries),
            _hash(accepted),
            _hash(delivered),
            _counter(own),
            [_member(each.decode()) for each in deferred],
            {each.decode() for each in due},
            _hash(attempts),
            (held or b"").decode(),
        )
    return Snapshot(_stream(inbox), _stream(dead), _counter(counts), *_texts(lease, redrive_lease), outboxes)


def _texts(*values: bytes | None) -> list[str]:
    return [(value or b"").decode() for value in values]


def _stream(entries: Any) -> dict[str, Fields]:
    return {entry_id.decode(): _hash(fields) for entry_id, fields in entries}


def _hash(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def _counter(fields: Mapping[bytes, bytes]) -> Counter[str]:
    return Counter({name.decode(): int(value) for name, value in fields.items()})


def _member(member: str) -> tuple[str, str]:
    """Parse a member of `deferred`: instance and entry."""
    instance, _, entry = member.partition("\n")
    milliseconds, _, sequence = entry.partition("-")
    return instance, f"{int(milliseconds)}-{int(sequence)}"


def entry_order(entry: str) -> EntryId:
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence)


class Model:
    """Checks what must be true after each script of any run, and at rest."""

    def __init__(self, client: Redis, keys: Keys, environments: Collection[str], max_attempts: int) -> None:
        self.events: list[Event] = []
        self.posts: list[Post] = []
        #: Runs that ended without releasing their lease, of each environment.
        self.deaths: Counter[str] = Counter()
        self.broken = False
        self._client, self._keys, self._environments = client, keys, environments
        self._max_attempts = max_attempts
        self._seen = snapshot(client, keys, environments)
        #: Last run with the lease of the inbox ("") and of each outbox, expired or not.
        self._holders: dict[str, Run] = {}
        self._known: dict[tuple[str, str], rules.State] = {}
        self._delivered: dict[tuple[str, str], Event] = {}
        self._died: set[tuple[str, str]] = set()
        self._api: dict[tuple[str, str], Event] = {}
        #: The idempotency key of each event by what it says, and the reverse.
        self._keys_sent: dict[tuple[str, ...], str] = {}
        self._subjects: dict[str, tuple[str, ...]] = {}
        self._in_inbox: dict[str, Event] = {}
        self._in_outbox: dict[tuple[str, str], Event] = {}
        self._in_dead: dict[str, Event] = {}

    # Producers, operators and the API

    def reported(self, events: Sequence[Event]) -> None:
        """Note reports that were enqueued."""
        self.events += events
        self._in_inbox |= {event.entry: event for event in events}
        self.look()

    def sent(self, run: Run, environment: str, entry: str, digest: str, key: str) -> Post:
        """Check a request that is sent."""
        event = self._in_outbox.get((environment, entry))
        self._must(event is not None, f"{run.name} sends {entry} of {environment}, which has left its outbox")
        assert event is not None
        self._must(event.digest == digest, f"{event} is sent with another body")
        subject = (event.event_id, *event.where, event.digest, str(event.rank))
        same = self._keys_sent.setdefault(subject, key) == key and self._subjects.setdefault(key, subject) == subject
        self._must(
            same, f"{event} is sent with the key {key}, not that of its other attempts or that of another event"
        )
        self._must(self.is_holder(run, environment), f"{run.name} sends {event} after it was taken over")
        for post in self.posts:
            mine = (
                post.event.where == event.where and self.is_holder(post.run, environment) and not post.run.has_ended
            )
            if post.answer is None and mine:
                self.fail(f"{event} is sent while {post.event} of its instance is in flight")
            if post.event is event and post.entry == entry and post.answer is AnswerKind.DELIVERED and mine:
                self.fail(f"{event} is sent again though {post.run.name} knows that it was delivered")
        if not run.latest:
            before = [e for e in self._entries_of(event) if entry_order(e) < entry_order(entry)]
            self._must(not before, f"{event} overtakes {[self._in_outbox[environment, e] for e in before]}")
        last = self._delivered.get(event.where)
        if last is not None:
            self._must(last.rank < event.rank, f"{event} is sent after {last}, which came later, was delivered")
        post = Post(run, event, entry)
        self.posts.append(post)
        return post

    def processed(self, post: Post, *, was: bool) -> None:
        """Note whether the API took a request."""
        post.processed = was
        if was:
            self._api[post.event.where] = post.event

    def answered(self, post: Post, kind: AnswerKind, *, status: int | None) -> None:
        """Note a run's answer to its request."""
        post.answer = kind
        post.run.answered[post.event.environment, post.entry] = kind
        post.event.attempts += kind is AnswerKind.FAILED
        post.event.forbidden += status == 403

    def dropped(self) -> None:
        """Note that all dead letters were dropped."""
        for event in self._in_dead.values():
            event.place, event.outcome = Place.ENDED, "dropped"
        number = len(self._in_dead)
        self._in_dead.clear()
        before, self._seen = self._seen, snapshot(self._client, self._keys, self._environments)
        self._must(not self._seen.dead, "dead letters are left")
        self._must(
            (self._seen.counts - before.counts) == Counter(dropped=number), "dropped dead letters are not counted"
        )
        self._check_sums()

    def is_holder(self, run: Run | None, environment: str) -> bool:
        """Return whether no other run took over this run's lease, expired or not."""
        return run is not None and self._holders.get(environment) is run

    def holder(self, environment: str) -> Run | None:
        """Return the last run with this lease, expired or not."""
        return self._holders.get(environment)

    @property
    def has_dead(self) -> bool:
        """Return whether there are dead letters."""
        return bool(self._in_dead)

    # Scripts

    def look(self, run: Run | None = None) -> None:
        """Compare Redis's data with the previous snapshot; `run` executed a script in between."""
        before, self._seen = self._seen, snapshot(self._client, self._keys, self._environments)
        now = self._seen
        if run is not None:
            self._note_leases(run, before, now)
        expected: Counter[str] = Counter()
        self._check_redriven(before, now, expected)
        buried = {e: now.dead[e] for e in now.dead if e not in before.dead}
        own: dict[str, Counter[str]] = {name: Counter() for name in self._environments}
        left = self._check_taken_in(run, before, now, buried, expected, own)
        for name in self._environments:
            self._check_delivered(run, name, before, now, buried, own[name])
        self._must(not buried, f"dead letters of nothing: {buried}")
        for name, counts in own.items():
            expected += counts
            self._check_counts(name, before.outboxes[name].counts, now.outboxes[name].counts, counts)
        expected["taken"] += left
        self._check_counts("the shard", before.counts, now.counts, expected)
        self._check_sums()
        self._check_states(now)

    def _note_leases(self, run: Run, before: Snapshot, now: Snapshot) -> None:
        if now.lease and now.lease != before.lease:
            self._holders[""] = run
        if now.redrive_lease and now.redrive_lease != before.redrive_lease:
            self._holders["redrive"] = run
        for name, outbox in now.outboxes.items():
            if outbox.lease and outbox.lease != before.outboxes[name].lease:
                self._holders[name] = run

    def _check_redriven(self, before: Snapshot, now: Snapshot, expected: Counter[str]) -> None:
        left = [e for e in before.dead if e not in now.dead]
        came = [e for e in now.inbox if e not in before.inbox and e not in self._in_inbox]
        self._must(len(left) == len(came), f"{len(left)} dead letters left, and {len(came)} entries were added")
        for letter, entry in zip(left, came, strict=True):
            event = self._in_dead.pop(letter)
            fields = now.inbox[entry]
            if event.outcome == "worker_crash" and "id" not in fields:
                event.event_id = entry  # it crashed before it got the id of its first entry
            if event.readable:
                self._must(fields.get("id", entry) == event.event_id, f"{event} was redriven as {fields}")
            event.place, event.entry, event.redriven, event.outcome = Place.INBOX, entry, True, ""
            event.forced = fields["redriven"].endswith(" force")
            self._in_inbox[entry] = event
        expected["redriven"] = len(left)

    def _check_taken_in(  # noqa: PLR0917 - both snapshots and the counts
        self,
        run: Run | None,
        before: Snapshot,
        now: Snapshot,
        buried: dict[str, Fields],
        expected: Counter[str],
        own: dict[str, Counter[str]],
    ) -> int:
        left = [e for e in before.inbox if e not in now.inbox]
        self._must(not left or self.is_holder(run, ""), "an intake committed over its successor")
        came = {
            name: [e for e in now.outboxes[name].entries if e not in before.outboxes[name].entries]
            for name in self._environments
        }
        letters = {fields["entry"]: letter for letter, fields in buried.items() if "destination" not in fields}
        for entry in left:
            event = self._in_inbox.pop(entry)
            if not event.readable or entry in letters:
                self._must(entry in letters, f"{event} is not a dead letter")
                letter = letters[entry]
                event.place, event.outcome = Place.DEAD, buried.pop(letter)["reason"]
                crashed = event.outcome == "worker_crash" and self.deaths[""] >= MAX_DEATHS
                self._must(
                    crashed or (event.outcome == "invalid" and not event.readable), f"{event} is dead without reason"
                )
                self._in_dead[letter] = event
                expected["dead"] += 1
                expected[f"dead:{event.outcome}"] += 1
                continue
            decision = self._decide(event)
            own[event.environment][decision] += 1
            if not decision.is_delivered:
                event.place, event.outcome = Place.ENDED, decision
                continue
            entries = now.outboxes[event.environment].entries
            mine = [e for e in came[event.environment] if entries[e]["instance"] == event.instance]
            self._must(bool(mine), f"{event} is {decision}, and is in no outbox")
            place = mine[0]
            came[event.environment].remove(place)
            fields = entries[place]
            self._must(f"{fields['arrived']}-{fields.get('sequence', 0)}" == entry, f"{event} is out of order")
            event.place, event.entry, event.attempts, event.forbidden = Place.OUTBOX, place, 0, 0
            self._in_outbox[event.environment, place] = event
        self._must(not any(came.values()), f"entries without a delivered event: {came}")
        return len(left)

    def _decide(self, event: Event) -> rules.Decision:
        """Return what an event is to its instance, and note the state that it leaves."""
        ran_at = entry_order(event.entry)[0] if event.time is None else event.time
        report = rules.Report(
            event_id=event.event_id,
            digest=event.digest,
            rank=entry_order(event.entry) if event.forced else event.order,
            time=event.time,
            ran_at=ran_at,
            is_redriven=event.redriven,
            is_forced=event.forced,
        )
        state = self._known.get(event.where, rules.State())
        decision = rules.decide(report, state)
        self._known[event.where] = state = rules.after(report, state, decision)
        if decision.is_delivered:
            event.accepted = state.last
        return decision

    def _check_delivered(  # noqa: PLR0917 - the same
        self,
        run: Run | None,
        name: str,
        before: Snapshot,
        now: Snapshot,
        buried: dict[str, Fields],
        counts: Counter[str],
    ) -> None:
        was, is_ = before.outboxes[name], now.outboxes[name]
        left = [e for e in was.entries if e not in is_.entries]
        if left or is_.attempts != was.attempts or set(is_.deferred) - set(was.deferred):
            self._must(self.is_holder(run, name), f"a run of {name} committed over its successor")
        assert not left or run
        letters = {
            f["entry"]: e for e, f in buried.items() if f.get("environment") == name and f["reason"] != "invalid"
        }
        dead = [e for e in left if e in letters]
        for entry in left:
            if entry in letters:
                continue
            event = self._in_outbox.pop((name, entry))
            event.place = Place.ENDED
            if run.answered.get((name, entry)) is AnswerKind.DELIVERED:
                event.outcome = "delivered"
                self._delivered[event.where] = event
            else:
                event.outcome = "superseded"
                later = [e for e in self._entries_of(event, was) if entry_order(e) > entry_order(entry)]
                self._must(bool(run.latest and later), f"{event} was neither delivered nor superseded")
            counts[event.outcome] += 1
        for entry in dead:
            event = self._in_outbox.pop((name, entry))
            fields = buried.pop(letters[entry])
            event.place, event.outcome = Place.DEAD, fields["reason"]
            self._check_death(run, event, entry)
            self._in_dead[letters[entry]] = event
            counts["dead"] += 1
            counts[f"dead:{event.outcome}"] += 1
            self._restore(event)

    def _check_death(self, run: Run, event: Event, entry: str) -> None:
        answer = run.answered.get((event.environment, entry))
        good = {
            "refused": answer is AnswerKind.REFUSED,
            "exhausted": answer is AnswerKind.FAILED and event.attempts >= self._max_attempts,
            "forbidden": answer is AnswerKind.UNAUTHORIZED and event.forbidden >= 3,
            "expired": run.expires,
            "worker_crash": self.deaths[event.environment] >= MAX_DEATHS,
        }
        self._must(good.get(event.outcome, False), f"{event} is not dead for that reason")

    def _restore(self, event: Event) -> None:
        """Note that a dead letter restored its instance's state."""
        self._died.add(event.where)
        state = self._known.get(event.where)
        if state is None:
            return
        if state.last and state.last.event_id == event.event_id and event.time is not None:
            event.time = rules.latest(event.time, state.repeated_at)  # it was reported with that time, too
        delivered = self._delivered.get(event.where)
        state = rules.restore(state, event.event_id, delivered.accepted if delivered else None)
        if state.is_empty:
            del self._known[event.where]
        else:
            self._known[event.where] = state

    def _entries_of(self, event: Event, outbox: Outbox | None = None) -> list[str]:
        entries = (outbox or self._seen.outboxes[event.environment]).entries
        return [e for e, fields in entries.items() if fields["instance"] == event.instance]

    # Invariants

    def _check_counts(self, where: str, before: Counter[str], now: Counter[str], expected: Counter[str]) -> None:
        names = (before.keys() | now.keys() | expected.keys()) - {"outbox", "retries"}
        names = {name for name in names if not BESIDE.match(name)}
        wrong = {n: (now[n] - before[n], expected[n]) for n in names if now[n] - before[n] != expected[n]}
        self._must(not wrong, f"{where} counts (is, should be): {wrong}")

    def _check_sums(self) -> None:
        now = self._seen
        counters = read_counters(self._client, self._keys)
        lost = (
            rules.unaccounted(asdict(counters)),
            counters.dead - counters.redriven - counters.dropped - len(now.dead),
        )
        self._must(lost == (0, 0), f"the counters do not add up: {counters}")
        places = Counter(event.place for event in self.events)
        lying = len(now.inbox) + sum(len(outbox.entries) for outbox in now.outboxes.values())
        self._must(
            counters.waiting == lying == places[Place.INBOX] + places[Place.OUTBOX], f"waiting: {counters}, {lying}"
        )
        self._must(counters.added == len(self.events), f"added: {counters}, and {len(self.events)} were")
        self._must(len(now.dead) == places[Place.DEAD], "dead letters are lost")
        self._check_attempts(now.counts)
        for name, outbox in now.outboxes.items():
            self._must(outbox.counts["outbox"] == len(outbox.entries), f"{name} counts {outbox.counts['outbox']}")
            deferred = {instance for instance, _ in outbox.deferred}
            self._must(deferred == outbox.due, f"{name}: deferred are {deferred}, due {outbox.due}")
            self._must(outbox.attempts.keys() <= deferred, f"{name}: attempts of an instance that is not deferred")
            for instance, entry in outbox.deferred:
                lies = outbox.entries.get(entry, {}).get("instance") == instance
                self._must(lies, f"{name}: {entry} is deferred and not in the outbox")

    def _check_attempts(self, counts: Counter[str]) -> None:
        """Check that each recorded answer is counted once: as a delivery, a retry, or a reason of a dead letter."""
        answers = sum(number for name, number in counts.items() if name.startswith("attempt:"))
        timed = sum(number for name, number in counts.items() if name.startswith("duration:"))
        recorded = ("delivered", "retries", "dead:refused", "dead:exhausted", "dead:forbidden")
        self._must(answers == timed == sum(counts[name] for name in recorded), f"attempts: {counts}")

    def _check_states(self, now: Snapshot) -> None:
        for name, outbox in now.outboxes.items():
            should = {i: known for (e, i), known in self._known.items() if e == name}
            self._must(outbox.accepted.keys() == should.keys(), f"{name} knows {outbox.accepted.keys()}")
            for instance, known in should.items():
                state = Accepted.decode(outbox.accepted[instance])
                wanted = (known.digest, known.newest, known.ids)
                self._must((state.digest, state.time, state.ids) == wanted, f"{state} should be {wanted}")
            delivered = {i: last.digest for (e, i), last in self._delivered.items() if e == name}
            found = {i: Delivered.decode(value).digest for i, value in outbox.delivered.items()}
            self._must(found == delivered, f"{name} has as delivered {found}, should be {delivered}")

    def check_end(self) -> None:
        """Check that nothing waits once the API is healthy, and that it has each instance's last digest."""
        waiting = [event for event in self.events if event.place in {Place.INBOX, Place.OUTBOX}]
        self._must(not waiting, f"never delivered: {waiting}")
        for where, event in self._api.items():
            if event.outcome == "delivered":
                self._must(self._delivered[where].digest == event.digest, f"the API has {event} last")
        for where, known in self._known.items():
            if where not in self._died:
                self._must(self._delivered[where].digest == known.digest, f"{known.last} was not delivered")

    def check_rest(self) -> None:
        """Check that no key is left that only a run needs."""
        names = {key.decode().removeprefix(self._keys.prefix) for key in self._client.scan_iter()}
        left = {name for name in names if name.partition(":")[0] not in REMEMBERED}
        self._must(not left, f"left behind: {left}")

    def _must(self, holds: bool, message: str) -> None:  # noqa: FBT001 - reads as a sentence
        if not holds:
            self.fail(message)

    def fail(self, message: str) -> None:
        """Fail, and check nothing more."""
        self.broken = True
        raise AssertionError(message)
