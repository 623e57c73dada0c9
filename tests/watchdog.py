"""Ends a test that its own time-out cannot end: kills what it waits for, then the run's process.

pytest-timeout raises an exception where the test waits, and sets no limit to what follows: a `with Popen(…)` around
that place waits for its process once more, and so does a fixture that stops a child. The watchdog looks from a thread
of its own. Once a test is over its limit by the grace, it kills all processes that the test started, which ends such
a wait. If the test is not over a grace later, the run's process prints its stacks and exits.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Exit code of a run that did not end by itself, as of `timeout`.
STUCK = 124

#: Signals that a parent may have set to "ignore" (nohup, cron, a shell's `&`): the tests send them.
DEFAULT_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def reset_signals() -> None:
    """Give this process, and so all that tests start, the default signals, whatever it was started with."""
    for number in DEFAULT_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEFAULT_SIGNALS)


@contextmanager
def watched(limit_seconds: float, grace_seconds: float, uncapture: Callable[[], object]) -> Iterator[None]:
    """Watch over a test with this limit, its fixtures included; `uncapture` gives standard error back to the run."""
    before = set(descendants(os.getpid()))
    over = threading.Event()

    def watch() -> None:
        if over.wait(limit_seconds + grace_seconds):
            return
        for pid in set(descendants(os.getpid())) - before:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if over.wait(grace_seconds):
            return
        uncapture()
        over_by = 2 * grace_seconds
        os.write(2, f"a test is {over_by:g} s over its limit of {limit_seconds:g} s: the run ends\n".encode())
        faulthandler.dump_traceback(2)
        os._exit(STUCK)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below a process, as /proc lists them; none where there is no /proc."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            for child in map(int, file.read_text().split()):
                yield child
                yield from descendants(child)
