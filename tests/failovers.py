"""A primary and its replica behind one address, and the failover between them by that address."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from faults.proxy import Proxy
from redis import Redis
from rig import wait_for

from relay.processes.embedded_redis import EmbeddedRedis

if TYPE_CHECKING:
    from relay.settings import RedisSettings

#: Options of a replica that may be promoted at once: its first synchronisation does not wait for others.
_AT_ONCE = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}


class Pair:
    """Two servers and the clients' address; `a` is the first primary."""

    def __init__(self, a: EmbeddedRedis | None = None, *, append_only: bool = False) -> None:
        """Take a running server as `a`; it keeps running."""
        self._own = a is None
        self.a = a or EmbeddedRedis(append_only=append_only, options=_AT_ONCE)
        self.b = EmbeddedRedis(append_only=append_only, options=_AT_ONCE)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            if self._own:
                exits.enter_context(self.a)
            exits.enter_context(self.b)
            self.address = exits.enter_context(Proxy(self.a.port))
            self.to_a = exits.enter_context(Redis(port=self.a.port, socket_timeout=10))
            self.to_b = exits.enter_context(Redis(port=self.b.port, socket_timeout=10))
            self.replicate(self.to_b, self.a)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.address.port}/0"

    def settings(self, **more: Any) -> RedisSettings:
        from relay.settings import RedisSettings  # noqa: PLC0415 - types only

        return RedisSettings(url=self.url, **more)

    def replicate(self, replica: Redis, primary: EmbeddedRedis) -> None:
        """Make a server a replica, and wait until it has all data."""
        replica.replicaof("127.0.0.1", str(primary.port))  # type: ignore[no-untyped-call]
        wait_for(lambda: _info(replica)["master_link_status"] == "up", 20, lambda: str(_info(replica)))

    def fail_over(self, *, cut_off: bool = False) -> None:
        """Promote the replica, move the address there, and demote the primary; open connections stay.

        With `cut_off` the demoted server does not reach the new primary, and keeps what it had.
        """
        wait_for(self.is_replicated, 20)
        self.promote()
        self.move(cut_off=cut_off)

    def is_replicated(self) -> bool:
        """Return whether B has everything that A acknowledged."""
        return bool(_info(self.to_a)["master_repl_offset"] == _info(self.to_b)["slave_repl_offset"])

    def promote(self) -> None:
        """Make B a primary; clients still write to A."""
        self.to_b.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]

    def move(self, *, cut_off: bool = False) -> None:
        """Connect new connections to B, and make A its replica."""
        self.address.retarget(self.b.port)
        if cut_off:
            self.to_a.replicaof("127.0.0.1", "1")  # type: ignore[no-untyped-call]
        else:
            self.replicate(self.to_a, self.b)

    def fail_back(self) -> None:
        """Make A the primary again, with all data, for the next test."""
        self.to_a.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
        self.address.retarget(self.a.port)
        self.replicate(self.to_b, self.a)


def _info(client: Redis) -> dict[str, Any]:
    info: Any = client.info("replication")
    return dict(info)
