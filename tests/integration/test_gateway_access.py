"""Who may report through the gateway, over which wire, and what may be asked afterwards."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import requests
from gateways import BODY, HEADERS, IMAGE, Running, running
from rig import wait_for
from servers import Authority

from relay.errors import ConfigurationError
from relay.gateway import server, tokens
from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue import receipts
from relay.queue.keys import Keys
from relay.queue.receipts import Status
from relay.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import redis

TWO = '[one]\ntoken = "of-one"\nenvironments = ["production"]\n[two]\ntoken = "of-two"\nenvironments = ["edge-*"]\n'


def opened(redis_server: EmbeddedRedis, **gateway: Any) -> Any:
    return running(redis_server.url, gateway={"port": 0, **gateway})


def status_of(gateway: Running, token: str, body: bytes = BODY, **headers: str) -> int:
    return gateway.post(body, Authorization=f"Bearer {token}", **headers).status_code


def event(environment: str | None, **more: Any) -> dict[str, Any]:
    return {"image": {"url": IMAGE}, "environment": {"name": environment}, **more}


def test_token_reports_for_its_environments(redis_server: EmbeddedRedis, client: redis.Redis, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(TWO)
    with opened(redis_server, token="of-all", tokens_file=file) as gateway:
        answers = {token: status_of(gateway, token) for token in ("of-one", "of-two", "of-all", "guessed")}
        refused = gateway.post(Authorization="Bearer of-two")
        many = gateway.post(
            json.dumps([event("edge-1"), event("production"), event(None), event("edge-2")]),
            Authorization="Bearer of-two",
        )
    assert answers == {"of-one": 202, "of-two": 403, "of-all": 202, "guessed": 403}
    assert refused.json()["field"] == "environment.name"
    assert "two" in refused.json()["error"]
    assert many.status_code == 202
    assert [bool(each) for each in many.json()["ids"]] == [True, False, False, True]
    assert [(each["index"], each["field"]) for each in many.json()["errors"]] == [
        (1, "environment.name"),
        (2, "environment.name"),
    ]
    assert client.xlen(Keys().inbox) == 4


def test_tokens_change_without_a_restart(
    redis_server: EmbeddedRedis, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHECK_SECONDS", 0.0)
    file = tmp_path / "tokens.toml"
    file.write_text(TWO)
    with opened(redis_server, tokens_file=file) as gateway:
        assert status_of(gateway, "of-one") == 202
        file.write_text("[one] this is no TOML")
        assert status_of(gateway, "of-one") == 202, "what cannot be read changes nothing"
        file.unlink()
        assert status_of(gateway, "of-one") == 202
        new = tmp_path / "new.toml"
        new.write_text(TWO.replace("of-one", "rotated"))
        os.replace(new, file)  # noqa: PTH105 - as a rotation does it
        assert status_of(gateway, "rotated") == 202
        assert status_of(gateway, "of-one") == 403


@pytest.mark.parametrize("text", [None, "", "[a]\ntoken = 1"])
def test_tokens_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "tokens.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"tokens\.toml"):
        server.create_server(Settings.load(gateway={"tokens_file": file}))


def test_a_receipt_has_the_status_of_an_event(redis_server: EmbeddedRedis, client: redis.Redis) -> None:
    with running(redis_server.url) as gateway:
        assert gateway.post(ce_id="deploy/7 ü").status_code == 422, "headers are percent-encoded"
        assert gateway.post(ce_id="deploy/7%20%C3%BC").json() == {"id": "deploy/7 ü"}
        answer = asked(gateway, "deploy/7%20%C3%BC")
        assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (200, "deploy/7 ü", "queued")
        assert answer.json()["since"].endswith("+00:00")

        client.set(Keys().receipt("deploy/7 ü"), "dead\n5\nrefused\nHTTP 422: no")
        assert asked(gateway, "deploy/7%20%C3%BC").json() == {
            "id": "deploy/7 ü",
            "status": "dead",
            "since": "1970-01-01T00:00:00.005+00:00",
            "reason": "refused",
            "detail": "HTTP 422: no",
        }
        unknown = asked(gateway, "another")
        assert (unknown.status_code, set(unknown.json())) == (404, {"error", "field"})
        assert gateway.ask("GET", "/events/another").status_code == 401


def test_event_without_an_id_costs_no_receipt(redis_server: EmbeddedRedis, client: redis.Redis) -> None:
    with running(redis_server.url) as gateway:
        gateway.post()
        gateway.post(json.dumps([event("a"), event("b", id="given")]))
    assert client.keys(f"{Keys().receipts}*") == [Keys().receipt("given").encode()]
    found = receipts.read(client, Keys(), "given")
    assert found
    assert found.status is Status.QUEUED


def test_receipts_are_503_while_redis_is_unavailable() -> None:
    with EmbeddedRedis(append_only=False) as away, running(away.url) as gateway:
        away.kill()
        answer = asked(gateway, "any")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0


def asked(gateway: Running, event_id: str) -> requests.Response:
    return gateway.ask("GET", f"/events/{event_id}", headers={"Authorization": "Bearer the-producers-token"})


def test_https_with_a_certificate_that_is_renewed(
    redis_server: EmbeddedRedis,
    client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server, "CERTIFICATE_SECONDS", 0.1)
    first, second = (Authority(folder_of(tmp_path, name)) for name in ("first", "second"))
    for authority in (first, second):
        authority.server("tls")
    for suffix in (".crt", ".key"):
        (tmp_path / f"tls{suffix}").write_bytes((first.file.parent / f"tls{suffix}").read_bytes())
    with opened(redis_server, tls_cert=tmp_path / "tls.crt", tls_key=tmp_path / "tls.key") as gateway:
        url = gateway.url.replace("http://", "https://")
        assert trusts(url, first)
        assert not trusts(url, second)
        (tmp_path / "tls.crt").write_text("no certificate")
        assert trusts(url, first)
        caplog.clear()
        (tmp_path / "tls.crt").write_bytes((second.file.parent / "tls.crt").read_bytes())
        wait_for(lambda: "mismatch" in caplog.text.lower(), 20)
        assert trusts(url, first), "a renewal that has come half way changes nothing"
        for suffix in (".key", ".crt"):
            (tmp_path / f"tls{suffix}").write_bytes((second.file.parent / f"tls{suffix}").read_bytes())
        wait_for(lambda: trusts(url, second), 20)
    assert client.xlen(Keys().inbox) >= 4


def folder_of(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def trusts(url: str, authority: Authority) -> bool:
    """Report, trusting this authority alone."""
    try:
        return requests.post(url, json=json.loads(BODY), verify=str(authority.file), timeout=10).status_code == 202
    except requests.exceptions.SSLError:
        return False


def test_certificate_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    lacking = {"tls_cert": tmp_path / "no.crt", "tls_key": tmp_path / "no.key"}
    with pytest.raises(ConfigurationError, match=r"no\.crt"):
        server.create_server(Settings.load(gateway=lacking))
    with pytest.raises(ConfigurationError, match="tls_key belong together"):
        Settings.load(gateway={"tls_cert": tmp_path / "no.crt"})


def test_plain_http_to_the_https_port_affects_no_other_client(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server("tls")
    with opened(redis_server, tls_cert=tmp_path / "tls.crt", tls_key=tmp_path / "tls.key") as gateway:
        with pytest.raises(requests.exceptions.ConnectionError):
            gateway.ask("POST", "/", data=BODY)
        assert trusts(gateway.url.replace("http://", "https://"), authority)


def test_metrics_are_open_or_need_a_token_or_are_off(redis_server: EmbeddedRedis, client: redis.Redis) -> None:
    bearer = {"Authorization": "Bearer of-all"}
    answers = {}
    for door in ("open", "token", "off"):
        with opened(redis_server, token="of-all", metrics=door) as gateway:
            gateway.post(Authorization="Bearer of-all")
            answers[door] = [gateway.ask("GET", "/metrics", headers=headers) for headers in ({}, bearer)]
    assert {door: [each.status_code for each in asked] for door, asked in answers.items()} == {
        "open": [200, 200],
        "token": [401, 200],
        "off": [404, 404],
    }
    assert "\nrelay_events_added_total 2" in answers["token"][1].text
    assert answers["open"][0].headers["Content-Type"].startswith("text/plain; version=")


def test_metrics_show_that_redis_is_unavailable() -> None:
    with EmbeddedRedis(append_only=False) as away, running(away.url) as gateway:
        away.kill()
        answer = gateway.ask("GET", "/metrics", headers=HEADERS)
    assert answer.status_code == 200
    assert "\nrelay_up 0" in answer.text
