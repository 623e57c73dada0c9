"""`relay metrics` on sockets: both families, no rebound names, and no connection that stays."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
import requests
from rig import wait_for

from relay.metrics import server
from relay.metrics.exporter import Exporter
from relay.metrics.server import MetricsServer
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.processes.embedded_redis import EmbeddedRedis


@contextlib.contextmanager
def serving(redis_server: EmbeddedRedis, host: str = "127.0.0.1") -> Iterator[int]:
    settings = Settings.load(redis={"url": redis_server.url}, metrics={"host": host, "port": 0})
    with contextlib.closing(Exporter(settings)) as exporter, MetricsServer(settings.metrics, exporter) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield serving.server_address[1]
        finally:
            serving.shutdown()
            thread.join()


def ask(port: int, address: str = "127.0.0.1", path: str = "/metrics", **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"http://{address}:{port}{path}", headers=headers, timeout=20)


def test_every_address_is_of_both_families(redis_server: EmbeddedRedis) -> None:
    with serving(redis_server, "*") as port:
        assert "relay_up 1" in ask(port).text
        assert ask(port, Host="metrics.example.com").status_code == 200, "beyond loopback it may have any name"
        try:
            answer = ask(port, "[::1]")
        except requests.ConnectionError:
            pytest.skip("this machine has no IPv6 loopback address: sysctl net.ipv6.conf.lo.disable_ipv6=0")
        assert "relay_up 1" in answer.text


def test_a_rebound_name_reads_nothing_on_loopback(redis_server: EmbeddedRedis) -> None:
    with serving(redis_server) as port:
        refused = ask(port, Host="evil.example")
        assert refused.status_code == 421
        assert "relay_" not in refused.text
        for host in (f"localhost:{port}", "127.0.0.1", "[::1]:9780"):
            assert ask(port, Host=host).status_code == 200
        assert ask(port, path="/healthz", Host="any").status_code == 200


def test_a_client_that_drips_is_closed(redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 0.3)
    with serving(redis_server) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nX: ")

        def is_closed() -> bool:
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"x")
                return False
            return True

        wait_for(is_closed, 20)


def test_a_client_that_leaves_is_no_traceback(redis_server: EmbeddedRedis, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(redis_server) as port:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as leaver:
                leaver.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        assert ask(port).status_code == 200
    assert "Traceback" not in capfd.readouterr().err
