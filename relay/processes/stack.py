"""All parts of the relay on one machine, as processes that end with this one: for `relay up` and `relay demo`."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import sys
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self

import requests
from redis.exceptions import RedisError

from relay.connections.clients import connect, unavailable
from relay.errors import ConfigurationError
from relay.processes.embedded_redis import EmbeddedRedis, free_port, is_free
from relay.processes.supervisor import Children, Ended
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from relay.processes.supervisor import Child

#: How long a worker may take until its first heartbeat, in seconds: Python, Celery and its children start.
WORKER_READY_SECONDS = 60.0

#: How long Flower may take until it answers, in seconds: it imports Celery and Tornado.
FLOWER_READY_SECONDS = 60.0

#: How long a worker may take to stop beyond a run's budget and a request's deadline, in seconds.
STOP_MARGIN_SECONDS = 5.0

#: Flower 2.2 hangs on SIGTERM and on SIGINT. It has no state to lose, so it is killed after this long, in seconds.
FLOWER_STOP_SECONDS = 0.5

#: Flower's command line, the same as in docker-compose.yml. A task takes 4 KiB. The default columns show neither the
#: environments of a run nor its result.
FLOWER = (
    *("celery", "-A", "workers", "flower", "--max-tasks=10000"),
    "--tasks-columns=name,uuid,args,state,result,exception,received,runtime,worker",
)

#: Time-out of one health check of a child, in seconds.
PROBE_SECONDS = 1.0


class Stack:
    """Redis, a destination, workers and a gateway; a context manager that stops them in the reverse order.

    Without `redis_url` a private Redis is started, without `api_url` a sandbox. `directory` holds the logs and the
    data of the private Redis. `environment` are variables of the children beside those of this process. Raise
    `ChildFailed`, which quotes the log, for a child that does not start.
    """

    def __init__(
        self, directory: Path, *, redis_url: str | None = None, api_url: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.directory = directory
        self.redis_url = redis_url or ""
        self.api_url = api_url or ""
        self.gateway_url = ""
        self.flower_url = ""
        self.environment = dict(environment or {})
        self._embedded: EmbeddedRedis | None = None
        self._children = Children()
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"the directory {self.directory} cannot be made: {error.strerror}") from error
        try:
            self._exits.enter_context(_lock(self.directory))
            if not self.redis_url:
                self._embedded = self._start_redis()
                self.redis_url = self._embedded.url
            self._exits.enter_context(self._children)
            self.environment["RELAY_REDIS__URL"] = self.redis_url  # takes precedence over all other names
            if not self.api_url:
                self._start_sandbox()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def settings(self) -> Settings:
        """Return the settings of the children."""
        loaded = Settings.load()
        return loaded.model_copy(update={"redis": loaded.redis.model_copy(update={"url": self.redis_url})})

    def start_worker(self, name: str, *, concurrency: int | None = None) -> Child:
        """Start a Celery worker and wait for its heartbeat."""
        argv = ["worker", "--name", f"{name}@%h"]
        argv += ["--concurrency", str(concurrency)] if concurrency else []
        settings = self.settings
        heartbeat = Keys(settings.queue.namespace).worker(f"{name}@{socket.gethostname()}")
        with connect(settings.redis) as client:
            try:
                client.delete(heartbeat)  # may be left from a worker of this name that was just killed
            except RedisError as error:
                raise unavailable(self.redis_url, error) from error
            return self._start(
                name,
                argv,
                ready=lambda: bool(client.exists(heartbeat)),
                ready_seconds=WORKER_READY_SECONDS,
                stop_seconds=settings.worker.budget + settings.api.timeout + STOP_MARGIN_SECONDS,
            )

    def start_gateway(self, port: int) -> Child:
        """Start the gateway on the loopback interface and wait until it answers."""
        if port and not is_free(port):
            raise ConfigurationError(f"port {port} is taken: choose another for the gateway with --port")
        self.gateway_url = f"http://127.0.0.1:{port or free_port()}"
        argv = ["gateway", "--host", "127.0.0.1", "--port", self.gateway_url.rpartition(":")[2]]
        return self._start("gateway", argv, ready=lambda: _answers(f"{self.gateway_url}/healthz"))

    def start_flower(self, port: int, *, basic_auth: str) -> Child:
        """Start Flower on the loopback interface with a login, `user:password`, and wait until it answers."""
        if find_spec("flower") is None:
            raise ConfigurationError("Flower needs the extra `flower`: pip install 'deployment-relay[flower]'")
        if port and not is_free(port):
            raise ConfigurationError(f"port {port} is taken: choose another for Flower with --flower-port")
        self.flower_url = f"http://127.0.0.1:{port or free_port()}"
        where = ["--address=127.0.0.1", f"--port={self.flower_url.rpartition(':')[2]}"]
        return self._children.start(
            "flower",
            [sys.executable, "-m", *FLOWER, *where],
            # In the environment: every user of the machine can read a command line.
            env={**self._child_environment(), "FLOWER_BASIC_AUTH": basic_auth},
            log_path=self.log_path("flower"),
            ready=lambda: _answers(f"{self.flower_url}/healthcheck"),
            ready_seconds=FLOWER_READY_SECONDS,
            stop_seconds=FLOWER_STOP_SECONDS,
        )

    def start(self, name: str, argv: list[str]) -> Child:
        """Start another program of this Python with the stack's environment."""
        return self._children.start(
            name, [sys.executable, *argv], env=self._child_environment(), log_path=self.log_path(name)
        )

    def wait_any(self, timeout_seconds: float) -> Ended | None:
        """Wait for the next child that ends, the private Redis included."""
        return (self._embedded and self._embedded.ended()) or self._children.wait_any(timeout_seconds)

    def log_path(self, name: str) -> Path:
        """Return the path of a child's log."""
        if name == "redis" and self._embedded:
            return self._embedded.log_path
        return self.directory / f"{name}.log"

    def _start_redis(self) -> EmbeddedRedis:
        """Start the private Redis, on the port of its last start if that is free: producers know it."""
        remembered = self.directory / "redis-port"
        port = _read_port(remembered)
        if port is not None and not is_free(port):
            port = None
        embedded = self._exits.enter_context(EmbeddedRedis(self.directory / "redis", port=port))
        remembered.write_text(f"{embedded.port}\n", encoding="ascii")
        return embedded

    def _start_sandbox(self) -> None:
        token = secrets.token_urlsafe(24)
        token_file = self.directory / "sandbox-token"
        token_file.touch(mode=0o600)
        token_file.write_text(token, encoding="utf-8")
        self.api_url = f"http://127.0.0.1:{free_port()}/"
        self.environment |= {"RELAY_API__URL": self.api_url, "RELAY_API__TOKEN_FILE": str(token_file)}
        argv = ["sandbox", "--port", self.api_url.strip("/").rpartition(":")[2], "--token-file", str(token_file)]
        self._start("sandbox", argv, ready=lambda: _answers(f"{self.api_url}_sandbox/healthz"))

    def _start(
        self, name: str, argv: list[str], *, ready: Callable[[], bool],
        ready_seconds: float = 30.0, stop_seconds: float = 10.0,
    ) -> Child:  # fmt: skip
        return self._children.start(
            name,
            [sys.executable, "-m", "relay", *argv],
            env=self._child_environment(),
            log_path=self.log_path(name),
            ready=ready,
            ready_seconds=ready_seconds,
            stop_seconds=stop_seconds,
        )

    def _child_environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Lock a directory for this process: two servers would damage one append-only file."""
    try:
        opened = (directory / "lock").open("a+", encoding="ascii")
    except OSError as error:
        raise ConfigurationError(f"the directory {directory} cannot be used: {error.strerror}") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another"
            raise ConfigurationError(f"{directory} is in use by process {holder}: choose another directory") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _read_port(remembered: Path) -> int | None:
    try:
        return int(remembered.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or a power failure left it empty
        return None


def local_session() -> requests.Session:
    """Return a session for servers on this machine: it ignores proxies."""
    session = requests.Session()
    session.trust_env = False
    return session


def _answers(url: str) -> bool:
    try:
        with local_session() as session:
            return session.get(url, timeout=PROBE_SECONDS).ok
    except requests.RequestException:
        return False
