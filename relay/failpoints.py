"""Where a test may kill this process: named points, silent unless `RELAY_TEST_CRASH` arms one.

`RELAY_TEST_CRASH=before:commit_delivery:3` is SIGKILL at the third pass of that point in one process;
`RELAY_TEST_CRASH_ONCE` names a file that the first to die makes, and that keeps all others alive. Every script that
runs has a point `before:<script>` and one `after:<script>`, when Redis has done it and its reply is not read yet; the
others stand where they are passed. `RELAY_TEST_CRASH_EVENT=deliver:some-id` is an event that kills each
process that delivers it; `intake:some-id` alike.

In production neither variable is set: a point is then one comparison.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_armed, _, _count = os.environ.get("RELAY_TEST_CRASH", "").rpartition(":")
_once = os.environ.get("RELAY_TEST_CRASH_ONCE", "")
_deadly = os.environ.get("RELAY_TEST_CRASH_EVENT", "")
#: Whether an event is armed: stages ask before they name each event.
KILLS_EVENTS = bool(_deadly)
_passes = 0


def passing(point: str) -> None:
    """Die here if this point is armed and its turn has come."""
    if _armed and point == _armed:
        _pass()


def handling(stage: str, event_id: str) -> None:
    """Die here if this is the event that kills at this stage."""
    if _deadly and _deadly == f"{stage}:{event_id}":
        _die()


def _pass() -> None:
    global _passes  # noqa: PLW0603 - one process, one count
    _passes += 1
    if _passes == int(_count) and _is_first():
        _die()


def _is_first() -> bool:
    if not _once:
        return True
    try:
        Path(_once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
