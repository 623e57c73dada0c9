"""The clock that leases are reckoned with on this machine.

`time.monotonic` stands still on Linux while the machine is suspended; Redis, on another machine, does not. A worker
that woke up would take a lease that ran out hours ago for a fresh one, and send what another has long delivered.
"""

from __future__ import annotations

import time

#: The clock that counts time in suspend, where there is one (Linux).
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def uptime() -> float:
    """Return seconds that never go back, time in suspend included where the system can tell."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
