"""Connections that follow a failover behind one address.

After a failover by name or by a proxy, new connections reach the new primary, and open ones stay on the demoted node.
It refuses writes (`READONLY`) and answers reads with its old data. redis-py keeps such a connection, and every later
command gets the same reply. Two mixins of the connection classes prevent that:

- `follow_refusals` closes a connection whose server refuses a command because it is the wrong one, and raises
  `WrongServer`. This is a `ConnectionError`, and so is retried like one, on a new connection.
- `follow_role` reads the server's role at intervals, for connections that only read: a demoted node refuses no read.
  The connection to a replica is replaced before the next command. A client that reads from a replica on purpose pays
  a connect each time, and nothing else.
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

#: Interval at which a connection in use reads its server's role, in seconds.
ROLE_SECONDS = 5.0

#: First words of refusals.
_REFUSALS = ("UNBLOCKED ", "NOREPLICAS ", "MASTERDOWN ", "READONLY ", "CLUSTERDOWN ", "MOVED ")

#: The form of an error within a script before Redis 7.
_IN_SCRIPT = re.compile(r"Error running script .*[ -](READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|MOVED) ", re.DOTALL)


class WrongServer(redis.ConnectionError):
    """The connection's server no longer serves the data: another one does, or will."""


def wrong_server(error: ResponseError) -> WrongServer | None:
    """Return the error to raise for a reply that calls for a new connection; None for any other reply.

    `READONLY` and `MASTERDOWN` come from a demoted node, `UNBLOCKED` from one that is demoted during a blocking read,
    `NOREPLICAS` from a primary that lost its replicas, maybe to another primary, `CLUSTERDOWN` and `MOVED` from a
    node without the slot. redis-py closes the connection at `LOADING` itself. `MISCONF`, `OOM` and `BUSY` are errors
    of the right server.
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
        """Read a reply as redis-py does; close the connection if a wrong server refuses."""
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]  # redis-py's, beside which this is mixed in
        except ResponseError as error:
            if (wrong := wrong_server(error)) is None:
                raise
            self.disconnect()  # type: ignore[attr-defined]  # the same
            raise wrong from error


class _FollowsRole:
    """Mixed into a connection class of redis-py, which calls `check_health` before each command."""

    #: Next time to read the role, on the monotonic clock; None before the first command.
    _ask_role_at: float | None = None

    def check_health(self) -> None:
        """Check the health as redis-py does or, at its interval, the role, which shows the health too."""
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
        except ResponseError:  # the user may not, or the command does not exist
            self._ask_role_at = math.inf
            return False


class _AsyncFollowsRefusals:
    """`_FollowsRefusals`, for asyncio."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply as redis-py does; close the connection if a wrong server refuses."""
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
        """Check the health as redis-py does or, at its interval, the role."""
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
        except ResponseError:  # the user may not, or the command does not exist
            self._ask_role_at = math.inf
            return False


def _says_replica(info: Any) -> bool:
    return b"role:slave" in info if isinstance(info, bytes) else "role:slave" in str(info)


def follow_refusals(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return the connection class that closes at refusals: for a client that only writes and blocks."""
    return type(kind.__name__, (_FollowsRefusals, kind), {})


def follow_role(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return the connection class that closes at refusals and at a replica."""
    return type(kind.__name__, (_FollowsRefusals, _FollowsRole, kind), {})


def follow_role_async(kind: type[AsyncConnection]) -> type[AsyncConnection]:
    """Return the asyncio connection class that closes at refusals and at a replica."""
    return type(kind.__name__, (_AsyncFollowsRefusals, _AsyncFollowsRole, kind), {})
