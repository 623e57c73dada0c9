"""How a worker stops: one signal asks, a second insists.

Asked (SIGTERM or SIGINT to the worker's main process, from a supervisor or by Ctrl-C), it takes no more wakeups, its
drains finish what is in flight, hand back the rest, and it exits with 0. What takes longer than a drain may is ended
at `deadline_seconds`, with EX_SOFTWARE. A second signal, or SIGQUIT, ends it at once, children and all, with 128 and
the signal's number: leases are left to expire, and what was in flight is sent again.

The main process tells its children by SIGUSR2. They ignore SIGTERM, as they ignore SIGINT, so that a supervisor that
signals the whole group cuts nothing short.
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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery.worker import WorkController

    from relay.settings import Settings

#: Exit code of a worker that failed, or could not stop in time: sysexits' EX_SOFTWARE.
EX_SOFTWARE = 70

#: Beyond the longest that a drain has, what a worker may take to stop; `relay up` waits a second more.
MARGIN_SECONDS = 4.0

#: How often, a tenth of a second apart, an ending child looks whether the main process has heard of its last task. A
#: task that was handed over in the moment of stopping is never heard of, and billiard's own 300 tries are 30 s.
UNHEARD_TRIES = 5

#: What a shell adds to a signal's number, and so do we.
_SIGNALLED = 128

#: What tells a child; the first signal that billiard leaves to us.
_NEWS = signal.SIGUSR2

#: How long stopping may take; 0 until somebody listens to the alarm.
_deadline_seconds = 0

_stopping = False  # no Event: that has a lock, and a signal handler may interrupt its holder


def is_stopping() -> bool:
    """Tell whether this process is asked to stop: then finish what is in flight, and hand back the rest."""
    return _stopping


def heed_in_child() -> None:
    """Learn that the worker stops; a child ends when its main process lets it, or is gone."""
    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = UNHEARD_TRIES
    if threading.current_thread() is threading.main_thread():  # a pool of threads has nobody to signal
        signal.signal(_NEWS, lambda *_: _note())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave(code: int) -> None:
    """Have the worker stop, from any thread, and exit with this code; by force, should its main thread be stuck."""
    state.should_stop = code
    if _deadline_seconds:
        signal.alarm(_deadline_seconds)


def deadline_seconds(settings: Settings) -> int:
    """Return how long a worker may take to stop."""
    return round(settings.worker.budget + settings.api.timeout + MARGIN_SECONDS)


class StoppingStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Takes the signals over from Celery, which exits with 1 at Ctrl-C and ignores a second SIGTERM."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **_: Any) -> None:
        self._worker = worker
        self._was_asked = False
        # A worker in a thread of somebody else's process leaves the signals alone.
        self._has_signals = threading.current_thread() is threading.main_thread()
        if self._has_signals:
            signal.signal(_NEWS, signal.SIG_IGN)  # inherited by the children: the news kills none that still starts

    def start(self, _: WorkController) -> None:
        """Listen."""
        if not self._has_signals:
            return
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGINT, self._asked)
        signal.signal(signal.SIGQUIT, self._insisted)
        signal.signal(signal.SIGALRM, self._overdue)
        # Python drops the handler before it ends, and an alarm in that moment would replace the exit code.
        atexit.register(signal.alarm, 0)
        global _deadline_seconds  # noqa: PLW0603 - one process, one deadline
        _deadline_seconds = deadline_seconds(self._worker.app.relay_settings)

    def close(self, _: WorkController) -> None:
        """Pass the news on, whatever it is that stops the worker. Called before any step is stopped."""
        self._begin()

    def _asked(self, number: int, frame: Any) -> None:
        if self._was_asked:  # by a signal before this: one that leaves by itself was not
            self._insisted(number, frame)
        self._was_asked = True
        if state.should_stop in {None, False}:  # a failure's code is kept
            state.should_stop = 0
        self._say("relay: stopping; once more stops at once")
        self._begin()

    def _begin(self) -> None:
        if not self._has_signals or _stopping:
            return
        _note()
        signal.alarm(_deadline_seconds)
        _signal(self._children(), _NEWS)

    def _overdue(self, *_: Any) -> None:
        self._say("relay: not stopped in time; what is left is cut off")
        with contextlib.suppress(OSError, RuntimeError, ValueError, AttributeError):  # standard error may be gone
            faulthandler.dump_traceback()
        self._end(EX_SOFTWARE)

    def _insisted(self, number: int, _: Any) -> None:
        self._end(_SIGNALLED + number)

    def _end(self, code: int) -> None:
        _signal(self._children(), signal.SIGKILL)
        os._exit(code)

    def _say(self, event: str) -> None:
        logs.say(self._worker.app.relay_settings.log, event, role="worker", worker=self._worker.hostname)

    def _children(self) -> Iterable[int]:
        children: Iterable[int] = self._worker.pool.info.get("processes", ())
        return children


def _note() -> None:
    global _stopping  # noqa: PLW0603 - one process, one end
    _stopping = True


def _signal(processes: Iterable[int], number: int) -> None:
    for each in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)
