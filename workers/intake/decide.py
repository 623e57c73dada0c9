"""Decide on a batch of events, each against the state that those before it leave of its instance."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

from relay.queue.clock_ahead import ClockAhead
from relay.queue.contested import Change
from relay.queue.entries import AcceptedEntry, optional_fields
from relay.queue.intake import DecidedEntry, DecidedInstance, Receipt
from relay.queue.receipts import BY_ID, DELIVERED, WAITING, Status
from relay.queue.state import Accepted, Delivered, written_arrival
from workers.intake.deduplication import Clock, Decision, Report, decide_redrive, decide_report, decide_resync

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.queue.intake import States
    from workers.intake.read import Parsed


class Rules(NamedTuple):
    """What decisions depend on beside events and states."""

    clock: Clock
    reassert_after_ms: float
    forget_after_ms: float = inf


class Decided(NamedTuple):
    """The decisions on one environment's events, and what they show.

    `changes` are reports of another digest than before; `ahead` are events whose time was further ahead of Redis's
    clock than is believed.
    """

    instances: list[DecidedInstance]
    changes: list[Change]
    ahead: list[ClockAhead]


class _Instance:
    """An instance while its events are decided on, one after the other."""

    __slots__ = ("delivered", "entries", "expected", "state")

    def __init__(self, accepted: bytes | None, delivered: bytes | None, clock: Clock) -> None:
        self.expected = accepted.decode() if accepted else ""
        self.state = clock.without_future(Accepted.decode(self.expected)) if accepted else None
        self.delivered = Delivered.decode(delivered.decode()) if delivered else None
        self.entries: list[DecidedEntry] = []


def decide_in_order(events: Iterable[Parsed], states: States, rules: Rules) -> Decided:
    """Decide on one environment's events."""
    instances: dict[str, _Instance] = {}
    changes: list[Change] = []
    ahead: list[ClockAhead] = []
    for event in events:
        name = event.instance
        instance = instances.get(name)
        if instance is None:
            instance = _Instance(states.accepted[name], states.delivered[name], rules.clock)
            instances[name] = instance
        time, ahead_ms = event.time, 0
        if time is not None:
            first_enqueued_at = event.redriven.arrived if event.redriven else event.enqueued_at
            time, ahead_ms = rules.clock.believed(time, first_enqueued_at)
            if ahead_ms:
                ahead.append(ClockAhead(ahead_ms, event.environment, event.event.source or ""))
        report = Report(event.digest, event.event_id, time, event.enqueued_at, event.sequence, ahead_ms > 0)
        before = instance.state
        decision, state = _decide(event, report, instance, rules)
        instance.state = state
        if decision is Decision.CHANGED and event.redriven is None and before is not None:
            source = event.event.source or ""
            changes.append(Change(event.environment, name, source, event.digest, before.digest))
        accepted = None
        if decision.should_deliver and state is not None:
            accepted = _accepted(event, time, state)
        instance.entries.append(
            DecidedEntry(
                event.entry_id,
                decision.value,  # text hashes faster than an enum
                accepted,
                _receipt(decision, event, instance) if event.receipt_id else None,
                event.is_resync or event.redriven is not None,
            )
        )
    decided = [
        DecidedInstance(name, each.expected, each.state.encode() if each.state else "", each.entries)
        for name, each in instances.items()
    ]
    return Decided(decided, changes, ahead)


def _decide(event: Parsed, report: Report, instance: _Instance, rules: Rules) -> tuple[Decision, Accepted | None]:
    state, delivered = instance.state, instance.delivered
    if event.is_resync:
        # Compared with the time of a delivery, and ahead of that if Redis's clock was set back.
        return decide_resync(state, delivered, report.digest, min(report.enqueued_at, rules.clock.now))
    if event.redriven:
        return decide_redrive(state, delivered, report, event.redriven, forget_after_ms=rules.forget_after_ms)
    return decide_report(state, delivered, report, reassert_after_ms=rules.reassert_after_ms)


def _accepted(event: Parsed, time: int | None, state: Accepted) -> AcceptedEntry:
    """Return the outbox entry of an event.

    One that a resync repeats has the time and the place of what it repeats, so that its delivery sets neither back.
    """
    optional = ""
    if event.is_resync:
        time = state.time
        place = written_arrival(*state.arrival)
        optional = optional_fields(receipt=bool(event.receipt_id), resync=place)
    elif event.receipt_id or event.redriven or state.time != time:
        optional = optional_fields(
            receipt=bool(event.receipt_id),
            newest=state.time if state.time != time else None,
            redriven=event.redriven.encode() if event.redriven else "",
        )
    return AcceptedEntry(
        event.event.body(),
        event.event_id,
        event.event.source or "",
        "" if time is None else time,
        event.digest,
        event.instance,
        event.enqueued_at,
        event.sequence,
        optional,
    )


def _receipt(decision: Decision, event: Parsed, instance: _Instance) -> Receipt:
    """Return what the receipt of an event says."""
    state = instance.state
    if decision.should_deliver:
        return Receipt(event.receipt_id, "accepted")
    if decision is not Decision.DUPLICATE or state is None:
        return Receipt(event.receipt_id, decision)
    if event.digest != state.digest:
        return Receipt(event.receipt_id, Status.SUPERSEDED, f"\n{BY_ID}\n{state.digest}")
    delivered = instance.delivered
    is_delivered = delivered is not None and (delivered.digest, delivered.came) == (
        state.digest,
        written_arrival(*state.arrival),
    )
    repeated = state.ids[-1] if state.ids else ""
    return Receipt(event.receipt_id, decision, f"\n{repeated}\n{DELIVERED if is_delivered else WAITING}")
