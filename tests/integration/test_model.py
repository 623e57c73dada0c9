"""The real runs and scripts on a real Redis, in any order and interrupted anywhere, against a model.

Each run is a thread that stops before each command to Redis, and whenever it waits for the API; hypothesis decides
which thread continues, what the API answers, and which fault occurs: the process is killed, the command or its reply
is lost, the lease expires. Only one thread runs at any time, and runs have a clock of their own, so that a test run
can be repeated.

`RELAY_MODEL_EXAMPLES=5000` makes it a long test run with other examples each time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from model import AnswerKind, Event, Model, Post, Run, entry_order
from outboxes import LONGEST_PAUSE_SECONDS
from recorded_wakeups import RecordedWakeups
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from relay.destinations.answer import Answer, Failure
from relay.errors import LeaseLost
from relay.operations.settings_report import defaults_of
from relay.queue import dead_letters, inbox, pausing, schedule, scripts
from relay.queue import redrive as redriving
from relay.queue.health import HealthState
from relay.queue.keys import Keys
from relay.queue.shard import Shard
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.delivery import attempts, crash_search, outboxes, recovery
from workers.delivery import health as gate
from workers.delivery import run as deliver
from workers.delivery.run import run_delivery
from workers.delivery.runtime import DeliveryRuntime
from workers.intake import run as intake
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from workers.delivery.transport import Request

EXAMPLES = int(os.environ.get("RELAY_MODEL_EXAMPLES", "0"))

KEYS = Keys()
REPOSITORY = "docker.io/library/nginx"
ENVIRONMENTS = ("blue", "green")
#: The streams of runs: the inbox, and each outbox.
RUNS = ("", *ENVIRONMENTS)
MAX_ATTEMPTS = 2
LEASE_SECONDS = 60.0
HOLD_SECONDS = 600.0

#: Deadline of one step of a thread.
STEP_SECONDS = 30
#: Maximum steps of a run, and rounds of the sweep at the end of a test run.
MOST_STEPS = 3000
MOST_ROUNDS = 60

#: Answers of the API, and their meanings.
ANSWERS = {
    "201": (AnswerKind.DELIVERED, Answer(201)),
    "500": (AnswerKind.FAILED, Answer(500)),
    "503": (AnswerKind.FAILED, Answer(503)),
    "404": (AnswerKind.FAILED, Answer(404)),
    "429": (AnswerKind.LATER, Answer(429, retry_after_seconds=HOLD_SECONDS)),
    "503 later": (AnswerKind.LATER, Answer(503, retry_after_seconds=HOLD_SECONDS)),
    "401": (AnswerKind.UNAUTHORIZED, Answer(401)),
    "403": (AnswerKind.UNAUTHORIZED, Answer(403)),
    "400": (AnswerKind.REFUSED, Answer(400)),
    "302": (AnswerKind.REFUSED, Answer(302)),
    "refused connection": (AnswerKind.LATER, Answer(failure=Failure.CONNECT)),
    "time-out": (AnswerKind.FAILED, Answer(failure=Failure.TIMEOUT)),
    "time-out, processed": (AnswerKind.FAILED, Answer(failure=Failure.TIMEOUT)),
    "reset, processed": (AnswerKind.FAILED, Answer(failure=Failure.RESET)),
}


#: Where a fault may occur in each kind of run: just before these scripts, or while it waits for the API.
POINTS = {
    "intake": ("commit_intake", "release_inbox"),
    "delivery": ("commit_delivery", "claim", "wait", "release_outbox"),
    "redrive": ("redrive",),
}
SCRIPTS = list(scripts.DECLARED.values())
NAMES = {key: script.name for script in SCRIPTS for key in (script.sha, script.text)}

#: Faults of a process's next command.
FAULTS = ("request lost", "reply lost", "tried twice", "killed after", "kill")


#: The run's lease expires and another takes over; or others finish in the middle of it.
TAKEOVERS = ("taken over", "overtaken")


def next_millisecond() -> None:
    """Wait for the next millisecond, so that no result depends on whether two events share one."""
    now = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == now:
        time.sleep(0.0002)


class Killed(BaseException):
    """SIGKILL of a thread: nothing catches it."""


class Clock:
    """Replaces `time` and `relay.clock` in the runs: each thread has its own, which advances as it is read."""

    def __init__(self) -> None:
        self._of = threading.local()

    def monotonic(self) -> float:
        return self.advance(0.001)

    def uptime(self) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def begin(self, process: Process) -> None:
        self._of.process = process

    def advance(self, seconds: float) -> float:
        process: Process = self._of.process
        process.now += seconds
        return process.now


CLOCK = Clock()


class Process:
    """A run in a thread that is stepped from one command to the next."""

    def __init__(self, world: World, name: str, run: Callable[[Process], object], **options: bool) -> None:
        self.run = Run(name, **options)
        self.world = world
        self.now = 1_000_000.0
        self.error: BaseException | None = None
        self.is_over = False
        #: Whether it only waits for the API.
        self.is_waiting = False
        #: The script that it executes next, if any.
        self.next = ""
        self.client = SteeredRedis(self)
        self.transport = SteeredTransport(self)
        self._directive = ""
        self._go_on, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._run = run
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self._wait()

    def _main(self) -> None:
        CLOCK.begin(self)
        try:
            self._run(self)
        except (Killed, RedisError):
            self.run.has_ended = True
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            self.error = error
        self.is_over = True
        self._stopped.release()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=STEP_SECONDS), f"{self.run.name} is stuck"
        if self.error is not None:
            self.world.model.broken = True
            raise self.error

    def step(self, directive: str = "go") -> None:
        """Execute its next command, or make that fail."""
        if not self.is_over:
            self._directive = directive
            self._go_on.release()
            self._wait()

    def stop_here(self, *, waiting: bool = False) -> str:
        """In the thread: wait for the next step."""
        self.is_waiting = waiting
        if waiting:
            self.next = ""
        self._stopped.release()
        self._go_on.acquire()
        if self._directive == "kill":
            raise Killed
        return self._directive

    def round_trip(self, commands: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], *, raises: bool) -> list[Any]:
        """In the thread: send commands; other threads may send theirs in between."""
        while True:
            replies: list[Any] = []
            for args, options in commands:
                self.next = NAMES.get(args[1], "") if str(args[0]).startswith("EVAL") else ""
                directive = self.stop_here()
                if directive == "request lost":
                    raise ConnectionLost(directive)
                replies.append(self._execute(args, options, raises=raises))
                if directive == "killed after":
                    raise Killed
                if directive == "reply lost":
                    raise ConnectionLost(directive)
                if directive == "tried twice":
                    break
            else:
                return replies

    def _execute(self, args: tuple[Any, ...], options: dict[str, Any], *, raises: bool) -> Any:
        try:
            return self.world.client.execute_command(*args, **options)
        except RedisError as error:
            if raises:
                raise
            return error
        finally:
            if str(args[0]).startswith(("EVAL", "SET")):
                self.world.model.look(self.run)
                next_millisecond()


class SteeredRedis(Redis):
    """The Redis client of a process."""

    def __init__(self, process: Process) -> None:
        super().__init__(connection_pool=process.world.client.connection_pool)
        self._process = process

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "XREAD":  # no other thread adds entries while it waits
            args = tuple(arg for place, arg in enumerate(args) if b"BLOCK" not in args[max(0, place - 1) : place + 1])
        return self._process.round_trip([(args, options)], raises=True)[0]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:  # noqa: ARG002, FBT001, FBT002 - redis-py's
        assert not transaction
        return SteeredPipeline(self._process, self)


class SteeredPipeline(Pipeline):
    """A process's pipelines, which Redis does not execute atomically either."""

    def __init__(self, process: Process, client: SteeredRedis) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction=False, shard_hint=None)
        self._process = process

    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's
        stack, self.command_stack = self.command_stack, []
        return self._process.round_trip(stack, raises=raise_on_error)


class InFlight(NamedTuple):
    tag: Any
    post: Post


class SteeredTransport:
    """The API of a process: the test sets its answers."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.requests: list[InFlight] = []
        self._answers: list[tuple[Any, Answer]] = []

    @property
    def in_flight(self) -> int:
        return len(self.requests) + len(self._answers)

    def send(self, request: Request[Any]) -> None:
        event = json.loads(request.body)
        entry = request.tag[1].entry_id
        digest = event["image"]["url"].partition("@")[2]
        environment, key = event["environment"]["name"], request.idempotency_key
        post = self._process.world.model.sent(self._process.run, environment, entry, digest, key)
        self.requests.append(InFlight(request.tag, post))

    def answer(self, number: int, what: str) -> None:
        """Answer one of the requests in flight."""
        tag, post = self.requests.pop(number % len(self.requests))
        kind, answer = ANSWERS[what]
        if post.processed is None:
            self._process.world.model.processed(post, was=kind is AnswerKind.DELIVERED or what.endswith("processed"))
        elif kind is not AnswerKind.DELIVERED or not post.processed:
            kind, answer = ANSWERS["time-out"]  # all that the client can see of it by now
        self._process.world.model.answered(post, kind, status=answer.status)
        self._answers.append((tag, answer))

    def end(self, *, processed: bool) -> None:
        """End the requests in flight at the API's side."""
        for _, post in self.requests:
            if post.processed is None:
                self._process.world.model.processed(post, was=processed)

    def flush(self) -> None:
        pass

    def wait(self, timeout_seconds: float) -> list[tuple[Any, Answer]]:
        if not self._answers:
            CLOCK.advance(timeout_seconds)
            self._process.stop_here(waiting=True)
        answers, self._answers = self._answers, []
        return answers

    def abandon(self) -> None:
        self.requests.clear()
        self._answers.clear()

    def reload_token(self) -> bool:
        return False

    def close(self) -> None:
        self.abandon()


class World:
    """One Redis and its processes."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.client.flushall()
        for script in SCRIPTS:
            self.client.script_load(script.text)  # an unknown one takes one more step
        self.model = Model(client, KEYS, ENVIRONMENTS, MAX_ATTEMPTS)
        self.processes: list[Process] = []
        self.latest = False
        self._started = 0

    def start(self, kind: str, run: Callable[[Process], object], **options: bool) -> Process:
        self._started += 1
        process = Process(self, f"{kind} {self._started}", run, **options)
        self.processes.append(process)
        return process

    def runtime(self, process: Process) -> DeliveryRuntime:
        settings = Settings.load(
            api={"url": "http://127.0.0.1:1", "token": "t", "timeout": 10},
            worker={"lease": LEASE_SECONDS, "budget": 20, "stay": 0},
            intake={"batch_size": 3},
            delivery={
                "batch_size": 3,
                "max_in_flight": 2,
                "max_attempts": MAX_ATTEMPTS,
                "backoff_initial": "1h",
                "backoff_max": "2h",
                "history": "latest" if process.run.latest else "every",
                "max_age": "1ms" if process.run.expires else "30d",
                "reassert_after": "3650d",
            },
        )
        return DeliveryRuntime(
            settings=settings,
            shard=Shard(client=process.client, keys=KEYS),
            defaults=defaults_of(settings),
            wakeups=RecordedWakeups(),
            transport=process.transport,
            random=Random(len(process.run.name)),
        )

    def take_in(self) -> Process:
        return self.start("intake", lambda process: run_intake(self.runtime(process)))

    def deliver(self, environments: Sequence[str], *, expires: bool = False) -> Process:
        return self.start(
            "delivery",
            lambda process: run_delivery(self.runtime(process), environments),
            latest=self.latest,
            expires=expires,
        )

    def redrive(self, *, force: bool, max_backlog: int = 10_000) -> Process:
        def run(process: Process) -> None:
            redrive = redriving.Redrive(process.client, KEYS, max_backlog=max_backlog, force=force)
            try:
                if redrive.acquire():
                    list(redriving.redrive_all(redrive, dead_letters.EVERYTHING))
                    redrive.release()
            except LeaseLost:
                pass

        return self.start("redrive", run)

    def finish(self, process: Process, answer: str = "201") -> None:
        """Step a process to its end."""
        for _ in range(MOST_STEPS):
            if process.is_over:
                break
            while process.transport.requests:
                process.transport.answer(0, answer)
            process.step()
        else:
            self.model.fail(f"{process.run.name} does not end")
        self.remove(process)

    def remove(self, process: Process, *, processed: bool = False) -> None:
        """Remove a process that has ended."""
        if process.is_over and process in self.processes:
            process.transport.end(processed=processed)
            self.processes.remove(process)
            if process.run.has_ended:
                self.model.deaths.update(RUNS)

    def kill(self, process: Process, *, processed: bool) -> None:
        process.transport.end(processed=processed)
        process.step("kill")
        self.remove(process)

    def expire(self, process: Process, *, processed: bool) -> None:
        """Suspend a process for longer than its lease."""
        process.transport.end(processed=processed)
        process.now += LEASE_SECONDS + 1
        self._expire_leases(lambda run: run is process.run)
        self.model.deaths.update(RUNS)

    def pass_time(self) -> None:
        """End all pauses of instances and of the destination, leases of ended runs, and lost wake-ups."""
        for name in ENVIRONMENTS:
            of = KEYS.of_outbox(DEFAULT_DESTINATION, name)
            for instance in self.client.zrange(of.due, 0, -1):
                self.client.zadd(of.due, {instance: 1})
            self.client.delete(of.wakeup)
        for name, score in self.client.zrange(KEYS.schedule(DEFAULT_DESTINATION), 0, -1, withscores=True):
            if score != float("inf"):
                self.client.zadd(KEYS.schedule(DEFAULT_DESTINATION), {name: 1})
        health = KEYS.destination(DEFAULT_DESTINATION)
        for name in ("until", "probe_until"):
            if self.client.hexists(health, name):
                self.client.hset(health, name, "1")
        self.client.delete(KEYS.intake_wakeup)
        self._expire_leases(lambda run: run.has_ended)

    def _expire_leases(self, of: Callable[[Run], bool]) -> None:
        """Expire the leases of some runs."""
        held = {"": KEYS.intake_lease, "redrive": KEYS.redrive_lease}
        held |= {name: KEYS.of_outbox(DEFAULT_DESTINATION, name).lease for name in ENVIRONMENTS}
        for name, lease in held.items():
            holder = self.model.holder(name)
            if holder is not None and of(holder):
                self.client.delete(lease)

    def rest(self) -> None:
        """Kill all processes, make the API healthy, and run the sweep until it finds no work."""
        for process in tuple(self.processes):
            self.kill(process, processed=False)
        if self.model.broken:
            return
        pausing.resume(self.client, KEYS, DEFAULT_DESTINATION, ENVIRONMENTS)
        for _ in range(MOST_ROUNDS):
            self.pass_time()
            waiting = schedule.read_waiting(
                Shard(client=self.client, keys=KEYS),
                DEFAULT_DESTINATION,
                count=10,
                longest_pause_seconds=LONGEST_PAUSE_SECONDS,
            )
            if waiting.inbox:
                self.finish(self.take_in())
            if waiting.due:
                self.finish(self.deliver(waiting.due))
            if not waiting.inbox and not waiting.due:
                break
        self.model.check_end()
        self.finish(self.take_in())  # the in-flight marker of a run that died without work stays until the next one
        self.finish(self.deliver(ENVIRONMENTS))
        self.model.check_rest()


@contextmanager
def steered_clock() -> Iterator[None]:
    """Give the runs the clock of their process; no pause ends by itself."""
    with ExitStack() as stack:
        for module, names in (
            (deliver, "time clock"),
            (gate, "clock"),
            (attempts, "clock"),
            (outboxes, "clock"),
            (crash_search, "time clock"),
            (recovery, "time clock"),
            (intake, "time"),
            (redriving, "time clock"),
        ):
            for name in names.split():
                stack.enter_context(patch.object(module, name, CLOCK))
        # Pauses by Redis's clock do not end before `pass_time`.
        stack.enter_context(patch.object(gate, "FIRST_PAUSE_SECONDS", HOLD_SECONDS))
        stack.enter_context(patch.object(gate, "LONGEST_PAUSE_SECONDS", dict.fromkeys(HealthState, HOLD_SECONDS)))
        stack.enter_context(patch.object(gate, "SHRINK_GAP_SECONDS", 0.0))
        yield


def digest(version: str) -> str:
    return f"sha256:{sha256(version.encode()).hexdigest()}"


def instance(name: str) -> str:
    return f"{REPOSITORY} linux/amd64 {name}"


environments = st.sampled_from(["blue", "blue", "blue", "green"])
indexes = st.integers(0, 5)
names = st.sampled_from(["", "", "", "sidecar", "proxy"])
versions = st.sampled_from("abc")
several_reports = st.lists(st.tuples(names, versions), min_size=1, max_size=4)
likely_answers = st.sampled_from(["201"] * 6 + ["400"] * 4 + list(ANSWERS))
faults = st.sampled_from(FAULTS)
#: At which pass of a point which fault occurs, the answers before and after it, and a flag for the rest.
accident: dict[str, Any] = {
    "passes": st.sampled_from([0, 0, 0, 1, 2]),
    "fault": st.sampled_from([*FAULTS, *TAKEOVERS, *TAKEOVERS]),
    "answers": st.tuples(likely_answers, likely_answers),
    "flag": st.booleans(),
}


MOMENTS = {
    "2026-01-01T00:00:01Z": 1_767_225_601_000,
    "2026-01-01T00:00:02Z": 1_767_225_602_000,
    "2200-01-01T00:00:00Z": 7_258_118_400_000,
}


class Relay(RuleBasedStateMachine):
    """Producers, workers, operators and faults, in any order."""

    client: Redis

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.client)
        self.model = self.world.model

    @initialize(latest=st.booleans())
    def configure(self, *, latest: bool) -> None:
        self.world.latest = latest

    @property
    def processes(self) -> list[Process]:
        return self.world.processes

    def choose(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    # Producers

    @rule(
        environment=environments,
        name=names,
        version=versions,
        moment=st.sampled_from([None, None, *MOMENTS]),
        has_id=st.booleans(),
    )
    def report(self, environment: str, name: str, version: str, moment: str | None, *, has_id: bool) -> None:
        number = len(self.model.events)
        self._add(environment, [(name, version)], moment, f"job-{number}" if has_id else None)

    @precondition(lambda self: any(event.readable for event in self.model.events))
    @rule(number=st.integers(0, 30), moment=st.sampled_from([None, *list(MOMENTS)[:2]]))
    def report_the_same_digest(self, number: int, moment: str | None) -> None:
        """Report the running digest from another source, such as a snapshot, perhaps with a newer time."""
        known = [event for event in self.model.events if event.readable]
        event = known[-1 - number % len(known)]
        name = event.instance.rpartition(" ")[2]
        version = next(v for v in "abcd" if digest(v) == event.digest)
        self._add(event.environment, [(name, version)], moment, None)

    @precondition(lambda self: any(event.readable for event in self.model.events))
    @rule(number=st.integers(0, 30), same=st.booleans())
    def report_again(self, number: int, *, same: bool) -> None:
        """Retry a report, or report another digest with a used id."""
        known = [event for event in self.model.events if event.readable]
        event = known[-1 - number % len(known)]
        name = event.instance.rpartition(" ")[2]
        version = next(v for v in "abcd" if (digest(v) == event.digest) == same)
        self._add(event.environment, [(name, version)], None, event.event_id)

    def _add(
        self, environment: str, versions: Sequence[tuple[str, str]], moment: str | None, event_id: str | None
    ) -> None:
        """Report images, given as name and version, in one call: they are enqueued in one millisecond."""
        reports = []
        for name, version in versions:
            image = {"url": f"{REPOSITORY}@{digest(version)}", "name": name or None}
            fields = {"event": json.dumps({"image": image, "environment": {"name": environment}})}
            reports.append(fields | {key: value for key, value in (("id", event_id), ("time", moment)) if value})
        call = inbox.append_call(KEYS, reports, 10_000)
        for _ in range(2):  # the first reply is lost
            scripts.run(self.world.client, call)
        next_millisecond()
        self.model.reported(
            [
                Event(
                    name=f"e{len(self.model.events) + place}={version}",
                    environment=environment,
                    instance=instance(name),
                    digest=digest(version),
                    event_id=event_id or entry,
                    time=None if moment is None else min(entry_order(entry)[0] // 1000 * 1000, MOMENTS[moment]),
                    entry=entry,
                    order=entry_order(entry),
                )
                for place, ((name, version), entry) in enumerate(
                    zip(versions, self._newest(len(versions)), strict=True)
                )
            ]
        )

    @rule()
    def report_malformed(self) -> None:
        self.world.client.xadd(KEYS.inbox, {"event": "{"})
        next_millisecond()
        [entry] = self._newest(1)
        name = f"e{len(self.model.events)}=malformed"
        self.model.reported([Event(name, "", "", "", "", None, entry, entry_order(entry), readable=False)])

    def _newest(self, number: int) -> list[str]:
        found = cast("Any", self.world.client.xrevrange(KEYS.inbox, count=number)) if number else []
        return [entry.decode() for entry, _ in reversed(found)]

    # Workers

    @rule()
    def take_in_all(self) -> None:
        self.world.finish(self.world.take_in())

    @rule(answer=st.sampled_from(list(ANSWERS)))
    def deliver_all(self, answer: str) -> None:
        self.world.finish(self.world.deliver(ENVIRONMENTS), answer)

    @precondition(lambda self: len(self.processes) < 4)
    @rule()
    def start_intake(self) -> None:
        self.world.take_in()

    @precondition(lambda self: len(self.processes) < 4)
    @rule(
        environments=st.sampled_from([ENVIRONMENTS, ENVIRONMENTS[:1]]), expires=st.sampled_from([False] * 5 + [True])
    )
    def start_delivery(self, environments: Sequence[str], *, expires: bool) -> None:
        self.world.deliver(environments, expires=expires)

    @precondition(lambda self: self.processes)
    @rule(which=indexes, steps=st.integers(1, 12))
    def go_on(self, which: int, steps: int) -> None:
        process = self.choose(which)
        for _ in range(steps):
            process.step()
            if process.is_over or (process.is_waiting and process.transport.requests):
                break
        self.world.remove(process)

    @precondition(lambda self: any(process.transport.requests for process in self.processes))
    @rule(which=indexes, request=indexes, what=st.sampled_from(list(ANSWERS)))
    def answer(self, which: int, request: int, what: str) -> None:
        waiting = [process for process in self.processes if process.transport.requests]
        waiting[which % len(waiting)].transport.answer(request, what)

    @precondition(lambda self: self.processes)
    @rule(which=indexes)
    def go_on_to_the_end(self, which: int) -> None:
        self.world.finish(self.choose(which))

    # Faults

    @precondition(lambda self: self.processes)
    @rule(which=indexes, fault=faults, processed=st.booleans())
    def fail(self, which: int, fault: str, *, processed: bool) -> None:
        self._fail(self.choose(which), fault, processed=processed)

    def _fail(self, process: Process, fault: str, *, processed: bool) -> None:
        if fault == "kill":
            self.world.kill(process, processed=processed)
            return
        if fault == "killed after":
            process.transport.end(processed=processed)
        process.step(fault)
        self.world.remove(process)

    @precondition(lambda self: self.processes)
    @rule(which=indexes, processed=st.booleans())
    def suspend_past_the_lease(self, which: int, *, processed: bool) -> None:
        self.world.expire(self.choose(which), processed=processed)

    @rule()
    def pass_time(self) -> None:
        self.world.pass_time()

    @rule(what=st.sampled_from(["scripts are flushed", "others fail"]))
    def disturb(self, what: str) -> None:
        if what == "scripts are flushed":
            self.world.client.script_flush()
        else:  # one more failure opens the circuit breaker
            self.world.client.hset(KEYS.destination(DEFAULT_DESTINATION), "failures", "19")

    # A short way to what many steps of other rules would do: a run with work, and a fault in it.

    @rule(reports=several_reports, point=st.sampled_from(POINTS["intake"]), **accident)
    def fail_in_intake(self, **how: Any) -> None:
        self._fail_at_a_point("intake", **how)

    @rule(
        reports=several_reports,
        point=st.sampled_from(["claim", "wait", "commit_delivery", "commit_delivery", "release_outbox"]),
        **accident,
    )
    def fail_in_delivery(self, **how: Any) -> None:
        self._fail_at_a_point("delivery", **how)

    @rule(reports=several_reports, point=st.sampled_from(POINTS["redrive"]), **accident)
    def fail_in_redrive(self, **how: Any) -> None:
        self._fail_at_a_point("redrive", **how)

    def _fail_at_a_point(
        self,
        kind: str,
        *,
        reports: list[tuple[str, str]],
        point: str,
        passes: int,
        fault: str,
        answers: tuple[str, str],
        flag: bool,
    ) -> None:
        self._prepare(kind, reports)
        process = self._begin(kind, force=flag)
        self._go_to(process, point, passes, answers[0])
        match fault:
            case "taken over":
                self.world.expire(process, processed=flag)
                successor = self._begin(kind, force=flag)
                if flag:  # it is in the middle of its work when the other one resumes
                    self._go_to(successor, point, 0, answers[1])
                    self.world.finish(process, answers[1])
                self.world.finish(successor, answers[1])
            case "overtaken":
                for other in ("delivery", "intake"):
                    self.world.finish(self._begin(other, force=flag), "400" if flag else answers[1])
            case _:
                self._fail(process, fault, processed=flag)
        self.world.finish(process, answers[1])

    def _prepare(self, kind: str, reports: list[tuple[str, str]]) -> None:
        """Give such a run work that is ready."""
        pausing.resume(self.world.client, KEYS, DEFAULT_DESTINATION, ENVIRONMENTS)
        self.world.pass_time()
        self._add("blue", reports, None, None)
        self.world.finish(self.world.take_in())
        if kind == "redrive":
            self.world.finish(self.world.deliver(ENVIRONMENTS), "400")
        if kind == "intake":
            self._add("blue", reports[-1:], None, None)

    def _go_to(self, process: Process, point: str, passes: int, answer: str) -> None:
        for _ in range(MOST_STEPS):
            is_waiting = process.is_waiting and bool(process.transport.requests)
            passes -= is_waiting if point == "wait" else process.next == point
            if process.is_over or passes < 0:
                return
            while process.is_waiting and process.transport.requests:
                process.transport.answer(0, answer)
            process.step()

    def _begin(self, kind: str, *, force: bool) -> Process:
        match kind:
            case "intake":
                return self.world.take_in()
            case "delivery":
                return self.world.deliver(ENVIRONMENTS)
        return self.world.redrive(force=force)

    # Operators

    @rule(environment=environments, is_paused=st.booleans())
    def pause_or_resume(self, environment: str, *, is_paused: bool) -> None:
        change = pausing.pause if is_paused else pausing.resume
        change(self.world.client, KEYS, DEFAULT_DESTINATION, [environment])

    @precondition(lambda self: self.model.has_dead)
    @rule(force=st.booleans())
    def redrive_all(self, *, force: bool) -> None:
        self.world.finish(self.world.redrive(force=force))

    @precondition(lambda self: self.model.has_dead and len(self.processes) < 4)
    @rule(force=st.booleans(), max_backlog=st.sampled_from([3, 10_000]))
    def start_redrive(self, max_backlog: int, *, force: bool) -> None:
        self.world.redrive(force=force, max_backlog=max_backlog)

    @precondition(lambda self: self.model.has_dead)
    @rule()
    def drop_all(self) -> None:
        for page in dead_letters.walk(self.world.client, KEYS):
            dead_letters.drop(self.world.client, KEYS, page.letters)
        self.model.dropped()

    def teardown(self) -> None:
        self.world.rest()


@pytest.fixture(autouse=True)
def machine(client: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Relay, "client", client, raising=False)
    with steered_clock():
        yield


@pytest.mark.parametrize(("kind", "point"), [(kind, point) for kind, points in POINTS.items() for point in points])
def test_a_fault_at_each_point_of_a_run_loses_nothing(kind: str, point: str) -> None:
    reports = [("", "a"), ("", "b"), ("proxy", "a")]
    for fault, answer, flag in product((*FAULTS, *TAKEOVERS), ("201", "400", "500"), (False, True)):
        relay = Relay()
        try:
            relay._fail_at_a_point(
                kind, reports=reports, point=point, passes=0, fault=fault, answers=(answer, "201"), flag=flag
            )
        finally:
            relay.teardown()


@pytest.mark.timeout(86_400 if EXAMPLES else 600)  # hypothesis shrinks a failure before it shows it
def test_nothing_is_lost_repeated_or_reordered() -> None:
    run_state_machine_as_test(
        Relay,
        settings=settings(
            max_examples=EXAMPLES or 100,
            stateful_step_count=25,
            deadline=None,
            derandomize=not EXAMPLES,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
