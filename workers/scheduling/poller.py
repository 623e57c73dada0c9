"""Noticing work and calling drains to it, in every worker's main process.

Producers know no Celery: they add to a stream, and the poller, blocked on reading it, wakes and rings. It also
rings for outboxes whose time has come (a retry, a hold's end), and again for whatever waits although a wakeup or a
drain got lost: that is the sweep. Wakeups coalesce, so the pollers of many workers do not get in each other's way.

Beside this it gives the worker's sign of life, notices a lost data set and a deaf worker, and calls now and then for
what was not seen for long to be forgotten.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from celery import bootsteps
from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.connections.failover import WrongServer
from relay.queue import epoch, forgetting, inbox, leases
from relay.queue.keys import Keys
from relay.queue.leases import Why
from relay.queue.schedule import longest_pause_seconds, look
from relay.settings import DEFAULT_DESTINATION
from workers.scheduling.broker_probe import Echo
from workers.scheduling.forgetting import every_seconds
from workers.scheduling.inline_fallback import InlineFallback
from workers.scheduling.wakeups import Wakeups
from workers.shutdown import EX_SOFTWARE, is_stopping, leave

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery.worker import WorkController
    from redis import Redis

    from relay.queue.schedule import Sight
    from relay.settings import Settings

#: The longest that one look waits for an entry; also the time to notice a lost wakeup or drain beyond its expiry.
LOOK_SECONDS = 1.0

#: The shortest time between two looks, however fast entries come. A drain stays longer than this.
PACE_SECONDS = 0.01

#: Outboxes that may be looked at whenever an entry comes. A look at more is followed by a rest so many times as long.
FEW = 50
REST_FACTOR = 10

#: How long to leave Redis alone after it failed.
REDIS_PAUSE_SECONDS = 0.5

#: Outboxes that are asked about in one round trip.
PAGE = 500

#: A worker whose heartbeat is older than this is not there.
HEARTBEAT_SECONDS = 10.0

#: How long stopping waits for the thread; it is a daemon, so a hung one does not keep the process.
STOP_SECONDS = 3.0

_log = logging.getLogger(__name__)


class Deaf(Exception):  # noqa: N818 - says what happened
    """The broker takes our messages, and the consumer hears none."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing was heard for {seconds:g} s from a broker that takes this worker's messages")


class ReadOnly(Exception):  # noqa: N818 - says what happened
    """Redis refuses writes, on each new connection, for too long."""

    def __init__(self, seconds: float, refusal: WrongServer) -> None:
        super().__init__(f"Redis refused writes for {seconds:g} s ({refusal})")


class Poller:
    """One look after the other, until told to stop."""

    def __init__(self, settings: Settings, client: Redis, wakeups: Wakeups, name: str) -> None:
        self._keys = Keys(settings.queue.namespace)
        self._client = client
        self._wakeups = wakeups
        self._bell_seconds = settings.worker.sweep
        self._longest_pause = longest_pause_seconds(settings.delivery.backoff_max, settings.worker.lease)
        self._expire_after = settings.delivery.max_age
        self._forget_after = settings.delivery.forget_after
        self._forget_seconds = every_seconds(settings.delivery.forget_after)
        self._name = name
        self._dataset = ""
        self._stopping = threading.Event()
        self._seen = "0-0"
        self._beat_at = 0.0
        #: Until when only the inbox is looked at, on the monotonic clock.
        self._rest_until = 0.0
        self._leaving = False
        self._read_only_after = settings.worker.read_only_after
        #: Since when each sign of life was refused by a Redis that takes no writes, on the monotonic clock.
        self._read_only_since: float | None = None

    def stop(self) -> None:
        """Stop after the look under way."""
        self._stopping.set()

    def watch(self, echo: Echo) -> None:
        """Look until stopped; Redis being away is waited out. Raises `Deaf` when the worker is, and `ReadOnly`."""
        while not self._stopping.is_set() and not is_stopping():
            started = time.monotonic()
            try:
                if echo.is_settled:  # a heartbeat says that the worker is at work, not that it is about to be
                    self._beat()
                pause = self.ring_for_what_waits()
                inbox.wait(self._client, self._keys, self._seen, pause)
            except RedisError as error:
                self._note_refusal(error)
                _log.warning("Redis is away, looking again soon: %s", error)
                self._stopping.wait(REDIS_PAUSE_SECONDS)
            if echo.is_deaf():
                raise Deaf(echo.deaf_after_seconds)
            self._stopping.wait(max(0.0, PACE_SECONDS - (time.monotonic() - started)))

    def _note_refusal(self, error: RedisError) -> None:
        """Raise `ReadOnly` if Redis has refused writes for too long. A Redis that is away is none that refuses."""
        now = time.monotonic()
        if not isinstance(error, WrongServer):
            self._read_only_since = None
        elif self._read_only_since is None:
            self._read_only_since = now
        elif now - self._read_only_since > self._read_only_after:
            raise ReadOnly(self._read_only_after, error) from error

    def hand_on(self) -> None:
        """Ring for whatever waits, though a wakeup may be under way: this worker may have taken it along."""
        self._leaving = True
        with contextlib.suppress(RedisError):  # then others' sweeps find it
            self.ring_for_what_waits()

    def ring_for_what_waits(self) -> float:
        """Ring for every drain that has work and nobody at it; return the seconds until it is time to look again.

        After a look at many outboxes an entry in the inbox is no reason for another: of ten thousand that are due,
        each is a tenth of a second of Redis's.
        """
        began = time.monotonic()
        if began < self._rest_until and not self._leaving:
            sight = look(self._client, self._keys, DEFAULT_DESTINATION, count=0, longest_pause=self._longest_pause)
            self._seen = _seen(sight)
            self._ring_intake(waiting=sight.inbox)
            return max(PACE_SECONDS, self._rest_until - began)
        skip = 0
        while True:
            sight = look(
                self._client,
                self._keys,
                DEFAULT_DESTINATION,
                count=PAGE,
                skip=skip,
                longest_pause=self._longest_pause,
            )
            if skip == 0:
                self._seen = _seen(sight)
                self._ring_intake(waiting=sight.inbox)
            self._ring_delivery(sight.due)
            if len(sight.due) < PAGE:
                break
            skip += PAGE
        ended = time.monotonic()
        if len(sight.due) + skip > FEW:
            self._rest_until = ended + min(LOOK_SECONDS, REST_FACTOR * (ended - began))
        return min(LOOK_SECONDS, max(PACE_SECONDS, sight.next_due_seconds or LOOK_SECONDS))

    def _ring_intake(self, *, waiting: int) -> None:
        if waiting and self._to_ring([(self._keys.intake_lease, self._keys.intake_wakeup)], Why.WORK):
            self._wakeups.wake_intake()

    def _ring_delivery(self, environments: Sequence[str]) -> None:
        outboxes = [self._keys.of_outbox(DEFAULT_DESTINATION, name) for name in environments]
        ringing = self._to_ring([(keys.lease, keys.wakeup) for keys in outboxes], Why.DUE)
        if ringing:
            self._wakeups.wake_delivery([environments[position] for position in ringing])

    def _to_ring(self, drains: Sequence[tuple[str, str]], why: Why) -> list[int]:
        """Return which of these drains, given as (lease, wakeup), to ring for."""
        if self._leaving and drains:
            self._client.delete(*(wakeup for _, wakeup in drains))
        return leases.to_wake(self._client, self._keys.counts, drains, self._bell_seconds, why)

    def _beat(self) -> None:
        if time.monotonic() - self._beat_at < LOOK_SECONDS:
            return
        self._beat_at = time.monotonic()
        found = epoch.beat(
            self._client,
            self._keys,
            self._name,
            keep_seconds=HEARTBEAT_SECONDS,
            known=self._dataset,
            expire_after=self._expire_after,
            forget_after=self._forget_after,
        )
        self._read_only_since = None
        if self._dataset not in {"", found}:
            _log.error(epoch.LOST)
            self._seen = "0-0"
        self._dataset = found
        if forgetting.claim(self._client, self._keys, self._forget_seconds) and not self._wakeups.ring_forget():
            forgetting.unclaim(self._client, self._keys)


def _seen(sight: Sight) -> str:
    """Return the id to wait behind: of an inbox with entries the newest, of an empty one the beginning.

    An entry that comes between the look and the wait is missed only where intake is called anyway.
    """
    return "$" if sight.inbox else "0-0"


class DoormanStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Lives as long as the worker, and starts after its children: they must not inherit the thread."""

    requires: ClassVar = {"celery.worker.components:Pool"}

    def __init__(self, worker: WorkController, **_: Any) -> None:
        self._name = worker.hostname
        self._app = worker.app
        self._poller: Poller | None = None
        self._thread: threading.Thread | None = None
        self._inline_fallback = InlineFallback(self._app)
        self._echo = self._app.relay_echo = Echo(self._app, self._name)
        self._app.amqp.queues.consume_from[self._echo.queue.name] = self._echo.queue

    def start(self, _: WorkController) -> None:
        """Start looking."""
        settings = self._app.relay_settings
        wakeups = Wakeups(self._app, self._inline_fallback)
        self._poller = Poller(settings, connect(settings.redis), wakeups, self._name)
        self._thread = threading.Thread(target=self._watch, name="poller", daemon=True)
        self._thread.start()

    def stop(self, _: WorkController) -> None:
        """Stop looking; called more than once."""
        if self._poller and self._thread:
            self._poller.stop()
            self._thread.join(STOP_SECONDS)
            self._poller.hand_on()
            settings = self._app.relay_settings
            self._inline_fallback.stop(settings.worker.budget + settings.api.timeout)

    terminate = stop

    def _watch(self) -> None:
        """Take the worker down if it is deaf, or the poller fails: without one, work is noticed by nobody."""
        assert self._poller is not None  # noqa: S101 - `start` made it
        try:
            self._poller.watch(self._echo)
        except (Deaf, ReadOnly) as because:
            _log.critical("%s: this worker leaves, so that its supervisor starts another", because)
            leave(EX_SOFTWARE)
        except Exception:  # noqa: BLE001 - a thread's end is silent; whatever ended it must be seen
            _log.exception("the poller failed; this worker stops, so that its supervisor starts another")
            leave(EX_SOFTWARE)
