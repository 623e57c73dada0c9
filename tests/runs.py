"""Runs in this process, against a real Redis and the sandbox, and the outcomes of their events."""

from __future__ import annotations

import json
from contextlib import contextmanager
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

from outboxes import LONGEST_PAUSE_SECONDS
from recorded_wakeups import RecordedWakeups
from rig import wait_for

from relay.queue.counters import Counters, read_counters
from relay.queue.keys import Keys
from relay.queue.schedule import read_waiting
from relay.queue.shard import Shard
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.delivery.run import run_delivery
from workers.wiring import make_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from relay.sandbox import Sandbox
    from workers.delivery.report import DeliveryReport
    from workers.delivery.runtime import DeliveryRuntime

TOKEN = "token-of-the-tests"
REPOSITORY = "docker.io/library/nginx"
KEYS = Keys()
PRODUCTION = KEYS.of_outbox(DEFAULT_DESTINATION, "production")
DESTINATION = KEYS.destination(DEFAULT_DESTINATION)


def make_runtime_for(
    redis_server: EmbeddedRedis, api: Sandbox | str, /, **sections: dict[str, Any]
) -> DeliveryRuntime:
    """Make a runtime with timers scaled down; `sections` are settings."""
    api_settings: dict[str, Any] = {"url": api if isinstance(api, str) else api.url, "token": TOKEN, "timeout": 3}
    settings = Settings.load(
        redis={"url": redis_server.url, **sections.get("redis", {})},
        api=api_settings | sections.get("api", {}),
        worker={"lease": 5, "budget": 1, "stay": 0, **sections.get("worker", {})},
        delivery={"backoff_initial": "1ms", "max_attempts": 3, **sections.get("delivery", {})},
        intake=sections.get("intake", {}),
    )
    return make_runtime(settings, RecordedWakeups())


@contextmanager
def running(
    redis_server: EmbeddedRedis, api: Sandbox | str, /, **sections: dict[str, Any]
) -> Iterator[DeliveryRuntime]:
    """`make_runtime_for`, closed at the end."""
    runtime = make_runtime_for(redis_server, api, **sections)
    try:
        yield runtime
    finally:
        runtime.close()


class Longest(Random):
    """Draws the longest pause each time."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def digest(version: str) -> str:
    return f"sha256:{sha256(version.encode()).hexdigest()}"


def image_of(name: str, version: str = "x") -> str:
    return f"ghcr.io/acme/{name}@{digest(version)}"


def report(client: Redis, version: str, environment: str = "production", **fields: str) -> str:
    """Report a version of the one instance that there is."""
    return report_image(client, f"{REPOSITORY}@{digest(version)}", environment, **fields)


def report_image(client: Redis, image: str, environment: str = "production", **fields: str) -> str:
    body = {"image": {"url": image}, "environment": {"name": environment}}
    return client.xadd("{relay:0}:inbox", {"event": json.dumps(body), **fields}).decode()


def report_many(client: Redis, number: int, environment: str = "production") -> list[str]:
    """Report so many instances; return their images, in order."""
    images = [image_of(f"app-{n}") for n in range(number)]
    for image in images:
        report_image(client, image, environment)
    return images


def delivered_images(api: Sandbox) -> list[str]:
    return [request.event["image"]["url"] for request in api.requests if request.processed]


def delivered_digests(api: Sandbox) -> list[str]:
    return [image.partition("@")[2] for image in delivered_images(api)]


def counters_of(client: Redis) -> Counters:
    return read_counters(client, KEYS)


def run_once(runtime: DeliveryRuntime, *environments: str) -> DeliveryReport:
    """Run delivery once; it must acquire an outbox."""
    done = run_delivery(runtime, environments or ["production"])
    assert done is not None
    return done


def dead_letters(client: Redis) -> list[dict[str, str]]:
    return [
        {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
        for _, fields in client.xrange(KEYS.dead)
    ]


def deliver_until(
    runtime: DeliveryRuntime,
    condition: Callable[[], bool],
    *environments: str,
    timeout_seconds: float = 30,
) -> None:
    """Run delivery whenever the poller would send a wake-up, until a condition holds."""
    names = environments or ("production",)

    def step() -> bool:
        if condition():
            return True
        due = read_waiting(
            Shard(client=runtime.client, keys=KEYS),
            DEFAULT_DESTINATION,
            count=len(names),
            longest_pause_seconds=LONGEST_PAUSE_SECONDS,
        ).due
        if due:
            run_delivery(runtime, due)
        return condition()

    wait_for(step, timeout_seconds, lambda: f"{counters_of(runtime.client)}, {runtime.client.hgetall(DESTINATION)}")


def let_hold_pass(client: Redis) -> None:
    """Let the destination's hold be over, as if its time had passed."""
    client.hset(DESTINATION, "until", 1)


def retries_are_due(client: Redis, environment: str = "production") -> None:
    """Let the pause of each retry be over, as if its time had passed."""
    keys = KEYS.of_outbox(DEFAULT_DESTINATION, environment)
    for instance in client.zrange(keys.due, 0, -1):
        client.zadd(keys.due, {instance: 0})
    if client.exists(keys.outbox):
        client.zadd(KEYS.schedule(DEFAULT_DESTINATION), {environment: 0})
