"""The clock for leases on this machine.

On Linux `time.monotonic` stops while the machine is suspended, and Redis on another machine does not. After a
suspend, a worker would take an expired lease for a valid one, and send events that another run has delivered.
"""

from __future__ import annotations

import time

#: The clock that includes time in suspend (Linux only).
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def uptime() -> float:
    """Return monotonic seconds, including time in suspend where the system supports it."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
