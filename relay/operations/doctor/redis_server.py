"""Is this Redis fit to hold what is owed? Its version, what it keeps on disk, its memory, its clock.

`judge` is pure, over what INFO and CONFIG say. A managed Redis may refuse CONFIG: what only that tells is then noted
as unknown, not guessed.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from relay.connections.clients import about_certificate, without_secrets
from relay.connections.failover import WrongServer
from relay.operations.doctor.result import Result, fault, note, ok, warning
from relay.processes.embedded_redis import OLDEST_VERSION
from relay.queue import probe
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis import Redis

    from relay.settings import QueueSettings, Settings

#: Memory that an event takes while it waits, in bytes: 320 were measured in the inbox for the names of a usual
#: cluster; its outbox, its instance's state and what is set aside for the scripts are in the rest.
EVENT_BYTES = 1024

#: The part of `queue.memory_watermark` from which it is worth a word.
NEARLY_FULL = 0.8

#: Clocks that are this far apart are worth a word, in seconds; a slow network alone does not look like it.
SKEW_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a Redis tells of itself. What it did not tell is None, or empty for text."""

    version: str = ""
    role: str = ""
    appendonly: bool | None = None
    appendfsync: str = ""
    #: The save points of RDB snapshots, as redis.conf has them.
    save: str | None = None
    aof_write_ok: bool = True
    rdb_save_ok: bool = True
    aof_rewrite_ok: bool = True
    policy: str = ""
    used: int | None = None
    most: int | None = None
    evicted: int = 0


def server_of(info: Mapping[str, Any], config: Mapping[str, Any]) -> Server:
    """Read what INFO and CONFIG GET say, as redis-py parses them."""
    enabled, used, most = info.get("aof_enabled"), info.get("used_memory"), info.get("maxmemory")
    return Server(
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        role=str(info.get("role", "")),
        appendonly=None if enabled is None else bool(enabled),
        appendfsync=str(config.get("appendfsync", "")),
        save=config.get("save"),
        aof_write_ok=info.get("aof_last_write_status", "ok") == "ok",
        rdb_save_ok=info.get("rdb_last_bgsave_status", "ok") == "ok",
        aof_rewrite_ok=info.get("aof_last_bgrewrite_status", "ok") == "ok",
        policy=str(info.get("maxmemory_policy", "")),
        used=None if used is None else int(used) - int(info.get("mem_not_counted_for_evict", 0)),
        most=None if most is None else int(most),
        evicted=int(info.get("evicted_keys", 0)),
    )


def reach(client: Redis, settings: Settings) -> Result:
    """Ask for a sign of life."""
    where = without_secrets(settings.redis.url)
    try:
        client.ping()
    except RedisError as error:
        return unreachable(where, error)
    return ok("redis", f"Redis at {where} answers")


def unreachable(where: str, error: RedisError) -> Result:
    """Say why a Redis cannot be asked, and what that takes."""
    match error:
        case AuthenticationError() | NoPermissionError():
            what, do = "refuses the user or password", "mend RELAY_REDIS_URL (redis://USER:PASSWORD@HOST:PORT/0)"
        case BusyLoadingError():
            what, do = "still reads its data from disk after a start", "wait; see its log for how far it is"
        case RedisTimeoutError():
            what, do = (
                "did not answer in time",
                "see whether it runs, and what lies between: a firewall drops silently",
            )
        case RedisConnectionError() if do := about_certificate(error, "redis.ca_file (RELAY_REDIS__CA_FILE)"):
            what = "is not trusted, and nothing was sent to it"
        case RedisConnectionError():
            what = "is not reachable"
            do = "see whether it runs, and whether RELAY_REDIS_URL names it; producers are refused meanwhile"
        case _:
            what, do = "answers with an error", "see its log"
    return fault("redis", f"Redis at {where} {what}: {error}", do)


def examine(client: Redis, settings: Settings, clock: Callable[[], float] = time.time) -> Iterator[Result]:
    """Look and judge."""
    yield from judge(read(client), settings.queue)
    yield writes(client, Keys(settings.queue.namespace))
    yield skew(*_times(client, clock))


def read(client: Redis) -> Server:
    """Ask Redis."""
    return server_of(_allowed(client.info), _allowed(lambda: {**client.config_get("appendfsync", "save")}))


def _allowed(ask: Callable[[], Mapping[Any, Any]]) -> dict[str, Any]:
    """Return nothing where the user may not ask, or the command does not exist for him."""
    try:
        return {_text(name): _text(value) for name, value in ask().items()}
    except ResponseError:
        return {}


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _times(client: Redis, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Return our time before and after Redis said its own, in seconds."""
    before = clock()
    seconds, microseconds = client.time()
    return before, seconds + microseconds / 1_000_000, clock()


def judge(server: Server, queue: QueueSettings) -> Iterator[Result]:
    """Say what is right and wrong with a server."""
    yield _version(server)
    if server.role == "slave":
        yield fault(
            "redis.role",
            "this Redis is a replica: it takes no writes, so nothing can be reported or delivered by it",
            "let RELAY_REDIS_URL name the primary",
        )
    yield from _persistence(server)
    yield from _failed_writes(server)
    yield _eviction(server)
    yield _memory(server, queue)


def writes(client: Redis, keys: Keys) -> Result:
    """Try a write that changes nothing. A replica answers, and so does a Redis whose disk is full."""
    check = "redis.writes"
    try:
        probe.write(client, keys)
    except NoPermissionError:
        return note(check, "this user may not write, so it was not tried", "see the gateway's /readyz, which writes")
    except WrongServer as error:
        return fault(
            check,
            f"Redis takes no writes: {error}",
            "let RELAY_REDIS_URL lead to the primary; after a failover see whether a replica was promoted",
        )
    except ResponseError as error:
        return fault(check, f"Redis takes no writes: {error}", "see Redis's log: this names what it waits for")
    return ok(check, "Redis takes writes")


def _version(server: Server) -> Result:
    match = re.match(r"(\d+)\.(\d+)", server.version)
    if match is None:
        return note("redis.version", "Redis does not tell its version", "see that it is 6.2 or later")
    if (int(match[1]), int(match[2])) < OLDEST_VERSION:
        return fault(
            "redis.version",
            f"Redis is {server.version}, too old: commands are missing that the relay needs",
            "upgrade it to 6.2 or later",
        )
    return ok("redis.version", f"version {server.version}")


def _persistence(server: Server) -> Iterator[Result]:
    check = "redis.persistence"
    if server.appendonly is None:
        yield note(check, "Redis does not tell whether it keeps its data on disk", "see that appendonly is on")
    elif not server.appendonly and server.save:
        yield fault(
            check,
            f"Redis keeps snapshots only (save {server.save}): a crash or restart loses the events since the last",
            "redis-cli config set appendonly yes, then config rewrite",
        )
    elif not server.appendonly:
        yield fault(
            check,
            "Redis keeps nothing on disk (appendonly no): a crash or restart loses every event that waits",
            "redis-cli config set appendonly yes, then config rewrite",
        )
    elif server.appendfsync == "always":
        yield ok(check, "each write is on disk before it is acknowledged (appendfsync always)")
    elif server.appendfsync == "everysec":
        yield warning(
            check,
            "appendfsync everysec: the loss of power may lose the last 2 seconds of what was acknowledged (a crash "
            "of Redis alone loses nothing)",
            "redis-cli config set appendfsync always, if that is too much; batches keep it affordable",
        )
    elif server.appendfsync == "no":
        yield warning(
            check,
            "appendfsync no: the loss of power may lose half a minute of what was acknowledged, or more",
            "redis-cli config set appendfsync everysec, or always",
        )
    else:
        yield note(check, "the append-only file is on; Redis does not tell how often it is synced")


def _failed_writes(server: Server) -> Iterator[Result]:
    check = "redis.disk"
    if not server.aof_write_ok:
        yield fault(
            check,
            "Redis could not write its append-only file, and refuses all writes until it can",
            "free its disk, and see its log",
        )
    if not server.rdb_save_ok:
        yield warning(
            check,
            "Redis's last snapshot failed; with stop-writes-on-bgsave-error it may refuse all writes",
            "see its log: the disk is full or not writable, or there is no memory to fork (vm.overcommit_memory = 1)",
        )
    if not server.aof_rewrite_ok:
        yield warning(
            check,
            "Redis's last rewrite of its append-only file failed: the file grows until one works",
            "see its log: the disk is full or not writable, or there is no memory to fork (vm.overcommit_memory = 1)",
        )


def _eviction(server: Server) -> Result:
    check = "redis.eviction"
    if not server.policy:
        return note(check, "Redis does not tell its eviction policy", "see that maxmemory-policy is noeviction")
    if server.policy == "noeviction":
        return ok(check, "nothing is evicted (noeviction)")
    what = f"maxmemory-policy is {server.policy}: at maxmemory Redis throws away what waits, without a word"
    do = "redis-cli config set maxmemory-policy noeviction, then config rewrite"
    if server.evicted:
        return fault(check, f"{what}; {server.evicted:,} keys are gone already", do)
    return fault(check, what, do) if server.most else warning(check, f"{what}; there is no maxmemory yet", do)


def _memory(server: Server, queue: QueueSettings) -> Result:
    check = "redis.memory"
    if server.used is None or server.most is None:
        return note(check, "Redis does not tell its memory", "see that maxmemory suits queue.max_backlog")
    wanted = queue.max_backlog * EVENT_BYTES / queue.memory_watermark
    if not server.most:
        return warning(
            check,
            f"Redis has no maxmemory (it uses {_size(server.used)}): a backlog may take all of the machine's, and "
            "the kernel then kills it",
            f"redis-cli config set maxmemory {_megabytes(wanted)}mb holds queue.max_backlog ({queue.max_backlog:,})",
        )
    part = server.used / server.most
    state = f"{part:.0%} of {_size(server.most)} is used"
    if part >= queue.memory_watermark:
        return fault(
            check,
            f"Redis is full: {state}, past queue.memory_watermark ({queue.memory_watermark:.0%}), so producers are "
            "refused",
            "redis-cli config set maxmemory to more, or remove what else lies in that Redis; see what holds up "
            "deliveries",
        )
    if part >= NEARLY_FULL * queue.memory_watermark:
        return warning(
            check,
            f"Redis is nearly full: {state}; past {queue.memory_watermark:.0%} producers are refused",
            "redis-cli config set maxmemory to more, or see what holds up deliveries",
        )
    if server.most < wanted:
        room = int(server.most * queue.memory_watermark / EVENT_BYTES)
        return warning(
            check,
            f"maxmemory {_size(server.most)} is too small for queue.max_backlog: it holds about {room:,} waiting "
            f"events, not {queue.max_backlog:,}; producers are refused before",
            f"redis-cli config set maxmemory {_megabytes(wanted)}mb, or lower queue.max_backlog",
        )
    return ok(check, state)


def skew(before: float, theirs: float, after: float) -> Result:
    """Compare two clocks, in seconds; the answer took some of the time between `before` and `after`."""
    off = theirs - min(max(theirs, before), after)
    if abs(off) < SKEW_SECONDS:
        return ok("clock.redis", "this machine's clock and Redis's agree")
    return warning(
        "clock.redis",
        f"this machine's clock is {abs(off):,.0f} s {'behind' if off > 0 else 'ahead of'} Redis's",
        "see to NTP on both: events that carry a time are judged by it, and may count as stale",
    )


def _size(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"


def _megabytes(number: float) -> int:
    """Return it in Redis's `mb`, up to the next hundred."""
    return -(-int(number) // 2**20 // 100) * 100
