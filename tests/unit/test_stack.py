"""What `relay up` and `relay demo` start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.demo.run import forget_settings
from relay.processes.stack import Stack, _answers, _read_port
from relay.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("written", "port"), [("6400\n", 6400), ("", None), ("64\x00", None), (None, None)])
def test_a_port_that_cannot_be_read_is_forgotten(tmp_path: Path, written: str | None, port: int | None) -> None:
    remembered = tmp_path / "redis-port"
    if written is not None:
        remembered.write_text(written)
    assert _read_port(remembered) == port


def test_no_proxy_is_asked_for_what_listens_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Sandbox(token="t") as sandbox:
        assert _answers(f"{sandbox.url}/_sandbox/healthz")


def test_a_demo_forgets_the_relays_settings_and_nothing_else() -> None:
    kept = {"PATH": "/bin", "RELAY_REDIS_SERVER": "/usr/bin/redis-server", "RELAY_TEST_CRASH": "", "HTTP_PROXY": ""}
    forgotten = dict.fromkeys(
        [
            "RELAY_REDIS_URL",
            "relay_redis__url",
            "RELAY_CONFIG",
            "RELAY_SPOOL__DIRECTORY",
            "ATOMIST_URL",
            "CLUSTER_NAME",
        ],
        "set",
    )
    environment = kept | forgotten
    forget_settings(environment)
    assert environment == kept


def test_what_a_stack_starts_wins_over_what_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_API__TOKEN_FILE", "/another")
    with Stack(tmp_path / "data") as stack:
        assert stack.environment["RELAY_REDIS__URL"] == stack.redis_url
        assert stack.environment["RELAY_API__URL"] == stack.api_url
        assert stack.environment["RELAY_API__TOKEN_FILE"] == str(tmp_path / "data" / "sandbox-token")
