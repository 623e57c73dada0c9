"""Rate-limited log lines for events that any client can cause."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

#: Minimum time between two lines of one log.
PAUSE_SECONDS = 1.0


class CountedLog:
    """Logs the first occurrence at once and later ones as a count, one line a second; belongs to one event loop."""

    def __init__(self, log: BoundLogger, event: str) -> None:
        self._log = log
        self._event = event
        self._count = 0
        self._detail = ""
        self._timer: asyncio.TimerHandle | None = None

    def note(self, detail: str) -> None:
        """Count an occurrence; a line has the detail of the last occurrence that it counts."""
        self._count += 1
        self._detail = detail
        if self._timer is None:
            self._write()

    def close(self) -> None:
        """Write the occurrences since the last line."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()

    def _write(self) -> None:
        self._timer = None
        if self._flush():
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._write)

    def _flush(self) -> bool:
        count, self._count = self._count, 0
        if count:
            self._log.warning(self._event, count=count, detail=self._detail)
        return count > 0
