"""The attempts of one run: send claimed entries, and note what each answer means for its event."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from relay import clock, failpoints
from relay.backoff import pause_seconds
from relay.destinations.deployment_api import code_of, outcome_of
from relay.destinations.outcome import Delivered, Refused, Retry, Unauthorized
from relay.logs import get_logger
from relay.queue.dead_letters import Reason
from relay.queue.outbox import DeadEntry, OutboxEntry
from workers.delivery.forbidden import decide_token_fault
from workers.delivery.idempotency import IdempotencyKeys
from workers.delivery.transport import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.destinations.answer import Answer
    from relay.destinations.outcome import Outcome
    from workers.delivery.health import DestinationHealth
    from workers.delivery.outboxes import LeasedOutbox, LeasedOutboxes
    from workers.delivery.report import DeliveryReport
    from workers.delivery.runtime import DeliveryRuntime

#: The first pause of an entry that may be of an image not known yet.
SLOW_BACKOFF_SECONDS = 5.0

_log = get_logger(__name__)


class Attempt(NamedTuple):
    """A request under way: its entry, the destination's deliveries when it was sent, and when that was."""

    outbox: LeasedOutbox
    entry: OutboxEntry
    successes: int
    sent_at: float


class Attempts:
    """Sends entries through the transport and notes their outcomes in their batches."""

    def __init__(
        self,
        runtime: DeliveryRuntime,
        health: DestinationHealth,
        outboxes: LeasedOutboxes,
        report: DeliveryReport,
        dataset: str,
    ) -> None:
        self._transport = runtime.transport
        self._random = runtime.random
        self._delivery = runtime.settings.delivery
        self._health = health
        self._outboxes = outboxes
        self._report = report
        self._idempotency = IdempotencyKeys(dataset)

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return self._transport.in_flight

    def oldest_allowed_ms(self) -> float:
        """Return when an event must have been enqueued, or Redis's clock been stepped, for it not to be expired."""
        oldest = self._outboxes.now_ms - self._delivery.max_age * 1000
        return oldest if self._outboxes.steady_since < oldest else -1.0

    def expire(self, outbox: LeasedOutbox, entry: OutboxEntry) -> None:
        """Note an event that is older than `delivery.max_age` as dead."""
        detail = f"not delivered within {self._delivery.max_age:g} s"
        self.bury(outbox, DeadEntry(entry, Reason.EXPIRED, detail))

    def bury(self, outbox: LeasedOutbox, dead: DeadEntry) -> None:
        """Note a dead letter."""
        outbox.batch.bury(dead)
        self._outboxes.note_outcomes(clock.uptime())
        self._report.dead += 1
        _log.debug("dead letter", event_id=dead.entry.event_id, reason=dead.reason, because=dead.detail)

    def send(self, outbox: LeasedOutbox, entry: OutboxEntry, now: float) -> None:
        """Send an entry; `now` is by relay/clock.py."""
        failpoints.handling("deliver", entry.event_id)
        attempt = Attempt(outbox, entry, self._health.successes, now)
        key = self._idempotency.of(outbox.environment, entry)
        self._transport.send(Request(attempt, entry.body, key))
        failpoints.passing("after:post")

    def flush(self) -> None:
        """Put on the wire what was sent, while the leases certainly last: the next step may wait for Redis."""
        self._transport.flush()

    def wait(self, seconds: float) -> None:
        """Wait for answers so long at most, and note their outcomes."""
        self.note(self._transport.wait(seconds))

    def note(self, answers: Sequence[tuple[Attempt, Answer]]) -> None:
        """Note the outcomes of answers, then what they say of the destination.

        In this order: noting the latter may ask Redis, and a failure there must not lose an outcome.
        """
        if not answers:
            return
        now, now_ms = clock.uptime(), self._outboxes.now_ms
        log_each = _log.isEnabledFor(logging.DEBUG)
        seen = []
        for (outbox, entry, successes, sent_at), answer in answers:
            outcome = outcome_of(answer)
            if not isinstance(outcome, Delivered):
                self._health.note_pause(outcome)
            if log_each:
                _log_attempt(outbox, entry, outcome)
            own_fault = False
            if not outbox.is_lost:  # else another run decides what becomes of the entry
                outbox.batch.uncommitted.attempts.note(outcome.word, code_of(answer), now - sent_at)
                if isinstance(outcome, Delivered):
                    outbox.batch.deliver(entry, now_ms - entry.enqueued_at_ms)
                    self._report.delivered += 1
                else:
                    own_fault = self._note_failure(outbox, entry, outcome, successes)
                self._outboxes.note_outcomes(now)
            seen.append((outcome, own_fault))
        for outcome, own_fault in seen:
            self._health.observe(outcome, own_fault=own_fault)

    def _note_failure(
        self, outbox: LeasedOutbox, entry: OutboxEntry, outcome: Refused | Unauthorized | Retry, successes: int
    ) -> bool:
        """Note a dead letter or a retry; return whether a refused token is the event's own fault."""
        match outcome:
            case Refused(because, status):
                self.bury(outbox, DeadEntry(self._tried(entry), Reason.REFUSED, because, status))
            case Unauthorized(because, status):
                entry = self._tried(entry, uses_attempt=False)
                fault = decide_token_fault(
                    entry.trials, status, successes=self._health.successes, successes_when_sent=successes
                )
                if fault.is_forbidden:
                    self.bury(outbox, DeadEntry(entry, Reason.FORBIDDEN, because, status))
                else:
                    tries = max(entry.trials.attempts, entry.trials.forbidden)
                    outbox.batch.defer(entry._replace(trials=fault.trials), self._pause(tries))
                return fault.own_fault
            case Retry():
                # The answer to a probe is about the destination: it uses up no attempt, and lengthens no pause.
                is_probe = self._health.is_probing
                entry = self._tried(entry, uses_attempt=outcome.uses_attempt and not is_probe)
                if entry.trials.attempts >= self._delivery.max_attempts:
                    self.bury(outbox, DeadEntry(entry, Reason.EXHAUSTED, outcome.because, outcome.status))
                else:
                    tries = entry.trials.attempts if is_probe else entry.trials.answers
                    outbox.batch.defer(entry, self._pause(tries, slowly=outcome.slowly))
                    self._report.retrying += 1
        return False

    def _tried(self, entry: OutboxEntry, *, uses_attempt: bool = True) -> OutboxEntry:
        """Return the entry with one more answer."""
        trials = entry.trials
        trials = trials._replace(
            attempts=trials.attempts + uses_attempt,
            answers=trials.answers + 1,
            first=trials.first or round(self._outboxes.now_ms),
        )
        return entry._replace(trials=trials)

    def _pause(self, tries: int, *, slowly: bool = False) -> float:
        initial = self._delivery.backoff_initial
        return pause_seconds(
            max(1, tries),
            initial=max(initial, SLOW_BACKOFF_SECONDS) if slowly else initial,
            maximum=self._delivery.backoff_max,
            random=self._random,
        )


def _log_attempt(outbox: LeasedOutbox, entry: OutboxEntry, outcome: Outcome) -> None:
    because = {"because": outcome.because} if outcome.because else {}
    _log.debug(
        "attempt",
        event_id=entry.event_id,
        environment=outbox.environment,
        outcome=outcome.word,
        **because,
    )
