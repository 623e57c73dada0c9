"""May a drain send, and how much at once? One drain's view of a destination's health, which all workers share.

It asks Redis only where there is something to ask: for a probe, or for what a rate limit leaves. What it saw goes
along with the drain's settlements.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from relay import clock
from relay.queue import health as destination
from relay.queue import leases
from relay.queue.health import Health, HealthState, Hold
from relay.settings import DEFAULT_DESTINATION
from workers.delivery.circuit_breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Open, move_of
from workers.delivery.concurrency_limit import Window
from workers.delivery.outcome import Delivered, Retry

if TYPE_CHECKING:
    from relay.queue.scripts import Call
    from workers.delivery.outcome import Outcome
    from workers.delivery.runtime import DeliveryRuntime

#: Beyond `api.timeout`, what a probe may take until another drain may send one.
PROBE_MARGIN_SECONDS = 1.0

#: One wave of failures, such as a window of time-outs, shrinks the window once.
SHRINK_GAP_SECONDS = 0.2

_log = logging.getLogger(__name__)


class Gate:
    """Opens and closes for one drain. `hold` stays what it is once it is set: the drain ends at it."""

    def __init__(self, runtime: DeliveryRuntime) -> None:
        self.hold: Hold | None = None
        self.because = ""
        #: Set when Redis is away: then there is nobody to tell.
        self.is_over = False
        self._runtime = runtime
        self._settings = runtime.settings
        self._token = leases.new_token()
        self._health = Health()
        self._window = Window(runtime.settings.delivery.max_in_flight)
        self._is_full = False
        self._successes = 0
        self._failures = 0
        self._ask_again_at = 0.0
        #: Whether what is in flight is a probe, and was not sent before the circuit opened.
        self._sent_probe = False
        #: Until when the API asked to be spared, by relay/clock.py, if the others are not told yet.
        self._asked_until: float | None = None

    @property
    def successes(self) -> int:
        """What the destination has taken so far, as far as is known here."""
        return self._health.successes + self._successes

    @property
    def is_probing(self) -> bool:
        """Tell whether the circuit is open: what is sent now is a probe, and uses up no attempt."""
        return self._health.openings > 0

    def learn(self, health: Health, now: float) -> None:
        """Take over what all know; `now` is Redis's time in milliseconds."""
        self._health = health
        self._window.adopt(health.window)
        self._heed(health.hold(now))

    def room(self, in_flight: int) -> int:
        """How many more may be in flight, as far as is known here."""
        if self.hold is not None or clock.uptime() < self._ask_again_at:
            return 0
        return (1 if self._health.openings else self._window.size) - in_flight

    def admit(self, wanted: int, room: int) -> int:
        """Return how many of the wanted may be sent now; to be asked only when there are any to send."""
        self._is_full = wanted >= room
        wanted = min(wanted, room)
        api = self._settings.api
        if not self._health.openings and not api.rate_limit:
            return wanted
        admission = destination.admit(
            self._runtime.client,
            self._runtime.keys,
            DEFAULT_DESTINATION,
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
            if self._health.openings:  # another drain probes: this one has nothing to do until that is known
                self._heed(Hold(self._health.until, self._health.circuit, self._health.openings))
        return admission.granted

    @property
    def pause_seconds(self) -> float:
        """How long nothing may be sent for the rate's sake."""
        return max(0.0, self._ask_again_at - clock.uptime())

    def heard(self, outcome: Outcome) -> None:
        """Note what the API asks for, without asking Redis: what comes after may fail, and this must not be lost."""
        if isinstance(outcome, Retry) and outcome.hold_seconds is not None:
            seconds = min(outcome.hold_seconds, self._settings.delivery.retry_after_max)
            self._asked_until = max(self._asked_until or 0.0, clock.uptime() + seconds)
            self.because = outcome.because

    def saw(self, outcome: Outcome, *, own_fault: bool = False) -> None:
        """Note what an answer says of the destination, and hold it or let it go if that is what it says."""
        match outcome:
            case Delivered():
                self._successes += 1
                self._failures = 0
                self._window.succeeded(was_full=self._is_full)
            case Retry(is_pushback=is_pushback):
                self._failures += 1
                if is_pushback:
                    self._window.pushed_back()
        if self.is_over:
            return
        circuit = self._health.circuit if self._health.openings else ""
        known = 0 if self._successes else self._health.failures
        move = move_of(outcome, circuit=circuit, failures=known + self._failures, own_fault=own_fault)
        if circuit == HealthState.THROTTLED and not self._sent_probe:
            move = "stay"  # it was sent before the API asked to be spared, and says nothing of since
        if isinstance(move, Open):
            self._open(move.reason, outcome.because)
        elif move == "close":
            self._close()
        self.tell_hold()

    def tell_hold(self) -> None:
        """Hold the destination for all workers, as the API asked for; at once, or once Redis is back."""
        if self._asked_until is None:
            return
        seconds = max(0.0, self._asked_until - clock.uptime())
        client, keys = self._runtime.client, self._runtime.keys
        hold = destination.hold(client, keys, DEFAULT_DESTINATION, seconds=seconds, reason=HealthState.THROTTLED)
        if hold.openings:
            self._sent_probe = self._sent_probe and seconds <= destination.PROBE_THROTTLE_SECONDS
            self._health = self._health._replace(openings=hold.openings, circuit=hold.circuit)
        self._heed(hold)
        self._asked_until = None

    def observation(self) -> Call | None:
        """Return the call that tells the others what was seen here since the last; None if nothing was."""
        change = self._window.take_change()
        if not (self._successes or self._failures or change):
            return None
        call = destination.observe_call(
            self._runtime.keys,
            DEFAULT_DESTINATION,
            successes=self._successes,
            failures=self._failures,
            window_change=change,
            max_window=self._settings.delivery.max_in_flight,
            shrink_gap_seconds=SHRINK_GAP_SECONDS,
        )
        self._successes = self._failures = 0
        return call

    def _open(self, reason: HealthState, because: str) -> None:
        if self.hold is not None:
            return
        hold = destination.open_circuit(
            self._runtime.client,
            self._runtime.keys,
            DEFAULT_DESTINATION,
            token=self._token,
            first_seconds=FIRST_PAUSE_SECONDS,
            longest_seconds=LONGEST_PAUSE_SECONDS[reason],
            reason=reason,
        )
        self.because = because
        self._health = self._health._replace(openings=hold.openings, circuit=reason)
        self._heed(hold)
        if hold.openings == 1:
            _log.warning("deliveries are held, %s: %s; the API is probed from now on", reason, because)

    def _close(self) -> None:
        self._sent_probe = False
        destination.close_circuit(self._runtime.client, self._runtime.keys, DEFAULT_DESTINATION)
        self._health = self._health._replace(openings=0, circuit="", failures=0, window=1)
        self._failures = 0
        self._window.adopt(1)
        _log.warning("the API takes events again")

    def _heed(self, hold: Hold | None) -> None:
        """Keep a hold, whichever worker it is from."""
        if hold is not None and (self.hold is None or hold.until > self.hold.until):
            self.hold = hold
