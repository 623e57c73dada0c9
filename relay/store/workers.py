"""Which workers live: the heartbeats of their doormen, which expire."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis

    from relay.keys import Keys


def living(client: Redis, keys: Keys) -> list[str]:
    """Return the names of the workers that gave a sign of life lately. Reads the key space in steps."""
    prefix = keys.worker("")
    return sorted(key.decode().removeprefix(prefix) for key in client.scan_iter(match=f"{prefix}*", count=1000))
