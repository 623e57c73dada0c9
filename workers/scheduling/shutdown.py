"""How a worker stops: the first signal asks, the second forces.

At SIGTERM or SIGINT to the main process (from a supervisor, or by Ctrl-C) the worker takes no more wake-ups. Its runs
finish what is in flight and hand back the rest, and it exits with 0. A worker that is not done after
`deadline_seconds`, which is longer than a run may take, is ended with EX_SOFTWARE. A second signal, or SIGQUIT, ends
it at once with its children; the exit code is 128 plus the signal's number. Leases are then left to expire, and
requests that were in flight are sent again.

The main process asks its children to stop with SIGUSR2. They ignore SIGTERM and SIGINT, so that a supervisor that
signals the whole process group interrupts no run.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from billiard import pool
from celery import bootsteps
from celery.worker import state

from relay import logs
from workers.shutdown import is_stopping, request_stop

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery.worker import WorkController

    from relay.settings import Settings

#: Exit code of a worker that failed, or could not stop in time: sysexits' EX_SOFTWARE.
EX_SOFTWARE = 70

#: Seconds that a worker may take to stop beyond the longest run. `relay up` waits one second more.
MARGIN_SECONDS = 4.0

#: How often, a tenth of a second apart, a child that ends checks whether the main process knows of its last task. A
#: task handed over in the moment of stopping is never known, and billiard's own 300 checks take 30 s.
GUARANTEE_CHECKS = 5

#: Added to a signal's number to make an exit code, as a shell does.
_SIGNALLED = 128

#: Asks a child to stop: the first signal that billiard does not use.
_STOP_CHILD = signal.SIGUSR2

#: How long stopping may take; 0 until `StoppingStep` handles SIGALRM.
_deadline_seconds = 0


def handle_signals_in_child() -> None:
    """Have this child stop when the main process asks, and ignore SIGTERM."""
    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = GUARANTEE_CHECKS
    if threading.current_thread() is threading.main_thread():  # threads of a pool get no signals
        signal.signal(_STOP_CHILD, lambda *_: request_stop())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def stop_worker(code: int) -> None:
    """Stop the worker, from any thread, with this exit code; by force if its main thread does not react."""
    state.should_stop = code
    if _deadline_seconds:
        signal.alarm(_deadline_seconds)


def deadline_seconds(settings: Settings) -> int:
    """Return how long a worker may take to stop."""
    return round(settings.worker.budget + settings.api.timeout + MARGIN_SECONDS)


class StoppingStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Replaces Celery's signal handlers, which exit with 1 at Ctrl-C and ignore a second SIGTERM."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **_: Any) -> None:
        self._worker = worker
        self._was_signalled = False
        # A worker that runs in a thread of another program leaves the signals alone.
        self._has_signals = threading.current_thread() is threading.main_thread()
        if self._has_signals:
            # Children inherit this: a request to stop must not kill one that is still starting.
            signal.signal(_STOP_CHILD, signal.SIG_IGN)

    def start(self, _: WorkController) -> None:
        """Install the signal handlers."""
        if not self._has_signals:
            return
        signal.signal(signal.SIGTERM, self._on_stop_signal)
        signal.signal(signal.SIGINT, self._on_stop_signal)
        signal.signal(signal.SIGQUIT, self._on_kill_signal)
        signal.signal(signal.SIGALRM, self._on_deadline)
        # Python drops the handler before it ends, and an alarm in that moment would replace the exit code.
        atexit.register(signal.alarm, 0)
        global _deadline_seconds  # noqa: PLW0603 - one process, one deadline
        _deadline_seconds = deadline_seconds(self._worker.app.relay_settings)

    def close(self, _: WorkController) -> None:
        """Stop the children, whatever made the worker stop. Celery calls this before it stops any step."""
        self._begin()

    def _on_stop_signal(self, number: int, frame: Any) -> None:
        if self._was_signalled:  # a worker that stops by itself has not been signalled
            self._on_kill_signal(number, frame)
        self._was_signalled = True
        if state.should_stop in {None, False}:  # the exit code of a failure is kept
            state.should_stop = 0
        self._say("relay: stopping; once more stops at once")
        self._begin()

    def _begin(self) -> None:
        if not self._has_signals or is_stopping():
            return
        request_stop()
        signal.alarm(_deadline_seconds)
        self._signal_children(_STOP_CHILD)

    def _on_deadline(self, *_: Any) -> None:
        self._say("relay: not stopped in time; unfinished runs are ended")
        with contextlib.suppress(OSError, RuntimeError, ValueError, AttributeError):  # standard error may be closed
            faulthandler.dump_traceback()
        self._exit_now(EX_SOFTWARE)

    def _on_kill_signal(self, number: int, _: Any) -> None:
        self._exit_now(_SIGNALLED + number)

    def _exit_now(self, code: int) -> None:
        self._signal_children(signal.SIGKILL)
        os._exit(code)

    def _say(self, event: str) -> None:
        logs.say(self._worker.app.relay_settings.log, event, role="worker", worker=self._worker.hostname)

    def _signal_children(self, number: int) -> None:
        children: Iterable[int] = self._worker.pool.info.get("processes", ())
        for process in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
