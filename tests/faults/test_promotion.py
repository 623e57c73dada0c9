"""A replica is promoted behind one address, while open connections stay on the demoted node."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from failovers import Pair
from faults.ground import plain_client, report_of, scenario
from faults.test_redis import LONG_LEASE, all_work, go_on, impatient_producer, reporting, same_processes
from gateways import running

from relay.sandbox.response import Response

if TYPE_CHECKING:
    from faults.ground import Ground
    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis


def now_at(ground: Ground, server: EmbeddedRedis) -> None:
    """Point the ground at the new primary."""
    ground.client.close()
    ground.redis, ground.client = server, plain_client(server.url)


def ids_in(ground: Ground, client: Redis) -> set[str]:
    """Return the ids in a server's streams."""
    entries = [*client.xrange(ground.keys.inbox)]
    for key in client.scan_iter(f"{ground.keys.of_outbox('default', '').outbox}*"):
        entries += client.xrange(key)
    return {fields[b"id"].decode() for _, fields in entries}


@scenario(
    37,
    "a replica is promoted behind one address, old connections stay on the demoted node",
    bound="all goes on within 10 s; lost: exactly what was not replicated",
)
def test_a_failover_behind_one_address_needs_no_restart(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.02))
    first = ground.redis
    with (
        Pair(first) as pair,
        running(pair.url) as gateway,
        impatient_producer(pair.url) as producer,
    ):
        ground.environment["RELAY_REDIS_URL"] = pair.url
        workers = ground.start_workers(2, **LONG_LEASE)
        unchanged = same_processes(ground)

        def report(numbers: range) -> list[str]:
            """Report through both producers, the last event through the gateway."""
            *events, last = [ground.event(number, environments=5) for number in numbers]
            ids = ground.report_events(events, producer)
            answer = gateway.post(json.dumps({**json.loads(last.body()), "id": last.id}))
            assert answer.status_code == 202, answer.text
            ground.oracle.note([report_of(last)])
            return [*ids, answer.json()["id"]]

        report(range(100_000, 100_100))
        go_on(ground, 30)
        at_risk = set().union(*[ground.stop_and_hold(worker) for worker in workers])
        ground.wait(pair.is_replicated)
        pair.promote()
        lost = report(range(200_000, 200_030))
        assert set(lost) <= ids_in(ground, pair.to_a) - ids_in(ground, pair.to_b)
        pair.move()
        now_at(ground, pair.b)
        moved = time.monotonic()
        for worker in workers:
            ground.resume(worker)
        report(range(300_000, 300_010))
        with reporting(ground, pair.url):
            all_work(ground, moved)
        again = time.monotonic() - moved
        ground.wait(lambda: not ground.counters().waiting)
        missing = {each.event_id for each in ground.oracle.acknowledged} - set(ground.api.processed_ids())
        ground.bit(missing, "acknowledged events were only on the demoted node")
        assert missing == set(lost)
        ground.oracle.acknowledged = [e for e in ground.oracle.acknowledged if e.event_id not in missing]
        assert gateway.ask("GET", "/readyz").status_code == 200
        assert unchanged(), "a process was replaced"
        ground.check(killed=len(at_risk))
        ground.observed(
            f"{len(missing)} lost, as many as were not replicated; all workers deliver again after {again:.1f} s"
        )


@scenario(
    37,
    "the same under load, with the broker's and the pollers' reads blocked at the demoted node",
    bound="all goes on within 10 s; lost: only what was acknowledged between promotion and demotion",
)
def test_a_failover_under_load_loses_no_more_than_its_own_time(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.02))
    with Pair(ground.redis) as pair:
        ground.environment["RELAY_REDIS_URL"] = pair.url
        workers = ground.start_workers(2, **LONG_LEASE)
        unchanged = same_processes(ground)
        with reporting(ground, pair.url) as producer:
            go_on(ground, 50)
            promoted = time.monotonic()
            pair.promote()
            pair.move()
            demoted = time.monotonic()
            now_at(ground, pair.b)
            all_work(ground, demoted)
            go_on(ground, 100)
        ground.wait(lambda: not ground.counters().waiting)
        missing = {each.event_id for each in ground.oracle.acknowledged} - set(ground.api.processed_ids())
        late = {event for event, at in producer.acknowledged.items() if promoted - 1 < at < demoted + 1}
        assert missing <= late
        processed = {
            a.event_id for a in ground.api.attempts if a.processed and promoted - 1 < a.read_at < demoted + 1
        }
        gone = [each for each in ground.oracle.acknowledged if each.event_id in late]
        ground.oracle.acknowledged = [e for e in ground.oracle.acknowledged if e.event_id not in late]
        ground.oracle.uncertain += gone
        ground.bit(
            all("WrongServer" in worker.log() for worker in workers),
            "each worker had connections to the demoted node",
        )
        assert unchanged(), "a process was replaced"
        ground.check(unsynced=len(processed))
        ground.observed(
            f"{len(missing)} lost of {len(late)} acknowledged during the failover, {len(producer.refused)} refused"
        )
