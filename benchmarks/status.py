"""How long does `relay status` take on a Redis with 10,000 environments and 1,000,000 waiting events?

`python -m benchmarks.status [ENVIRONMENTS] [EVENTS]` fills a private Redis with scripts, then measures the look at it
in this process, and the command as a process of its own, from its start to its end; and that nothing was changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import redis

from benchmarks.rig import ROOT, bare_environment
from relay.cli.status import OLDEST_OF
from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue.keys import Keys
from relay.queue.status import read_status
from relay.settings import DEFAULT_DESTINATION, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: Maximum acceptable time of one `relay status`.
REQUIRED_SECONDS = 1.0

TIMES = 5

#: KEYS counts, schedule, environments; for each environment its outbox, counts. ARGV entries, body, names.
_FILL = """
local entries = tonumber(ARGV[1])
for i = 3, #ARGV do
  local outbox, counts = KEYS[2 * i - 2], KEYS[2 * i - 1]
  for n = 1, entries do
    redis.call('XADD', outbox, '*', 'event', ARGV[2], 'id', 'job-' .. n, 'source', 'ci', 'time', '', 'digest',
               'sha256:0', 'instance', 'ghcr.io/acme/app-' .. n .. ' linux/amd64 ', 'arrived', '1750000000000')
  end
  redis.call('HSET', counts, 'outbox', entries, 'new', entries)
  redis.call('HINCRBY', KEYS[1], 'outbox', entries)
  redis.call('HINCRBY', KEYS[1], 'taken', entries)
  redis.call('ZADD', KEYS[2], 1, ARGV[i])
  redis.call('ZADD', KEYS[3], 0, ARGV[i])
end
"""

_PAGE = 50


def fill(client: redis.Redis, keys: Keys, environments: int, events: int) -> None:
    """Let so many events wait in so many environments' outboxes."""
    body = json.dumps({"image": {"url": f"ghcr.io/acme/app@sha256:{'0' * 64}"}, "environment": {"name": "env"}})
    names = [f"cluster-{number % 100}/namespace-{number}" for number in range(environments)]
    for start in range(0, environments, _PAGE):
        some = names[start : start + _PAGE]
        outboxes = [keys.of_outbox(DEFAULT_DESTINATION, name) for name in some]
        shared = [keys.counts, keys.schedule(DEFAULT_DESTINATION), keys.environments(DEFAULT_DESTINATION)]
        script_keys = [*shared, *(key for each in outboxes for key in (each.outbox, each.counts))]
        client.eval(_FILL, len(script_keys), *script_keys, events // environments, body, *some)


def best(client: redis.Redis, work: Callable[[], object]) -> float:
    """Return the seconds that it took at best; print all, and the processor seconds, which mind others less."""
    took = []
    before = _processor_seconds(client)
    for _ in range(TIMES):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    ours, its = (now - then for now, then in zip(_processor_seconds(client), before, strict=True))
    print("   ", ", ".join(f"{seconds:.3f} s" for seconds in took), end="; ")
    print(f"processor seconds each: {ours / TIMES:.3f} here, {its / TIMES:.3f} in Redis")
    return min(took)


def _processor_seconds(client: redis.Redis) -> tuple[float, float]:
    """Return those of this process with its children, and those of Redis."""
    of_redis = client.info("cpu")
    return sum(os.times()[:4]), of_redis["used_cpu_user"] + of_redis["used_cpu_sys"]


def _run(argv: list[str], environment: dict[str, str]) -> None:
    subprocess.run(argv, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def main(environments: int = 10_000, events: int = 1_000_000) -> None:
    """Fill, measure, print."""
    keys = Keys()
    with EmbeddedRedis(append_only=False) as server, redis.Redis.from_url(server.url) as client:
        started = time.perf_counter()
        fill(client, keys, environments, events)
        print(f"{environments:,} environments, {events:,} waiting, filled in {time.perf_counter() - started:.0f} s")
        queue = Settings.load(redis={"url": server.url}).queue
        before = client.info("persistence")["rdb_changes_since_last_save"]
        print("the look itself")
        best(client, lambda: read_status(client, keys, DEFAULT_DESTINATION, queue, oldest_of=OLDEST_OF))
        environment = {**bare_environment(), "RELAY_REDIS_URL": server.url}
        for options in ([], ["--json"], ["--all"]):
            print(" ".join(["relay status", *options]))
            argv = [sys.executable, "-m", "relay", "status", *options]
            took = best(client, lambda argv=argv: _run(argv, environment))
            if not options:
                print(f"  {'ok' if took <= REQUIRED_SECONDS else 'FAIL'}: {REQUIRED_SECONDS:g} s is asked for")
        changed = client.info("persistence")["rdb_changes_since_last_save"] - before
        print(f"changes made by it: {changed}, on {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
