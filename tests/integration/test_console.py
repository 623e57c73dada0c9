"""The console on real sockets, with a real Redis: the door, what its pages show, and what its forms do."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import logging
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import gateways
import pytest
import requests
from letters import KEYS, bury, digest, invalid, refused
from outboxes import throttle
from rig import wait_for

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

from relay.console import dead_letters, overview, queue_client, session, sse, status_cache
from relay.console.attempts import AT_ONCE
from relay.console.forms import FORM_BYTES
from relay.console.pages import HEADERS
from relay.console.sign_in import COOKIE
from relay.errors import QueueUnavailable
from relay.events.event import Instance
from relay.gateway import server
from relay.operations.diagnosis import diagnose
from relay.operations.status import describe
from relay.processes.embedded_redis import free_port
from relay.queue import health as destination
from relay.queue import pausing
from relay.queue.leases import new_token
from relay.queue.shard import Shard
from relay.queue.state import Accepted
from relay.queue.status import Status, read_status
from relay.settings import DEFAULT_DESTINATION, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

TOKEN = "operator-token-of-the-tests"
PRODUCERS = "producers-token-of-the-tests"
API_TOKEN = "api-token-of-the-tests"
DEADLINE_SECONDS = 30.0
EVIL = "<script>alert('x')</script>\"&amp;<img src=x onerror=alert(1)>"

PAGES = [
    "",
    "dead",
    "dead/redrive",
    "dead/drop",
    "inventory",
    "dead/letter?id=1-1",
    "nowhere",
    "sign-in",
    "live/none",
]


@dataclass(kw_only=True)
class Visitor:
    """A browser without scripts, and the gateway in a thread of this process that it visits."""

    url: str
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, **request: Any) -> requests.Response:
        with requests.Session() as asking:
            asking.trust_env = False
            asking.cookies.update(self.cookies)
            whole = f"{self.url}/console/{path}" if not path.startswith("/") else self.url + path
            return asking.request(method, whole, timeout=DEADLINE_SECONDS, allow_redirects=False, **request)

    def get(self, path: str = "", **request: Any) -> requests.Response:
        return self.ask("GET", path, **request)

    def see(self, path: str = "", **query: Any) -> str:
        answer = self.get(f"{path}?{urlencode(query)}" if query else path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def sign_in(self, token: str = TOKEN, *, to: str = "") -> requests.Response:
        return self.ask("POST", "sign-in", data={"token": token, "next": to})

    def signed_in(self) -> Visitor:
        return Visitor(url=self.url, cookies={COOKIE: self.sign_in().cookies[COOKIE]})

    @property
    def csrf(self) -> str:
        known = session.read(self.cookies[COOKIE], TOKEN, time.time())
        assert known is not None
        return known.csrf

    def send(self, path: str, **form: Any) -> requests.Response:
        return self.ask("POST", path, data={"csrf": self.csrf, **form})


@contextlib.contextmanager
def running(redis_url: str, *, operator_token: str = TOKEN, **sections: dict[str, Any]) -> Iterator[Visitor]:
    sections = {
        "redis": {"url": redis_url},
        "gateway": {"port": 0, "token": PRODUCERS, "operator_token": operator_token},
        "api": {"token": API_TOKEN},
        **sections,
    }
    with gateways.running(redis_url, **sections) as gateway:
        yield Visitor(url=gateway.url)


@pytest.fixture
def anonymous(redis_server: EmbeddedRedis, client: Redis) -> Iterator[Visitor]:
    """A visitor who is not signed in, at a gateway without a status cached by another test."""
    with running(redis_server.url) as visitor:
        yield visitor


@pytest.fixture
def operator(anonymous: Visitor) -> Visitor:
    return anonymous.signed_in()


def until(visitor: Visitor, said: str, path: str = "") -> str:
    """Wait until a page says something: what it knows of all environments may be a moment old."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while said not in text_of(page := visitor.see(path)):
        assert time.monotonic() < deadline, text_of(page)
        time.sleep(0.05)
    return page


def now_ms() -> int:
    return int(time.time() * 1000)


def text_of(page: str) -> str:
    """The text of a page, as one would read it."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def link(page: str, said: str) -> str:
    """Where the link with this text leads."""
    found = re.search(rf'<a [^>]*href="([^"]*)"[^>]*>{re.escape(said)}</a>', page)
    assert found, page
    return html.unescape(found[1])


def seed(client: Redis, environment: str, *, waiting: int = 0, **counts: int) -> None:
    """Counters of an environment, and entries that wait."""
    outbox = KEYS.of_outbox(DEFAULT_DESTINATION, environment)
    client.hset(outbox.counts, mapping={"delivered": 0, "outbox": waiting, **counts})
    client.zadd(KEYS.environments(DEFAULT_DESTINATION), {environment: 0})
    for number in range(waiting):
        client.xadd(outbox.outbox, {"event": "{}"}, id=f"{now_ms() - 65_000}-{number}")


def install(client: Redis, environment: str, name: str, version: str, *, told: str = "", when: int = 0) -> None:
    """An instance in the state, with what the API was told."""
    instance = Instance(environment=environment, repository="ghcr.io/acme/api", name=name, platform="linux/amd64")
    outbox = KEYS.of_outbox(DEFAULT_DESTINATION, environment)
    accepted = Accepted(digest(version), when or None, now_ms(), now_ms(), ("id-1",))
    client.hset(outbox.accepted, instance.key, accepted.encode())
    client.hsetnx(outbox.counts, "delivered", 1)
    client.zadd(KEYS.environments(DEFAULT_DESTINATION), {environment: 0})
    if told:
        client.hset(outbox.delivered, instance.key, f"{digest(told)}\n\n{now_ms()}\n{now_ms()}")


# --- the door


@pytest.mark.parametrize("path", ["/console", "/console/", "/console/dead", "/console/assets/console.css"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_an_operator_token_there_is_no_console(redis_server: EmbeddedRedis, path: str, method: str) -> None:
    with running(redis_server.url, operator_token="") as visitor:
        visitor.cookies[COOKIE] = session.begin("", time.time())
        answer = visitor.ask(method, path)
    assert answer.status_code == 404
    assert "gateway.operator_token" in answer.text
    assert "Sign out" not in answer.text
    assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_signing_in_sets_a_cookie_with_all_its_flags(anonymous: Visitor) -> None:
    answer = anonymous.sign_in(to="/console/dead?reason=refused")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console/dead?reason=refused")
    flags = {part.strip().lower() for part in answer.headers["Set-Cookie"].split(";")[1:]}
    assert flags == {"httponly", "samesite=strict", "path=/console", f"max-age={session.SESSION_SECONDS}"}
    assert TOKEN not in answer.headers["Set-Cookie"]


def test_behind_tls_the_cookie_is_secure(anonymous: Visitor) -> None:
    answer = anonymous.ask("POST", "sign-in", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "; secure" in answer.headers["Set-Cookie"].lower()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], PRODUCERS, "é"])
def test_a_wrong_token_is_refused(anonymous: Visitor, token: str) -> None:
    answer = anonymous.sign_in(token)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers
    assert "not the operator token" in answer.text


def test_after_wrong_tokens_even_the_right_one_must_wait(anonymous: Visitor) -> None:
    for _ in range(AT_ONCE):
        assert anonymous.sign_in("wrong").status_code == 403
    answer = anonymous.sign_in()
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 12
    assert "Set-Cookie" not in answer.headers


def test_behind_a_configured_proxy_each_client_has_its_own_lock_out(redis_server: EmbeddedRedis) -> None:
    def status_of(visitor: Visitor, token: str, forwarded_for: str) -> int:
        headers = {"X-Forwarded-For": forwarded_for}
        return visitor.ask("POST", "sign-in", data={"token": token}, headers=headers).status_code

    door = {"port": 0, "token": PRODUCERS, "operator_token": TOKEN}
    with running(redis_server.url, gateway={**door, "trusted_proxies": ["127.0.0.0/8"]}) as visitor:
        for number in range(AT_ONCE):  # what a client writes itself stands left of its address
            assert status_of(visitor, "wrong", f"192.0.2.{number}, 198.51.100.1") == 403
        assert status_of(visitor, TOKEN, "198.51.100.1") == 429
        assert status_of(visitor, TOKEN, "198.51.100.2") == 303
        for number in range(AT_ONCE):
            assert status_of(visitor, "wrong", f"2001:db8::{number + 1}") == 403
        assert status_of(visitor, TOKEN, "2001:db8::ff") == 429, "a host chooses its addresses in a network"
    with running(redis_server.url, gateway={**door, "trusted_proxies": ["10.0.0.0/8"]}) as visitor:
        for number in range(AT_ONCE):
            assert status_of(visitor, "wrong", f"198.51.100.{number}") == 403
        assert status_of(visitor, TOKEN, "198.51.100.77") == 429, "any client may send the header"


@pytest.mark.parametrize(
    "asked",
    [
        ("pause", {"environment": "production"}, {"action": "pause", "environment": "production"}),
        ("resume", {"environment": "staging"}, {"action": "resume", "environment": "staging"}),
        ("lift", {}, {"action": "lift", "destination": "default"}),
        (
            "dead/redrive",
            {"until": "9" * 13, "environment": "prod*", "force": "yes"},
            {"action": "redrive", "environment": "prod*", "force": "yes", "letters": 1, "why": ""},
        ),
        ("dead/drop", {"until": "9" * 13}, {"action": "drop", "letters": 1, "why": ""}),
        ("dead/drop", {"id": "1-1"}, {"action": "drop", "letter": "1-1", "letters": 0, "why": "gone"}),
        ("dead/redrive", {"id": "1-1"}, {"action": "redrive", "letter": "1-1", "letters": 0, "why": "gone"}),
        ("pause", {"environment": "x" * 255}, {"action": "pause", "environment": "x" * 255}),
    ],
)
def test_an_action_is_logged_with_its_session(
    operator: Visitor,
    client: Redis,
    caplog: pytest.LogCaptureFixture,
    asked: tuple[str, dict[str, str], dict[str, Any]],
) -> None:
    path, form, line = asked
    bury(client, refused("1"))
    other = operator.signed_in()
    with caplog.at_level(logging.INFO, "relay.console"):
        for visitor in (operator, other):
            assert visitor.send(path, **form).status_code == 303
    first, second = (record.msg for record in caplog.records if record.msg["event"] == "console action")
    session_name, address = first.pop("session"), first.pop("address")
    assert first == {"event": "console action", **line}
    assert (address, len(session_name)) == ("127.0.0.1", session.NAME_LENGTH)
    assert second["session"] != session_name
    told = json.dumps([first, second, session_name])
    assert not [secret for secret in (TOKEN, operator.csrf, operator.cookies[COOKIE]) if secret in told]


def test_a_session_is_logged_from_its_sign_in_on(
    anonymous: Visitor, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "relay.console"):
        anonymous.sign_in("wrong")
        anonymous.signed_in().send("pause", environment="production")
    lines = [record.msg for record in caplog.records]
    assert [line["event"] for line in lines] == ["wrong operator tokens", "console sign-in", "console action"]
    assert lines[0]["count"] == 1
    assert lines[1]["session"] == lines[2]["session"]
    assert list(pausing.paused(client, KEYS, DEFAULT_DESTINATION)) == ["production"]


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/", "//evil.example/console/", "/\\evil.example", "/console/\\..", "javascript:alert(1)",
        "/console/\r\nSet-Cookie: a=b", "/console", "/consolex/", "", "/console/é",
    ],
)  # fmt: skip
def test_signing_in_leads_to_no_other_site(anonymous: Visitor, elsewhere: str) -> None:
    answer = anonymous.sign_in(to=elsewhere)
    assert answer.headers["Location"] == "/console/"
    assert "a" not in answer.cookies


@pytest.mark.parametrize("path", ["", "dead?reason=refused", "dead/letter?id=1-1", "inventory"])
def test_a_visitor_is_led_to_the_sign_in_page_and_back(anonymous: Visitor, path: str) -> None:
    answer = anonymous.get(path)
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"/console/sign-in?{urlencode({'next': f'/console/{path}'})}"
    door = anonymous.get(answer.headers["Location"])
    assert f'name="next" value="/console/{html.escape(path)}"' in door.text


def test_the_path_without_its_slash_leads_to_the_overview(anonymous: Visitor) -> None:
    answer = anonymous.get("/console")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console/")


def test_a_link_from_another_site_is_bounced_to_get_the_cookie(anonymous: Visitor) -> None:
    answer = anonymous.get("dead?image=a%22b", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert 'http-equiv="refresh" content="0; url=/console/dead?image=a%22b"' in answer.text
    assert anonymous.get("dead", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 303


@pytest.mark.parametrize("is_signed_in", [True, False])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("path", PAGES)
def test_every_page_has_the_headers(anonymous: Visitor, path: str, method: str, is_signed_in: bool) -> None:  # noqa: FBT001 - a parameter
    visitor = anonymous.signed_in() if is_signed_in else anonymous
    answer = visitor.ask(method, path)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"


def test_pages_have_nothing_inline(operator: Visitor, client: Redis) -> None:
    seed(client, "production", waiting=2)
    (letter,) = bury(client, refused("1"))
    for path in ["", "dead", f"dead/letter?id={letter}", f"dead/drop?id={letter}", "inventory"]:
        page = operator.see(path)
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", page), path


def test_no_page_has_a_token(operator: Visitor, client: Redis) -> None:
    seed(client, "production", waiting=1)
    said = f"HTTP 400: you sent {API_TOKEN} as Bearer {API_TOKEN}; password=hunter22"
    (letter,) = bury(client, refused("1", detail=said, source=PRODUCERS, id=TOKEN))
    assert "you sent *** as Bearer ***; password=***" in until(operator, "1 dead letter waits")
    for path in ["", "dead", f"dead/letter?id={letter}", f"dead/redrive?id={letter}", "inventory", "nowhere"]:
        answer = operator.get(path)
        for secret in (TOKEN, PRODUCERS, API_TOKEN, "hunter22"):
            assert secret not in answer.text + str(answer.headers), (path, secret)
    assert "***" in operator.see("dead")


def test_a_session_is_over_at_its_end(anonymous: Visitor) -> None:
    anonymous.cookies[COOKIE] = session.begin(TOKEN, time.time() - session.SESSION_SECONDS - 1)
    assert anonymous.get().headers["Location"].startswith("/console/sign-in")
    anonymous.cookies[COOKIE] = session.begin(TOKEN, time.time() - session.SESSION_SECONDS + 60)
    assert anonymous.get().status_code == 200


def test_signing_out_deletes_the_cookie(operator: Visitor) -> None:
    answer = operator.send("sign-out")
    assert answer.headers["Location"] == "/console/sign-in"
    assert re.match(rf'{COOKIE}="?"?; .*Max-Age=0; Path=/console', answer.headers["Set-Cookie"])


FORMS: list[tuple[str, dict[str, str]]] = [
    ("pause", {"environment": "production"}),
    ("resume", {"environment": "staging"}),
    ("lift", {}),
    ("dead/redrive", {"until": "9" * 13}),
    ("dead/drop", {"until": "9" * 13}),
    ("sign-out", {}),
]


@pytest.mark.parametrize(("path", "form"), FORMS)
@pytest.mark.parametrize("given", ["", "nothing", "another session's", "from another site", "of another origin"])
def test_a_foreign_form_does_nothing(
    operator: Visitor, client: Redis, path: str, form: dict[str, str], given: str
) -> None:
    bury(client, refused("1"))
    pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["staging"])
    csrf = {"": {"csrf": ""}, "nothing": {"x": ""}, "another session's": {"csrf": operator.signed_in().csrf}}.get(
        given, {"csrf": operator.csrf}
    )
    headers = {
        "from another site": {"Sec-Fetch-Site": "cross-site"},
        "of another origin": {"Origin": "http://evil.example"},
    }.get(given, {})
    answer = operator.ask("POST", path, data={**form, **csrf}, headers=headers)
    assert answer.status_code == 403
    assert "nothing was done" in answer.text
    assert "Set-Cookie" not in answer.headers
    assert client.xlen(KEYS.dead) == 1
    assert list(pausing.paused(client, KEYS, DEFAULT_DESTINATION)) == ["staging"]


@pytest.mark.parametrize(("path", "form"), FORMS)
def test_a_form_without_a_session_does_nothing(
    anonymous: Visitor, client: Redis, path: str, form: dict[str, str]
) -> None:
    bury(client, refused("1"))
    answer = anonymous.ask("POST", path, data=form)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console/sign-in")
    assert client.xlen(KEYS.dead) == 1
    assert not pausing.paused(client, KEYS, DEFAULT_DESTINATION)


def test_signing_in_from_another_site_is_refused(anonymous: Visitor) -> None:
    answer = anonymous.ask("POST", "sign-in", data={"token": TOKEN}, headers={"Sec-Fetch-Site": "same-site"})
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


def test_a_get_changes_nothing(operator: Visitor, client: Redis) -> None:
    for path in ("pause?environment=production", "dead/drop?until=9999999999999", "sign-out", "dead/redrive"):
        operator.get(path)
    assert not pausing.paused(client, KEYS, DEFAULT_DESTINATION)
    assert operator.get("pause").status_code == 404


@pytest.mark.parametrize(
    ("body", "media", "status"),
    [
        (b"a=" + b"x" * FORM_BYTES, "application/x-www-form-urlencoded", 413),
        (b"{}", "application/json", 415),
        (b"token=%s", "multipart/form-data; boundary=a", 415),
        (b"\xff\xfe", "application/x-www-form-urlencoded", 400),
        (b"&".join([b"a=1"] * 100), "application/x-www-form-urlencoded", 400),
    ],
)
def test_bodies_that_are_not_forms_are_refused(operator: Visitor, body: bytes, media: str, status: int) -> None:
    for path in ("sign-in", "pause"):
        assert operator.ask("POST", path, data=body, headers={"Content-Type": media}).status_code == status


def test_assets_need_no_session_and_are_cached(anonymous: Visitor) -> None:
    (href,) = re.findall(r'href="(/console/assets/console.css\?v=[0-9a-f]+)"', anonymous.get("sign-in").text)
    answer = anonymous.get(href)
    assert answer.headers["Content-Type"].startswith("text/css")
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert anonymous.get("assets/../site.py").status_code == 404
    assert anonymous.get("assets/base.html").status_code == 404


# --- environments


def test_environments_are_listed_with_their_backlog(operator: Visitor, client: Redis) -> None:
    seed(client, "quiet", delivered=7)
    seed(client, "production", waiting=3, delivered=1234, dead=2)
    page = until(operator, "2 environments")
    said = text_of(page)
    assert re.search(r"production delivering 3 \d+ s 0 .* quiet idle 0 \S 0", said)
    assert "1,234" in said
    assert link(page, "2") == "/console/dead?environment=production"


def test_an_unhealthy_destination_is_described(operator: Visitor, client: Redis) -> None:
    seed(client, "production", waiting=1)
    health = {
        "until": now_ms() + 60_000,
        "reason": "unauthorized",
        "circuit": "unauthorized",
        "openings": 3,
        "window": 1,
    }
    client.hset(KEYS.destination(DEFAULT_DESTINATION), mapping=health)
    said = text_of(until(operator, "1 environment"))
    assert "Problem: the destination refuses the token: it expired or is wrong, and deliveries wait; put a" in said
    assert re.search(
        r"Destination unauthorized unauthorized, the next probe is in \d+ s; .* circuit opened 3 times", said
    )
    assert "production unauthorized 1" in said
    assert "Warning: no worker is alive" in said


def test_the_overview_has_the_words_of_relay_status(operator: Visitor, client: Redis) -> None:
    seed(client, "production", waiting=3)
    seed(client, "staging", waiting=2)
    client.hset(KEYS.counts, mapping={"outbox": 5, "taken": 8})
    client.hset(
        KEYS.destination(DEFAULT_DESTINATION), mapping={"openings": 2, "circuit": "unavailable", "failures": 22}
    )
    client.hset(KEYS.intake_run, "deaths", 1)
    pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["staging", EVIL])
    bury(client, refused("1", detail=f"HTTP 422: {EVIL}"), died=now_ms() - 3 * 86_400_000)
    page = until(operator, "dead letter waits")
    seen = read_status(client, KEYS, DEFAULT_DESTINATION, Settings.load().queue)
    findings = diagnose(seen)
    assert [finding.check for finding in findings] == [
        "no_workers", "unavailable", "worker_crashes", "unaccounted", "paused", "dead_letters",
    ]  # fmt: skip
    said = [text_of(each).strip() for each in re.findall(r'<li class="(?:fault|warning|note)">.*</li>', page)]
    assert [each.partition(": ")[2] for each in said] == [
        re.sub(r"\s+", " ", str(each).replace("`", " ")).strip() for each in findings
    ]
    assert describe(seen.health, seen.now) in text_of(page)


@pytest.mark.usefixtures("client")
def test_the_next_page_shows_the_effect_of_a_form(operator: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_cache, "PAUSE_FACTOR", 1_000_000)  # else a look is too soon old to be seen again
    operator.see()
    operator.send("pause", environment="production")
    assert "production is paused by an operator" in operator.see()
    operator.send("resume", environment="production")
    assert "production is paused by an operator" not in operator.see()


def test_a_disconnect_within_a_form_is_not_logged_as_an_error(
    anonymous: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = anonymous.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
        connection.sendall(
            b"POST /console/sign-in HTTP/1.1\r\nHost: relay\r\nContent-Length: 100\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\ntoken"
        )
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # it has noticed
    assert anonymous.sign_in().status_code == 303
    assert caplog.text == ""


def test_an_environment_is_paused_and_resumed(operator: Visitor, client: Redis) -> None:
    seed(client, EVIL)
    answer = operator.send("pause", environment=EVIL, back="/console/?q=script")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console/?q=script")
    assert list(pausing.paused(client, KEYS, DEFAULT_DESTINATION)) == [EVIL]
    page = operator.see()
    assert f"{EVIL} is paused by an operator, and nothing is waiting there; relay resume {EVIL} when" in text_of(page)
    assert 'action="/console/resume"' in page
    operator.send("resume", environment=EVIL, back="//evil.example")
    assert not pausing.paused(client, KEYS, DEFAULT_DESTINATION)


def test_a_throttle_is_lifted(operator: Visitor, client: Redis) -> None:
    assert 'action="/console/lift"' not in operator.see()
    throttle(client, 3600)
    wait_for(lambda: 'action="/console/lift"' in operator.see(), DEADLINE_SECONDS)  # a page is a moment old
    answer = operator.send("lift", back="/console/?q=script")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console/?q=script")
    assert destination.lift(Shard(client=client, keys=KEYS), DEFAULT_DESTINATION) is None


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_form_has_to_name_an_environment(operator: Visitor, client: Redis, name: str) -> None:
    assert operator.send("pause", environment=name).status_code == 400
    assert not pausing.paused(client, KEYS, DEFAULT_DESTINATION)


def test_environments_are_paged_and_searched(operator: Visitor, client: Redis) -> None:
    for number in range(120):
        seed(client, f"edge-{number:03}", waiting=int(number == 77))
    until(operator, "edge-077", "?q=edge-077")
    until(operator, "120 environments")
    seen = []
    path = ""
    for _ in range(3):
        page = operator.see(path)
        rows = re.findall(r"<bdi>(edge-\d+)</bdi>", page)
        assert len(rows) <= overview.ROWS
        seen += rows
        path = link(page, "Next") if "Next</a>" in page else ""
    assert seen == ["edge-077", *(f"edge-{number:03}" for number in range(120) if number != 77)]
    found = operator.see(q="GE-11")
    assert re.findall(r"<bdi>(edge-\d+)</bdi>", found) == [f"edge-11{number}" for number in range(10)]
    assert "10 environments of 120" in text_of(found)
    assert operator.get("?page=99999999999999999999").status_code == 200
    assert "page 3 of 3" in operator.see(page="999")


# --- dead letters


def test_dead_letters_are_filtered(operator: Visitor, client: Redis) -> None:
    bury(client, refused("old", environment="staging"), died=now_ms() - 7_200_000)
    bury(
        client, refused("1"), refused("2", reason="exhausted", repository="ghcr.io/acme/api"), invalid({"event": "{"})
    )

    def found(**query: str) -> list[str]:
        return re.findall(r'<a href="/console/dead/letter\?id=[^"]*"', operator.see("dead", **query))

    assert len(found()) == 4
    assert len(found(environment="stag*")) == 1
    assert len(found(reason="exhausted")) == 1
    assert len(found(image="acme/api")) == 1
    assert len(found(image="ghcr.io/*")) == 1
    assert len(found(newer="1h")) == 3
    assert len(found(older="1h")) == 1
    assert len(found(environment="production", reason="exhausted", image="acme", newer="1h")) == 1
    assert found(environment="nowhere") == []
    assert found(older="soon") == []
    assert "'soon' is no duration" in html.unescape(operator.see("dead", older="soon"))


def test_dead_letters_are_paged_the_newest_first(operator: Visitor, client: Redis) -> None:
    buried = bury(client, *(refused(str(number)) for number in range(dead_letters.ROWS + 5)))
    bury(client, *(refused(f"s{number}", environment="staging") for number in range(20)))
    first = operator.see("dead", environment="production")
    second = operator.see(link(first, "Older"))
    listed = re.findall(r"letter\?id=(\d+-\d+)", first + second)
    assert listed == buried[::-1]
    assert "Older</a>" not in second
    assert "EventSource" not in first
    assert 'id="feed"' in first
    assert 'id="feed"' not in second  # what was gone back to stays


def test_a_page_scans_a_bounded_number_of_letters(
    operator: Visitor, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_SCANNED", 100)
    (wanted,) = bury(client, refused("wanted", environment="staging"))
    bury(client, *(refused(str(number)) for number in range(400)))
    page = operator.see("dead", environment="staging")
    for _ in range(5):
        if wanted in page:
            break
        page = operator.see(link(page, "Look further back"))
    assert wanted in page


def test_a_letter_is_shown_with_all_its_details(operator: Visitor, client: Redis) -> None:
    (letter,) = bury(client, refused("1", redriven="2 1700000000000-0", detail="HTTP 422: no such image"))
    said = text_of(operator.see("dead/letter", id=letter))
    for part in (
        "The destination refused it for good", "HTTP 422: no such image", '"name": "production"', "job-1",
        "First enqueued 2023-11-14 22:13:20 UTC", "Enqueued again (redriven 2 times)",
        "First attempt 2025-06-15 15:06:40 UTC",
        "Attempts 1", digest("1"),
    ):  # fmt: skip
        assert part in said, part
    assert operator.get("dead/letter?id=1-1").status_code == 404
    assert operator.get("dead/letter?id=%3Cscript%3E").status_code == 404


def test_one_letter_is_redriven(operator: Visitor, client: Redis) -> None:
    letter, other = bury(client, refused("1"), refused("2"))
    answer = operator.send("dead/redrive", id=letter)
    assert "1 dead letter redriven." in text_of(operator.see(answer.headers["Location"]))
    assert [each.decode() for each, _ in client.xrange(KEYS.dead)] == [other]  # type: ignore[misc, union-attr]
    ((_, fields),) = client.xrange(KEYS.inbox)  # type: ignore[misc]
    assert fields[b"redriven"].startswith(b"1 ")
    again = operator.send("dead/redrive", id=letter)
    assert "not there any more" in operator.see(again.headers["Location"])
    assert client.xlen(KEYS.inbox) == 1
    assert not client.exists(KEYS.redrive_lease)


def test_a_letter_is_redriven_by_force(operator: Visitor, client: Redis) -> None:
    (letter,) = bury(client, refused("1"))
    confirm = operator.see("dead/redrive", id=letter, force="yes")
    assert re.search(r'name="force" value="yes" checked', confirm)
    operator.send("dead/redrive", id=letter, force="yes")
    ((_, fields),) = client.xrange(KEYS.inbox)  # type: ignore[misc]
    assert fields[b"redriven"].endswith(b" force")


def test_one_letter_is_dropped(operator: Visitor, client: Redis) -> None:
    letter, other = bury(client, refused("1"), refused("2"))
    assert "gone for good" in operator.see("dead/drop", id=letter)
    assert client.xlen(KEYS.dead) == 2
    answer = operator.send("dead/drop", id=letter)
    assert "1 dead letter dropped." in operator.see(answer.headers["Location"])
    assert [each.decode() for each, _ in client.xrange(KEYS.dead)] == [other]  # type: ignore[misc, union-attr]
    assert client.hget(KEYS.counts, "dropped") == b"1"


@pytest.mark.parametrize("action", ["redrive", "drop"])
def test_a_set_excludes_letters_newer_than_its_confirmation(operator: Visitor, client: Redis, action: str) -> None:
    bury(client, refused("1"), refused("2"), refused("3", environment="staging"), died=now_ms() - 10_000)
    confirm = operator.see(f"dead/{action}", environment="prod*")
    assert "2 dead letters?" in confirm
    assert "refused 2" in text_of(confirm)
    form = {name: html.unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', confirm)}
    form.pop("force", None)
    later = bury(client, refused("later"), died=int(form["until"]) + 1)
    answer = operator.ask("POST", f"dead/{action}", data=form)
    assert answer.headers["Location"].startswith("/console/dead?environment=prod%2A&")
    assert "2 dead letters " in operator.see(answer.headers["Location"])
    left = [each.decode() for each, _ in client.xrange(KEYS.dead)]  # type: ignore[misc, union-attr]
    assert len(left) == 2
    assert later[0] in left
    assert client.xlen(KEYS.inbox) == (2 if action == "redrive" else 0)


@pytest.mark.parametrize("action", ["redrive", "drop"])
def test_a_set_without_its_end_or_with_a_fault_is_refused(operator: Visitor, client: Redis, action: str) -> None:
    bury(client, refused("1"))
    assert operator.send(f"dead/{action}").status_code == 400
    assert operator.send(f"dead/{action}", until=now_ms(), older="soon").status_code == 400
    assert operator.get(f"dead/{action}?reason=bored").status_code == 400
    assert client.xlen(KEYS.dead) == 1


def test_one_form_handles_a_bounded_number(operator: Visitor, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MAX_PER_FORM", 30)
    bury(client, *(refused(str(number)) for number in range(100)), died=now_ms() - 10_000)
    for action in ("redrive", "drop"):
        answer = operator.send(f"dead/{action}", until=now_ms())
        assert "There may be more" in operator.see(answer.headers["Location"])
    assert client.xlen(KEYS.dead) == 40
    assert client.xlen(KEYS.inbox) == 30


def test_a_redrive_waits_for_another(operator: Visitor, client: Redis) -> None:
    (letter,) = bury(client, refused("1"), died=now_ms() - 10_000)
    client.set(KEYS.redrive_lease, new_token())
    for form in ({"id": letter}, {"until": str(now_ms())}):
        answer = operator.send("dead/redrive", **form)
        assert "Another redrive is under way" in operator.see(answer.headers["Location"])
    assert client.xlen(KEYS.dead) == 1


def test_a_full_queue_stops_a_redrive(redis_server: EmbeddedRedis, client: Redis) -> None:
    bury(client, refused("1"), refused("2"), died=now_ms() - 10_000)
    with running(redis_server.url, queue={"max_backlog": 1}) as visitor:
        operator = visitor.signed_in()
        answer = operator.send("dead/redrive", until=now_ms())
        said = text_of(operator.see(answer.headers["Location"]))
    assert "1 dead letter redriven. The queue is full" in said
    assert client.xlen(KEYS.dead) == 1


@pytest.mark.parametrize("query", ["done=redrive&letters=<b>", "done=<b>&letters=1", "done=drop&letters=1&why=<b>"])
def test_a_notice_has_fixed_words(operator: Visitor, query: str) -> None:
    assert "<b>" not in operator.see(f"dead?{query}")


# --- what is shown is from outside


def test_values_from_outside_are_escaped(operator: Visitor, client: Redis) -> None:
    seed(client, EVIL, waiting=1, dead=1)
    install(client, EVIL, EVIL, "1", told="2")
    event = '{"image": {"url": "%s"}, "environment": {"name": "%s"}}' % ((EVIL.replace('"', '\\"'),) * 2)
    (letter,) = bury(client, invalid({"event": event, EVIL: EVIL, "id": EVIL, "source": EVIL}, detail=EVIL))
    until(operator, "1 dead letter waits")
    pages = ["", "dead", f"dead/letter?id={letter}", f"dead/drop?id={letter}", "inventory"]
    pages += [
        f"{page}?{urlencode({'q': EVIL, 'environment': EVIL, 'image': EVIL})}" for page in ("", "dead", "inventory")
    ]
    pages += [
        f"dead/redrive?{urlencode({'environment': EVIL})}",
        f"dead?{urlencode({'older': EVIL, 'reason': EVIL})}",
    ]
    for path in pages:
        page = operator.see(path)
        assert "alert" in page, path
        assert "<script>alert" not in page, path
        assert "<img" not in page, path
        assert not re.search(r'value="[^"]*<', page), path


def test_half_a_surrogate_pair_breaks_no_page(operator: Visitor, client: Redis) -> None:
    event = '{"image": {"url": "a\\ud800b"}, "environment": {"name": "\\udfff"}}'
    (letter,) = bury(client, invalid({"event": event, b"\xff\x00": b"\xfe"}))
    for path in ("", "dead", f"dead/letter?id={letter}", f"dead/redrive?id={letter}"):
        operator.see(path)


def test_an_environments_name_with_wildcards_matches_it_alone(operator: Visitor, client: Redis) -> None:
    seed(client, "[p]rod*", dead=1)
    (meant, _) = bury(client, refused("1", environment="[p]rod*"), refused("2", environment="production"))
    page = operator.see(link(until(operator, "[p]rod*"), "1"))
    assert re.findall(r"letter\?id=([0-9-]+)", page) == [meant]


# --- what runs where


def test_the_inventory_shows_what_runs_and_what_was_delivered(operator: Visitor, client: Redis) -> None:
    install(client, "production", "web", "new", told="old", when=1_750_000_000_000)
    install(client, "production", "worker", "new", told="new")
    install(client, "staging", "first", "new")
    said = text_of(until(operator, "2 environments", "inventory"))
    assert re.search(r"api web linux/amd64 production sha256:\w{12}… 2025-06-15 15:06:40 UTC not yet", said)
    assert re.search(r"api worker linux/amd64 production sha256:\w{12}… [^…]* UTC delivered", said)
    assert re.search(r"api first linux/amd64 staging sha256:\w{12}… [^…]* UTC not yet nothing before", said)
    assert digest("old") in operator.see("inventory")


def test_the_inventory_is_searched(operator: Visitor, client: Redis) -> None:
    for environment in ("production", "production-eu", "staging"):
        install(client, environment, "web", environment)
        install(client, environment, "worker", "same")

    until(operator, "3 environments", "inventory")

    def rows(**query: str) -> int:
        return operator.see("inventory", **query).count("linux/amd64")

    assert rows() == 6
    assert rows(environment="production") == 2
    assert rows(environment="PRODUCTION-") == 2
    assert rows(environment="prod") == 4
    assert rows(q=digest("same")) == 3
    assert rows(q=digest("same")[7:20].upper()) == 3
    assert rows(q="web", environment="staging") == 1
    assert rows(q="nothing") == 0
    assert "No environment has that name" in operator.see("inventory", environment="nowhere")


def test_the_inventory_is_paged_across_environments(operator: Visitor, client: Redis) -> None:
    wanted = set()
    for environment in ("a", "b", "c"):
        for number in range(450):
            install(client, environment, f"n{environment}{number}", "1")
            wanted.add(f"n{environment}{number}")
    until(operator, "3 environments", "inventory")
    seen: list[str] = []
    path = "inventory"
    for _ in range(20):
        page = operator.see(path)
        rows = re.findall(r'class="name"><bdi>(n\w+)</bdi>', page)
        assert len(rows) < 800
        seen += rows
        if "Next page</a>" not in page:
            break
        path = link(page, "Next page")
    assert set(seen) == wanted
    assert operator.get("inventory?begin=%ff&after=1e9").status_code == 200


# --- Redis away, and staying true


def test_pages_are_503_without_redis(anonymous: Visitor) -> None:
    with running(f"redis://:a-password@127.0.0.1:{free_port()}/0") as visitor:
        operator = visitor.signed_in()
        for path in ("", "dead", "inventory"):
            answer = operator.get(path)
            assert answer.status_code == 503, path
            assert "Redis is unavailable" in answer.text
            assert "a-password" not in answer.text
            assert answer.headers["Content-Security-Policy"]
        assert operator.send("pause", environment="production").status_code == 503


def test_a_call_ends_by_its_deadline(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_client, "DEADLINE_SECONDS", 0.05)
    enough = threading.Event()

    async def ask() -> None:
        asked = queue_client.QueueClient(Settings.load())
        try:
            with pytest.raises(QueueUnavailable, match=r"did not answer within 0\.05 s"):
                await asked.ask(lambda _client, _keys: enough.wait(DEADLINE_SECONDS))
        finally:
            enough.set()
            await asked.close()

    asyncio.run(ask())


def test_concurrent_pages_share_one_reading(redis_server: EmbeddedRedis, client: Redis) -> None:
    async def look() -> list[status_cache.CachedStatus]:
        asked = queue_client.QueueClient(settings)
        status = status_cache.StatusCache(asked, settings)
        try:
            return await asyncio.gather(*(status.latest() for _ in range(8)))
        finally:
            await asked.close()

    settings = Settings.load(redis={"url": redis_server.url})
    assert len({id(sample) for sample in asyncio.run(look())}) == 1


def test_a_reading_from_before_a_change_is_not_used_after_it(
    redis_server: EmbeddedRedis, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(redis={"url": redis_server.url})
    has_read, may_end = threading.Event(), threading.Event()

    def read_and_wait(*what: Any) -> Status:
        seen = read_status(*what)
        has_read.set()
        assert may_end.wait(DEADLINE_SECONDS)
        return seen

    async def look() -> status_cache.CachedStatus:
        asked = queue_client.QueueClient(settings)
        status = status_cache.StatusCache(asked, settings)
        under_way = asyncio.create_task(status.latest())
        try:
            assert await asyncio.to_thread(has_read.wait, DEADLINE_SECONDS)
            pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])
            status.expire()
            later = asyncio.create_task(status.latest())
            await asyncio.sleep(0)
            may_end.set()
            await under_way
            return await later
        finally:
            await asked.close()

    monkeypatch.setattr(status_cache, "read_status", read_and_wait)
    assert [each.environment for each in asyncio.run(look()).status.paused] == ["production"]


def test_a_redis_that_hangs_blocks_no_page() -> None:
    answers: list[int] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        running(f"redis://127.0.0.1:{silent.getsockname()[1]}/0") as visitor,
    ):
        operator = visitor.signed_in()
        asking = [threading.Thread(target=lambda: answers.append(operator.get().status_code)) for _ in range(8)]
        for thread in asking:
            thread.start()
        assert operator.get("/healthz").status_code == 200
        for thread in asking:
            thread.join(DEADLINE_SECONDS)
    assert answers == [503] * 8


def lines_of(answer: requests.Response) -> Iterator[str]:
    return answer.iter_lines(chunk_size=1, decode_unicode=True)


def read_event(lines: Iterator[str]) -> tuple[str, str]:
    name, content = "", []
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            content.append(line.removeprefix("data: "))
        elif not line and name:
            return name, "\n".join(content)
    raise AssertionError("the stream ended")


def test_a_live_page_is_updated(operator: Visitor, client: Redis) -> None:
    seed(client, "production")
    until(operator, "1 environment")
    with requests.Session() as asking:
        asking.trust_env = False
        asking.cookies.update(operator.cookies)
        with asking.get(f"{operator.url}/console/live/overview", stream=True, timeout=DEADLINE_SECONDS) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines = lines_of(answer)
            name, first = read_event(lines)
            assert name == "page"
            assert re.findall(r'<div id="(\w+)" data-live>', first) == ["summary", "environments"]
            assert operator.csrf in first
            pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])
            name, second = read_event(lines)
            assert "production is paused by an operator" in second


def test_a_stream_needs_a_session(anonymous: Visitor) -> None:
    assert anonymous.get("live/overview").status_code == 401
    assert anonymous.get("live/dead").status_code == 401


def test_streams_are_bounded(operator: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STREAMS", 0)
    assert operator.get("live/overview").status_code == 503


def test_open_streams_delay_no_shutdown(redis_server: EmbeddedRedis, client: Redis) -> None:
    with contextlib.ExitStack() as streams:
        with running(redis_server.url) as visitor:
            operator = visitor.signed_in()
            asking = streams.enter_context(requests.Session())
            asking.trust_env = False
            asking.cookies.update(operator.cookies)
            answer = streams.enter_context(
                asking.get(f"{operator.url}/console/live/dead", stream=True, timeout=DEADLINE_SECONDS)
            )
            lines = lines_of(answer)  # held, or the connection would be closed
            assert read_event(lines)[0] == "page"
            stopping = time.monotonic()
        assert time.monotonic() - stopping < server.STOP_SECONDS - 1  # else it was cancelled
        assert not any(lines)  # it ended as it should, not in the middle


def test_ten_thousand_environments_are_one_bounded_page(operator: Visitor, client: Redis) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(10_000):
        pipeline.xadd(KEYS.of_outbox(DEFAULT_DESTINATION, f"edge-{number}").outbox, {"event": "{}"})
        pipeline.zadd(KEYS.environments(DEFAULT_DESTINATION), {f"edge-{number}": 0})
    pipeline.xadd(KEYS.of_outbox(DEFAULT_DESTINATION, "edge-9999").outbox, {"event": "{}"})
    pipeline.execute()
    page = until(operator, "page 1 of 200")
    assert re.findall(r"<bdi>(edge-\d+)</bdi>", page)[0] == "edge-9999"
    assert len(page) < 200_000
