"""Outboxes to API: take, send, settle, until nothing is left, the time is over, or the destination is held.

One drain serves many outboxes at once, each under its own lease, through one transport. An entry is sent only
while its outbox's lease outlasts the request and the gate lets it through; what the API answered is decided by
outcome.py and recorded by one script. Dying anywhere leaves the entries in their outbox: at most what was in flight
is sent again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from relay import clock, failpoints
from relay.backoff import pause_seconds
from relay.errors import LeaseLost
from relay.logs import get_logger
from relay.queue import epoch, leases, outbox, scripts
from relay.queue.dead_letters import Reason
from relay.queue.health import Health
from relay.queue.outbox import Death, OutboxEntry, Settlement
from relay.queue.schedule import longest_pause_seconds
from relay.settings import DEFAULT_DESTINATION
from workers.delivery.batch import Batch
from workers.delivery.forbidden import suspect
from workers.delivery.health import Gate
from workers.delivery.idempotency import IdempotencyKeys
from workers.delivery.outcome import Delivered, Refused, Retry, Unauthorized, code_of, outcome_of
from workers.delivery.transport import Request
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from workers.delivery.outcome import Outcome
    from workers.delivery.runtime import DeliveryRuntime
    from workers.delivery.transport import Answer

#: Entries in hand of all outboxes together, in full batches: with many outboxes each gets a smaller part.
WINDOW_BATCHES = 8

#: Settled entries are committed when so many are together, or the oldest has waited so long, or nothing is
#: left to wait for.
SETTLE_ENTRIES = 250
SETTLE_SECONDS = 0.01

#: An outbox that had nothing more is asked again after this long, while other work goes on.
ASK_AGAIN_SECONDS = 0.01

#: How long the loop sleeps when it has work in hand and none in flight.
TICK_SECONDS = 0.001

#: How long it sleeps at most when only the rate limit keeps it waiting.
LONGEST_TICK_SECONDS = 0.05

#: The first pause of an entry that may be of an image not known yet.
SLOW_BACKOFF_SECONDS = 5.0

#: How long a drain that lost Redis goes on trying to record what it did, in a worker that stops too, and the pause
#: between two tries.
HAND_BACK_SECONDS = 60.0
HAND_BACK_STOPPING_SECONDS = 3.0
HAND_BACK_PAUSE_SECONDS = 0.1

_log = get_logger(__name__)


class _Sent(NamedTuple):
    """A request under way: what it carries, what the destination had taken when it was sent, and when that was."""

    batch: Batch
    entry: OutboxEntry
    successes: int
    at: float


@dataclass(slots=True)
class DeliveryReport:
    """What one drain did."""

    environments: Sequence[str] = ()
    delivered: int = 0
    retrying: int = 0
    dead: int = 0
    held: str = ""
    leases_lost: int = 0
    to_deliver: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        names = self.environments
        where = ", ".join(names) if len(names) <= 3 else f"{len(names)} environments"  # noqa: PLR2004
        parts = [f"{self.delivered} delivered"]
        parts += [f"{n} {word}" for n, word in ((self.retrying, "retrying"), (self.dead, "dead")) if n]
        parts += [f"held: {self.held}"] if self.held else []
        parts += [f"{self.leases_lost} leases lost"] if self.leases_lost else []
        return f"{where}: {', '.join(parts)} in {self.seconds:.1f} s"


def run_delivery(runtime: DeliveryRuntime, environments: Sequence[str]) -> DeliveryReport | None:
    """Drain these environments' outboxes; None if other drains are at all of them."""
    runtime.reload_token()
    drain = _Drain(runtime, environments)
    if not drain.batches:
        return None
    try:
        drain.run()
    finally:
        runtime.transport.abandon()
    return drain.report


class _Drain:
    """The outboxes in hand, and the loop over them."""

    def __init__(self, runtime: DeliveryRuntime, environments: Sequence[str]) -> None:
        self._runtime = runtime
        self._client = runtime.client
        self._transport = runtime.transport
        self._delivery = runtime.settings.delivery
        self._longest_pause = longest_pause_seconds(self._delivery.backoff_max, runtime.settings.worker.lease)
        self._lease = runtime.settings.worker.lease
        # Often enough that a lease outlasts the next request, however little it is longer than one.
        self._renew_seconds = min(self._lease / 4, (self._lease - runtime.settings.api.timeout) / 2)
        self._started = clock.uptime()
        self._clock_offset_ms: float | None = None
        #: The ages of events are reckoned from here on, in Redis milliseconds: its clock was stepped then.
        self._steady_since = 0
        self._unsettled_since: float | None = None
        #: What is being committed, and where another drain must begin reading once that is and nothing after it.
        self._settling: list[tuple[Batch, Settlement, str]] = []
        self._gate = Gate(runtime)
        #: Of the data set that the leases lie in. One that is lost takes the leases with it.
        self._idempotency = IdempotencyKeys("")
        self.batches = self._acquire(environments)
        self._turn = deque(self.batches)
        self.report = DeliveryReport([batch.keys.environment for batch in self.batches])

    def run(self) -> None:
        try:
            self._work()
            self._release(self.batches)
        except RedisError as error:
            self._hand_back(error)
        self.report.held = self._held()
        self.report.seconds = clock.uptime() - self._started

    def _work(self) -> None:
        """Take, send and settle until nothing is left, the time is over, or the destination is held."""
        deadline = self._started + self._runtime.settings.worker.budget
        while self.batches:
            going_on = self._gate.hold is None and clock.uptime() < deadline and not is_stopping()
            if going_on:
                self._take()
                self._send()
            settled = self._settle()  # after sending: what is in flight meanwhile lets more be settled together
            if going_on and settled:
                self._send()
            if going_on and self._is_idle:
                if self._stay():
                    continue
                break
            if not going_on and not self._transport.in_flight:
                break
            self._wait()
            self._renew()

    @property
    def _is_idle(self) -> bool:
        return not self._transport.in_flight and all(not batch.in_hand for batch in self.batches)

    def _acquire(self, environments: Sequence[str]) -> list[Batch]:
        outboxes = [self._runtime.keys.of_outbox(DEFAULT_DESTINATION, name) for name in dict.fromkeys(environments)]
        tokens = [leases.new_token() for _ in outboxes]
        calls = [
            leases.acquire_call(
                keys.wakeup,
                keys.lease,
                keys.run,
                token,
                self._lease,
                counts=self._runtime.keys.counts,
                outbox=(keys.cursor, self._runtime.keys.dataset),
                gap_ms=epoch.longest_gap_ms(self._delivery.max_age),
            )
            for keys, token in zip(outboxes, tokens, strict=True)
        ]
        batches = []
        for keys, token, reply in zip(outboxes, tokens, scripts.run_all(self._client, calls), strict=True):
            lease = leases.acquired(reply)
            if lease is not None:
                self._idempotency = IdempotencyKeys(lease.dataset)
                batch = Batch(keys, token, lease.cursor, latest_only=self._delivery.history == "latest")
                batch.renewed_at = self._started
                batch.one_at_a_time = lease.unfinished > 0
                self._steady_since = max(self._steady_since, lease.steady_since)
                batches.append(batch)
        return batches

    def _take(self) -> None:
        """Fill the batches that have room, unless they were found empty a moment ago."""
        now = clock.uptime()
        most = self._delivery.batch_size
        limit = max(1, min(most, WINDOW_BATCHES * most // len(self.batches)))
        hungry = [batch for batch in self.batches if batch.in_hand <= limit // 2]
        self._ask([batch for batch in hungry if now - batch.found_empty_at >= ASK_AGAIN_SECONDS], limit)

    def _renew(self) -> None:
        """Renew the leases that nothing else renewed."""
        now = clock.uptime()
        self._ask([batch for batch in self.batches if now - batch.renewed_at > self._renew_seconds], 0)

    def _ask(self, batches: list[Batch], limit: int) -> None:
        if not batches:
            return
        asked = clock.uptime()
        wanted = [max(0, limit - batch.in_hand) for batch in batches]
        calls = [
            outbox.take_call(
                batch.keys,
                self._runtime.keys,
                token=batch.token,
                lease_seconds=self._lease,
                cursor=batch.read_cursor,
                fresh=n,
                due=n,
                longest_pause=self._longest_pause,
                latest_only=self._delivery.history == "latest",
            )
            for batch, n in zip(batches, wanted, strict=True)
        ]
        for batch, n, reply in zip(batches, wanted, scripts.run_all(self._client, calls), strict=True):
            found = outbox.taken(reply)
            if found is None:
                self._lose(batch)
                continue
            batch.add(found)
            batch.paused = found.paused
            batch.renewed_at = asked
            if n:
                batch.found_empty_at = 0.0 if len(found.fresh) + len(found.due) >= n else asked
            if batch.in_hand and batch.opened_at is None:
                batch.opened_at = asked
            if batch.settlement and self._unsettled_since is None:  # what was superseded needs no answer
                self._unsettled_since = asked
            self._note_clock(found.now)
            self._gate.learn(found.health, found.now)
        self._let_go_of_paused()

    def _note_clock(self, now: int) -> None:
        """Note Redis's time. Where its clock was stepped, the leases are renewed before anything more is sent.

        They expire by that clock: after a step ahead another drain may have taken them over.
        """
        offset_ms = now - clock.uptime() * 1000  # behind by the reply's way, and never ahead
        before, self._clock_offset_ms = self._clock_offset_ms, offset_ms
        stepped_ms = 0.0 if before is None else offset_ms - before
        if abs(stepped_ms) <= self._renew_seconds * 1000:
            return
        _log.warning(
            "Redis's clock was stepped by %+.0f s; leases are renewed before more is sent", stepped_ms / 1000
        )
        for batch in self.batches:
            batch.renewed_at = -math.inf
        if abs(stepped_ms) > epoch.longest_gap_ms(self._delivery.max_age):
            self._steady_since = now

    def _send(self) -> None:
        """Send as much as may be in flight, an entry of each batch in turn; nothing once the destination is held."""
        room = self._gate.room(self._transport.in_flight)
        if room <= 0:
            return
        now = clock.uptime()
        sending = [
            *self._one_alone(batch for batch in self._turn if batch.is_ready and not self._lingers(batch, now))
        ]
        if self._gate.is_probing:
            self._runtime.random.shuffle(sending)  # the next probe must not be of the same environment each time
        wanted = sum(batch.ready for batch in sending)
        admitted = self._gate.admit(wanted, room) if wanted else 0
        self._turn.rotate(-min(admitted, len(sending)))
        turn = deque(sending)
        if admitted <= 0:
            return
        while admitted > 0 and turn:
            batch = turn.popleft()
            if not self._outlasts_a_request(batch):  # asked only now: being admitted may have taken its time
                continue
            if self._send_next(batch):
                admitted -= 1
            if batch.is_ready:
                turn.append(batch)
        self._transport.let_go()  # while the leases certainly last: the next step may wait for Redis

    def _one_alone(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Leave out all but one that are handled one entry at a time, and that too while its entry is in hand.

        Were there two, the death that one of them brings would count against both.
        """
        is_taken = any(batch.one_at_a_time and (batch.in_flight or batch.settlement) for batch in self.batches)
        for batch in batches:
            if batch.one_at_a_time:
                if is_taken:
                    continue
                is_taken = True
            yield batch

    def _outlasts_a_request(self, batch: Batch) -> bool:
        """Tell whether a batch's lease certainly lasts until a request sent now has ended."""
        return clock.uptime() - batch.renewed_at <= self._lease - self._runtime.settings.api.timeout

    def _send_next(self, batch: Batch) -> bool:
        """Send one entry of a batch; tell whether one went out, and none died of its age or its past."""
        entry = batch.send_next(least_tried=self._gate.is_probing)
        death = self._death_of_age(entry)
        if batch.one_at_a_time and not death:
            death = self._death_of_its_past(batch, entry)
            if batch.lost:
                return False
            if not self._outlasts_a_request(batch):  # Redis took its time to say so
                batch.put_back(entry)
                return False
        if death is not None:
            batch.in_flight -= 1
            self._bury(batch, death)
            self._unsettled_since = self._unsettled_since or clock.uptime()
            return False
        failpoints.handling("deliver", entry.event_id)
        sent = _Sent(batch, entry, self._gate.successes, clock.uptime())
        key = self._idempotency.of(batch.keys.environment, entry)
        self._transport.send(Request(sent, entry.body, key))
        failpoints.passing("after:post")
        return True

    def _death_of_age(self, entry: OutboxEntry) -> Death | None:
        if self._now_ms() - max(entry.arrived, self._steady_since) <= self._delivery.max_age * 1000:
            return None
        return Death(entry, Reason.EXPIRED, f"not delivered within {self._delivery.max_age:g} s")

    def _death_of_its_past(self, batch: Batch, entry: OutboxEntry) -> Death | None:
        """Note the entry that is in hand alone; tell if too many drains died of it."""
        self._transport.let_go()  # what other batches sent must not wait for Redis with us
        try:
            deaths = leases.handle(self._client, batch.keys.lease, batch.keys.run, batch.token, entry.entry_id)
        except LeaseLost:
            self._lose(batch)
            return None
        if deaths < leases.MAX_DEATHS:
            return None
        return Death(entry, Reason.WORKER_CRASH, f"{deaths} workers died when they delivered it")

    def _now_ms(self) -> float:
        """Return the time by Redis's clock."""
        return clock.uptime() * 1000 + (self._clock_offset_ms or 0.0)

    def _lingers(self, batch: Batch, now: float) -> bool:
        """Tell whether a batch is still held open to gather more."""
        linger = self._delivery.linger
        if not linger or batch.in_hand >= self._delivery.batch_size or batch.opened_at is None:
            return False
        return now - batch.opened_at < linger

    def _wait(self) -> None:
        """Wait for answers, or for something else to do."""
        if self._transport.in_flight:
            pause = SETTLE_SECONDS if self._unsettled_since is not None else ASK_AGAIN_SECONDS
            self._answer(self._transport.wait(pause))
        else:  # what is in hand waits for its linger, its lease's renewal, or the rate
            time.sleep(min(max(TICK_SECONDS, self._gate.pause_seconds), LONGEST_TICK_SECONDS))

    def _answer(self, answers: Sequence[tuple[_Sent, Answer]]) -> None:
        seen = []
        now = clock.uptime()
        tells_each = _log.isEnabledFor(logging.DEBUG)
        for (batch, entry, successes, sent_at), answer in answers:
            batch.in_flight -= 1
            outcome = outcome_of(answer)
            self._gate.heard(outcome)
            if tells_each:
                _log_attempt(batch, entry, outcome)
            own_fault = False
            if not batch.lost:  # else we have no say any more in what became of the entry
                batch.count_attempt(outcome.word, code_of(answer), now - sent_at)
                own_fault = self._note(batch, entry, outcome, successes)
            seen.append((outcome, own_fault))
        if self._unsettled_since is None and any(batch.settlement for batch in self.batches):
            self._unsettled_since = clock.uptime()
        for outcome, own_fault in seen:  # only now: it may ask Redis, and what is noted must not be lost with it
            self._gate.saw(outcome, own_fault=own_fault)

    def _note(self, batch: Batch, entry: OutboxEntry, outcome: Outcome, successes: int) -> bool:
        """Note what became of an event; tell whether a refused token is its own fault."""
        match outcome:
            case Delivered():
                batch.deliver(entry, self._now_ms() - entry.arrived)
                self.report.delivered += 1
            case Refused(because, status):
                self._bury(batch, Death(self._tried(entry), Reason.REFUSED, because, status))
            case Unauthorized(because, status):
                entry = self._tried(entry, uses_attempt=False)
                suspicion = suspect(
                    entry.trials, status, successes=self._gate.successes, successes_when_sent=successes
                )
                if suspicion.is_forbidden:
                    self._bury(batch, Death(entry, Reason.FORBIDDEN, because, status))
                else:
                    tries = max(entry.trials.attempts, entry.trials.forbidden)
                    batch.defer(entry._replace(trials=suspicion.trials), self._pause_before_retry(tries))
                return suspicion.own_fault
            case Retry():
                self._retry(batch, entry, outcome)
        return False

    def _retry(self, batch: Batch, entry: OutboxEntry, retry: Retry) -> None:
        entry = self._tried(entry, uses_attempt=retry.uses_attempt and not self._gate.is_probing)
        if entry.trials.attempts >= self._delivery.max_attempts:
            self._bury(batch, Death(entry, Reason.EXHAUSTED, retry.because, retry.status))
            return
        # A probe's answer is the destination's, and not the event's to wait longer for.
        tries = entry.trials.attempts if self._gate.is_probing else entry.trials.answers
        batch.defer(entry, self._pause_before_retry(tries, slowly=retry.slowly))
        self.report.retrying += 1

    def _tried(self, entry: OutboxEntry, *, uses_attempt: bool = True) -> OutboxEntry:
        """Return the entry with one more answer to its name."""
        trials = entry.trials
        trials = trials._replace(
            attempts=trials.attempts + uses_attempt,
            answers=trials.answers + 1,
            first=trials.first or round(self._now_ms()),
        )
        return entry._replace(trials=trials)

    def _pause_before_retry(self, tries: int, *, slowly: bool = False) -> float:
        initial = self._delivery.backoff_initial
        return pause_seconds(
            max(1, tries),
            initial=max(initial, SLOW_BACKOFF_SECONDS) if slowly else initial,
            maximum=self._delivery.backoff_max,
            random=self._runtime.random,
        )

    def _bury(self, batch: Batch, death: Death) -> None:
        batch.bury(death)
        self.report.dead += 1
        _log.debug("dead letter", event_id=death.entry.event_id, reason=death.reason, because=death.detail)

    def _settle(self) -> bool:
        """Commit what was answered, once it is worth a round trip; tell whether it was."""
        since = self._unsettled_since
        if since is None:
            return False
        together = sum(len(batch.settlement.delivered) for batch in self.batches)
        waited = clock.uptime() - since
        if together < SETTLE_ENTRIES and waited < SETTLE_SECONDS and self._transport.in_flight:
            return False
        self._commit()
        return True

    def _commit(self) -> None:
        """Commit what was answered; what a lost connection left undecided before is committed again, harmlessly."""
        self._unsettled_since = None
        asked = clock.uptime()
        self._settling += [
            (batch, batch.begin_settling(), batch.cursor) for batch in self.batches if batch.settlement
        ]
        calls = [
            outbox.settle_call(
                batch.keys,
                self._runtime.keys,
                token=batch.token,
                lease_seconds=self._lease,
                cursor=cursor,
                settlement=settlement,
                receipt_seconds=self._runtime.settings.queue.receipt_for,
            )
            for batch, settlement, cursor in self._settling
        ]
        observation = self._gate.observation()
        replies = scripts.run_all(self._client, [*calls, observation] if observation else calls)
        settling, self._settling = self._settling, []
        if observation:
            self._gate.learn(Health.decode(replies.pop()), self._now_ms())
        for (batch, settlement, _), reply in zip(settling, replies, strict=True):
            applied = outbox.applied(reply)
            if not applied.recorded:
                self._lose(batch)
                continue
            batch.settled(settlement)
            batch.renewed_at = asked
            batch.paused = applied.paused
        self._let_go_of_paused()

    def _stay(self) -> bool:
        """Wait a moment for more before letting go; tell whether it came."""
        stay = self._runtime.settings.worker.stay
        if not stay or not self.batches:
            return False
        for batch in self.batches:
            batch.found_empty_at = 0.0
            batch.opened_at = None
        return outbox.wait(self._client, {b.keys.outbox: b.read_cursor for b in self.batches}, stay)

    def _lose(self, batch: Batch) -> None:
        """Let go of an outbox that another drain has taken over."""
        if not batch.lost:
            self.batches.remove(batch)
            self._turn.remove(batch)
            batch.lost = True
            self.report.leases_lost += 1

    def _let_go_of_paused(self) -> None:
        """Let go of the paused environments of which nothing is in flight any more."""
        paused = [batch for batch in self.batches if batch.paused and not batch.in_flight and not batch.settlement]
        if paused:
            self._release(paused)
            for batch in paused:
                self.batches.remove(batch)
                self._turn.remove(batch)

    def _release(self, batches: Sequence[Batch]) -> None:
        calls = [
            outbox.release_call(
                batch.keys,
                self._runtime.keys,
                token=batch.token,
                wakeup_seconds=self._runtime.settings.worker.sweep,
                cursor=batch.cursor,
                held=self._gate.hold is not None,
                unsent=batch.due_in_hand,
            )
            for batch in batches
        ]
        for batch, reply in zip(batches, scripts.run_all(self._client, calls), strict=True):
            if reply == 1:
                self.report.to_deliver.append(batch.keys.environment)

    def _hand_back(self, error: RedisError) -> None:
        """Redis is away: hear what is in flight to its end, and go on trying to commit it and to let go.

        As long as nobody takes over (nobody can, while Redis is away) the scripts still take it, and no POST is
        repeated.
        """
        _log.warning("Redis failed a drain, which now only hands back what it has: %s", error)
        self._gate.is_over = True
        give_up_at = clock.uptime() + HAND_BACK_SECONDS
        while True:
            while self._transport.in_flight:
                self._answer(self._transport.wait(ASK_AGAIN_SECONDS))
            try:
                self._commit()
                self._gate.tell_hold()
                self._release(self.batches)
            except RedisError:
                now = clock.uptime()
                if is_stopping():
                    give_up_at = min(give_up_at, now + HAND_BACK_STOPPING_SECONDS)
                if now > give_up_at:
                    raise
                time.sleep(HAND_BACK_PAUSE_SECONDS)
            else:
                return

    def _held(self) -> str:
        """Say why nothing more was sent, if that is so."""
        if self._gate.hold is None:
            return ""
        because = self._gate.because
        return f"{self._gate.hold.reason} ({because})" if because else self._gate.hold.reason


def _log_attempt(batch: Batch, entry: OutboxEntry, outcome: Outcome) -> None:
    because = {"because": outcome.because} if outcome.because else {}
    _log.debug(
        "attempt",
        event_id=entry.event_id,
        environment=batch.keys.environment,
        outcome=outcome.word,
        **because,
    )
