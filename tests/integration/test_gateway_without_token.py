"""Clients without a token at a gateway: pages of other sites, reviews, and scrapes."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from gateways import BODY, HEADERS, TOKEN, Running, running
from rig import wait_for

from relay.errors import ConfigurationError
from relay.gateway import tokens
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import requests
    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

SECRET = "0123456789abcdef01234567"
NEXT_SECRET = "another-secret-of.the~same"
JSON = {"Content-Type": "application/json"}
NAMED = {"cluster": "kind-1"}


@pytest.fixture(scope="module")
def without_tokens(redis_server: EmbeddedRedis) -> Iterator[Running]:
    """As `relay gateway` and `relay up` start it without settings."""
    with running(redis_server.url, token="", kubernetes=NAMED) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def with_token(redis_server: EmbeddedRedis) -> Iterator[Running]:
    with running(redis_server.url, kubernetes=NAMED) as gateway:
        yield gateway


def review() -> dict[str, Any]:
    """A forged one, for production."""
    image = f"ghcr.io/acme/api@sha256:{'0123456789abcdef' * 4}"
    pod = {
        "metadata": {"name": "api", "namespace": "production"},
        "spec": {"containers": [{"name": "api", "image": image}]},
    }
    resource = {"group": "", "version": "v1", "resource": "pods"}
    request = {"uid": "forged", "operation": "CREATE", "namespace": "production", "resource": resource, "object": pod}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def ask(gateway: Running, path: str = "/admission", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.ask("POST", path, data=json.dumps(review()), headers={**JSON, **named})


def is_allowed(answer: requests.Response) -> bool:
    return answer.status_code == 200 and answer.json()["response"] == {"uid": "forged", "allowed": True}


def reported(client: Redis) -> int:
    return int(client.xlen(Keys().inbox))


def await_reports(client: Redis, number: int) -> None:
    """Wait for them: a review is answered before its report arrives, where that takes long."""
    wait_for(lambda: reported(client) >= number, 20)
    assert reported(client) == number


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {**JSON, "Origin": "https://evil.example"},
        {**JSON, "Origin": "null"},
        {**JSON, "Sec-Fetch-Site": "cross-site"},
        {**JSON, "Sec-Fetch-Site": "same-site"},
        {**JSON, "Host": "evil.example"},
        {**JSON, "Host": "evil.example:8080", "Origin": "http://evil.example:8080", "Sec-Fetch-Site": "same-origin"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/v1/deployments", "/admission"])
def test_a_web_page_reports_nothing_to_a_gateway_on_loopback(
    without_tokens: Running, client: Redis, path: str, headers: dict[str, str]
) -> None:
    body = json.dumps(review()).encode() if path == "/admission" else BODY
    answer = without_tokens.ask("POST", path, data=body, headers=headers)
    assert reported(client) == 0
    refused = {403, 415, 421} if path != "/admission" else {200, 403}  # the API server's reviews are always allowed
    assert answer.status_code in refused


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080"])
def test_a_local_program_reports(without_tokens: Running, client: Redis, host: str) -> None:
    assert without_tokens.ask("POST", "/", data=BODY, headers={**JSON, "Host": host}).status_code == 202
    assert reported(client) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [("/events/x", 421), ("/metrics", 421), ("/openapi.json", 421), ("/healthz", 200), ("/readyz", 200)],
)
def test_a_rebound_name_gets_nothing_on_loopback(without_tokens: Running, path: str, status: int) -> None:
    assert without_tokens.ask("GET", path, headers={"Host": "evil.example"}).status_code == status
    assert without_tokens.ask("GET", path).status_code in {200, 404}


def test_a_token_makes_the_host_name_irrelevant(with_token: Running, client: Redis) -> None:
    """As behind a proxy on the same machine, which passes on the name that it was asked for."""
    named = {**HEADERS, "Host": "relay.example.com"}
    assert with_token.ask("POST", "/", data=BODY, headers=named).status_code == 202
    assert with_token.ask("GET", "/events/x", headers=named).status_code == 404
    assert with_token.ask("GET", "/metrics", headers=named).status_code == 200


def test_open_admission_on_loopback_checks_the_host_name(redis_server: EmbeddedRedis, client: Redis) -> None:
    opened = {"port": 0, "token": TOKEN, "admission": "open", "metrics": "open", "hosts": ["relay.example.com"]}
    with running(redis_server.url, gateway=opened, kubernetes=NAMED) as gateway:
        assert gateway.ask("GET", "/metrics", headers={"Host": "evil.example"}).status_code == 421
        assert gateway.ask("GET", "/metrics", headers={"Host": "relay.example.com"}).status_code == 200
        assert is_allowed(ask(gateway, Host="evil.example"))
        assert reported(client) == 0
        assert is_allowed(ask(gateway, Host="relay.example.com"))
        await_reports(client, 1)


class TestClosedByDefault:
    def test_beside_a_token_a_forged_review_is_not_reported(self, with_token: Running, client: Redis) -> None:
        for answer in (
            ask(with_token),
            ask(with_token, Authorization="Bearer guessed"),
            ask(with_token, "/admission/x"),
        ):
            assert is_allowed(answer)
        assert reported(client) == 0
        assert is_allowed(ask(with_token, Authorization=f"Bearer {TOKEN}"))
        await_reports(client, 1)
        assert is_allowed(ask(with_token, X_Relay_Token=TOKEN))
        await_reports(client, 2)

    def test_beside_a_token_metrics_ask_for_it(self, with_token: Running) -> None:
        assert with_token.ask("GET", "/metrics").status_code == 401
        assert with_token.ask("GET", "/metrics", headers={"Authorization": "Bearer guessed"}).status_code == 403
        assert with_token.ask("GET", "/metrics", headers=HEADERS).status_code == 200

    def test_without_tokens_both_are_open_on_loopback(self, without_tokens: Running, client: Redis) -> None:
        assert is_allowed(ask(without_tokens))
        await_reports(client, 1)
        assert without_tokens.ask("GET", "/metrics").status_code == 200

    def test_a_review_that_is_refused_is_logged_once_a_second(
        self, with_token: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        def lines() -> list[logging.LogRecord]:
            return [record for record in caplog.records if "not reported" in str(record.msg)]

        with caplog.at_level(logging.WARNING, "relay.gateway"):
            for _ in range(20):
                ask(with_token, f"/admission/{SECRET}")
            wait_for(lambda: bool(lines()), 20)
        assert len(lines()) <= 10, "the gateway was not asked for longer than some seconds"
        assert SECRET not in caplog.text


class TestSecretPath:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "admission-secret"
        file.write_text(f"{SECRET}\n")
        return file

    @pytest.mark.parametrize("token", ["", TOKEN])
    def test_reports_and_nothing_else_does(
        self, redis_server: EmbeddedRedis, client: Redis, file: Path, token: str
    ) -> None:
        guessed = (
            "/admission",
            "/admission/",
            f"/admission/{SECRET[:-1]}",
            f"/admission/{SECRET}//",
            f"/admission/x/{SECRET}",
            f"/admission/x%2F{SECRET}",
            "/admission/%C3%BC",
        )
        sections = {"port": 0, "token": token, "admission_secret_file": file}
        with running(redis_server.url, gateway=sections, kubernetes=NAMED) as gateway:
            for path in guessed:
                assert is_allowed(ask(gateway, path)), "404 would refuse a deployment where the webhook may"
            assert ask(gateway, f"/admission/{SECRET}", Sec_Fetch_Site="cross-site").status_code == 403
            assert reported(client) == 0
            assert is_allowed(ask(gateway, f"/admission/{SECRET}", Host="relay-admission.deployment-relay.svc:443"))
            await_reports(client, 1)
            assert is_allowed(ask(gateway, f"/admission/{SECRET}/?timeout=10s"))
            await_reports(client, 2)

    def test_changes_without_a_restart(
        self, redis_server: EmbeddedRedis, client: Redis, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokens, "CHECK_SECONDS", 0.0)
        with running(
            redis_server.url, gateway={"port": 0, "token": TOKEN, "admission_secret_file": file}, kubernetes=NAMED
        ) as gateway:
            file.write_text(f"{SECRET}\n{NEXT_SECRET}\n")  # both, while the API server is told the new one
            ask(gateway, f"/admission/{SECRET}")
            ask(gateway, f"/admission/{NEXT_SECRET}")
            await_reports(client, 2)
            file.write_text("short\n")  # which cannot be used, and changes nothing
            ask(gateway, f"/admission/{NEXT_SECRET}")
            await_reports(client, 3)
            file.write_text(NEXT_SECRET)
            ask(gateway, f"/admission/{SECRET}")
            ask(gateway, f"/admission/{NEXT_SECRET}")
            await_reports(client, 4)

    @pytest.mark.parametrize("text", [None, "", "\n", "change-me", "0123456789/abcdef", f"{SECRET}\nshort", "ü" * 20])
    def test_that_cannot_be_used_is_refused_at_the_start(
        self, redis_server: EmbeddedRedis, tmp_path: Path, text: str | None
    ) -> None:
        file = tmp_path / "secret"
        if text is not None:
            file.write_text(text)
        with (
            pytest.raises(ConfigurationError, match=r"gateway\.admission_secret_file") as refused,
            running(
                redis_server.url, gateway={"port": 0, "token": TOKEN, "admission_secret_file": file}, kubernetes=NAMED
            ),
        ):
            pass
        assert SECRET not in str(refused.value)

    @pytest.mark.parametrize("admission", ["open", "off"])
    def test_beside_another_door_is_refused_at_the_start(self, file: Path, admission: str) -> None:
        with pytest.raises(ConfigurationError, match="remove one of them"):
            Settings.load(gateway={"token": TOKEN, "admission": admission, "admission_secret_file": file})

    def test_stands_in_no_log_line_even_of_a_fault(
        self,
        redis_server: EmbeddedRedis,
        file: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr("relay.gateway.admission_endpoint.read_review", broken)
        with (
            caplog.at_level(logging.DEBUG),
            running(
                redis_server.url, gateway={"port": 0, "token": TOKEN, "admission_secret_file": file}, kubernetes=NAMED
            ) as gateway,
        ):
            assert is_allowed(ask(gateway, f"/admission/{SECRET}"))
            assert gateway.ask("GET", f"/admission/{SECRET}").status_code == 405
            wait_for(lambda: "review failed" in caplog.text, 20)
        served = [record for record in caplog.records if not record.name.startswith("urllib3")]  # the client's
        assert SECRET not in " ".join(record.getMessage() for record in served)
