"""The sign-in lock-out: a few wrong tokens at once from an address, then one now and then."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from relay import hosts

#: Wrong tokens that may come at once, and how long each counts.
AT_ONCE, PAUSE_SECONDS = 5, 12.0

#: Addresses remembered; past them the one that was wrong the longest ago is forgotten.
ADDRESSES = 1024


#: The part of an IPv6 address that its user cannot choose.
IPV6_PREFIX = 64


def client_of(address: str) -> str:
    """Return what counts as one client: an address, or in IPv6 the network that a host chooses its addresses in."""
    parsed = hosts.parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return address


class Attempts:
    """The wrong tokens of late, an address a number: until when they count, if one counts after the other."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def wait_seconds(self, address: str, now: float) -> float:
        """Return how long an address has to wait until it may try, 0 if it may; `now` on any steady clock."""
        address = client_of(address)
        return max(0.0, self._until.get(address, now) - now - (AT_ONCE - 1) * PAUSE_SECONDS)

    def failed(self, address: str, now: float) -> None:
        """Note a wrong token."""
        address = client_of(address)
        self._until[address] = max(now, self._until.pop(address, now)) + PAUSE_SECONDS
        if len(self._until) > ADDRESSES:
            self._until.popitem(last=False)
