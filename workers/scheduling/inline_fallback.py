"""Draining in the worker's main process while the broker takes no wakeup.

The broker may be away, hang, or have no memory left while the queue's Redis is well: deliveries go on then, with one
thread a worker instead of its processes. Nothing here is needed for safety: the drains are the same, under the same
leases.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from workers.runtime import make_runtime
from workers.scheduling import runs
from workers.scheduling.wakeups import ENVIRONMENTS_PER_WAKEUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

    from workers.scheduling.wakeups import Wakeups

#: How long to leave it after a drain that failed for a reason that nobody foresaw.
FAILURE_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class InlineFallback:
    """Does what the wakeups that could not be rung call for; its thread starts with the first such call."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._called = threading.Condition()
        self._intake = False
        self._environments: dict[str, None] = {}  # in the order of the calls, each once
        self._thread: threading.Thread | None = None
        self._stopping = False

    def take_in(self, wakeups: Wakeups) -> None:
        """Call for a drain of the inbox; returns at once. `wakeups` are rung by what the drain leaves."""
        with self._called:
            self._intake = True
            self._wake(wakeups)

    def deliver(self, wakeups: Wakeups, environments: Sequence[str]) -> None:
        """Call for drains of these environments' outboxes; returns at once."""
        with self._called:
            self._environments.update(dict.fromkeys(environments))
            self._wake(wakeups)

    def stop(self, timeout_seconds: float) -> None:
        """Take no more calls, and wait that long for the drain under way."""
        with self._called:
            self._stopping = True
            self._called.notify()
        if self._thread:
            self._thread.join(timeout_seconds)

    def _wake(self, wakeups: Wakeups) -> None:
        if self._thread is None and not self._stopping:
            _log.warning("the broker takes no wakeups: this worker's main process drains by itself until it does")
            self._thread = threading.Thread(target=self._drain, args=(wakeups,), name="inline_fallback", daemon=True)
            self._thread.start()
        self._called.notify()

    def _drain(self, wakeups: Wakeups) -> None:
        runtime = None
        while not self._stopping:
            try:
                runtime = runtime or replace(make_runtime(self._app.relay_settings, self._app), wakeups=wakeups)
                intake, environments = self._next()
                if intake:
                    runs.take_in(runtime)
                if environments:
                    runs.deliver(runtime, environments)
            except Exception:  # noqa: BLE001 - the sweep calls again; a thread that ended would be missed
                _log.exception("a drain without a wakeup failed")
                with self._called:
                    self._called.wait(FAILURE_PAUSE_SECONDS)
        if runtime:
            runtime.close()

    def _next(self) -> tuple[bool, list[str]]:
        """Wait for calls, and return what to drain."""
        with self._called:
            self._called.wait_for(lambda: self._stopping or self._intake or self._environments)
            intake, self._intake = self._intake, False
            environments = list(self._environments)[:ENVIRONMENTS_PER_WAKEUP]
            for name in environments:
                del self._environments[name]
            return intake and not self._stopping, [] if self._stopping else environments
