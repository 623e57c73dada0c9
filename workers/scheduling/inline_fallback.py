"""Intake and delivery in the worker's main process while the broker accepts no wake-ups.

The broker may be away, hang, or be out of memory while the queue's Redis is well. Deliveries then go on with one
thread a worker instead of its processes. The runs are the same, under the same leases.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from workers.scheduling.tasks import deliver_outboxes, take_in_and_deliver
from workers.scheduling.wakeups import DELIVER, ENVIRONMENTS_PER_WAKEUP, INTAKE, messages_of
from workers.wiring import make_runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.settings import Settings
    from workers.scheduling.wakeups import CeleryWakeups

#: Pause after a run that failed unexpectedly, in seconds.
FAILURE_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class InlineFallback:
    """Wake-ups of the main process: sent to the broker, or answered here by a thread if the broker refuses them.

    The thread starts with the first refused wake-up.
    """

    def __init__(self, settings: Settings, broker: CeleryWakeups) -> None:
        self._settings = settings
        self._broker = broker
        self._changed = threading.Condition()
        self._intake = False
        self._environments: dict[str, None] = {}  # each once, in the order of the wake-ups
        self._thread: threading.Thread | None = None
        self._stopping = False

    def wake_intake(self) -> None:
        """Ask for a run of intake."""
        if not self._broker.send(INTAKE):
            self._run_here(intake=True)

    def wake_delivery(self, environments: Sequence[str]) -> None:
        """Ask for runs of delivery on these environments' outboxes."""
        for some in messages_of(environments):
            if not self._broker.send(DELIVER, some):
                self._run_here(environments=some)

    def stop(self, timeout_seconds: float) -> None:
        """Start no more runs, and wait that long for the one under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread:
            self._thread.join(timeout_seconds)

    def _run_here(self, *, intake: bool = False, environments: Sequence[str] = ()) -> None:
        with self._changed:
            self._intake |= intake
            self._environments.update(dict.fromkeys(environments))
            if self._thread is None and not self._stopping:
                _log.warning("the broker accepts no wake-ups: this worker's main process does their work")
                self._thread = threading.Thread(target=self._run, name="inline_fallback", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        runtime = None
        while not self._stopping:
            try:
                runtime = runtime or make_runtime(self._settings, self)
                intake, environments = self._next()
                if intake:
                    take_in_and_deliver(runtime)
                if environments:
                    deliver_outboxes(runtime, environments)
            except Exception:  # noqa: BLE001 - the thread must survive any failure; the sweep repeats the wake-up
                _log.exception("a run without a wake-up failed")
                with self._changed:
                    self._changed.wait(FAILURE_PAUSE_SECONDS)
        if runtime:
            runtime.close()

    def _next(self) -> tuple[bool, list[str]]:
        """Wait for refused wake-ups; return whether to run intake, and the outboxes to deliver from."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._intake or self._environments)
            if self._stopping:
                return False, []
            intake, self._intake = self._intake, False
            environments = list(self._environments)[:ENVIRONMENTS_PER_WAKEUP]
            for name in environments:
                del self._environments[name]
            return intake, environments
