"""May this address try another token? A few wrong ones at once, then one now and then."""

from __future__ import annotations

from collections import OrderedDict

#: Wrong tokens that may come at once, and how long each counts.
AT_ONCE, PAUSE_SECONDS = 5, 12.0

#: Addresses remembered; past them the one that was wrong the longest ago is forgotten.
ADDRESSES = 1024


class Attempts:
    """The wrong tokens of late, an address a number: until when they count, if one counts after the other."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def wait_seconds(self, address: str, now: float) -> float:
        """Return how long an address has to wait until it may try, 0 if it may; `now` on any steady clock."""
        return max(0.0, self._until.get(address, now) - now - (AT_ONCE - 1) * PAUSE_SECONDS)

    def failed(self, address: str, now: float) -> None:
        """Note a wrong token."""
        self._until[address] = max(now, self._until.pop(address, now)) + PAUSE_SECONDS
        if len(self._until) > ADDRESSES:
            self._until.popitem(last=False)
