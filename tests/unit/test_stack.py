"""The stack of `relay up` and `relay demo`: its port file, its environment, its health checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.demo.run import forget_settings
from relay.processes.stack import Stack, _answers, _read_port
from relay.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("written", "port"), [("6400\n", 6400), ("", None), ("64\x00", None), (None, None)])
def test_port_file_that_cannot_be_read_is_ignored(tmp_path: Path, written: str | None, port: int | None) -> None:
    remembered = tmp_path / "redis-port"
    if written is not None:
        remembered.write_text(written)
    assert _read_port(remembered) == port


def test_health_check_of_a_local_server_ignores_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Sandbox(token="t") as sandbox:
        assert _answers(f"{sandbox.url}/_sandbox/healthz")


def test_demo_removes_the_relays_variables_and_no_others() -> None:
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


def test_environment_of_a_stack_overrides_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_API__TOKEN_FILE", "/another")
    with Stack(tmp_path / "data") as stack:
        assert stack.environment["RELAY_REDIS__URL"] == stack.redis_url
        assert stack.environment["RELAY_API__URL"] == stack.api_url
        assert stack.environment["RELAY_API__TOKEN_FILE"] == str(tmp_path / "data" / "sandbox-token")
