"""What an intake run does to the queue: acquire the inbox, read states, commit decisions, release the inbox."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from relay.errors import LeaseLost
from relay.queue import leases, scripts
from relay.queue.bounded import KEPT_FIELDS
from relay.queue.entries import AcceptedEntry, add_function

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from relay.queue.inbox import InboxEntry
    from relay.queue.keys import OutboxKeys
    from relay.queue.scripts import Argument, Call
    from relay.queue.shard import Shard

#: Entries that one script commits, unless more of them are of one instance. With 500 it held Redis for 5 to 7 ms.
COMMIT_ENTRIES = 250

_COMMIT = scripts.declare(
    "commit_intake",
    keys=(
        "lease", "run", "inbox", "internal", "dataset", "counters", "schedule", "environments", "accepted", "outbox",
        "environment_counters", "outbox_lease", "wakeup",
    ),
    arguments=("token", "lease_ms", "wakeup_ms", "waiting_receipt_ms", "receipt_ms", "environment", "newest"),
    lists={
        "ids": (),
        "internal": (),
        "instances": (),
        "expected": (),
        "states": ("instance", "state"),
        "entries": AcceptedEntry._fields,
        "decisions": ("decision", "events"),
        "receipts": ("status", "lines"),
    },
    text_before=add_function(),
)  # fmt: skip

_DEAD_LETTER = scripts.declare(
    "dead_letter_inbox",
    keys=("lease", "run", "inbox", "internal", "dataset", "counters", "dead"),
    arguments=("token", "lease_ms", "receipt_ms", "entry_id", "reason", "detail"),
    lists={"fields": ()},
)

_RELEASE = scripts.declare(
    "release_inbox",
    keys=("lease", "run", "inbox", "wakeup", "counters"),
    arguments=("token", "wakeup_ms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long the keys of an intake run last, in seconds.

    `wakeup` is how long a wake-up counts as under way. A receipt is kept for `waiting_receipt` while its event waits,
    and for `receipt` once its outcome is known.
    """

    lease: float
    wakeup: float
    waiting_receipt: float
    receipt: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxLease:
    """The inbox of a shard, held by one intake run. `unfinished` runs before it did not release it."""

    shard: Shard
    token: str
    durations: Durations
    unfinished: int


class Receipt(NamedTuple):
    """What the receipt of an event says: its status, and further lines, each with a line feed before it."""

    event_id: str
    status: str
    lines: str = ""


class DecidedEntry(NamedTuple):
    """An inbox entry with its decision. `accepted` is its outbox entry, if it is to be delivered."""

    entry_id: str
    decision: str
    accepted: AcceptedEntry | None = None
    receipt: Receipt | None = None
    #: Whether a redrive or a resync added it.
    is_internal: bool = False


class DecidedInstance(NamedTuple):
    """The decided entries of one instance, its state as the decisions found it, and as they leave it; "" for none."""

    instance: str
    expected: str
    state: str
    entries: Sequence[DecidedEntry]


class Committed(NamedTuple):
    """How many entries left the inbox, and the environments that need a wake-up."""

    entries: int
    to_deliver: list[str]


class States(NamedTuple):
    """Instances' states in one environment: instance → what was accepted last, and what was delivered last."""

    accepted: dict[str, bytes | None]
    delivered: dict[str, bytes | None]


def acquire(shard: Shard, durations: Durations) -> InboxLease | None:
    """Acquire the inbox; None if another run holds it."""
    keys, token = shard.keys, leases.new_token()
    call = leases.acquire_call(
        keys.intake_wakeup, keys.intake_lease, keys.intake_run, token, durations.lease, counts=keys.counts
    )
    lease = leases.acquired(scripts.run(shard.client, call))
    if lease is None:
        return None
    return InboxLease(shard=shard, token=token, durations=durations, unfinished=lease.unfinished)


def mark_in_flight(lease: InboxLease, entry_id: str) -> int:
    """Note the one entry that is in hand; return how many runs died with it. Raise `LeaseLost`."""
    keys = lease.shard.keys
    return leases.handle(lease.shard.client, keys.intake_lease, keys.intake_run, lease.token, entry_id)


def read_states(
    shard: Shard, destination: str, instances: Mapping[str, Sequence[str]]
) -> tuple[int, dict[str, States]]:
    """Return Redis's time in milliseconds, and environment → the states of these instances of it."""
    pipeline = shard.client.pipeline(transaction=False)
    pipeline.time()
    for environment, names in instances.items():
        keys = shard.keys.of_outbox(destination, environment)
        pipeline.hmget(keys.accepted, names)
        pipeline.hmget(keys.delivered, names)
    (seconds, microseconds), *replies = pipeline.execute()
    states = {
        environment: States(dict(zip(names, accepted, strict=True)), dict(zip(names, delivered, strict=True)))
        for (environment, names), accepted, delivered in zip(
            instances.items(), replies[::2], replies[1::2], strict=True
        )
    }
    return seconds * 1000 + microseconds // 1000, states


def commit(lease: InboxLease, destination: str, decided: Mapping[str, Iterable[DecidedInstance]]) -> Committed:
    """Commit decisions, given for each environment; raise `LeaseLost` if another run has acquired the inbox.

    The entries of an instance whose state changed meanwhile stay in the inbox.
    """
    shard = lease.shard
    parts = [
        (shard.keys.of_outbox(destination, environment), part)
        for environment, instances in decided.items()
        for part in _parts(instances)
    ]
    entries, to_deliver = 0, []
    while parts:
        calls = [_commit_call(lease, outbox, part) for outbox, part in parts]
        conflicts = []
        for (outbox, part), (status, *reply) in zip(parts, scripts.run_all(shard.client, calls), strict=True):
            if status == b"lease lost":
                raise LeaseLost("another run of intake has acquired the inbox")
            if status == b"conflict":
                changed = set(reply)
                conflicts.append((outbox, [each for at, each in enumerate(part, 1) if at not in changed]))
                continue
            entries += reply[0]
            if reply[1] and outbox.environment not in to_deliver:
                to_deliver.append(outbox.environment)
        parts = [(outbox, part) for outbox, part in conflicts if part]  # smaller each time, so this ends
    return Committed(entries, to_deliver)


def _parts(instances: Iterable[DecidedInstance]) -> Iterator[list[DecidedInstance]]:
    """Yield instances in parts of at most `COMMIT_ENTRIES` entries, or of one instance."""
    part: list[DecidedInstance] = []
    entries = 0
    for each in instances:
        if part and entries + len(each.entries) > COMMIT_ENTRIES:
            yield part
            part, entries = [], 0
        part.append(each)
        entries += len(each.entries)
    if part:
        yield part


def _commit_call(lease: InboxLease, outbox: OutboxKeys, instances: Sequence[DecidedInstance]) -> Call:
    keys = lease.shard.keys
    ids: list[Argument] = []
    internal: list[Argument] = []
    states: list[Argument] = []
    entries: list[Argument] = []
    receipts: list[Argument] = []
    receipt_keys: list[str] = []
    decisions: Counter[str] = Counter()
    newest = 0
    for each in instances:
        instance, expected, state, decided = each
        if state != expected:
            states += (instance, state)
        for entry_id, decision, accepted, receipt, is_internal in decided:
            ids.append(entry_id)
            decisions[decision] += 1
            if accepted is not None:
                entries += accepted
                newest = max(newest, accepted.arrived)
            if receipt is not None:
                receipt_keys.append(keys.receipt(receipt.event_id))
                receipts += (receipt.status, receipt.lines)
            if is_internal:
                internal.append(entry_id)
    durations = lease.durations
    return _COMMIT.call(
        {
            "lease": keys.intake_lease,
            "run": keys.intake_run,
            "inbox": keys.inbox,
            "internal": keys.internal,
            "dataset": keys.dataset,
            "counters": keys.counts,
            "schedule": keys.schedule(outbox.destination),
            "environments": keys.environments(outbox.destination),
            "accepted": outbox.accepted,
            "outbox": outbox.outbox,
            "environment_counters": outbox.counts,
            "outbox_lease": outbox.lease,
            "wakeup": outbox.wakeup,
        },
        {
            "token": lease.token,
            "lease_ms": round(durations.lease * 1000),
            "wakeup_ms": round(durations.wakeup * 1000),
            "waiting_receipt_ms": round(durations.waiting_receipt * 1000),
            "receipt_ms": round(durations.receipt * 1000),
            "environment": outbox.environment,
            "newest": newest,
        },
        {
            "ids": ids,
            "internal": internal,
            "instances": [each.instance for each in instances],
            "expected": [each.expected for each in instances],
            "states": states,
            "entries": entries,
            "decisions": [part for pair in decisions.items() for part in pair],
            "receipts": receipts,
        },
        more_keys=receipt_keys,
    )


def dead_letter(lease: InboxLease, rejected: Sequence[tuple[InboxEntry, str, str]]) -> int:
    """Make dead letters of entries, given with reason and detail; return how many left the inbox.

    A dead letter keeps the first fields of its entry, and of one that was not read whole also its size. Raise
    `LeaseLost` if another run has acquired the inbox.
    """
    calls = [_dead_letter_call(lease, *each) for each in rejected]
    replies = scripts.run_all(lease.shard.client, calls)
    if -1 in replies:
        raise LeaseLost("another run of intake has acquired the inbox")
    return sum(replies)


def _dead_letter_call(lease: InboxLease, entry: InboxEntry, reason: str, detail: str) -> Call:
    keys = lease.shard.keys
    fields: list[Argument] = [part for field in entry.kept_fields(KEPT_FIELDS) for part in field]
    fields += ("reason", reason, "detail", detail, "entry", entry.entry_id)
    fields += ("size", entry.oversize.size) if entry.oversize else ()
    return _DEAD_LETTER.call(
        {
            "lease": keys.intake_lease,
            "run": keys.intake_run,
            "inbox": keys.inbox,
            "internal": keys.internal,
            "dataset": keys.dataset,
            "counters": keys.counts,
            "dead": keys.dead,
        },
        {
            "token": lease.token,
            "lease_ms": round(lease.durations.lease * 1000),
            "receipt_ms": round(lease.durations.receipt * 1000),
            "entry_id": entry.entry_id,
            "reason": reason,
            "detail": detail,
        },
        {"fields": fields},
        more_keys=[keys.receipt(entry.receipt_id)] if entry.receipt_id else [],
    )


def release(lease: InboxLease) -> int:
    """Release the inbox; return how many entries wait, -1 if the lease was lost before.

    If any wait, a wake-up counts as under way: the caller must send it.
    """
    keys = lease.shard.keys
    call = _RELEASE.call(
        {
            "lease": keys.intake_lease,
            "run": keys.intake_run,
            "inbox": keys.inbox,
            "wakeup": keys.intake_wakeup,
            "counters": keys.counts,
        },
        {"token": lease.token, "wakeup_ms": round(lease.durations.wakeup * 1000)},
    )
    return int(scripts.run(lease.shard.client, call))
