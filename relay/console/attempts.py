"""The lock-out after wrong tokens: `AT_ONCE` from one client, then one every `PAUSE_SECONDS`. Pure."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from relay import hosts

#: Wrong tokens allowed at once, and how long each counts.
AT_ONCE, PAUSE_SECONDS = 5, 12.0

#: Maximum clients remembered; the one with the oldest wrong token is dropped.
ADDRESSES = 1024

#: The length of the prefix that the user of an IPv6 address cannot choose.
IPV6_PREFIX = 64


def client_of(address: str) -> str:
    """Return the key of a client: its address, or in IPv6 its network, because a host chooses addresses in it."""
    parsed = hosts.parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return address


class Attempts:
    """The recent wrong tokens of each client, as the time until which they count, one after the other."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def wait_seconds(self, address: str, now: float) -> float:
        """Return the time until an address may try, 0 if it may; `now` on any monotonic clock."""
        address = client_of(address)
        return max(0.0, self._until.get(address, now) - now - (AT_ONCE - 1) * PAUSE_SECONDS)

    def failed(self, address: str, now: float) -> None:
        """Count a wrong token."""
        address = client_of(address)
        self._until[address] = max(now, self._until.pop(address, now)) + PAUSE_SECONDS
        if len(self._until) > ADDRESSES:
            self._until.popitem(last=False)
