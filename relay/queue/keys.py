"""Every Redis key; no other module has the name of one.

All keys of a shard start with the same hash tag, so that a script may touch several of them on a cluster:
`{relay:0}:`, where `relay` is `queue.namespace` and 0 the shard. An *outbox* belongs to a destination and an
environment; destination names have no colon, so the first one ends them.

    key                            type    holds, and until when
    inbox                          stream  what producers added and intake has not taken in
    outbox:<destination>:<env>        stream  what is accepted and not yet delivered or dead
    dead                           stream  dead letters, until redriven or dropped
    state:accepted:<ep>:<env>      hash    instance → what was last accepted (relay/queue/state.py)
    state:delivered:<ep>:<env>     hash    instance → what was last delivered
    gone:<ep>:<env>                hash    instance that a cluster's watcher no longer sees → since when, Redis
                                           milliseconds; void if seen later (relay/queue/gone.py); expires
    deferred:<ep>:<env>              zset    (instance, entry) of outbox entries that wait for their instance's
                                           retry; all scores 0, so it is ordered by instance, then entry
    due:<ep>:<env>                 zset    instance that waits for a retry → when, in Redis milliseconds
    attempts:<ep>:<env>            hash    instance → attempts so far at the first of its deferred entries
    cursor:<ep>:<env>              string  XRANGE start: each outbox entry before it is deferred or in a
                                           run's hand; absent: the beginning
    schedule:<ep>                  zset    environment with a non-empty outbox → when to look, milliseconds
    environments:<ep>              zset    environment that got an event and is not forgotten since
                                           (forget_environment.lua) → events delivered
    destination:<ep>                  hash    until when all deliveries are held and why, who probes an open circuit,
                                           failures in a row, successes, window, rate limit: for all workers;
                                           how long it was held for which reason; until when it is throttled
    paused:<ep>                    hash    environment whose deliveries an operator holds → since when, milliseconds
    lease:intake                   string  token of the run that holds it; expires with it
    lease:deliver:<ep>:<env>       string  the same
    lease:redrive                  string  token of the redrive under way, expires with it
    run:intake                     hash    the in-flight marker of a run (acquire.lua): its token, and after a death
                                           the entry in hand; deleted when a run releases the inbox
    run:deliver:<ep>:<env>         hash    the same
    wakeup:…                         string  a wake-up of that run is under way; expires
    counts                         hash    the counters's totals, written by the scripts that move entries; beside
                                           them what only the metrics tell (relay/queue/metrics_snapshot.py)
    counts:<ep>:<env>              hash    the same for one environment, and `seen`: when an event was taken in or
                                           the outbox emptied last, milliseconds
    latency                        hash    histogram bucket → deliveries (relay/queue/latency.py)
    appended:<call>                string  mark of a call that added events, against its retry; expires
    appended:probe                 string  never exists: what tests whether Redis takes writes (relay/queue/probe.py)
    receipt:<event id>             string  the outcome of an event that asked for it (relay/queue/receipts.py);
                                           expires a while after that is known
    worker:<name>                  string  heartbeat of a worker's poller, expires
    workers                        zset    worker that gives signs of life → the last, milliseconds
    destination:<ep>:changes          hash    sample of instances → their last changes and by which sources, and
    `level`,
                                           how small a part of all it is (relay/queue/contested.py); expires
    destination:<ep>:contested        hash    instance that two sources change in turns → when, how often, by which;
                                           expires
    nodes:<cluster>                string  platforms of a cluster's nodes, which its watcher publishes for the webhook
                                           (relay/queue/nodes.py); expires unless it is refreshed
    clock_ahead                    string  last event whose `time` was ahead of Redis's clock
                                           (relay/queue/clock_ahead.py); expires
    internal                       hash    inbox entry that a redrive or a resync added → 1, until intake has it: of
                                           other entries the fields `redriven` and `resync` are ignored
    dataset                        hash    random id of this data set; one that is gone was flushed (beat.lua). Beside
                                           it `internal_after`: entries up to this id are from before `internal` was
    forgetting                     string  a walk over what is remembered was made lately; expires
    forget_position                string  where the next such walk goes on; expires
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutboxKeys:
    """The keys of one (destination, environment)."""

    destination: str
    environment: str
    outbox: str
    accepted: str
    delivered: str
    gone: str
    deferred: str
    due: str
    attempts: str
    cursor: str
    lease: str
    run: str
    wakeup: str
    counts: str


class Keys:
    """The keys of one shard of a namespace."""

    def __init__(self, namespace: str = "relay", shard: int = 0) -> None:
        self.prefix = f"{{{namespace}:{shard}}}:"
        self.inbox = self.prefix + "inbox"
        self.dead = self.prefix + "dead"
        self.intake_lease = self.prefix + "lease:intake"
        self.intake_run = self.prefix + "run:intake"
        self.intake_wakeup = self.prefix + "wakeup:intake"
        self.redrive_lease = self.prefix + "lease:redrive"
        self.counts = self.prefix + "counts"
        self.latency = self.prefix + "latency"
        #: Beside the marks of calls, where each producer's ACL user may write.
        self.probe = self.prefix + "appended:probe"
        self.clock_ahead = self.prefix + "clock_ahead"
        self.internal = self.prefix + "internal"
        self.dataset = self.prefix + "dataset"
        self.workers = self.prefix + "workers"
        self.forgetting = self.prefix + "forgetting"
        self.forget_position = self.prefix + "forget_position"
        #: What a receipt's key begins with; the scripts append the event's id.
        self.receipts = self.prefix + "receipt:"

    def schedule(self, destination: str) -> str:
        """Return the key of the schedule of a destination's outboxes."""
        return f"{self.prefix}schedule:{destination}"

    def environments(self, destination: str) -> str:
        """Return the key of the environments that got events, by how many were delivered."""
        return f"{self.prefix}environments:{destination}"

    def destination(self, destination: str) -> str:
        """Return the key of a destination's health."""
        return f"{self.prefix}destination:{destination}"

    def paused(self, destination: str) -> str:
        """Return the key of the environments whose deliveries an operator holds."""
        return f"{self.prefix}paused:{destination}"

    def appended(self, call: str) -> str:
        """Return the key of the mark that a producer's call leaves."""
        return f"{self.prefix}appended:{call}"

    def receipt(self, event_id: str) -> str:
        """Return the key of an event's receipt."""
        return f"{self.receipts}{event_id}"

    def changes(self, destination: str) -> str:
        """Return the key of the sample of instances whose changes are compared."""
        return f"{self.destination(destination)}:changes"

    def contested(self, destination: str) -> str:
        """Return the key of the instances that two sources change in turns."""
        return f"{self.destination(destination)}:contested"

    def nodes(self, cluster: str) -> str:
        """Return the key of the platforms of a cluster's nodes; `cluster` is "" for the one without a name."""
        return f"{self.prefix}nodes:{cluster}"

    def worker(self, name: str) -> str:
        """Return the key of a worker's heartbeat."""
        return f"{self.prefix}worker:{name}"

    def of_outbox(self, destination: str, environment: str) -> OutboxKeys:
        """Return the keys of one outbox."""
        tail = f"{destination}:{environment}"
        return OutboxKeys(
            destination=destination,
            environment=environment,
            outbox=f"{self.prefix}outbox:{tail}",
            accepted=f"{self.prefix}state:accepted:{tail}",
            delivered=f"{self.prefix}state:delivered:{tail}",
            gone=f"{self.prefix}gone:{tail}",
            deferred=f"{self.prefix}deferred:{tail}",
            due=f"{self.prefix}due:{tail}",
            attempts=f"{self.prefix}attempts:{tail}",
            cursor=f"{self.prefix}cursor:{tail}",
            lease=f"{self.prefix}lease:deliver:{tail}",
            run=f"{self.prefix}run:deliver:{tail}",
            wakeup=f"{self.prefix}wakeup:deliver:{tail}",
            counts=f"{self.prefix}counts:{tail}",
        )
