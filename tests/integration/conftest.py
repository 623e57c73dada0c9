"""A real Redis for all integration tests, empty at the start of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis import Redis

from relay.processes.embedded_redis import EmbeddedRedis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateways import Running
    from kubernetes_api import KubernetesApi


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(append_only=False) as server:
        yield server


@pytest.fixture
def client(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url, socket_timeout=10) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="module")
def serving(redis_server: EmbeddedRedis) -> Iterator[Running]:
    from gateways import running  # noqa: PLC0415 - needs the extra

    with running(redis_server.url) as gateway:
        yield gateway


@pytest.fixture
def gateway(serving: Running, client: Redis) -> Running:
    return serving


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KubernetesApi]:
    """Return a Kubernetes API server that the kubeconfig of the environment names."""
    from kubernetes_api import KubernetesApi  # noqa: PLC0415 - for the tests that need it

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with KubernetesApi() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
        yield api
