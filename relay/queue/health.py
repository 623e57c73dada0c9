"""A destination's health, shared by all workers.

A destination is *held* until a time that is only ever extended. Its *circuit* is open from a run of failures, or a
refused token, to the next success; once the hold of an open circuit is over, one drain at a time *probes* it with one
event. The *window* is how many POSTs one drain may have in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from relay.queue import scripts

if TYPE_CHECKING:
    from redis import Redis

    from relay.queue.keys import Keys
    from relay.queue.scripts import Call

_HOLD = scripts.load("hold")
_OPEN_CIRCUIT = scripts.load("open_circuit")
_ADMIT = scripts.load("admit")
_OBSERVE = scripts.load("observe")
_LIFT = scripts.load("lift")

#: The time between two probes of a throttle. What a destination asks for up to here is kept to the end without one.
PROBE_THROTTLE_SECONDS = 60.0

#: A hold that ends later than this from now was set by a clock that was set back since, and counts as over. The same
#: number is in the scripts.
MAX_HOLD_MS = 600_000


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


@dataclass(frozen=True, slots=True)
class Hold:
    """Deliveries are held until this time (Redis milliseconds) for this reason.

    `openings` counts the circuit's in a row; while there are any, no success has been seen since. `circuit` is why it
    is open, as far as the call that returns this learns it.
    """

    until: int
    reason: str
    openings: int = 0
    circuit: str = ""


class Health(NamedTuple):
    """What all workers know of a destination.

    `failures` are in a row, `window` is 0 while nobody has set it, `circuit` is why it opened, which a later hold's
    `reason` may hide.
    """

    until: int = 0
    reason: str = ""
    openings: int = 0
    failures: int = 0
    successes: int = 0
    window: int = 0
    circuit: str = ""
    #: Until when a probe is under way; only `read` tells.
    probe_until: int = 0
    #: Until when the destination asked to be spared, if that is longer than the time between two probes; the same.
    throttled_until: int = 0

    @classmethod
    def decode(cls, reply: list[bytes]) -> Health:
        """Read it as the scripts answer it."""
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

    def hold(self, now: float) -> Hold | None:
        """Return the hold that stands at a time in Redis milliseconds."""
        return Hold(self.until, self.reason, self.openings) if now < self.until <= now + MAX_HOLD_MS else None

    def state(self, now: float) -> HealthState:
        """Return the state at a time in Redis milliseconds."""
        if self.openings:
            return HealthState(self.circuit or HealthState.UNAVAILABLE)
        return HealthState(self.reason or HealthState.THROTTLED) if self.hold(now) else HealthState.HEALTHY


class Admission(NamedTuple):
    """How many POSTs a drain may send, one if it `probes`; with none, when to ask again."""

    granted: int
    again_seconds: float
    probes: bool


def hold(client: Redis, keys: Keys, destination: str, *, seconds: float, reason: str) -> Hold:
    """Hold a destination, never shortening a hold that stands; return the one that stands now.

    For longer than `PROBE_THROTTLE_SECONDS` its circuit opens, and the destination is probed after each such time.
    """
    between = round(PROBE_THROTTLE_SECONDS * 1000)
    call = scripts.Call(_HOLD, (keys.destination(destination),), (round(seconds * 1000), reason, between))
    until, openings, circuit = scripts.run(client, call)
    return Hold(int(until), reason, int(openings), circuit.decode())


class Lifted(NamedTuple):
    """Why a destination was held, until when, and how long it is throttled; Redis milliseconds, 0 for never."""

    reason: str
    until: int
    throttled_until: int


def lift(client: Redis, keys: Keys, destination: str) -> Lifted | None:
    """Lift the hold of a destination; return what it was, None if it was not held.

    A throttle ends. A circuit that is open for another reason stays open, and is probed at once.
    """
    reason, until, throttled_until = scripts.run(client, scripts.Call(_LIFT, (keys.destination(destination),), ()))
    return Lifted(reason.decode(), int(until), int(throttled_until)) if reason else None


def read(client: Redis, keys: Keys, destination: str) -> Health:
    """Return all that is known of a destination; changes nothing."""
    names = ["until", "reason", "openings", "failures", "successes", "window", "circuit"]
    names += ["probe_until", "throttled_until"]
    found = cast("list[bytes | None]", client.hmget(keys.destination(destination), names))
    *health, probe_until, throttled_until = (value or b"" for value in found)
    return Health.decode(health)._replace(
        probe_until=int(probe_until or 0), throttled_until=int(throttled_until or 0)
    )


def admit(
    client: Redis, keys: Keys, destination: str, *,
    token: str, wanted: int, rate_limit: float, burst: int, probe_seconds: float,
) -> Admission:  # fmt: skip
    """Ask how many POSTs a drain may send; `token` tells the drains apart."""
    args = (token, wanted, rate_limit, burst, round(probe_seconds * 1000))
    granted, again, probes = scripts.run(client, scripts.Call(_ADMIT, (keys.destination(destination),), args))
    return Admission(int(granted), int(again) / 1000, bool(probes))


def observe_call(
    keys: Keys, destination: str, *,
    successes: int, failures: int, window_change: int, max_window: int, shrink_gap_seconds: float,
) -> Call:  # fmt: skip
    """Return the call that tells what a drain saw; its reply is for `Health.decode`."""
    args = (successes, failures, window_change, max_window, round(shrink_gap_seconds * 1000))
    return scripts.Call(_OBSERVE, (keys.destination(destination),), args)


def open_circuit(
    client: Redis, keys: Keys, destination: str, *,
    token: str, first_seconds: float, longest_seconds: float, reason: str,
) -> Hold:  # fmt: skip
    """Hold a destination for a pause that doubles with each opening in a row; return the hold that stands now.

    An open circuit is opened again only by the drain that probes.
    """
    args: tuple[Any, ...] = (token, round(first_seconds * 1000), round(longest_seconds * 1000), reason)
    args += (round(PROBE_THROTTLE_SECONDS * 1000),)
    until, why, openings = scripts.run(client, scripts.Call(_OPEN_CIRCUIT, (keys.destination(destination),), args))
    return Hold(int(until), why.decode(), int(openings))


def close_circuit(client: Redis, keys: Keys, destination: str) -> None:
    """Close the circuit: the next opening takes a new run of failures, and pauses as the first did."""
    client.hdel(
        keys.destination(destination), "openings", "prober", "probe_until", "circuit", "failures", "throttled_until"
    )
