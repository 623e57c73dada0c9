"""Inbox to outboxes: read, complete, judge, commit; one round of it for each batch.

Who may do this is decided by the lease; what became of each entry is recorded by one script, together with its
removal from the inbox. Dying anywhere in between leaves the entries in the inbox.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import defaultdict
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from relay import failpoints
from relay.errors import InvalidEvent, LeaseLost
from relay.events.event import MAX_ID_BYTES, DeploymentEvent
from relay.logs import LineLimit, get_logger
from relay.queue import bounded, clock_ahead, inbox, leases, receipts, scripts
from relay.queue.clock_ahead import ClockAhead
from relay.queue.contested import Change
from relay.queue.dead_letters import Reason
from relay.queue.inbox import Redriven
from relay.queue.state import Accepted, Delivered, written_arrival
from relay.settings import DEFAULT_DESTINATION
from workers.intake.deduplication import Clock, Decision, judge
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from relay.events.event import Defaults
    from relay.queue.inbox import InboxEntry
    from relay.queue.keys import OutboxKeys
    from relay.queue.scripts import Argument
    from workers.runtime import Runtime

_ACCEPT = scripts.load("accept")

#: The field of an entry that holds the event, and those of the envelope.
_EVENT, _ID, _SOURCE, _TIME = b"event", b"id", b"source", b"time"

#: The field of an entry that asks for a receipt, for who gave an id.
_RECEIPT = b"receipt"

#: The field of an entry that was a dead letter before, and that of one that only repeats what is known.
_UNREADABLE = inbox.UNREADABLE.encode()
_REDRIVEN, _RESYNC = b"redriven", b"resync"

#: Bytes of a batch that intake aims at, entries that it reads at first, and by how much more at most the next time.
BATCH_BYTES = 8_388_608
FIRST_COUNT = 50
COUNT_GROWTH = 4

#: The pause between two tries to let go of the inbox while Redis is away.
LET_GO_PAUSE_SECONDS = 0.1

#: Entries that one log line names.
MAX_NAMED = 5

#: Characters of a fault's message that a dead letter keeps.
_DETAIL_CHARACTERS = 500

#: Believes the times of events that are not ahead of their arrival.
_NO_CLOCK = Clock(2**62, inf)

_log = get_logger(__name__)
_forged_lines, _ahead_lines = LineLimit(), LineLimit()


class Unreadable(NamedTuple):
    """An entry that becomes a dead letter as it is."""

    entry_id: str
    detail: str
    reason: Reason = Reason.INVALID
    #: The id that a receipt is asked for by, '' for none.
    receipt: str = ""
    #: As that of a `Readable`; a dead letter's receipt has its reason and detail.
    answer: tuple[str, str] = ("", "")


class Readable(NamedTuple):
    """An entry whose event is complete. `event_id` is the producer's, or else the entry's own."""

    entry_id: str
    event: DeploymentEvent
    event_id: str
    instance: str
    digest: str
    arrived: int
    time: int | None
    #: The newest time that is known of its instance once it is accepted, where that is not its own.
    newest: int | None = None
    #: By how much its `time` was ahead of Redis's clock, where that is more than is believed; else 0.
    ahead_ms: int = 0
    sequence: int = 0
    redriven: Redriven | None = None
    #: The id that a receipt is asked for by, '' for none.
    receipt: str = ""
    #: What a receipt says of one that is no news: its status if that is not the decision, and its further lines.
    answer: tuple[str, str] = ("", "")
    #: Whether it only repeats what is known, and once that is judged, when this came.
    resync: bool = False
    repeats: str = ""

    @property
    def first_arrived(self) -> int:
        """When the event came to the inbox for the first time."""
        return self.redriven.arrived if self.redriven else self.arrived


@dataclass(slots=True)
class Judged:
    """The entries of one instance with their decisions, and its state before and after them."""

    instance: str
    expected: str
    state: str
    entries: list[tuple[Decision, Readable]] = field(default_factory=list)


@dataclass(slots=True)
class IntakeReport:
    """What one drain of the inbox did. `to_deliver` are environments whose outboxes wait for a drain."""

    taken: int = 0
    more: bool = False
    lease_lost: bool = False
    to_deliver: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.taken} taken{', more wait' if self.more else ''}{', lease lost' if self.lease_lost else ''}"


def run_intake(runtime: Runtime) -> IntakeReport | None:
    """Drain the inbox until it is empty or the budget is over; None if another drain is at it.

    While more waits, others are called to deliver. What the last batch brought is left to the caller, who has
    nothing left to take in and so can deliver it without a wakeup's detour.
    """
    keys, client, settings = runtime.keys, runtime.client, runtime.settings
    token = leases.new_token()
    call = leases.acquire_call(
        keys.intake_wakeup, keys.intake_lease, keys.intake_run, token, settings.worker.lease, counts=keys.counts
    )
    lease = leases.acquired(scripts.run(client, call))
    if lease is None:
        return None
    report = IntakeReport()
    most = 1 if lease.unfinished else settings.intake.batch_size  # one at a time after a drain died at its work
    count = min(FIRST_COUNT, most)
    most_bytes = inbox.most_bytes(settings.queue.max_event_bytes)
    deadline = time.monotonic() + settings.worker.budget
    try:
        while time.monotonic() < deadline and not is_stopping():
            entries = inbox.head(client, keys, count, most_bytes=most_bytes, is_careful=bool(lease.unfinished))
            if entries and entries[0].oversize:
                report.taken += _bury(runtime, token, entries[0])
            elif entries:
                count = next_count(entries, count, most)
                runtime.wakeups.wake_delivery(report.to_deliver)
                crashing = _crashing(runtime, token, entries[0]) if lease.unfinished else None
                taken, report.to_deliver = take_in(runtime, token, [] if crashing else entries, crashing)
                report.taken += taken
            elif report.to_deliver or not inbox.wait(client, keys, "0-0", settings.worker.stay):
                break
    except LeaseLost:
        report.lease_lost = True
        return report
    except RedisError as error:
        _log.warning("Redis failed a drain of the inbox, which now only lets go of it: %s", error)
    report.more = _let_go(runtime, token)
    return report


def _let_go(runtime: Runtime, token: str) -> bool:
    """Let go of the inbox, and tell whether more waits; while Redis is away, try for as long as a lease lasts.

    Else nobody would take anything in from when Redis is back until the lease has run out.
    """
    give_up_at = time.monotonic() + runtime.settings.worker.lease
    while True:
        try:
            return inbox.release(runtime.client, runtime.keys, token, runtime.settings.worker.sweep) > 0
        except RedisError:
            if time.monotonic() > give_up_at or is_stopping():
                raise
            time.sleep(LET_GO_PAUSE_SECONDS)


def _bury(runtime: Runtime, token: str, entry: InboxEntry) -> int:
    """Make a dead letter of an entry that is too large; return how many left the inbox."""
    detail = _too_large(entry, runtime.settings.queue.max_event_bytes)
    done = inbox.bury(
        runtime.client,
        runtime.keys,
        entry,
        token=token,
        lease_seconds=runtime.settings.worker.lease,
        reason=Reason.INVALID,
        detail=detail,
        receipt=_receipt(entry),
        receipt_seconds=runtime.settings.queue.receipt_for,
    )
    if done < 0:
        raise LeaseLost("another drain of the inbox has taken over")
    _log.warning("an entry of the inbox is too large and was dead-lettered without being read whole", detail=detail)
    return done


def _too_large(entry: InboxEntry, max_event_bytes: int) -> str:
    assert entry.oversize is not None  # noqa: S101 - the caller has asked
    size, is_exact = entry.oversize.size, entry.oversize.is_exact
    return (
        f"the entry is {'' if is_exact else 'at least '}{size} bytes in size and was not read whole: "
        f"an event has at most {max_event_bytes} (queue.max_event_bytes), an entry {inbox.MAX_FIELDS} fields; "
        f"the beginnings of its first {bounded.KEPT_FIELDS} fields are kept"
    )


def _crashing(runtime: Runtime, token: str, entry: InboxEntry) -> Unreadable | None:
    """Note that this entry is in hand alone, and tell whether it is one that drains die of."""
    keys = runtime.keys
    deaths = leases.handle(runtime.client, keys.intake_lease, keys.intake_run, token, entry.entry_id)
    if deaths < leases.MAX_DEATHS:
        return None
    return Unreadable(
        entry.entry_id, f"{deaths} workers died when they took it in", Reason.WORKER_CRASH, _receipt(entry)
    )


def next_count(entries: list[InboxEntry], count: int, most: int) -> int:
    """Return how many entries to read next, so that a batch stays near `BATCH_BYTES` whatever producers put in."""
    size = sum(sum(map(len, entry.fields.values())) for entry in entries)
    fitting = max(1, BATCH_BYTES * len(entries) // max(1, size))
    return min(most, fitting, count * COUNT_GROWTH)


def take_in(
    runtime: Runtime, token: str, entries: list[InboxEntry], crashing: Unreadable | None = None
) -> tuple[int, list[str]]:
    """Take one batch in; return how many entries left the inbox, and which outboxes nobody delivers yet.

    An entry that is `crashing` becomes a dead letter unread.
    """
    unreadable, readable = _read(_without_forged_fields(entries, runtime), runtime)
    if crashing:
        unreadable.append(crashing)
    by_environment: dict[str, list[Readable]] = defaultdict(list)
    for entry in readable:
        by_environment[entry.event.environment.name or ""].append(entry)
    outboxes = [runtime.keys.of_outbox(DEFAULT_DESTINATION, name) for name in by_environment]
    judged = _judge(runtime, outboxes, by_environment)
    reply = scripts.run(runtime.client, _accept_call(runtime, token, unreadable, outboxes, judged))
    if not reply[0]:
        raise LeaseLost("another drain of the inbox has taken over")
    _note_changes(runtime, outboxes, judged)
    _note_clocks_ahead(runtime, judged)
    if _log.isEnabledFor(logging.DEBUG):
        _log_fates(unreadable, judged)
    return int(reply[2]), [name.decode() for name in reply[3:]]


def _note_changes(runtime: Runtime, outboxes: list[OutboxKeys], judged: list[list[Judged]]) -> None:
    """Note what reports changed, so that instances which two sources change in turns are found."""
    changes = (
        Change(keys.environment, item.instance, entry.event.source or "", entry.digest, before)
        for keys, each in zip(outboxes, judged, strict=True)
        for item in each
        for entry, before in _changes(item)
    )
    with contextlib.suppress(RedisError):  # it is for people, and the entries are committed
        runtime.changes.note(runtime.client, runtime.keys, DEFAULT_DESTINATION, changes)


def _changes(item: Judged) -> Iterator[tuple[Readable, str]]:
    """Yield an instance's entries that report another digest than the one before, and that one."""
    before = item.expected.partition("\n")[0]
    for decision, entry in item.entries:
        if decision is Decision.CHANGED and entry.redriven is None:
            yield entry, before
        if decision.is_news:
            before = entry.digest


def _note_clocks_ahead(runtime: Runtime, judged: list[list[Judged]]) -> None:
    """Count and name the events whose `time` was further ahead of Redis's clock than is believed."""
    ahead = [entry for each in judged for item in each for _, entry in item.entries if entry.ahead_ms]
    if not ahead:
        return
    worst = max(ahead, key=lambda entry: entry.ahead_ms)
    latest = ClockAhead(worst.ahead_ms, worst.event.environment.name or "", worst.event.source or "")
    with contextlib.suppress(RedisError):  # what is only shown must not stop intake, such as at maxmemory
        clock_ahead.note(runtime.client, runtime.keys, len(ahead), latest)
    if number := _ahead_lines.add(len(ahead)):
        _log.warning(
            "the time of %d events was ahead of Redis's clock by more than delivery.max_clock_skew, and counts as "
            "that of their arrival; correct the clock of the source",
            number,
            source=latest.source,
            environment=latest.environment,
            ahead_seconds=latest.ahead_ms // 1000,
        )


def _log_fates(unreadable: list[Unreadable], judged: list[list[Judged]]) -> None:
    for entry in unreadable:
        _log.debug("taken in", event_id=entry.entry_id, decision=entry.reason, because=entry.detail)
    for each in judged:
        for item in each:
            for decision, readable in item.entries:
                _log.debug("taken in", event_id=readable.event_id, decision=decision)


def read(entry: InboxEntry, defaults: Defaults, max_bytes: int) -> Readable | Unreadable:
    """Read one entry as it lies in the inbox; whatever is wrong with it is said, never raised."""
    body = entry.fields.get(_EVENT)
    if (why := entry.fields.get(_UNREADABLE)) is not None:
        return Unreadable(entry.entry_id, why.decode(errors="replace")[:_DETAIL_CHARACTERS])
    if body is None:
        return Unreadable(entry.entry_id, "the entry has no field `event`")
    if len(body) > max_bytes:
        return Unreadable(entry.entry_id, f"the event is {len(body)} bytes, and queue.max_event_bytes is {max_bytes}")
    try:
        given = DeploymentEvent.parse(
            body, id=_text(entry, _ID), source=_text(entry, _SOURCE), time=_text(entry, _TIME)
        )
        event = given.completed(defaults)
        redriven = _redriven(entry)
    except InvalidEvent as error:
        return Unreadable(entry.entry_id, str(error)[:_DETAIL_CHARACTERS])
    return Readable(
        entry_id=entry.entry_id,
        event=event,
        event_id=event.id or entry.entry_id,
        instance=event.instance.key,
        digest=event.image.digest,
        arrived=entry.arrived,
        time=None if event.time is None else int(event.time.timestamp() * 1000),
        sequence=entry.sequence,
        redriven=redriven,
        receipt=_receipt(entry),
        resync=_RESYNC in entry.fields,
    )


def _receipt(entry: InboxEntry) -> str:
    """Return the id that a receipt is asked for by; who gave none, or none that can be, cannot ask."""
    given = entry.fields.get(_ID, b"")
    if _RECEIPT not in entry.fields or len(given) > MAX_ID_BYTES:
        return ""
    return given.decode(errors="replace").strip()


def _redriven(entry: InboxEntry) -> Redriven | None:
    value = _text(entry, _REDRIVEN)
    if value is None:
        return None
    try:
        return Redriven.decode(value)
    except ValueError as error:
        raise InvalidEvent(_REDRIVEN.decode(), str(error)) from None


def _text(entry: InboxEntry, name: bytes) -> str | None:
    value = entry.fields.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidEvent(name.decode(), "is not UTF-8") from None


def _read(entries: list[InboxEntry], runtime: Runtime) -> tuple[list[Unreadable], list[Readable]]:
    unreadable, readable = [], []
    for entry in entries:
        failpoints.handling("intake", entry.fields.get(_ID, b"").decode(errors="replace"))
        result = read(entry, runtime.defaults, runtime.settings.queue.max_event_bytes)
        if isinstance(result, Unreadable):
            unreadable.append(result._replace(receipt=_receipt(entry)))
        else:
            readable.append(result)
    return unreadable, readable


def _without_forged_fields(entries: list[InboxEntry], runtime: Runtime) -> list[InboxEntry]:
    """Return the entries without internal fields that a producer wrote: its event counts as any other report."""
    internal = [entry.entry_id for entry in entries if _REDRIVEN in entry.fields or _RESYNC in entry.fields]
    if not internal:
        return entries
    forged = set(internal) - inbox.authentic(runtime.client, runtime.keys, internal)
    if number := _forged_lines.add(len(forged)):
        _log.warning(
            "%d entries had the field `redriven` or `resync`, which only a redrive or a resync may write: ignored",
            number,
            entries=sorted(forged)[:MAX_NAMED],
        )
    return [_reported(entry) if entry.entry_id in forged else entry for entry in entries]


def _reported(entry: InboxEntry) -> InboxEntry:
    fields = {name: value for name, value in entry.fields.items() if name not in {_REDRIVEN, _RESYNC}}
    return entry._replace(fields=fields)


def _judge(
    runtime: Runtime, outboxes: list[OutboxKeys], by_environment: dict[str, list[Readable]]
) -> list[list[Judged]]:
    """Read the instances' states in one round trip and judge each environment's entries in order."""
    delivery = runtime.settings.delivery
    reassert_after_ms, forget_after_ms = delivery.reassert_after * 1000, delivery.forget_after * 1000
    pipeline = runtime.client.pipeline(transaction=False)
    pipeline.time()
    instances = [list(dict.fromkeys(entry.instance for entry in entries)) for entries in by_environment.values()]
    for keys, names in zip(outboxes, instances, strict=True):
        pipeline.hmget(keys.accepted, names)
        pipeline.hmget(keys.delivered, names)
    (seconds, microseconds), *states = pipeline.execute()
    clock = Clock(seconds * 1000 + microseconds // 1000, delivery.max_clock_skew * 1000)
    replies = iter(states)
    result = []
    for names, entries in zip(instances, by_environment.values(), strict=True):
        accepted = dict(zip(names, next(replies), strict=True))
        delivered = dict(zip(names, next(replies), strict=True))
        result.append(judge_in_order(entries, accepted, delivered, reassert_after_ms, forget_after_ms, clock=clock))
    return result


def judge_in_order(
    entries: Iterable[Readable],
    accepted: dict[str, bytes | None],
    delivered: dict[str, bytes | None],
    reassert_after_ms: float,
    forget_after_ms: float = inf,
    *,
    clock: Clock = _NO_CLOCK,
) -> list[Judged]:
    """Judge one environment's entries, each against what those before it left of its instance's state."""
    judged: dict[str, Judged] = {}
    states: dict[str, Accepted | None] = {}
    for entry in entries:
        name = entry.instance
        if name not in judged:
            value = (accepted[name] or b"").decode()
            judged[name] = Judged(name, value, value)
            states[name] = clock.without_future(Accepted.decode(value)) if value else None
        if entry.time is not None:
            time, ahead_ms = clock.believed(entry.time, entry.first_arrived)
            if time != entry.time:
                entry = entry._replace(time=time, ahead_ms=ahead_ms)  # noqa: PLW2901 - with what is believed
        last = delivered[name]
        decision, states[name] = judge(
            states[name],
            Delivered.decode(last.decode()) if last else None,
            digest=entry.digest,
            event_id=entry.event_id,
            time=entry.time,
            # A resync's is compared with the time of a delivery; it is ahead of that if the clock was set back.
            arrived=min(entry.arrived, clock.now) if entry.resync else entry.arrived,
            reassert_after_ms=reassert_after_ms,
            forget_after_ms=forget_after_ms,
            sequence=entry.sequence,
            redriven=entry.redriven,
            resync=entry.resync,
            is_ahead=entry.ahead_ms > 0,
        )
        state = states[name]
        if state and decision.is_news:
            if entry.resync:
                entry = _repeating(entry, state)  # noqa: PLW2901 - with what it repeats
            elif state.time != entry.time:
                entry = entry._replace(newest=state.time)  # noqa: PLW2901 - with what is known
        elif state and entry.receipt:
            entry = entry._replace(answer=_answer(decision, entry, state, last))  # noqa: PLW2901 - with what it says
        judged[name].entries.append((decision, entry))
    for name, state in states.items():
        judged[name].state = state.encode() if state else ""
    return list(judged.values())


def _answer(decision: Decision, entry: Readable, state: Accepted, last: bytes | None) -> tuple[str, str]:
    """Return what the receipt of an event that is no news says: its status if not the decision, and further lines."""
    if decision is not Decision.DUPLICATE:
        return "", ""
    if entry.digest != state.digest:
        return receipts.Status.SUPERSEDED, f"\n{receipts.BY_ID}\n{state.digest}"
    delivered = Delivered.decode(last.decode()) if last else None
    is_delivered = delivered and (delivered.digest, delivered.came) == (state.digest, written_arrival(*state.arrival))
    repeated = state.ids[-1] if state.ids else ""
    return "", f"\n{repeated}\n{receipts.DELIVERED if is_delivered else receipts.WAITING}"


def _repeating(entry: Readable, state: Accepted) -> Readable:
    """Give a resync's entry the time and the place of what it repeats, so that its delivery sets neither back."""
    return entry._replace(time=state.time, repeats=written_arrival(*state.arrival))


def _accept_call(
    runtime: Runtime,
    token: str,
    unreadable: list[Unreadable],
    outboxes: list[OutboxKeys],
    judged: list[list[Judged]],
) -> scripts.Call:
    keys, settings = runtime.keys, runtime.settings
    script_keys = [keys.intake_lease, keys.inbox, keys.dead, keys.counts, keys.schedule(DEFAULT_DESTINATION)]
    script_keys += [keys.receipts, keys.environments(DEFAULT_DESTINATION), keys.internal, keys.dataset]
    seconds = (
        settings.worker.lease,
        settings.worker.sweep,
        settings.delivery.max_age,
        settings.queue.receipt_for,
    )
    args: list[Argument] = [token, *(round(each * 1000) for each in seconds)]
    entries: list[Unreadable | Readable] = [
        *unreadable,
        *(entry for each in judged for item in each for _, entry in item.entries),
    ]
    asked = [(entry.entry_id, entry.receipt, *entry.answer) for entry in entries if entry.receipt]
    args += [len(asked), *(part for each in asked for part in each)]
    args.append(len(unreadable))
    for entry in unreadable:
        args += [entry.entry_id, entry.reason, entry.detail]
    for outbox, instances in zip(outboxes, judged, strict=True):
        script_keys += [outbox.accepted, outbox.outbox, outbox.counts, outbox.lease, outbox.wakeup]
        args += [outbox.environment, len(instances)]
        args += [item.instance for item in instances]
        args += [item.expected for item in instances]
        for item in instances:
            args += [item.state, len(item.entries)]
            for decision, readable in item.entries:
                args += [readable.entry_id, decision]
                if decision.is_news:
                    args += _news(readable)
    return scripts.Call(_ACCEPT, script_keys, args)


def _news(readable: Readable) -> list[Argument]:
    event, time_ms = readable.event, readable.time
    time_ms = None if time_ms is None else min(time_ms, readable.first_arrived)
    return [
        event.body(),
        readable.event_id,
        event.source or "",
        "" if time_ms is None else time_ms,
        "" if readable.newest is None or readable.newest == time_ms else readable.newest,
        readable.digest,
        readable.redriven.encode() if readable.redriven else "",
        readable.repeats,
    ]
