"""Checks of the queue's Redis: its version, persistence, memory, role and clock.

A managed Redis may refuse CONFIG. Values that only CONFIG reports are then unknown, and not guessed.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from relay.connections.clients import about_certificate
from relay.connections.failover import WrongServer
from relay.operations.finding import Finding, fault, note, ok, warning
from relay.processes.embedded_redis import OLDEST_VERSION
from relay.queue import probe
from relay.queue.keys import Keys
from relay.queue.redis_server import RedisServer, read_server
from relay.redaction import redact_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from relay.settings import QueueSettings, Settings

#: Memory of a waiting event in bytes: 320 were measured in the inbox with the names of a usual cluster. The rest is
#: for its outbox, its instance's state and the memory reserved for scripts.
EVENT_BYTES = 1024

#: Part of `queue.memory_watermark` from which used memory is reported.
NEARLY_FULL = 0.8

#: Difference between two clocks from which it is reported, in seconds; more than a slow network alone causes.
SKEW_SECONDS = 2.0


def check_connection(client: Redis, settings: Settings) -> Finding:
    """Check that Redis answers a PING."""
    where = redact_url(settings.redis.url)
    try:
        client.ping()
    except RedisError as error:
        return unreachable(where, error)
    return ok("redis", f"Redis at {where} answers")


def unreachable(where: str, error: RedisError) -> Finding:
    """Return why a Redis cannot be used, and what to do about it."""
    match error:
        case AuthenticationError() | NoPermissionError():
            what, do = "refuses the user or password", "fix RELAY_REDIS_URL (redis://USER:PASSWORD@HOST:PORT/0)"
        case BusyLoadingError():
            what, do = "is still loading its data from disk after a start", "wait; its log shows the progress"
        case RedisTimeoutError():
            what, do = (
                "did not answer in time",
                "check that it runs, and the network between: a firewall may drop packets silently",
            )
        case RedisConnectionError() if do := about_certificate(error, "redis.ca_file (RELAY_REDIS__CA_FILE)"):
            what = "is not trusted, and nothing was sent to it"
        case RedisConnectionError():
            what = "is not reachable"
            do = "check that it runs and RELAY_REDIS_URL names it; producers are refused meanwhile"
        case _:
            what, do = "answers with an error", "check its log"
    return fault("redis", f"Redis at {where} {what}: {error}", do)


def check_redis(client: Redis, settings: Settings, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Check the server's INFO and CONFIG, that it accepts writes, and its clock."""
    yield from decide_redis(read_server(client), settings.queue)
    yield check_writes(client, Keys(settings.queue.namespace))
    before = clock()
    seconds, microseconds = client.time()
    yield decide_skew(before, seconds + microseconds / 1_000_000, clock())


def decide_redis(server: RedisServer, queue: QueueSettings) -> Iterator[Finding]:
    """Yield what is right and wrong with a server, from what it reports about itself."""
    yield _version(server)
    if server.role == "slave":
        yield fault(
            "redis.role",
            "this Redis is a replica: it accepts no writes, so nothing can be reported or delivered through it",
            "let RELAY_REDIS_URL name the primary",
        )
    yield from _persistence(server)
    yield from _failed_writes(server)
    yield _eviction(server)
    yield _memory(server, queue)


def check_writes(client: Redis, keys: Keys) -> Finding:
    """Try a write that changes nothing. A replica answers reads, and so does a Redis whose disk is full."""
    check = "redis.writes"
    try:
        probe.write(client, keys)
    except NoPermissionError:
        return note(check, "this user may not write, so writes were not checked", "check the gateway's /readyz")
    except WrongServer as error:
        return fault(
            check,
            f"Redis accepts no writes: {error}",
            "point RELAY_REDIS_URL at the primary; after a failover check that a replica was promoted",
        )
    except ResponseError as error:
        return fault(check, f"Redis accepts no writes: {error}", "check Redis's log for the cause in this error")
    return ok(check, "Redis accepts writes")


def _version(server: RedisServer) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", server.version)
    if match is None:
        return note("redis.version", "Redis does not report its version", "check that it is 6.2 or later")
    if (int(match[1]), int(match[2])) < OLDEST_VERSION:
        return fault(
            "redis.version",
            f"Redis is {server.version}, too old: it lacks commands that the relay needs",
            "upgrade it to 6.2 or later",
        )
    return ok("redis.version", f"version {server.version}")


def _persistence(server: RedisServer) -> Iterator[Finding]:
    check = "redis.persistence"
    if server.appendonly is None:
        yield note(check, "Redis does not report whether it keeps its data on disk", "check that appendonly is on")
    elif not server.appendonly and server.save:
        yield fault(
            check,
            f"Redis keeps snapshots only (save {server.save}): a crash or restart loses the events since the last",
            "redis-cli config set appendonly yes, then config rewrite",
        )
    elif not server.appendonly:
        yield fault(
            check,
            "Redis keeps nothing on disk (appendonly no): a crash or restart loses every waiting event",
            "redis-cli config set appendonly yes, then config rewrite",
        )
    elif server.appendfsync == "always":
        yield ok(check, "each write is on disk before it is acknowledged (appendfsync always)")
    elif server.appendfsync == "everysec":
        yield warning(
            check,
            "appendfsync everysec: a power failure may lose the events acknowledged in the last 2 seconds (a crash "
            "of Redis alone loses nothing)",
            "redis-cli config set appendfsync always, if that is too much; batches limit its cost",
        )
    elif server.appendfsync == "no":
        yield warning(
            check,
            "appendfsync no: a power failure may lose the events acknowledged in the last half a minute, or more",
            "redis-cli config set appendfsync everysec, or always",
        )
    else:
        yield note(check, "the append-only file is on; Redis does not report how often it is synced")


def _failed_writes(server: RedisServer) -> Iterator[Finding]:
    check = "redis.disk"
    if not server.is_aof_written:
        yield fault(
            check,
            "Redis could not write its append-only file, and refuses all writes until it can",
            "free space on its disk, and check its log",
        )
    if not server.is_rdb_saved:
        yield warning(
            check,
            "Redis's last snapshot failed; with stop-writes-on-bgsave-error it may refuse all writes",
            "check its log: the disk is full or read-only, or there is no memory to fork (vm.overcommit_memory = 1)",
        )
    if not server.is_aof_rewritten:
        yield warning(
            check,
            "Redis's last rewrite of its append-only file failed: the file grows until a rewrite succeeds",
            "check its log: the disk is full or read-only, or there is no memory to fork (vm.overcommit_memory = 1)",
        )


def _eviction(server: RedisServer) -> Finding:
    check = "redis.eviction"
    if not server.maxmemory_policy:
        return note(check, "Redis does not report its eviction policy", "check that maxmemory-policy is noeviction")
    if server.maxmemory_policy == "noeviction":
        return ok(check, "nothing is evicted (noeviction)")
    what = f"maxmemory-policy is {server.maxmemory_policy}: at maxmemory Redis silently deletes waiting events"
    do = "redis-cli config set maxmemory-policy noeviction, then config rewrite"
    if server.evicted_keys:
        return fault(check, f"{what}; {server.evicted_keys:,} keys were evicted already", do)
    return fault(check, what, do) if server.maxmemory else warning(check, f"{what}; there is no maxmemory yet", do)


def _memory(server: RedisServer, queue: QueueSettings) -> Finding:
    check = "redis.memory"
    if server.memory_used is None or server.maxmemory is None:
        return note(check, "Redis does not report its memory", "check that maxmemory fits queue.max_backlog")
    wanted = queue.max_backlog * EVENT_BYTES / queue.memory_watermark
    if not server.maxmemory:
        return warning(
            check,
            f"Redis has no maxmemory (it uses {_size(server.memory_used)}): a backlog may use all memory of the "
            "machine, and the kernel then kills Redis",
            f"redis-cli config set maxmemory {_megabytes(wanted)}mb holds queue.max_backlog ({queue.max_backlog:,})",
        )
    part = server.memory_used / server.maxmemory
    state = f"{part:.0%} of {_size(server.maxmemory)} is used"
    if part >= queue.memory_watermark:
        return fault(
            check,
            f"Redis is full: {state}, past queue.memory_watermark ({queue.memory_watermark:.0%}), so producers are "
            "refused",
            "raise it with redis-cli config set maxmemory, or remove other data from that Redis; check what delays "
            "deliveries",
        )
    if part >= NEARLY_FULL * queue.memory_watermark:
        return warning(
            check,
            f"Redis is nearly full: {state}; past {queue.memory_watermark:.0%} producers are refused",
            "raise it with redis-cli config set maxmemory, or check what delays deliveries",
        )
    if server.maxmemory < wanted:
        room = int(server.maxmemory * queue.memory_watermark / EVENT_BYTES)
        return warning(
            check,
            f"maxmemory {_size(server.maxmemory)} is too small for queue.max_backlog: it holds about {room:,} "
            f"waiting events, not {queue.max_backlog:,}; producers are refused before",
            f"redis-cli config set maxmemory {_megabytes(wanted)}mb, or lower queue.max_backlog",
        )
    return ok(check, state)


def decide_skew(before: float, theirs: float, after: float) -> Finding:
    """Compare two clocks, in seconds; Redis read its own between `before` and `after`."""
    off = theirs - min(max(theirs, before), after)
    if abs(off) < SKEW_SECONDS:
        return ok("clock.redis", "this machine's clock and Redis's agree")
    return warning(
        "clock.redis",
        f"this machine's clock is {abs(off):,.0f} s {'behind' if off > 0 else 'ahead of'} Redis's",
        "check NTP on both: events with a time are compared by it, and may count as stale",
    )


def _size(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"


def _megabytes(number: float) -> int:
    """Return bytes in Redis's `mb`, rounded up to the next hundred."""
    return -(-int(number) // 2**20 // 100) * 100
