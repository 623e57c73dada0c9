"""Clients wait for a Redis that does not answer as long as the settings allow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import redis
from servers import Server, hang

from relay.connections.clients import CONNECTIONS, RETRIES, connect, connect_async, unavailable
from relay.processes.embedded_redis import EmbeddedRedis
from relay.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def settings_of(server: Server) -> RedisSettings:
    return RedisSettings(url=f"redis://127.0.0.1:{server.port}/0", timeout=0.1, connect_timeout=1)


def test_a_silent_redis_costs_a_time_out_per_attempt() -> None:
    with Server(at_once=hang) as server:
        with connect(settings_of(server)) as client, pytest.raises(redis.TimeoutError):
            client.ping()
        assert server.connections == RETRIES + 1


@pytest.mark.parametrize("connections", [1, CONNECTIONS])
def test_a_silent_redis_costs_asyncio_no_more(connections: int) -> None:
    async def ping(server: Server) -> None:
        async with connect_async(settings_of(server), connections=connections) as client:
            await client.ping()

    with Server(at_once=hang) as server:
        with pytest.raises(redis.TimeoutError):
            asyncio.run(ping(server))
        assert server.connections == RETRIES + 1


def test_a_command_waits_for_a_free_connection() -> None:
    async def ping(url: str) -> int:
        async with connect_async(RedisSettings(url=url)) as client:
            assert all(await asyncio.gather(*[client.ping() for _ in range(300)]))
            return len(await client.client_list())

    with EmbeddedRedis(append_only=False) as server:
        assert asyncio.run(ping(server.url)) <= CONNECTIONS


def test_a_client_with_one_connection_keeps_it_and_survives_its_loss() -> None:
    async def ping(url: str) -> None:
        async with connect_async(RedisSettings(url=url), connections=1) as client:
            assert all(await asyncio.gather(*[client.ping() for _ in range(30)]))
            connection = await client.client_id()
            assert await client.client_id() == connection
            with redis.Redis.from_url(url) as other:
                other.client_kill_filter(_id=str(connection))
            assert await client.client_id() > connection
            assert len(await client.client_list()) == 1

    with EmbeddedRedis(append_only=False) as server:
        asyncio.run(ping(server.url))


@pytest.mark.parametrize("url", ["redis://queue", "rediss://queue", "unix:///run/redis.sock"])
@pytest.mark.parametrize(
    "command", [("XADD", "key", "*", b"\x00\xff", "grün"), ("CONFIG GET", 7, 0.5, "", "x" * 9_000)]
)
def test_asyncio_packs_as_redis_py_does(url: str, command: tuple[Any, ...]) -> None:
    connection = connect_async(RedisSettings(url=url)).connection_pool.make_connection()
    (ours,) = connection.pack_command(*command)  # in one piece, which theirs never is of nine kilobytes
    assert ours == b"".join(redis.asyncio.connection.AbstractConnection.pack_command(connection, *command))


def test_an_error_repeats_no_password() -> None:
    """A server without HELLO repeats its arguments, which include the password."""
    its = "unknown command 'HELLO', with args beginning with: '3', 'AUTH', 'default', 'hunter2 :secret'"
    error = unavailable("redis://:hunter2%20%3Asecret@queue:6379/0", redis.ResponseError(its))
    said = "unknown command 'HELLO', with args beginning with: '3', 'AUTH', 'default', '***'"
    assert str(error) == f"Redis at redis://***@queue:6379/0 did not answer: {said}"


@pytest.mark.parametrize("connecting", [connect, connect_async])
def test_a_unix_socket_is_connected_to(connecting: Callable[[RedisSettings], Any], tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with EmbeddedRedis(options={"unixsocket": str(socket)}):
        client = connecting(RedisSettings(url=f"unix://{socket}?db=3"))

        async def ping() -> object:
            async with client:
                return await client.ping()

        assert client.ping() if connecting is connect else asyncio.run(ping())
        if connecting is connect:
            client.close()
