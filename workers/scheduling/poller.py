"""The poller: a thread in every worker's main process that finds work in Redis and sends wake-ups for it.

Producers do not use Celery: they add to a stream. The poller blocks on reading the inbox and wakes intake when an
entry is added. It wakes delivery for outboxes whose time has come (a retry, or the end of a pause of the
destination). It repeats the wake-up for anything that waits without a live lease, because a wake-up or a run was
lost: this is the sweep. Wake-ups coalesce, so the pollers of many workers do not multiply them.

The same loop writes the worker's heartbeat, probes the broker, and starts the walk that forgets old instances.
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
from relay.queue import forgetting, inbox, leases
from relay.queue.keys import Keys
from relay.queue.leases import Why
from relay.queue.schedule import longest_pause_seconds, read_waiting
from relay.queue.shard import Shard
from workers.forgetting import every_seconds
from workers.scheduling.broker_probe import BrokerProbe
from workers.scheduling.heartbeat import Heartbeat
from workers.scheduling.inline_fallback import InlineFallback
from workers.scheduling.shutdown import EX_SOFTWARE, stop_worker
from workers.scheduling.wakeups import FORGET, CeleryWakeups
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery.worker import WorkController

    from relay.settings import Settings
    from workers.runtime import Wakeups

#: Maximum time that one poll waits for an entry, in seconds. A lost wake-up or run is noticed that long after its
#: expiry.
POLL_SECONDS = 1.0

#: Minimum time between two polls, in seconds, however fast entries are added. A run of intake lasts longer than this.
MIN_POLL_SECONDS = 0.01

#: Maximum due outboxes at which each new entry may cause a poll of the outboxes. After a poll of more, outboxes are
#: not polled for `REST_FACTOR` times as long as it took: of 10,000 due outboxes, each poll takes Redis a tenth of a
#: second.
FEW_OUTBOXES = 50
REST_FACTOR = 10

#: Due outboxes that are read in one round trip.
PAGE = 500

#: Pause after a failure of Redis, in seconds.
REDIS_PAUSE_SECONDS = 0.5

#: How long stopping waits for the thread, in seconds. It is a daemon, so a hung one does not keep the process.
STOP_SECONDS = 3.0

_log = logging.getLogger(__name__)


class BrokerSilent(Exception):  # noqa: N818 - logged with its name
    """The broker accepts messages, and this worker receives none."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the broker accepts messages, and this worker received none for {seconds:g} s")


class RedisReadOnly(Exception):  # noqa: N818 - logged with its name
    """Redis refuses writes, on each new connection, for too long."""

    def __init__(self, seconds: float, refusal: WrongServer) -> None:
        super().__init__(f"Redis refused writes for {seconds:g} s ({refusal})")


class Poller:
    """Finds intake and outboxes that have work and no run, and sends wake-ups for them."""

    def __init__(self, settings: Settings, shard: Shard, wakeups: Wakeups) -> None:
        self._shard, self._keys, self._destination = shard, shard.keys, settings.destination
        self._wakeups = wakeups
        self._repeat_seconds = settings.worker.sweep
        self._longest_pause = longest_pause_seconds(settings.delivery.backoff_max, settings.worker.lease)
        self._last_seen_id = "0-0"
        #: Until when outboxes are not polled, on the monotonic clock.
        self._outboxes_rest_until = 0.0

    def send_wakeups(self, *, repeat: bool = False) -> float:
        """Send a wake-up for each run that has work; return the seconds until the next poll.

        With `repeat` all outboxes are polled, and a wake-up is sent even if another is under way.
        """
        started = time.monotonic()
        if started < self._outboxes_rest_until and not repeat:
            self._poll(outboxes=0, skip=0, repeat=False)
            return max(MIN_POLL_SECONDS, self._outboxes_rest_until - started)
        due, next_due_seconds = self._poll(outboxes=PAGE, skip=0, repeat=repeat)
        page = due
        while page == PAGE:
            page, next_due_seconds = self._poll(outboxes=PAGE, skip=due, repeat=repeat)
            due += page
        ended = time.monotonic()
        if due > FEW_OUTBOXES:
            self._outboxes_rest_until = ended + min(POLL_SECONDS, REST_FACTOR * (ended - started))
        return min(POLL_SECONDS, max(MIN_POLL_SECONDS, next_due_seconds or POLL_SECONDS))

    def wait(self, seconds: float) -> None:
        """Wait until an entry is added to the inbox, or the time is over."""
        inbox.wait(self._shard.client, self._keys, self._last_seen_id, seconds)

    def _poll(self, *, outboxes: int, skip: int, repeat: bool) -> tuple[int, float | None]:
        """Poll the inbox and one page of due outboxes; return how many are due, and when the next one will be."""
        waiting = read_waiting(
            self._shard,
            self._destination,
            count=outboxes,
            skip=skip,
            longest_pause_seconds=self._longest_pause,
        )
        if skip == 0:
            # Wait for a newer entry than all of these; an empty inbox is read from its beginning. An entry that is
            # added before the wait begins is missed only if intake is woken anyway.
            self._last_seen_id = "$" if waiting.inbox else "0-0"
            intake = [(self._keys.intake_lease, self._keys.intake_wakeup)] if waiting.inbox else []
            if self._to_wake(intake, Why.WORK, repeat=repeat):
                self._wakeups.wake_intake()
        keys = [self._keys.of_outbox(self._destination, name) for name in waiting.due]
        positions = self._to_wake([(each.lease, each.wakeup) for each in keys], Why.DUE, repeat=repeat)
        if positions:
            self._wakeups.wake_delivery([waiting.due[position] for position in positions])
        return len(waiting.due), waiting.next_due_seconds

    def _to_wake(self, runs: Sequence[tuple[str, str]], why: Why, *, repeat: bool) -> list[int]:
        """Return the positions of the runs, given as (lease, wakeup), for which to send a wake-up."""
        if repeat and runs:
            self._shard.client.delete(*(wakeup for _, wakeup in runs))
        return leases.to_wake(self._shard.client, self._keys.counts, runs, self._repeat_seconds, why)


class PollerStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Runs the poller's thread for as long as the worker lives.

    It starts after the pool's children, which must not inherit the thread.
    """

    requires: ClassVar = {"celery.worker.components:Pool"}

    def __init__(self, worker: WorkController, **_: Any) -> None:
        self._app = worker.app
        self._settings: Settings = worker.app.relay_settings
        self._probe = self._app.relay_probe = BrokerProbe(self._app, worker.hostname)
        self._app.amqp.queues.consume_from[self._probe.queue.name] = self._probe.queue
        self._broker = CeleryWakeups(self._app)
        self._fallback = InlineFallback(self._settings, self._broker)
        self._shard = Shard(client=connect(self._settings.redis), keys=Keys(self._settings.queue.namespace))
        self._heartbeat = Heartbeat(self._settings, self._shard, worker.hostname)
        self._poller = Poller(self._settings, self._shard, self._fallback)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, _: WorkController) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)
        self._thread.start()

    def stop(self, _: WorkController) -> None:
        """Stop the thread. Celery calls this more than once."""
        if self._thread is None:
            return
        self._stopping.set()
        self._thread.join(STOP_SECONDS)
        # This worker may have received wake-ups that it will not answer: repeat them for the others.
        with contextlib.suppress(RedisError):  # then the sweep of another worker repeats them
            self._poller.send_wakeups(repeat=True)
        self._fallback.stop(self._settings.worker.budget + self._settings.api.timeout)

    terminate = stop

    def _run(self) -> None:
        """Poll until stopped. Stop the worker if the poller fails: without one, no work is noticed."""
        try:
            self._loop()
        except (BrokerSilent, RedisReadOnly) as reason:
            _log.critical("%s: this worker exits, so that its supervisor starts another", reason)
            stop_worker(EX_SOFTWARE)
        except Exception:  # noqa: BLE001 - the end of a thread is silent; its reason must be logged
            _log.exception("the poller failed; this worker stops, so that its supervisor starts another")
            stop_worker(EX_SOFTWARE)

    def _loop(self) -> None:
        """Poll until stopped; wait while Redis is away. Raise `BrokerSilent` or `RedisReadOnly`."""
        refused_since: float | None = None  # since when Redis refused each heartbeat as read-only
        while not self._stopping.is_set() and not is_stopping():
            started = time.monotonic()
            try:
                # A heartbeat says that the worker works, so the first is written once the broker was probed.
                if self._probe.is_settled and self._heartbeat.beat():
                    refused_since = None
                    self._start_forgetting()
                self._poller.wait(self._poller.send_wakeups())
            except RedisError as error:
                if not isinstance(error, WrongServer):  # Redis is away, not read-only
                    refused_since = None
                elif refused_since is None:
                    refused_since = time.monotonic()
                elif time.monotonic() - refused_since > self._settings.worker.read_only_after:
                    raise RedisReadOnly(self._settings.worker.read_only_after, error) from error
                _log.warning("Redis is away, polling again soon: %s", error)
                self._stopping.wait(REDIS_PAUSE_SECONDS)
            if self._probe.is_silent():
                raise BrokerSilent(self._probe.silent_after_seconds)
            self._stopping.wait(max(0.0, MIN_POLL_SECONDS - (time.monotonic() - started)))

    def _start_forgetting(self) -> None:
        """Wake the walk that forgets old instances if it is time for one and no other worker did."""
        interval = every_seconds(self._settings.delivery.forget_after)
        client, keys = self._shard.client, self._shard.keys
        if forgetting.claim(client, keys, interval) and not self._broker.send(FORGET):
            forgetting.unclaim(client, keys)
