"""Which requests a page of another site had a browser send."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from relay.http.browsers import Hosts
from relay.http.refused import Refused
from relay.settings import Settings


def hosts(**gateway: object) -> Hosts:
    return Hosts.of(Settings.load(gateway=gateway).gateway)


LOCAL = hosts(hosts=["relay.example.com", "[2001:db8::1]:80"])
ELSEWHERE = hosts(host="*", token="of-producers")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:8080"},
        {"sec-fetch-site": "none"},
        {"host": "127.0.0.1:8080", "origin": "http://127.0.0.1:8080"},
        {"host": "LocalHost:8080", "origin": "http://localhost:8080"},
        {"host": "relay.example.com", "origin": "https://relay.example.com"},  # a proxy that ends TLS
        {"host": "127.0.0.1:8080", "origin": "https://relay.example.com"},  # one that changes Host, as configured
        {"host": "localhost:80", "origin": "http://localhost"},
        {"host": "[::1]:8080", "origin": "http://[::1]:8080"},
    ],
)
def test_programs_and_the_consoles_pages_pass(headers: dict[str, str]) -> None:
    LOCAL.check_page(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none", "host": "localhost:8080", "origin": "https://evil.example"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "Cross-Site"},
        {"sec-fetch-site": ""},
        {"sec-fetch-site": "cross-site", "host": "localhost:8080", "origin": "http://localhost:8080"},
        {"host": "localhost:8080", "origin": "https://evil.example"},
        {"host": "localhost:8080", "origin": "null"},
        {"host": "localhost:8080", "origin": ""},
        {"host": "localhost:8080", "origin": "http://localhost:3000"},  # another program's page on this machine
        {"host": "localhost:8080", "origin": "http://127.0.0.1:8080"},
        {"host": "localhost:8080", "origin": "https://relay.example.com:3000"},
        {"host": "localhost:8080", "origin": "http://localhost:8080.evil.example"},
        {"host": "localhost:8080", "origin": "http://evil.example:99999999"},
        {"host": "localhost:8080", "origin": "file://"},
        {"host": "localhost:8080", "origin": "chrome-extension://abcdef"},
        {"origin": "http://localhost:8080"},
        {"host": "[", "origin": "http://["},
    ],
)
@pytest.mark.parametrize("where", [LOCAL, ELSEWHERE])
def test_a_page_of_another_site_is_refused(headers: dict[str, str], where: Hosts) -> None:
    with pytest.raises(Refused) as refused:
        where.check_page(headers)
    assert refused.value.status == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost",
            "localhost:8080",
            "127.0.0.1:8080",
            "127.0.0.2",
            "[::1]:8080",
            "app.localhost:1",
            "LOCALHOST.",
        ),
        *("relay.example.com", "Relay.Example.Com:443", "[2001:db8::1]:80"),
    ],
)
def test_names_of_this_machine_and_of_its_proxy_pass_on_loopback(host: str) -> None:
    LOCAL.check_host({"host": host})


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "", "["),
        *("localhost@evil.example", "evil.example/localhost", "2130706433", "relay"),
    ],
)
def test_a_rebound_name_is_refused_on_loopback(host: str) -> None:
    with pytest.raises(Refused) as refused:
        LOCAL.check_host({"host": host})
    assert refused.value.status == HTTPStatus.MISDIRECTED_REQUEST


def test_beyond_loopback_the_gateway_has_any_name() -> None:
    ELSEWHERE.check_host({"host": "relay-gateway.deployment-relay.svc"})


def test_no_browser_leaves_the_host_out() -> None:
    LOCAL.check_host({})
