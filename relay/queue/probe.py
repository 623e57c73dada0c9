"""A write that tests whether Redis accepts writes, and changes nothing.

`SET … XX` writes only a key that exists, and this one never does. Redis refuses it all the same where it refuses
writes: on a replica (`READONLY`), when its disk fails (`MISCONF`), when it lacks replicas (`NOREPLICAS`). The ACL
users of all producers may set the key.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from redis.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from relay.queue.keys import Keys


def write(client: Redis, keys: Keys) -> None:
    """Raise Redis's error if it refuses writes. A full Redis passes: producers report that by themselves."""
    with contextlib.suppress(OutOfMemoryError):
        client.set(keys.probe, "", xx=True)


async def write_async(client: AsyncRedis, keys: Keys) -> None:
    """`write`, for asyncio."""
    with contextlib.suppress(OutOfMemoryError):
        await client.set(keys.probe, "", xx=True)
