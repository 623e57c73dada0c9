"""An outbox: the accepted events of one environment on their way to one destination.

Its stream holds each event until it is delivered or dead. An event that must be tried again is *deferred*: it
stays in the stream, its instance is noted as *due* at a time, and later events of the instance are deferred
behind it, in order. The *cursor* is where a drain goes on reading: whatever lies before it is deferred. So a
drain holds a window, however much waits for a retry, and all of it outlives the drain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.queue import bounded, latency, scripts
from relay.queue.attempts import Tally
from relay.queue.health import Health
from relay.queue.inbox import Redriven
from relay.queue.state import written_arrival

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from redis import Redis

    from relay.queue.keys import Keys, OutboxKeys
    from relay.queue.scripts import Argument, Call

#: The cursor of an outbox that has none yet.
BEGINNING = "-"

_TAKE = scripts.load("take")
_SETTLE = scripts.load("settle")
_RELEASE = scripts.load("release_outbox")


class Trials(NamedTuple):
    """What was tried so far with the first of an instance's entries; all zero before the first answer.

    `attempts` are those that count against `delivery.max_attempts`, `answers` all. `first` is when the first answer
    came, in Redis milliseconds. `forbidden` counts the 401s and 403s after each of which but the last another passed,
    and `successes` is how many the destination had seen at the last of them.
    """

    attempts: int = 0
    answers: int = 0
    first: int = 0
    forbidden: int = 0
    successes: int = 0

    def encode(self) -> str:
        """Write it as the hash field's value."""
        return " ".join(map(str, self))

    @classmethod
    def decode(cls, value: bytes) -> Trials:
        """Read the hash field's value; nothing stands for none."""
        return cls(*map(int, value.split()))


NO_TRIALS = Trials()


class OutboxEntry(NamedTuple):
    """An event on its way, complete: `body` is what is POSTed. A tuple, because there are so many."""

    entry_id: str
    body: bytes
    event_id: str
    instance: str
    digest: str
    #: The newest time that was known of its instance when it was accepted, its own included; '' if none was.
    time: str
    arrived: int
    trials: Trials = NO_TRIALS
    deferred: bool = False
    #: Its place among all that came, as the state has it: that of its first coming, if it was redriven.
    came: str = "0"
    #: Whether somebody may ask what became of it.
    receipt: bool = False


class Superseded(NamedTuple):
    """An entry that a later one of its instance replaces."""

    entry_id: str
    instance: str
    deferred: bool


class Due(NamedTuple):
    """An entry whose retry is due, and the ids of earlier ones of its instance that it supersedes."""

    entry: OutboxEntry
    superseded: Sequence[str]


@dataclass(frozen=True, slots=True)
class Taken:
    """What `take` found: entries to send, and the cursor behind the last fresh one looked at.

    While the destination is held or the environment paused there are none.
    """

    now: int
    cursor: str | None
    fresh: list[OutboxEntry]
    due: list[Due]
    health: Health
    paused: bool


@dataclass(frozen=True, slots=True)
class Death:
    """An entry that becomes a dead letter, and why; its trials include the last."""

    entry: OutboxEntry
    reason: str
    detail: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Parking:
    """An entry to try again after a pause, with its trials so far, and its instance's entries that wait behind it."""

    entry: OutboxEntry
    pause_seconds: float
    followers: Sequence[OutboxEntry]


@dataclass(slots=True)
class Settlement:
    """What became of some entries of one outbox, to be recorded together."""

    delivered: list[OutboxEntry] = field(default_factory=list)
    superseded: list[Superseded] = field(default_factory=list)
    dead: list[Death] = field(default_factory=list)
    deferred: list[Parking] = field(default_factory=list)
    latency: dict[int, int] = field(default_factory=dict)
    latency_ms: float = 0.0
    attempts: Tally = field(default_factory=Tally)

    def __bool__(self) -> bool:
        return bool(self.delivered or self.superseded or self.dead or self.deferred)

    def done(self) -> Iterator[OutboxEntry]:
        """Yield the entries whose instance's next one may go."""
        yield from self.delivered
        for death in self.dead:
            yield death.entry

    def entry_ids(self) -> Iterator[str]:
        """Yield the ids of all entries that leave the drain's hand."""
        for entry in self.done():
            yield entry.entry_id
        for superseded in self.superseded:
            yield superseded.entry_id
        for parking in self.deferred:
            yield parking.entry.entry_id
            for follower in parking.followers:
                yield follower.entry_id


def after(entry_id: str) -> str:
    """Return the cursor just behind an entry."""
    return f"({entry_id}"


def take_call(
    keys: OutboxKeys, shared: Keys, *,
    token: str, lease_seconds: float, cursor: str, fresh: int, due: int, longest_pause: float,
    latest_only: bool = False,
) -> Call:  # fmt: skip
    """Return the call that renews the lease and finds what may be sent; `taken` reads its reply.

    A retry that is due later than the `longest_pause` in seconds is due.
    """
    script_keys = (
        keys.lease, keys.outbox, keys.deferred, keys.due, keys.attempts,
        shared.destination(keys.destination), shared.paused(keys.destination), keys.run,
    )  # fmt: skip
    args: list[Argument] = [token, round(lease_seconds * 1000), cursor, fresh, due, keys.environment]
    args += [int(latest_only), round(longest_pause * 1000)]
    return scripts.Call(_TAKE, script_keys, args)


def taken(reply: list[Any]) -> Taken | None:
    """Read the reply of a take; None when the lease is lost."""
    if not reply:
        return None
    now, last, fresh, due, health, paused = reply
    return Taken(
        now=int(now),
        cursor=after(last.decode()) if last else None,
        fresh=[_entry(entry) for entry in fresh],
        due=[
            Due(_entry(entry, Trials.decode(trials or b""), deferred=True), [each.decode() for each in superseded])
            for trials, entry, *superseded in due
        ],
        health=Health.decode(health),
        paused=bool(paused),
    )


def _entry(entry: list[Any], trials: Trials = NO_TRIALS, *, deferred: bool = False) -> OutboxEntry:
    entry_id, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return OutboxEntry(
        entry_id=entry_id.decode(),
        body=fields[b"event"],
        event_id=fields[b"id"].decode(),
        instance=fields[b"instance"].decode(),
        digest=fields[b"digest"].decode(),
        time=(fields.get(b"newest") or fields[b"time"]).decode(),
        arrived=int(fields[b"arrived"]),
        came=_came(fields),
        trials=trials,
        deferred=deferred,
        receipt=b"receipt" in fields,
    )


def _came(fields: dict[bytes, bytes]) -> str:
    if b"resync" in fields:
        return fields[b"resync"].decode()
    redriven = fields.get(b"redriven")
    if redriven is not None:
        known = Redriven.decode(redriven.decode())
        if not known.force:
            return written_arrival(*known.arrival)
    return written_arrival(int(fields[b"arrived"]), int(fields.get(b"sequence", 0)))


def settle_call(
    keys: OutboxKeys, shared: Keys, *, token: str, lease_seconds: float, cursor: str, settlement: Settlement,
    receipt_seconds: float,
) -> Call:  # fmt: skip
    """Return the call that records a settlement; `applied` reads its reply."""
    args: list[Argument] = [token, round(lease_seconds * 1000), cursor, keys.destination, keys.environment]
    asked = [entry.event_id for entry in settlement.delivered if entry.receipt]
    newest = max((entry.arrived for entry in settlement.delivered), default=0)
    args += [round(receipt_seconds * 1000), newest, len(asked), *asked]
    args.append(len(settlement.delivered))
    for entry in settlement.delivered:
        args += [entry.entry_id, entry.instance, int(entry.deferred), entry.digest, entry.time, entry.came]
    args.append(len(settlement.superseded))
    for entry_id, instance, deferred in settlement.superseded:
        args += [entry_id, instance, int(deferred)]
    args.append(len(settlement.dead))
    for death in settlement.dead:
        entry = death.entry
        args += [entry.entry_id, entry.instance, int(entry.deferred), entry.event_id]
        args += [death.reason, death.detail, death.status or "", entry.trials.answers, entry.trials.first or ""]
    args.append(len(settlement.deferred))
    for parking in settlement.deferred:
        entry, followers = parking.entry, parking.followers
        args += [entry.entry_id, entry.instance, round(parking.pause_seconds * 1000), entry.trials.encode()]
        args += [len(followers), *(follower.entry_id for follower in followers)]
    counts = settlement.attempts.counts()
    if settlement.delivered:
        counts[latency.SUM] = round(settlement.latency_ms)
    args.append(len(counts))
    for counted in (counts, settlement.latency):
        args += [part for pair in counted.items() for part in pair]
    script_keys = (
        keys.lease, keys.run, keys.outbox, keys.deferred, keys.due, keys.attempts, keys.accepted, keys.delivered,
        keys.cursor, keys.counts, shared.counts, shared.latency, shared.dead, shared.paused(keys.destination),
        shared.receipts, shared.environments(keys.destination),
    )  # fmt: skip
    return scripts.Call(_SETTLE, script_keys, args)


class Applied(NamedTuple):
    """What a settlement's reply says: whether it was recorded, and whether the environment is paused."""

    recorded: bool
    paused: bool


def applied(reply: int) -> Applied:
    """Read the reply of a settlement; it is not recorded when the lease is lost."""
    return Applied(recorded=reply >= 0, paused=reply == 1)


def release_call(
    keys: OutboxKeys,
    shared: Keys,
    *,
    token: str,
    wakeup_seconds: float,
    cursor: str,
    held: bool,
    unsent: Sequence[str],
) -> Call:
    """Return the call that lets go of an outbox; the reply is 1 for more to do now, 0 for none, -1 for lost.

    If there is more, a wakeup counts as under way: the caller must ring it; not while the destination is `held`.
    `unsent`
    are instances whose retry was taken and not sent.
    """
    script_keys = (
        keys.lease, keys.run, keys.outbox, keys.deferred, keys.due, keys.attempts, keys.cursor,
        shared.schedule(keys.destination), keys.wakeup, keys.counts, shared.counts, shared.paused(keys.destination),
    )  # fmt: skip
    args: list[Argument] = [token, round(wakeup_seconds * 1000), keys.environment, cursor, int(held), *unsent]
    return scripts.Call(_RELEASE, script_keys, args)


def wait(client: Redis, positions: Mapping[str, str], seconds: float) -> bool:
    """Wait for a fresh entry in any of these streams, given with their cursors; tell whether one came."""
    after_ids = {key: "0-0" if cursor == BEGINNING else cursor.lstrip("(") for key, cursor in positions.items()}
    return bounded.wait(client, after_ids, seconds) is not None
