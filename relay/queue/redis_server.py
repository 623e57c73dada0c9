"""What a Redis server reports about itself: version, role, persistence, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """A server's INFO and CONFIG. A value it does not report is None, or empty text.

    A managed Redis may refuse CONFIG, and a user's ACL either of them.
    """

    version: str = ""
    role: str = ""
    appendonly: bool | None = None
    appendfsync: str = ""
    #: Save points of RDB snapshots, as in redis.conf.
    save: str | None = None
    is_aof_written: bool = True
    is_rdb_saved: bool = True
    is_aof_rewritten: bool = True
    maxmemory_policy: str = ""
    #: Bytes that count against `maxmemory`.
    memory_used: int | None = None
    #: Bytes; 0 for no limit.
    maxmemory: int | None = None
    evicted_keys: int = 0

    @property
    def memory_used_ratio(self) -> float | None:
        """Part of `maxmemory` that is used, None without a limit."""
        return self.memory_used / self.maxmemory if self.memory_used is not None and self.maxmemory else None


#: A server that reports nothing.
UNKNOWN = RedisServer()


def read_server(client: Redis, *, config: bool = True) -> RedisServer:
    """Read INFO, and CONFIG if it is wanted, in one round trip. Raise `RedisError` if Redis is not reachable.

    An operator's user may not read CONFIG (config/redis/users.acl), so only those that show it ask for it.
    """
    pipeline = client.pipeline(transaction=False)
    pipeline.info()
    for name in ("appendfsync", "save") if config else ():
        pipeline.config_get(name)
    info, *configs = (
        {} if isinstance(reply, ResponseError) else reply for reply in pipeline.execute(raise_on_error=False)
    )
    return parse_server(info, {_text(name): _text(value) for reply in configs for name, value in reply.items()})


def parse_server(info: Mapping[str, Any], config: Mapping[str, Any]) -> RedisServer:
    """Parse INFO and CONFIG GET as redis-py returns them."""
    appendonly, used, maxmemory = info.get("aof_enabled"), info.get("used_memory"), info.get("maxmemory")
    return RedisServer(
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        role=str(info.get("role", "")),
        appendonly=None if appendonly is None else bool(appendonly),
        appendfsync=str(config.get("appendfsync", "")),
        save=config.get("save"),
        is_aof_written=info.get("aof_last_write_status", "ok") == "ok",
        is_rdb_saved=info.get("rdb_last_bgsave_status", "ok") == "ok",
        is_aof_rewritten=info.get("aof_last_bgrewrite_status", "ok") == "ok",
        maxmemory_policy=str(info.get("maxmemory_policy", "")),
        memory_used=None if used is None else int(used) - int(info.get("mem_not_counted_for_evict", 0)),
        maxmemory=None if maxmemory is None else int(maxmemory),
        evicted_keys=int(info.get("evicted_keys", 0)),
    )


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
