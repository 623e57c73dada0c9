"""A run's view of a destination's health, which all workers share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from relay import clock
from relay.destinations.outcome import Delivered, Retry
from relay.queue import health, leases
from relay.queue.health import Health, HealthState
from workers.delivery.circuit_breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, decide_state
from workers.delivery.concurrency_limit import ConcurrencyLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.destinations.outcome import Outcome
    from relay.queue.health import Changed
    from relay.queue.scripts import Call
    from workers.delivery.runtime import DeliveryRuntime

#: How much longer than `api.timeout` a probe may take before another run may send one.
PROBE_MARGIN_SECONDS = 1.0

#: One wave of failures, such as a window of time-outs, halves the window once.
SHRINK_GAP_SECONDS = 0.2

_log = logging.getLogger(__name__)


class DestinationHealth:
    """Decides how many requests the run may send, and moves the destination from state to state by their answers.

    The states and transitions are those of `relay.queue.health.Health`. Here are the parts that decide on them: the
    circuit breaker (`decide_state`), the throttle (`note_pause`, `throttle`), and the concurrency limit; the rate
    limit is in admit.lua. Redis is asked only where other runs matter: for a probe, for requests under a rate limit,
    and to change the state. The run's observations go along with its commits.
    """

    def __init__(self, runtime: DeliveryRuntime) -> None:
        #: Set once the run may send nothing more, and never reset: the run ends.
        self.stopped_by: HealthState | None = None
        #: The answer that led to it, if this run got it.
        self.because = ""
        #: Set when Redis is away: no state can be changed then.
        self.is_detached = False
        self._runtime = runtime
        self._settings = runtime.settings
        self._shard = runtime.shard
        self._destination = runtime.settings.destination
        self._token = leases.new_token()
        self._health = Health()
        self._limit = ConcurrencyLimit(runtime.settings.delivery.max_in_flight)
        self._is_full = False
        self._successes = 0
        self._failures = 0
        self._ask_again_at = 0.0
        #: Whether the request in flight is a probe, and was not sent before the circuit opened.
        self._sent_probe = False
        #: The end, by relay/clock.py, of a pause that the destination asked for and other workers do not know of yet.
        self._asked_until: float | None = None

    @property
    def successes(self) -> int:
        """The destination's successes so far, as far as this run knows."""
        return self._health.successes + self._successes

    @property
    def is_probing(self) -> bool:
        """Whether the circuit is open: a request sent now is a probe, and uses up no attempt."""
        return self._health.openings > 0

    @property
    def pause_seconds(self) -> float:
        """How long the rate limit lets nothing be sent."""
        return max(0.0, self._ask_again_at - clock.uptime())

    def learn(self, health: Health, now: float) -> None:
        """Take over the shared health; `now` is Redis's time in milliseconds."""
        self._health = health
        self._limit.adopt(health.window)
        if health.is_waiting(now):
            self.stopped_by = health.state(now)

    def room(self, in_flight: int) -> int:
        """Return how many more requests may be in flight, as far as this run knows."""
        if self.stopped_by is not None or clock.uptime() < self._ask_again_at:
            return 0
        return (1 if self.is_probing else self._limit.window) - in_flight

    def admit(self, wanted: int, room: int) -> int:
        """Return how many of the wanted requests may be sent now; `wanted` must not be 0."""
        self._is_full = wanted >= room
        wanted = min(wanted, room)
        api = self._settings.api
        if not self.is_probing and not api.rate_limit:
            return wanted
        admission = health.admit(
            self._shard,
            self._destination,
            token=self._token,
            wanted=wanted,
            rate_limit=api.rate_limit,
            burst=api.burst,
            probe_seconds=api.timeout + PROBE_MARGIN_SECONDS,
        )
        if admission.probes:
            self._sent_probe = True
            self._runtime.reload_token()
        if not admission.granted:
            self._ask_again_at = clock.uptime() + admission.again_seconds
            if self.is_probing:  # another run probes: this one has nothing to do until that is answered
                self.stopped_by = HealthState(self._health.circuit)
        return admission.granted

    def note_pause(self, outcome: Outcome) -> None:
        """Note a pause that the destination asks for, without Redis: no failure of Redis loses it."""
        if isinstance(outcome, Retry) and outcome.throttle_seconds is not None:
            seconds = min(outcome.throttle_seconds, self._settings.delivery.retry_after_max)
            self._asked_until = max(self._asked_until or 0.0, clock.uptime() + seconds)
            self.because = outcome.because

    def observe(self, outcome: Outcome, *, own_fault: bool = False) -> None:
        """Count an answer, and change the destination's state if the answer does."""
        if isinstance(outcome, Delivered):
            self._successes += 1
            self._failures = 0
            self._limit.succeeded(was_full=self._is_full)
            if not self.is_probing and self._asked_until is None:
                return
        elif isinstance(outcome, Retry):
            self._failures += 1
            if outcome.is_pushback:
                self._limit.pushed_back()
        if self.is_detached:
            return
        circuit = self._health.circuit if self.is_probing else ""
        earlier = 0 if self._successes else self._health.failures
        state = decide_state(outcome, circuit=circuit, failures=earlier + self._failures, own_fault=own_fault)
        if circuit == HealthState.THROTTLED and not self._sent_probe:
            state = None  # the request was sent before the destination asked for its pause
        if state is HealthState.HEALTHY:
            self._close()
        elif state is not None and self.stopped_by is None:
            self._open(state, outcome.because)
        self.throttle()

    def throttle(self) -> None:
        """Throttle the destination for all workers, if it asked for that."""
        if self._asked_until is None:
            return
        seconds = max(0.0, self._asked_until - clock.uptime())
        changed = self._change(lambda health, now: health.throttled(now, seconds=seconds))
        if self.is_probing:
            self._sent_probe = self._sent_probe and seconds <= health.PROBE_THROTTLE_SECONDS
        self.stopped_by = HealthState(changed.after.circuit or HealthState.THROTTLED)
        self._asked_until = None

    def report_call(self) -> Call | None:
        """Return the call that reports what the run observed since the last; None if that is nothing."""
        change = self._limit.take_change()
        if not (self._successes or self._failures or change):
            return None
        call = health.observe_call(
            self._shard,
            self._destination,
            successes=self._successes,
            failures=self._failures,
            window_change=change,
            max_window=self._settings.delivery.max_in_flight,
            shrink_gap_seconds=SHRINK_GAP_SECONDS,
        )
        self._successes = self._failures = 0
        return call

    def _open(self, state: HealthState, because: str) -> None:
        changed = self._change(
            lambda health, now: health.opened(
                now,
                state,
                token=self._token,
                first_seconds=FIRST_PAUSE_SECONDS,
                longest_seconds=LONGEST_PAUSE_SECONDS[state],
            )
        )
        self.because = because
        self.stopped_by = HealthState(changed.after.circuit)
        if not changed.before.openings:
            _log.warning("destination %s is %s: %s; it is probed from now on", self._destination, state, because)

    def _close(self) -> None:
        self._sent_probe = False
        self._change(lambda health, _: health.closed())
        self._failures = 0
        self._limit.adopt(1)
        _log.warning("destination %s is healthy again", self._destination)

    def _change(self, transition: Callable[[Health, int], Health]) -> Changed:
        changed = health.change(self._shard, self._destination, transition)
        self._health = changed.after
        return changed
