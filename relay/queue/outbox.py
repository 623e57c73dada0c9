"""An outbox: the accepted events of one environment on their way to one destination.

Its stream holds each event until it is delivered, superseded or dead. An event that must be tried again is
*deferred*: it stays in the stream, its instance is noted with the time of the retry, and later events of the instance
are deferred behind it, in order. All entries before the *cursor* are deferred. So a run claims a bounded number of
entries, however many wait for a retry, and all of it outlives the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.errors import RelayError
from relay.queue import bounded, latency, scripts
from relay.queue.attempts import Tally
from relay.queue.health import Health
from relay.queue.inbox import Redriven
from relay.queue.state import Accepted, Delivered, state_after_dead_letter, written_arrival

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from redis import Redis

    from relay.queue.keys import OutboxKeys
    from relay.queue.scripts import Argument, Call
    from relay.queue.shard import Shard

#: The cursor of an outbox that has none yet.
BEGINNING = "-"

#: Fresh entries, and retries, that one claim returns at most. So many take a script less than 5 ms.
CLAIM_ENTRIES = 250
CLAIM_RETRIES = 100

#: Outcomes of each kind, and dead letters, that one commit records at most, for the same reason.
COMMIT_ENTRIES = 250
COMMIT_DEAD = 50

#: Bytes of fresh events that one claim returns at most, if none is larger than `intake.max_event_bytes`.
CLAIM_BYTES = 16_777_216

#: Times that a commit reads the states again that intake changed meanwhile. Each change takes an accepted event of
#: the same instance within a millisecond.
RESTORE_TRIES = 20

_CLAIM = scripts.declare(
    "claim",
    keys=("lease", "run", "outbox", "deferred", "due", "attempts", "health", "paused"),
    arguments=("token", "lease_ms", "environment", "wanted", "longest_pause_ms", "latest_only"),
)
_DEFER = scripts.declare(
    "defer",
    keys=("lease", "run", "deferred", "due"),
    arguments=("token", "lease_ms"),
    lists={"entries": ("instance", "member")},
)
_COMMIT = scripts.declare(
    "commit_delivery",
    keys=(
        "lease", "run", "outbox", "deferred", "due", "attempts", "accepted", "delivered", "cursor", "outbox_counts",
        "counts", "latency", "dead", "paused", "environments",
    ),
    arguments=("token", "lease_ms", "cursor", "environment", "receipt_ms", "newest"),
    lists={
        "done": (),
        "states": ("instance", "state"),
        "undeferred": ("status", "instance", "member"),
        "receipts": (),
        "dead": (
            "id", "instance", "member", "expected", "restored", "reason", "receipt_lines", "receipt", "added_n",
        ),
        "added": ("name", "value"),
        "retries": ("id", "instance", "member", "pause_ms", "trials"),
        "blocked": ("score", "member"),
        "counters": ("name", "by"),
        "latency": ("bucket", "by"),
    },
)  # fmt: skip
_RELEASE = scripts.declare(
    "release_outbox",
    keys=(
        "lease", "run", "outbox", "deferred", "due", "attempts", "cursor", "schedule", "wakeup", "outbox_counts",
        "counts", "paused",
    ),
    arguments=("token", "wakeup_ms", "environment", "cursor", "is_healthy"),
    lists={"unsent": ()},
)  # fmt: skip


class StateContendedError(RelayError):
    """Intake changed an instance's state each time that a dead letter was about to restore it."""


class Trials(NamedTuple):
    """The attempts so far at the first of an instance's entries; all zero before the first answer.

    `attempts` are those that count against `delivery.max_attempts`, `answers` all. `first` is when the first answer
    came, in Redis milliseconds. `forbidden` counts the 401s and 403s after each of which but the last another event
    was delivered, and `successes` is the destination's number of deliveries at the last of them.
    """

    attempts: int = 0
    answers: int = 0
    first: int = 0
    forbidden: int = 0
    successes: int = 0

    def encode(self) -> str:
        """Return the hash field's value."""
        return " ".join(map(str, self))

    @classmethod
    def decode(cls, value: bytes) -> Trials:
        """Parse the hash field's value; an empty one stands for none."""
        return cls(*map(int, value.split()))


NO_TRIALS = Trials()


class OutboxEntry(NamedTuple):
    """An event on its way, complete: `body` is the request's. A tuple, because there are so many."""

    entry_id: str
    body: bytes
    event_id: str
    instance: str
    digest: str
    #: The event's own time in milliseconds, '' for none.
    time: str
    #: The newest time that was known of its instance when it was accepted, its own included; '' for none.
    newest_time: str
    enqueued_at_ms: int
    trials: Trials = NO_TRIALS
    deferred: bool = False
    #: Its place among all enqueued events, as the state has it; of a redriven event that of its first enqueueing.
    arrival: str = "0"
    has_receipt: bool = False

    @property
    def receipt(self) -> str:
        """The event id that its receipt is kept by; '' if it has none."""
        return self.event_id if self.has_receipt else ""


class OutboxLease(NamedTuple):
    """An outbox, and the token of the run that holds its lease."""

    keys: OutboxKeys
    token: str


class Superseded(NamedTuple):
    """An entry that a later one of its instance replaces; `receipt` is the event id of its receipt, '' for none."""

    entry_id: str
    instance: str
    deferred: bool
    receipt: str = ""


class Retry(NamedTuple):
    """An entry whose retry is due, and the earlier ones of its instance that it supersedes."""

    entry: OutboxEntry
    superseded: Sequence[Superseded] = ()


class ClaimRequest(NamedTuple):
    """From where to claim how many fresh entries, and as many retries; 0 only renews the lease."""

    lease: OutboxLease
    cursor: str
    wanted: int


@dataclass(slots=True, kw_only=True)
class Claimed:
    """The entries that may be sent; none while the environment is paused or the destination lets nothing be sent.

    `cursor` is behind the last fresh entry that was read, None if none was; `now_ms` is Redis's time. `has_more` if
    as many entries were found as wanted.
    """

    now_ms: int
    health: Health
    is_paused: bool = False
    cursor: str | None = None
    fresh: list[OutboxEntry] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    has_more: bool = False


class DeadEntry(NamedTuple):
    """An entry that becomes a dead letter, and why; its trials include the last."""

    entry: OutboxEntry
    reason: str
    detail: str
    status: int | None = None


class DeferredEntry(NamedTuple):
    """An entry to be sent again after a pause, with its trials so far, and the later entries of its instance."""

    entry: OutboxEntry
    pause_seconds: float
    blocked: Sequence[OutboxEntry] = ()


@dataclass(slots=True, kw_only=True)
class Outcomes:
    """The outcomes of claimed entries of one outbox, to be committed together."""

    delivered: list[OutboxEntry] = field(default_factory=list)
    superseded: list[Superseded] = field(default_factory=list)
    dead: list[DeadEntry] = field(default_factory=list)
    deferred: list[DeferredEntry] = field(default_factory=list)
    latency: dict[int, int] = field(default_factory=dict)
    latency_ms: float = 0.0
    attempts: Tally = field(default_factory=Tally)

    def __bool__(self) -> bool:
        return bool(self.delivered or self.superseded or self.dead or self.deferred)

    def done(self) -> Iterator[OutboxEntry]:
        """Yield the entries whose instance's next one may be sent."""
        yield from self.delivered
        for dead in self.dead:
            yield dead.entry

    def entry_ids(self) -> Iterator[str]:
        """Yield the ids of all entries that the run then no longer has."""
        for entry in self.done():
            yield entry.entry_id
        for superseded in self.superseded:
            yield superseded.entry_id
        for deferred in self.deferred:
            yield deferred.entry.entry_id
            for blocked in deferred.blocked:
                yield blocked.entry_id


class CommitRequest(NamedTuple):
    """The outcomes of one outbox, and the cursor of the run that comes after them."""

    lease: OutboxLease
    outcomes: Outcomes
    cursor: str


class Committed(NamedTuple):
    """The reply to a commit. It was not recorded if the lease is lost."""

    is_recorded: bool
    is_paused: bool


class Released(NamedTuple):
    """The reply to a release. `has_more` if a wake-up counts as sent, which the caller must send now."""

    is_lost: bool
    has_more: bool


def after(entry_id: str) -> str:
    """Return the cursor just behind an entry."""
    return f"({entry_id}"


def deferred_member(instance: str, entry_id: str) -> str:
    """Return an entry's member of the set of deferred ones: ordered by instance, then as in the stream."""
    milliseconds, _, sequence = entry_id.partition("-")
    return f"{instance}\n{milliseconds:0>20}-{sequence:0>20}"


def claim(
    shard: Shard, requests: Sequence[ClaimRequest], *,
    lease_seconds: float, longest_pause_seconds: float, latest_only: bool = False, max_event_bytes: int = 65_536,
) -> list[Claimed | None]:  # fmt: skip
    """Renew leases and claim entries of many outboxes; None for a lease that is lost.

    A retry that is later than the `longest_pause_seconds` is due. The fresh entries are read by XRANGE after the
    lease was renewed: cheaper than through a script, and under the lease nothing else claims, defers or deletes them.
    """
    limit = min(CLAIM_ENTRIES, max(1, CLAIM_BYTES // max_event_bytes))
    calls = [
        _claim_call(shard, request, lease_seconds, longest_pause_seconds, latest_only=latest_only)
        for request in requests
    ]
    claimed: list[Claimed | None] = []
    readable = []
    for request, reply in zip(requests, scripts.run_all(shard.client, calls), strict=True):
        if reply is None:
            claimed.append(None)
            continue
        now, health, is_paused, is_closed, has_deferred, *retries = reply
        one = Claimed(now_ms=int(now), health=Health.decode(health), is_paused=bool(is_paused))
        one.retries = [_retry(*retry) for retry in retries]
        one.has_more = len(retries) >= min(request.wanted, CLAIM_RETRIES)
        claimed.append(one)
        if request.wanted and not is_paused and not is_closed:
            readable.append((request, one, bool(has_deferred)))
    if readable:
        _claim_fresh(shard, readable, limit, lease_seconds)
    return claimed


def _claim_call(
    shard: Shard, request: ClaimRequest, lease_seconds: float, pause_seconds: float, *, latest_only: bool
) -> Call:
    (keys, token), _, wanted = request
    return _CLAIM.call(
        _keys(shard, keys),
        {
            "token": token,
            "lease_ms": round(lease_seconds * 1000),
            "environment": keys.environment,
            "wanted": min(wanted, CLAIM_RETRIES),
            "longest_pause_ms": round(pause_seconds * 1000),
            "latest_only": int(latest_only),
        },
    )


def _keys(shard: Shard, outbox: OutboxKeys) -> dict[str, str]:
    """Return the keys by the names that the scripts declare."""
    return {
        "lease": outbox.lease,
        "run": outbox.run,
        "outbox": outbox.outbox,
        "deferred": outbox.deferred,
        "due": outbox.due,
        "attempts": outbox.attempts,
        "accepted": outbox.accepted,
        "delivered": outbox.delivered,
        "cursor": outbox.cursor,
        "wakeup": outbox.wakeup,
        "outbox_counts": outbox.counts,
        "counts": shard.keys.counts,
        "latency": shard.keys.latency,
        "dead": shard.keys.dead,
        "health": shard.keys.destination(outbox.destination),
        "paused": shard.keys.paused(outbox.destination),
        "schedule": shard.keys.schedule(outbox.destination),
        "environments": shard.keys.environments(outbox.destination),
    }


def _claim_fresh(
    shard: Shard, requests: Sequence[tuple[ClaimRequest, Claimed, bool]], limit: int, lease_seconds: float
) -> None:
    """Read fresh entries; defer those whose instance waits for a retry, where any does."""
    pipeline = shard.client.pipeline(transaction=False)
    for (lease, cursor, wanted), _, _ in requests:
        pipeline.xrange(lease.keys.outbox, min=cursor, count=min(wanted, limit))
    blocked = []
    for ((lease, _, wanted), claimed, has_deferred), reply in zip(requests, pipeline.execute(), strict=True):
        claimed.has_more = claimed.has_more or len(reply) >= min(wanted, limit)
        if reply:
            claimed.fresh = [_entry(entry_id, fields) for entry_id, fields in reply]
            claimed.cursor = after(claimed.fresh[-1].entry_id)
            if has_deferred:
                blocked.append((lease, claimed))
    if not blocked:
        return
    calls = [
        _DEFER.call(
            _keys(shard, lease.keys),
            {"token": lease.token, "lease_ms": round(lease_seconds * 1000)},
            {"entries": [part for entry in claimed.fresh for part in _instance_and_member(entry)]},
        )
        for lease, claimed in blocked
    ]
    for (_, claimed), positions in zip(blocked, scripts.run_all(shard.client, calls), strict=True):
        if positions is None:  # the lease is lost, as the next claim will tell
            claimed.fresh, claimed.cursor = [], None
            continue
        deferred = set(positions)
        claimed.fresh = [entry for position, entry in enumerate(claimed.fresh, 1) if position not in deferred]


def _instance_and_member(entry: OutboxEntry | Superseded) -> tuple[str, str]:
    """Return an entry's instance, and its member of the set of deferred entries."""
    return entry.instance, deferred_member(entry.instance, entry.entry_id)


def _retry(trials: bytes, entry: list[Any], *superseded: bytes) -> Retry:
    entry_id, flat = entry
    found = _entry(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))
    found = found._replace(trials=Trials.decode(trials), deferred=True)
    pairs = zip(superseded[::2], superseded[1::2], strict=True)
    return Retry(
        found, [Superseded(one.decode(), found.instance, deferred=True, receipt=of.decode()) for one, of in pairs]
    )


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> OutboxEntry:
    time = fields[b"time"].decode()
    enqueued_at = fields[b"arrived"]
    sequence = fields.get(b"sequence")
    if b"redriven" in fields or b"resync" in fields:
        arrival = _first_arrival(fields)
    elif sequence in {None, b"0"}:
        arrival = enqueued_at.decode()
    else:
        arrival = f"{enqueued_at.decode()}-{sequence.decode()}"
    return OutboxEntry(
        entry_id.decode(),
        fields[b"event"],
        fields[b"id"].decode(),
        fields[b"instance"].decode(),
        fields[b"digest"].decode(),
        time,
        fields[b"newest"].decode() if b"newest" in fields else time,
        int(enqueued_at),
        NO_TRIALS,
        False,  # noqa: FBT003 - by position: this costs each delivery
        arrival,
        b"receipt" in fields,
    )


def _first_arrival(fields: dict[bytes, bytes]) -> str:
    """Return the place among all events of one that was redriven or repeats another."""
    if b"resync" in fields:
        return fields[b"resync"].decode()
    redriven = Redriven.decode(fields[b"redriven"].decode())
    if not redriven.force:
        return written_arrival(*redriven.arrival)
    return written_arrival(int(fields[b"arrived"]), int(fields.get(b"sequence", 0)))


def commit(
    shard: Shard, requests: Sequence[CommitRequest], *,
    now_ms: int, lease_seconds: float, receipt_seconds: float, also: Call | None = None,
) -> tuple[list[Committed], Any]:  # fmt: skip
    """Record outcomes of many outboxes; return the replies, and that to the call `also`, made in the same round trip.

    `now_ms` is Redis's time, for what is noted as delivered. A commit with dead letters is made again if intake
    changed one of their instances' states meanwhile; `StateContendedError` is raised if that happens each time.
    """
    committed: dict[int, Committed] = {}
    also_reply = None
    for _ in range(RESTORE_TRIES):
        positions = [position for position in range(len(requests)) if position not in committed]
        states = _states_of_dead(shard, [requests[position] for position in positions])
        calls = [
            _commit_call(
                shard,
                requests[position],
                states,
                now_ms=now_ms,
                lease_seconds=lease_seconds,
                receipt_seconds=receipt_seconds,
            )
            for position in positions
        ]
        replies = scripts.run_all(shard.client, [*calls, also] if also else calls)
        if also:
            also, also_reply = None, replies.pop()
        for position, reply in zip(positions, replies, strict=True):
            if reply is None:
                committed[position] = Committed(is_recorded=False, is_paused=False)
            elif not reply[1]:
                committed[position] = Committed(is_recorded=True, is_paused=bool(reply[0]))
        if len(committed) == len(requests):
            return [committed[position] for position in range(len(requests))], also_reply
    raise StateContendedError(f"the state of a dead letter's instance changed {RESTORE_TRIES} times in a row")


_States = dict[tuple[str, str], tuple[bytes, bytes]]


def _states_of_dead(shard: Shard, requests: Sequence[CommitRequest]) -> _States:
    """Return what was last accepted and last delivered of the instances of dead letters, b"" for nothing."""
    pipeline = shard.client.pipeline(transaction=False)
    asked = [(lease.keys, dead.entry.instance) for lease, outcomes, _ in requests for dead in outcomes.dead]
    for keys, instance in asked:
        pipeline.hget(keys.accepted, instance)
        pipeline.hget(keys.delivered, instance)
    replies = pipeline.execute() if asked else []
    return {
        (keys.environment, instance): (accepted or b"", delivered or b"")
        for (keys, instance), accepted, delivered in zip(asked, replies[::2], replies[1::2], strict=True)
    }


def _commit_call(
    shard: Shard,
    request: CommitRequest,
    states: _States,
    *,
    now_ms: int,
    lease_seconds: float,
    receipt_seconds: float,
) -> Call:
    (keys, token), outcomes, cursor = request
    delivered, superseded = outcomes.delivered, outcomes.superseded
    lists: dict[str, list[Argument]] = {name: [] for name, _ in _COMMIT.lists}
    lists["done"] += [entry.entry_id for entry in delivered]
    lists["done"] += [one.entry_id for one in superseded]
    receipts = []
    for status, done in (("superseded", superseded), ("delivered", delivered)):
        for one in done:
            if one.deferred:
                lists["undeferred"] += (status, *_instance_and_member(one))
            if one.receipt:
                receipts.append(one.receipt)
                lists["receipts"].append(status)
    for entry in delivered:
        lists["states"] += (entry.instance, f"{entry.digest}\n{entry.newest_time}\n{now_ms}\n{entry.arrival}")
    for dead in outcomes.dead:
        receipts += [dead.entry.receipt] if dead.entry.receipt else []
        state = _restored_state(dead.entry, *states[keys.environment, dead.entry.instance])
        added = _dead_letter_fields(keys, dead, state, now_ms)
        lists["added"] += added
        lists["dead"] += (*_dead_letter(dead, state), len(receipts) if dead.entry.receipt else "")
        lists["dead"].append(len(added) // 2)
    for entry, pause_seconds, blocked in outcomes.deferred:
        pause_ms = round(pause_seconds * 1000)
        lists["retries"] += (entry.entry_id, *_instance_and_member(entry), pause_ms, entry.trials.encode())
        for one in blocked:
            lists["blocked"] += (0, _instance_and_member(one)[1])
    counters = outcomes.attempts.counts()
    if delivered:
        counters[latency.SUM] = round(outcomes.latency_ms)
    lists["counters"] = [part for counter in counters.items() for part in counter]
    lists["latency"] = [part for bucket in outcomes.latency.items() for part in bucket]
    return _COMMIT.call(
        _keys(shard, keys),
        {
            "token": token,
            "lease_ms": round(lease_seconds * 1000),
            "cursor": cursor,
            "environment": keys.environment,
            "receipt_ms": round(receipt_seconds * 1000),
            "newest": max((entry.enqueued_at_ms for entry in delivered), default=0),
        },
        lists,
        more_keys=[shard.keys.receipt(event_id) for event_id in receipts],
    )


class _Restored(NamedTuple):
    """An instance's state, what a dead letter restores it to, and the newest time that only a duplicate gave."""

    expected: bytes
    restored: str | bytes
    repeat_time: int = 0


def _restored_state(entry: OutboxEntry, expected: bytes, delivered: bytes) -> _Restored:
    if not expected:
        return _Restored(b"", b"")
    accepted = Accepted.decode(expected.decode())
    last_delivered = Delivered.decode(delivered.decode()) if delivered else None
    state = state_after_dead_letter(accepted, last_delivered, entry.event_id)
    is_last_accepted = accepted.ids[-1:] == (entry.event_id,)
    return _Restored(expected, state.encode() if state else b"", accepted.repeat_time if is_last_accepted else 0)


def _dead_letter(dead: DeadEntry, state: _Restored) -> tuple[Argument, ...]:
    entry, reason, detail, _ = dead
    instance, member = _instance_and_member(entry)
    member = member if entry.deferred else ""
    lines = f"\n{reason}\n{detail}"
    return entry.entry_id, instance, member, state.expected, state.restored, reason, lines


def _dead_letter_fields(keys: OutboxKeys, dead: DeadEntry, state: _Restored, now_ms: int) -> list[Argument]:
    """Return the fields of a dead letter beside the entry's, and those that replace one of the entry's."""
    entry, reason, detail, status = dead
    fields: list[Argument] = ["reason", reason, "detail", detail, "status", status or ""]
    fields += ("attempts", entry.trials.answers, "first", entry.trials.first or "")
    fields += ("last", now_ms if entry.trials.first else "", "destination", keys.destination)
    fields += ("environment", keys.environment, "entry", entry.entry_id)
    if entry.time and state.repeat_time > int(entry.time):  # reported with that time, too: redriven, it is as new
        fields += ("time", state.repeat_time)
    return fields


def release(
    shard: Shard, leases: Sequence[tuple[OutboxLease, str, Sequence[str]]], *, wakeup_seconds: float, is_healthy: bool
) -> list[Released]:
    """Release outboxes, each given with the cursor of the run that comes next and the instances of unsent retries.

    If an outbox has more, a wake-up counts as sent, and the caller must send it; not while the destination lets
    nothing be sent.
    """
    calls = [
        _RELEASE.call(
            _keys(shard, keys),
            {
                "token": token,
                "wakeup_ms": round(wakeup_seconds * 1000),
                "environment": keys.environment,
                "cursor": cursor,
                "is_healthy": int(is_healthy),
            },
            {"unsent": unsent},
        )
        for (keys, token), cursor, unsent in leases
    ]
    return [Released(reply < 0, reply > 0) for reply in scripts.run_all(shard.client, calls)]


def wait(client: Redis, positions: Mapping[str, str], seconds: float) -> bool:
    """Wait for a fresh entry in any of these streams, given with their cursors; return whether one came."""
    after_ids = {key: "0-0" if cursor == BEGINNING else cursor.lstrip("(") for key, cursor in positions.items()}
    return bounded.wait(client, after_ids, seconds) is not None
