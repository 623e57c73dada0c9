"""TLS everywhere, and a server in between with a certificate of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import requests
from faults.ground import Ground, scenario
from faults.proxy import Proxy
from tls_servers import HOST, Case, Certificates, Recorder

from relay.processes.embedded_redis import free_port
from relay.processes.stack import FLOWER
from relay.processes.supervisor import Child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "password-of-the-queue"
EVENTS = 10

#: Deadline of a gateway, a command or Flower to report the refusal.
REFUSED_SECONDS = 30.0

BODY = {"image": {"url": f"ghcr.io/acme/refused@sha256:{'a' * 64}"}, "environment": {"name": "refused"}}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def ground(tmp_path: Path, certificates: Certificates) -> Iterator[Ground]:
    """A relay whose Redis has a second port, with TLS."""
    right = str(certificates.of(Case.RIGHT))
    options = {
        "tls-port": str(free_port()),
        "tls-cert-file": right,
        "tls-key-file": right,
        "tls-ca-cert-file": str(certificates.ca_file),
        "tls-auth-clients": "no",
    }
    (tmp_path / "ground").mkdir()
    with Ground(tmp_path / "ground", redis_options=options) as made:
        made.environment["RELAY_REDIS__CA_FILE"] = str(certificates.ca_file)
        made.environment["TLS_PORT"] = options["tls-port"]
        yield made


class Services:
    """The processes beside the workers, all on one address."""

    def __init__(self, ground: Ground, exits: ExitStack) -> None:
        self._ground = ground
        self._environment = {**os.environ, **ground.environment, "RELAY_GATEWAY__TOKEN": "t" * 20}
        self.gateway = f"http://{HOST}:{free_port()}"
        self.flower = f"http://{HOST}:{free_port()}"
        self._start(exits, "gateway", "relay", "gateway", "--port", self.gateway.rpartition(":")[2])
        self._start(exits, "flower", *FLOWER, f"--port={self.flower.rpartition(':')[2]}", f"--address={HOST}")

    def _start(self, exits: ExitStack, name: str, *argv: str) -> None:
        log = self._ground.directory / f"{name}.log"
        child = Child(name, [sys.executable, "-m", *argv], env=self._environment, log_path=log)
        exits.callback(child.kill)

    def status(self, url: str, **request: object) -> int:
        """Return the status of an answer; 0 while nothing listens."""
        try:
            method = "POST" if request else "GET"
            return requests.request(method, url, timeout=REFUSED_SECONDS, **request).status_code  # type: ignore[arg-type]
        except requests.ConnectionError:
            return 0

    def report(self) -> int:
        return self.status(self.gateway, json=BODY, headers={"Authorization": f"Bearer {'t' * 20}"})

    def queue_lengths(self) -> int:
        return self.status(f"{self.flower}/api/queues/length")

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *argv],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=REFUSED_SECONDS,
            check=False,
        )


@scenario(
    44,
    "TLS everywhere; a server in between with a certificate of another name, then of an unknown authority",
    bound="refused by worker, gateway, Flower, commands and Celery by hand; not one byte sent; goes on after it",
    timeout=150,
)
def test_a_server_in_between_gets_no_byte(ground: Ground, certificates: Certificates) -> None:
    with ExitStack() as exits:
        link = exits.enter_context(Proxy(int(ground.environment["TLS_PORT"])))
        ground.environment["RELAY_REDIS_URL"] = f"rediss://default:{PASSWORD}@{HOST}:{link.port}/0"
        ground.environment["FLOWER_UNAUTHENTICATED_API"] = "true"
        services = Services(ground, exits)
        ground.start_workers()
        ground.report(EVENTS)
        ground.rest()
        ground.wait(lambda: services.status(f"{services.gateway}/readyz") == 200)
        ground.wait(lambda: services.queue_lengths() == 200)

        for case in (Case.OTHER_NAME, Case.UNKNOWN_AUTHORITY):
            impostor = exits.enter_context(Recorder(certificates.of(case)))
            link.retarget(impostor.port)
            link.reset_all()
            impostor.wait_for_handshakes()
            ground.bit(impostor.handshakes, f"connections reached a server with a certificate of {case}")
            assert services.report() == 503
            assert services.queue_lengths() == 500
            doctor = services.command("relay", "doctor", "--offline")
            assert doctor.returncode == 1
            assert "certificate" in doctor.stdout
            assert services.command("relay", "report", BODY["image"]["url"]).returncode == 69
            assert services.command("celery", "-A", "workers", "inspect", "ping").returncode != 0
            assert impostor.decrypted == b""
            ground.observed(f"{case}: {impostor.handshakes} connections refused, 0 bytes sent")

        link.retarget(int(ground.environment["TLS_PORT"]))
        link.reset_all()
        ground.report(EVENTS)
        ground.rest()
        ground.check()
