"""The concurrency limit: how many requests one run may have in flight. Additive increase, multiplicative decrease."""

from __future__ import annotations

#: The change that halves the window; a positive change is by how much it grows.
SHRINK = -1


class ConcurrencyLimit:
    """The window that all runs share, as one run knows it and wants it changed.

    It grows by one for each window of successes that filled it, and halves when the destination pushes back.
    """

    def __init__(self, most: int) -> None:
        self.window = most
        self._most = most
        self._successes = 0
        self._change = 0

    def adopt(self, window: int) -> None:
        """Take over the shared window, 0 if no answer has set it yet. Growth that is not reported yet is added."""
        self.window = min(self._most, (window or self._most) + max(0, self._change))

    def succeeded(self, *, was_full: bool) -> None:
        """Count a success. It grows the window only if that was full: one that is not needs no growth."""
        if not was_full or self.window >= self._most:
            return
        self._successes += 1
        if self._successes >= self.window and self._change >= 0:
            self._successes = 0
            self._change += 1
            self.window += 1

    def pushed_back(self) -> None:
        """Halve the window: fewer requests at once would help the destination."""
        self._successes = 0
        self._change = SHRINK

    def take_change(self) -> int:
        """Return the change to report, once: by how much to grow, `SHRINK`, or 0."""
        change, self._change = self._change, 0
        return change
