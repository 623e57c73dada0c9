"""A worker on a Redis as a service may offer it: with commands that are renamed or forbidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rig import TIMERS, TOKEN, Estate, wait_for
from tls_servers import HOST, redis_server

from relay import DeploymentEvent, Producer
from relay.connections.clients import connect
from relay.processes.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path

    from relay.sandbox import Sandbox

FORBIDDEN = ("ACL", "CLIENT", "COMMAND", "CONFIG", "HELLO", "INFO", "KEYS", "MEMORY", "OBJECT", "ROLE", "SLOWLOG")


def test_a_worker_delivers_by_the_broker_without_commands_that_are_nice_to_have(api: Sandbox, tmp_path: Path) -> None:
    environment = {**TIMERS, "RELAY_API_TOKEN": TOKEN, "RELAY_API_URL": api.url}
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis", {f"rename-command {name}": '""' for name in FORBIDDEN}) as server:
        url = f"redis://{HOST}:{server.port}/0"
        with (
            Stack(tmp_path / "stack", redis_url=url, api_url=api.url, environment=environment) as stack,
            connect(stack.settings.redis) as client,
            Producer(url) as producer,
        ):
            estate = Estate(stack, client, api)
            estate.start_worker()
            producer.report_many(
                DeploymentEvent.of(f"ghcr.io/acme/app-{n}@sha256:{'a' * 64}", environment="production")
                for n in range(20)
            )
            assert estate.wait_until_done(20).delivered == 20
            log = stack.log_path("worker")
            wait_for(lambda: "delivery run" in log.read_text(), seen=log.read_text)
            assert '"wakeup"' in log.read_text(), (
                "what was delivered, the worker's main process did without the broker"
            )
            assert "unknown command" not in log.read_text()
