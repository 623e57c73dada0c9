"""A watchdog for tests that their own time-out cannot end: it kills their processes, then the test run.

pytest-timeout raises an exception where the test waits, and does not limit the code after it: a `with Popen(…)` waits
for its process again, and so does a fixture that stops a child. The watchdog has a thread of its own. When a test
exceeds its limit by the grace, it kills all processes that the test started, which ends such a wait. If the test has
not ended a grace later, the process of the test run prints its stacks and exits.
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

#: Exit code of a test run that did not end, the same as that of `timeout`.
STUCK = 124

#: Signals that the tests send, and that a parent may have set to "ignore" (nohup, cron, a shell's `&`).
DEFAULT_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def reset_signals() -> None:
    """Give this process, and so all processes that tests start, the default signal handlers."""
    for number in DEFAULT_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEFAULT_SIGNALS)


@contextmanager
def watched(limit_seconds: float, grace_seconds: float, uncapture: Callable[[], object]) -> Iterator[None]:
    """Watch a test and its fixtures; `uncapture` restores standard error."""
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
    """Yield the descendants of a process from /proc; none without /proc."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            for child in map(int, file.read_text().split()):
                yield child
                yield from descendants(child)
