"""A gateway on real sockets, in a thread of this process or as a process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from relay.gateway import server
from relay.hosts import url_of
from relay.processes.supervisor import Child, await_ready
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

IMAGE = "registry.example.com/app@sha256:" + "0123456789abcdef" * 4
BODY = json.dumps({"image": {"url": IMAGE}, "environment": {"name": "production"}}, separators=(",", ":")).encode()
TOKEN = "the-producers-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
DEADLINE_SECONDS = 10.0
READY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A gateway in a thread of this process."""

    url: str

    def post(self, body: Any = BODY, path: str = "/", **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, data=body, headers={**HEADERS, **named})

    def ask(self, method: str, path: str, **request: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, timeout=DEADLINE_SECONDS, **request)

    def connect(self) -> socket.socket:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS)


@contextlib.contextmanager
def running(redis_url: str, *, token: str = TOKEN, **sections: dict[str, Any]) -> Iterator[Running]:
    sections = {
        "redis": {"url": redis_url, "connect_timeout": 0.5, "timeout": 0.5},
        "gateway": {"port": 0, "token": token},
        **sections,
    }
    settings = Settings.load(**sections)
    serving = server.create_server(settings)
    with server.listen(settings.gateway) as listening:
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Running(url=url_of(listening))
        finally:
            serving.should_exit = True
            thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def environment(redis_url: str) -> dict[str, str]:
    """Return this process's environment, with that Redis as the only setting of the relay."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "ATOMIST_"))}
    return others | {"RELAY_REDIS_URL": redis_url}


@contextlib.contextmanager
def process(redis_url: str, log: Path) -> Iterator[tuple[Running, Child]]:
    """Run `relay gateway` as a process, without a token."""
    command = [sys.executable, "-m", "relay", "gateway", "--port", "0"]
    child = Child("gateway", command, env=environment(redis_url), log_path=log)
    try:
        await_ready(child, lambda: b"\n" in log.read_bytes(), READY_SECONDS)
        yield Running(url=log.read_text().strip().removeprefix("Gateway on ")), child
    finally:
        child.kill()


def inbox(client: Redis) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in client.xrange(Keys().inbox)]  # type: ignore[misc]


def status_of(connection: socket.socket) -> int:
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        response.read()
        return response.status
