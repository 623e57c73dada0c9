"""Platforms of a cluster's nodes: published by its watcher, read by the webhook, which cannot query the cluster.

The value is a version (a hash of the rest) and JSON: `{"linux/arm64": ["node-1", …], …}`. Readers read the version
first, and the rest only if it has changed. The key expires after `LIFETIME_SECONDS` unless the watcher refreshes it;
while it exists, the webhook guesses no platform.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pydantic_core import from_json, to_json

from relay.errors import InvalidEvent
from relay.events.platform import parse_platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from relay.events.platform import Platform
    from relay.queue.keys import Keys

#: Expiry of a map that is not refreshed. Long, because a node seldom changes its platform: while the watcher is down,
#: an old map lacks new nodes only, and their pods are left to the watcher.
LIFETIME_SECONDS = 3600.0

#: Interval at which the watcher refreshes it.
REFRESH_SECONDS = 60.0

#: Maximum nodes of a map; Kubernetes supports clusters of 5,000. No map of a larger cluster is published.
MAX_NODES = 20_000

#: Maximum size of a value that is read: `MAX_NODES` names of 63 characters are 1.3 MB.
MAX_BYTES = 4 * 1024 * 1024

#: Hex digits of the version.
_VERSION_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMap:
    """Platforms by node name. Without a version there is no map: no watcher publishes one."""

    version: bytes = b""
    platforms: Mapping[str, Platform] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether there is a map."""
        return bool(self.version)


def publish(client: Redis, keys: Keys, cluster: str, platforms: Mapping[str, Platform]) -> None:
    """Write or refresh the map, atomically."""
    client.set(keys.nodes(cluster), encode(platforms), px=round(LIFETIME_SECONDS * 1000))


async def read_nodes(client: AsyncRedis, keys: Keys, cluster: str, known: NodeMap) -> NodeMap:
    """Return the current map: `known` itself if it has not changed. An unreadable map is an empty one."""
    key = keys.nodes(cluster)
    version = cast("bytes", await client.getrange(key, 0, _VERSION_DIGITS - 1))
    if version == known.version:
        return known
    value = cast("bytes", await client.getrange(key, 0, MAX_BYTES)) if version else b""
    return decode(value)


def encode(platforms: Mapping[str, Platform]) -> bytes:
    """Return the value of a map, without the nodes whose platform is incomplete."""
    by_platform: dict[str, list[str]] = {}
    for name, platform in sorted(platforms.items()):
        if platform.is_complete:
            by_platform.setdefault(str(platform), []).append(name)
    content = to_json(by_platform)
    return hashlib.sha256(content).hexdigest()[:_VERSION_DIGITS].encode() + content


def decode(value: bytes) -> NodeMap:
    """Parse a value; one of another shape is an empty map."""
    version, content = value[:_VERSION_DIGITS], value[_VERSION_DIGITS:]
    try:
        by_platform = from_json(content)
        platforms = {name: platform for text, names in by_platform.items() for platform in [parse_platform(text)]
                     for name in names if isinstance(name, str)}  # fmt: skip
    except (ValueError, AttributeError, TypeError, InvalidEvent):
        return NodeMap()
    return NodeMap(version=version, platforms=platforms)
