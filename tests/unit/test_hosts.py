"""Addresses: both families on one socket, this machine's names, and the client behind proxies."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from relay import hosts

PROXIES = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "2001:db8:1::/48", "127.0.0.1")]


def needs_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address: enable IPv6 (sysctl net.ipv6.conf.lo.disable_ipv6=0)")


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["*", "::", "[::]"])
def test_one_setting_serves_both_families(host: str) -> None:
    needs_ipv6()
    with hosts.listen(host, 0, backlog=8) as listening:
        port = listening.getsockname()[1]
        assert {each: answers(each, port) for each in ("127.0.0.1", "::1")} == {"127.0.0.1": True, "::1": True}


@pytest.mark.parametrize("host", ["*", "::"])
def test_without_ipv6_it_serves_ipv4(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with hosts.listen(host, 0, backlog=8) as listening:
        assert listening.family == socket.AF_INET
        assert answers("127.0.0.1", listening.getsockname()[1])
        assert hosts.url_of(listening).startswith("http://0.0.0.0:")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_other_addresses_are_listened_on_as_they_are(host: str) -> None:
    with hosts.listen(host, 0, backlog=8) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_an_ipv6_address_is_not_ipv4_too() -> None:
    needs_ipv6()
    with hosts.listen("[::1]", 0, backlog=8) as listening:
        port = listening.getsockname()[1]
        assert (answers("::1", port), answers("127.0.0.1", port)) == (True, False)
        assert hosts.url_of(listening) == f"http://[::1]:{port}"


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "x" * 70 + ".example"])
def test_an_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(OSError, match=r"."):
        hosts.listen(host, 0, backlog=8)


def test_a_port_in_use_is_an_error_and_not_ipv4_alone() -> None:
    needs_ipv6()
    with hosts.listen("::1", 0, backlog=8) as taken, pytest.raises(OSError, match="in use"):
        hosts.listen("*", taken.getsockname()[1], backlog=8)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        *((each, True) for each in ("localhost", "LOCALHOST.", "app.localhost", "127.0.0.1", "127.9.9.9", "[::1]")),
        *((each, True) for each in ("::1", "::ffff:127.0.0.1")),
        *(
            (each, False)
            for each in ("", "*", "::", "0.0.0.0", "relay", "localhost.evil.example", "127.0.0.1.nip.io")
        ),
        *((each, False) for each in ("10.0.0.1", "evillocalhost")),
    ],
)
def test_which_hosts_are_this_machine(host: str, is_loopback: bool) -> None:  # noqa: FBT001 - parametrized
    assert hosts.is_loopback(host) is is_loopback


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # anyone may send the header
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.1.2.3", ["198.51.100.1"], "198.51.100.1"),  # as a socket for both families has it
        ("10.1.2.3", ["192.0.2.66, 198.51.100.1"], "198.51.100.1"),  # what the client wrote itself
        ("10.1.2.3", ["192.0.2.66", "198.51.100.1, 10.9.9.9"], "198.51.100.1"),  # two proxies, two headers
        ("10.1.2.3", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.1.2.3", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("2001:db8:1::1", ["2001:db8::7"], "2001:db8::7"),
        ("10.1.2.3", ["198.51.100.1, nonsense"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1, unknown, 10.9.9.9"], "10.9.9.9"),
        ("10.1.2.3", ["10.4.4.4, 10.5.5.5"], "10.4.4.4"),  # proxies alone
        ("10.1.2.3", [""], "10.1.2.3"),
        ("a socket's path", ["198.51.100.1"], "a socket's path"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_proxy(
    peer: str, forwarded_for: list[str], client: str
) -> None:
    assert hosts.client_address(peer, forwarded_for, PROXIES) == client


def test_without_proxies_the_header_is_ignored() -> None:
    assert hosts.client_address("127.0.0.1", ["198.51.100.1"], ()) == "127.0.0.1"
