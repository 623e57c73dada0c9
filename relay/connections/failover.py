"""Connections that follow a failover behind one address.

A client keeps its connections. After a failover by name or by a proxy, new connections reach the new primary, and the
kept ones stay on the demoted node: it refuses writes (`READONLY`) and answers reads with what it has. redis-py keeps
such a connection, and each later command meets the same answer. So the connection classes of all clients get two
abilities here:

- `follow_refusals` closes a connection whose server says that it is the wrong one, and raises `WrongServer`. That is
  a `ConnectionError`, so it gets every retry that a lost connection gets: on a new connection.
- `follow_role` asks for the server's role now and then, for connections that only read: a demoted node refuses no
  read. A replica's connection is made anew before the next command; a client that reads from a replica on purpose
  pays a connect each time and nothing else.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any

import redis
from redis.exceptions import ClusterDownError, MovedError, ReadOnlyError, ResponseError

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection as AsyncConnection
    from redis.connection import AbstractConnection

#: How often a connection in use asks for its server's role, in seconds.
ROLE_SECONDS = 5.0

#: Refusals that redis-py has no class for, by their first word.
_REFUSALS = ("UNBLOCKED ", "NOREPLICAS ", "MASTERDOWN ", "READONLY ", "CLUSTERDOWN ", "MOVED ")

#: How Redis before 7 words an error inside of a script.
_IN_SCRIPT = re.compile(r"Error running script .*[ -](READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|MOVED) ", re.DOTALL)


class WrongServer(redis.ConnectionError):
    """The server that this connection leads to does not serve the data any more: another one does, or will."""


def wrong_server(error: ResponseError) -> WrongServer | None:
    """Return what to raise instead of a server's answer that calls for a new connection; None for any other answer.

    `READONLY` and `MASTERDOWN` come from a demoted node, `UNBLOCKED` from one that is demoted during a blocking read,
    `NOREPLICAS` from a primary that lost its replicas, maybe to another primary, `CLUSTERDOWN` and `MOVED` from a
    node without the slot. redis-py closes the connection at `LOADING` by itself. `MISCONF`, `OOM` and `BUSY` are
    troubles of the right server.
    """
    message = str(error)
    code = str(getattr(error, "status_code", None) or "")
    if isinstance(error, (ReadOnlyError, ClusterDownError, MovedError)):
        return WrongServer(message if not code or message.startswith(code) else f"{code} {message}")
    if message.startswith(_REFUSALS) or _IN_SCRIPT.match(message):
        return WrongServer(message)
    return None


class _FollowsRefusals:
    """Mixed into a connection class of redis-py."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read as redis-py does; close the connection at the refusal of a wrong server."""
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]  # redis-py's, beside which this is mixed in
        except ResponseError as error:
            if (wrong := wrong_server(error)) is None:
                raise
            self.disconnect()  # type: ignore[attr-defined]  # the same
            raise wrong from error


class _FollowsRole:
    """Mixed into a connection class of redis-py; `check_health` is its hook before each command."""

    #: When to ask for the role, on the monotonic clock; None before the first command.
    _ask_role_at: float | None = None

    def check_health(self) -> None:
        """Check the health as redis-py does, and the role if it is time: what asks for one shows the other."""
        now = time.monotonic()
        if self._ask_role_at is None:
            self._ask_role_at = now + ROLE_SECONDS
        if now < self._ask_role_at:
            super().check_health()  # type: ignore[misc]  # redis-py's
            return
        self._ask_role_at = now + ROLE_SECONDS
        if self._is_replica():
            self.disconnect()  # type: ignore[attr-defined]  # the same
            self.connect()  # type: ignore[attr-defined]  # the same

    def _is_replica(self) -> bool:
        try:
            self.send_command("INFO", "replication", check_health=False)  # type: ignore[attr-defined]  # the same
            return _says_replica(self.read_response())  # type: ignore[attr-defined]  # the same
        except ResponseError:  # this user may not ask, or the command does not exist here
            self._ask_role_at = math.inf
            return False


class _AsyncFollowsRefusals:
    """`_FollowsRefusals`, for asyncio."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read as redis-py does; close the connection at the refusal of a wrong server."""
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]  # redis-py's
        except ResponseError as error:
            if (wrong := wrong_server(error)) is None:
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # the same
            raise wrong from error


class _AsyncFollowsRole:
    """`_FollowsRole`, for asyncio."""

    _ask_role_at: float | None = None

    async def check_health(self) -> None:
        """Check the health as redis-py does, and the role if it is time."""
        now = time.monotonic()
        if self._ask_role_at is None:
            self._ask_role_at = now + ROLE_SECONDS
        if now < self._ask_role_at:
            await super().check_health()  # type: ignore[misc]  # redis-py's
            return
        self._ask_role_at = now + ROLE_SECONDS
        if await self._is_replica():
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # the same
            await self.connect()  # type: ignore[attr-defined]  # the same

    async def _is_replica(self) -> bool:
        try:
            await self.send_command("INFO", "replication", check_health=False)  # type: ignore[attr-defined]  # the same
            return _says_replica(await self.read_response())  # type: ignore[attr-defined]  # the same
        except ResponseError:  # this user may not ask, or the command does not exist here
            self._ask_role_at = math.inf
            return False


def _says_replica(info: Any) -> bool:
    return b"role:slave" in info if isinstance(info, bytes) else "role:slave" in str(info)


def follow_refusals(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return the connection class with `follow_refusals`' ability alone: for a client that only writes and blocks."""
    return type(kind.__name__, (_FollowsRefusals, kind), {})


def follow_role(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return the connection class with both abilities."""
    return type(kind.__name__, (_FollowsRefusals, _FollowsRole, kind), {})


def follow_role_async(kind: type[AsyncConnection]) -> type[AsyncConnection]:
    """Return the connection class with both abilities, for asyncio."""
    return type(kind.__name__, (_AsyncFollowsRefusals, _AsyncFollowsRole, kind), {})
