"""A destination's health, which all workers share: a state machine of values, and its fields in Redis.

Each transition is a method of `Health` that returns the next value and touches nothing. `change` reads the fields,
applies a transition, and has change_health.lua set the result if no other worker changed the fields in between.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, cast

from relay.queue import scripts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.queue.scripts import Argument, Call
    from relay.queue.shard import Shard

_CHANGE = scripts.declare(
    "change_health",
    keys=("health",),
    arguments=("state", "unhealthy_ms"),
    lists={"expected": ("field", "value"), "wanted": ("field", "value")},
)
_ADMIT = scripts.declare(
    "admit", keys=("health",), arguments=("token", "wanted", "rate_limit", "burst", "probe_ms", "longest_ms")
)
_OBSERVE = scripts.declare(
    "observe",
    keys=("health",),
    arguments=("successes", "failures", "window_change", "max_window", "shrink_gap_ms"),
)

#: The time between two probes of a throttled destination. It gets no request at all for a pause up to this long.
PROBE_THROTTLE_SECONDS = 60.0
_PROBE_THROTTLE_MS = round(PROBE_THROTTLE_SECONDS * 1000)

#: A time farther ahead than this was set by a clock that was set back since, and counts as over. claim.lua
#: and waiting.lua hold the same number.
MAX_HOLD_MS = 600_000

#: Attempts to change the health while other workers change it too.
_MAX_CHANGES = 100


class HealthState(StrEnum):
    """The state of a destination, as operators see it."""

    HEALTHY = "healthy"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"

    @classmethod
    def _missing_(cls, value: object) -> HealthState:  # noqa: ARG003 - the signature is enum's
        """Return `UNAVAILABLE` for a state that another version wrote."""
        return cls.UNAVAILABLE


#: The states in which nothing is delivered, or probes alone are.
UNHEALTHY = tuple(state for state in HealthState if state is not HealthState.HEALTHY)


class Health(NamedTuple):
    """The health of a destination, as all workers know it.

    The states:

    - *healthy*: requests are sent, within the concurrency limit (`window`) and the rate limit.
    - *throttled*: the destination asked for a pause. Up to `PROBE_THROTTLE_SECONDS` nothing is sent until it is
      over. For a longer pause the circuit opens, and one event a minute probes the destination.
    - *unavailable*, *unauthorized*, *misconfigured*: the circuit is open after a run of failures, a refused token, or
      a run of answers that mean a wrong URL. Nothing is sent before `until`; then one run sends one event, the probe.

    The transitions:

    - healthy → throttled, and back when the pause is over: `throttled`
    - healthy → any other: `opened`; a probe that fails opens the circuit again, for a pause twice as long
    - any → healthy, when a request succeeds while the circuit is open: `closed`
    - throttled → healthy, and any other → probed at once, by an operator: `lifted`

    `until` is only ever extended, except by `lifted`. All times are Redis's, in milliseconds; 0 is never.
    """

    #: Nothing is sent before this time, because of this state.
    until: int = 0
    reason: str = ""
    #: How often in a row the circuit opened; 0 while it is closed.
    openings: int = 0
    #: Failures since the last success, and successes ever.
    failures: int = 0
    successes: int = 0
    #: How many requests one run may have in flight; 0 if no answer has set it yet.
    window: int = 0
    #: The state that the open circuit stands for.
    circuit: str = ""
    #: The run that probes, and the end of the time that its probe has; only `read` and `change` read from here on.
    prober: str = ""
    probe_until: int = 0
    #: The end of a pause that is longer than the time between two probes.
    throttled_until: int = 0
    #: The last pause that the destination asked for.
    asked_ms: int = 0

    @classmethod
    def decode(cls, reply: Sequence[bytes]) -> Health:
        """Read the fields up to `circuit`, as scripts return them; b"" for one that is missing."""
        until, reason, openings, failures, successes, window, circuit = reply
        return cls(
            until=int(until or 0),
            reason=reason.decode(),
            openings=int(openings or 0),
            failures=int(failures or 0),
            successes=int(successes or 0),
            window=int(window or 0),
            circuit=circuit.decode(),
        )

    @classmethod
    def decode_all(cls, found: Sequence[bytes | None]) -> Health:
        """Read all fields, as HMGET returns them."""
        *first, prober, probe_until, throttled_until, asked_ms = (value or b"" for value in found)
        return cls.decode(first)._replace(
            prober=prober.decode(),
            probe_until=int(probe_until or 0),
            throttled_until=int(throttled_until or 0),
            asked_ms=int(asked_ms or 0),
        )

    def is_waiting(self, now: float) -> bool:
        """Return whether no request may be sent at this time."""
        return now < self.until <= now + MAX_HOLD_MS

    def state(self, now: float) -> HealthState:
        """Return the state at this time."""
        if self.openings:
            return HealthState(self.circuit or HealthState.UNAVAILABLE)
        return HealthState(self.reason or HealthState.THROTTLED) if self.is_waiting(now) else HealthState.HEALTHY

    def throttled(self, now: int, *, seconds: float) -> Health:
        """Return the health once the destination asked for a pause."""
        asked = round(seconds * 1000)
        after = self._replace(asked_ms=asked)
        if asked > _PROBE_THROTTLE_MS:
            # An invalid token or URL stays the state to show: it needs an operator, and outlasts the pause.
            is_hidden = self.circuit in {HealthState.UNAUTHORIZED, HealthState.MISCONFIGURED}
            after = after._replace(
                openings=max(1, self.openings),
                circuit=self.circuit if is_hidden else HealthState.THROTTLED,
                prober="",
                probe_until=0,
                window=1,
                throttled_until=max(self.throttled_until, now + asked),
            )
        return after.waiting_until(now + min(asked, _PROBE_THROTTLE_MS), HealthState.THROTTLED)

    def opened(
        self, now: int, state: HealthState, *, token: str, first_seconds: float, longest_seconds: float
    ) -> Health:
        """Return the health once this run's answer opened the circuit, for a pause that doubles each time in a row.

        Only the run that probes opens an open circuit again: answers to requests that were in flight when it opened
        are no news. While a long throttle lasts, the pause is the time between two probes.
        """
        if self.openings and self.prober != token:
            return self
        pause = 1000 * min(longest_seconds, first_seconds * 2 ** min(self.openings, 30))
        pause = max(pause, min(self.throttled_until - now, _PROBE_THROTTLE_MS))
        after = self._replace(openings=self.openings + 1, circuit=state, prober="", probe_until=0, window=1)
        return after.waiting_until(now + int(pause), state)

    def closed(self) -> Health:
        """Return the health once a request succeeded: the next opening takes a new run of failures."""
        return self._replace(openings=0, circuit="", failures=0, prober="", probe_until=0, throttled_until=0)

    def lifted(self, now: int) -> Health:
        """Return the health once an operator ended the pause: a throttle is over, other states are probed at once."""
        after = self._replace(until=min(self.until, now), prober="", probe_until=0, throttled_until=0)
        return after._replace(openings=0, circuit="", window=1) if self.circuit == HealthState.THROTTLED else after

    def waiting_until(self, until: int, state: HealthState) -> Health:
        """Return the health with a pause that is no shorter than the one there is."""
        return self._replace(until=until, reason=state) if until > self.until else self


#: What `change` compares: the fields that no observation changes.
_COMPARED = tuple(name for name in Health._fields if name not in {"failures", "successes", "window"})


class Changed(NamedTuple):
    """The health before and after a change, and when that was, in Redis milliseconds."""

    before: Health
    after: Health
    now: int


def read(shard: Shard, destination: str) -> Health:
    """Return the health of a destination; change nothing."""
    found = shard.client.hmget(shard.keys.destination(destination), Health._fields)
    return Health.decode_all(cast("list[bytes | None]", found))


def change(shard: Shard, destination: str, transition: Callable[[Health, int], Health]) -> Changed:
    """Apply a transition to the health as it is now.

    The health stays as it is if other workers change it at each of many attempts: they saw the same destination.
    """
    key = shard.keys.destination(destination)
    for _ in range(_MAX_CHANGES):
        pipeline = shard.client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hmget(key, Health._fields)
        (seconds, microseconds), found = pipeline.execute()
        now = seconds * 1000 + microseconds // 1000
        before = Health.decode_all(found)
        after = transition(before, now)
        if after == before or scripts.run(shard.client, _change_call(key, found, before, after, now)):
            return Changed(before, after, now)
    return Changed(before, before, now)


def _change_call(key: str, found: list[bytes | None], before: Health, after: Health, now: int) -> Call:
    was = dict(zip(Health._fields, found, strict=True))
    expected: list[Argument] = []
    for name in _COMPARED:
        expected += [name, was[name] or b""]
    wanted: list[Argument] = []
    for name, value in after._asdict().items():
        if value != getattr(before, name):
            wanted += [name, value or ""]
    gained = max(now, after.until) - max(now, before.until)
    return _CHANGE.call(
        {"health": key},
        # Each pause counts to its end for the state it was made for; a pause that is lifted takes the rest back.
        {"state": after.reason if gained > 0 else before.reason, "unhealthy_ms": gained},
        {"expected": expected, "wanted": wanted},
    )


class Lifted(NamedTuple):
    """The pause that an operator ended: its state, its end, and the end of the throttle, 0 if there was none.

    Times are Redis milliseconds.
    """

    reason: str
    until: int
    throttled_until: int


def lift(shard: Shard, destination: str) -> Lifted | None:
    """End the pause of a destination; return what it was, None if there was none."""
    before, _, now = change(shard, destination, Health.lifted)
    if not before.openings and before.until <= now:
        return None
    reason = before.circuit if before.openings else before.reason
    return Lifted(reason, before.until, before.throttled_until if before.throttled_until > now else 0)


class Admission(NamedTuple):
    """How many requests a run may send, one if it `probes`; with none, when to ask again."""

    granted: int
    again_seconds: float
    probes: bool


def admit(
    shard: Shard, destination: str, *, token: str, wanted: int, rate_limit: float, burst: int, probe_seconds: float
) -> Admission:
    """Ask how many requests a run may send; `token` tells the runs apart."""
    arguments: dict[str, Argument] = {
        "token": token,
        "wanted": wanted,
        "rate_limit": rate_limit,
        "burst": burst,
        "probe_ms": round(probe_seconds * 1000),
        "longest_ms": MAX_HOLD_MS,
    }
    call = _ADMIT.call({"health": shard.keys.destination(destination)}, arguments)
    granted, again, probes = scripts.run(shard.client, call)
    return Admission(int(granted), int(again) / 1000, bool(probes))


def observe_call(
    shard: Shard,
    destination: str,
    *,
    successes: int,
    failures: int,
    window_change: int,
    max_window: int,
    shrink_gap_seconds: float,
) -> Call:
    """Return the call that tells other workers what a run observed; its reply is for `Health.decode`."""
    arguments = {
        "successes": successes,
        "failures": failures,
        "window_change": window_change,
        "max_window": max_window,
        "shrink_gap_ms": round(shrink_gap_seconds * 1000),
    }
    return _OBSERVE.call({"health": shard.keys.destination(destination)}, arguments)
