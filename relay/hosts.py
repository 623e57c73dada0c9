"""Addresses: listening on IPv4 and IPv6, loopback, and clients behind proxies."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Hosts that stand for every address of the machine, IPv6 and IPv4.
EVERY_ADDRESS = ("*", "::")

#: Errors of a system without IPv6.
_NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.EPFNOSUPPORT}


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine: `localhost`, a name below it, or a loopback address."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = parse(name)
    return address is not None and address.is_loopback


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Listen on an address, or on the first one of a name, IPv4 before IPv6; raise `OSError`.

    `*` and `::` give one socket for both families, or for IPv4 alone on a machine without IPv6.
    """
    host = host.strip("[]")
    if host in EVERY_ADDRESS:
        return _listen_everywhere(port, backlog)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a name that DNS cannot have
        raise OSError(errno.EINVAL, "this is no host name") from error
    candidates = sorted(found, key=lambda each: each[0] != socket.AF_INET)
    for family, *_, address in candidates[:-1]:
        try:
            return socket.create_server(address, family=family, backlog=backlog)
        except OSError:
            continue
    family, *_, address = candidates[-1]
    return socket.create_server(address, family=family, backlog=backlog)


def _listen_everywhere(port: int, backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    return socket.create_server(("0.0.0.0", port), backlog=backlog)  # noqa: S104 - as configured


def url_of(listening: socket.socket, *, scheme: str = "http") -> str:
    """Return the URL of a listening socket, with its actual port."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def parse(text: str) -> Address | None:
    """Parse an address, optionally with port, brackets or zone; return None for any other text.

    An IPv4 address mapped into IPv6, as on sockets for both families, is returned as IPv4.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def client_address(peer: str, forwarded_for: Iterable[str], proxies: Iterable[Network]) -> str:
    """Return the client's address: the rightmost one of `X-Forwarded-For` that is not a configured proxy.

    Each proxy appends the address of its client. Only entries written by proxies count, because any client may send
    the header: it is ignored from another peer, and an entry that is no address ends the search.
    """
    address = parse(peer)
    if address is None:
        return peer
    trusted = tuple(proxies)
    hops = [hop for header in forwarded_for for hop in header.split(",")] if trusted else []
    for hop in reversed(hops):
        if not any(address in network for network in trusted):
            break
        found = parse(hop)
        if found is None:
            break
        address = found
    return str(address)
