"""How many POSTs may one drain have in flight? Additive increase, multiplicative decrease, as TCP does it."""

from __future__ import annotations

#: What `take_change` returns for a window that is to halve; a positive number is by how much it is to grow.
SHRINK = -1


class Window:
    """The size that all drains share, as one of them sees it and wants it changed.

    It grows by one for each window of successes that filled it, and halves when the API pushes back.
    """

    def __init__(self, most: int) -> None:
        self.size = most
        self._most = most
        self._successes = 0
        self._change = 0

    def adopt(self, size: int) -> None:
        """Take over the size that all share; 0 while nobody has set one. Growth that is not told yet comes on top."""
        self.size = min(self._most, (size or self._most) + max(0, self._change))

    def succeeded(self, *, was_full: bool) -> None:
        """Note a success, and whether the window was full: one that is not needs no growth."""
        if not was_full or self.size >= self._most:
            return
        self._successes += 1
        if self._successes >= self.size and self._change >= 0:
            self._successes = 0
            self._change += 1
            self.size += 1

    def pushed_back(self) -> None:
        """Note that the API has too much to do."""
        self._successes = 0
        self._change = SHRINK

    def take_change(self) -> int:
        """Return what to tell the others, once: by how much to grow, `SHRINK`, or 0."""
        change, self._change = self._change, 0
        return change
