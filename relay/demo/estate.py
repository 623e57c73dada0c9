"""Simulate what an estate of clusters and pipelines reports in 36 hours.

Each entry's outcome is known from what happened in the simulation, not from the relay's rules. The same seed always
gives the same entries.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar
from zlib import crc32

from relay.demo.workloads import (
    EDGE,
    ENVIRONMENTS,
    PLATFORM,
    SERVICES,
    SIDECARS,
    VERSIONS,
    Environment,
    Workload,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Choice = TypeVar("_Choice")

#: One queue entry: the fields of an XADD, `event` and perhaps `id`, `source` and `time`.
Entry: TypeAlias = dict[str, str]

SEED = 20261102

START = datetime(2026, 11, 2, tzinfo=UTC)
MINUTE = 60
HOUR = 60 * MINUTE
LENGTH = 36 * HOUR

#: Each cluster reports everything that runs in it this often.
SNAPSHOT_EVERY = 12 * HOUR


class Outcome(StrEnum):
    """How the relay must handle one entry."""

    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    STALE = "stale"
    INVALID = "invalid"


class Subject(NamedTuple):
    """The instance that an entry is about, normalised, and the digest that it reports."""

    environment: str
    repository: str
    name: str | None
    platform: str
    digest: str


class Arrival(NamedTuple):
    """One entry of the log: when it arrives (seconds after START), its outcome, and what it is about if valid."""

    at: int
    entry: Entry
    outcome: Outcome
    subject: Subject | None


class Dice:
    """Random choices from `Random.random` alone: Python keeps that sequence between versions."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random  # noqa: S311 - a simulation; nothing here is secret

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random() < probability

    def number(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[_Choice]) -> _Choice:
        """Return one of the choices."""
        return choices[self.number(0, len(choices) - 1)]


_DIGEST = SERVICES[0].digest(1)
_NGINX = f"docker.io/library/nginx@{_DIGEST}"


def _event(**body: object) -> str:
    return json.dumps(body, separators=(",", ":"))


#: Invalid entries as hand-written scripts send them, one of each kind.
MALFORMED: dict[str, Entry] = {
    "empty": {"event": ""},
    "no JSON": {"event": f"image={_NGINX}"},
    "cut short": {"event": _event(image={"url": _NGINX})[:60]},
    "single quotes": {"event": str({"image": {"url": _NGINX}})},
    "an array": {"event": json.dumps([{"image": {"url": _NGINX}}])},
    "a string": {"event": json.dumps(_NGINX)},
    "null": {"event": "null"},
    "empty object": {"event": "{}"},
    "missing image": {"event": _event(environment={"name": "qa"})},
    "image without url": {"event": _event(image={"name": "nginx"})},
    "image as a string": {"event": _event(image=_NGINX)},
    "url is null": {"event": _event(image={"url": None})},
    "url is empty": {"event": _event(image={"url": ""})},
    "tag only": {"event": _event(image={"url": "docker.io/library/nginx:1.27.1"})},
    "neither tag nor digest": {"event": _event(image={"url": "nginx"})},
    "upper-case hex": {"event": _event(image={"url": f"nginx@sha256:{_DIGEST[7:].upper()}"})},
    "short digest": {"event": _event(image={"url": _NGINX[:-1]})},
    "digest of no known length": {"event": _event(image={"url": f"{_NGINX}0"})},
    "bare image id": {"event": _event(image={"url": _DIGEST})},
    "docker image id": {"event": _event(image={"url": f"docker://{_DIGEST}"})},
    "blank in the reference": {"event": _event(image={"url": f"docker.io/library/ nginx@{_DIGEST}"})},
    "unknown field": {"event": _event(image={"url": _NGINX}, namespace="shop")},
    "unknown field of image": {"event": _event(image={"url": _NGINX, "tag": "1.27.1"})},
    "platform as a string": {"event": _event(image={"url": _NGINX}, platform="linux/amd64")},
    "environment is a number": {"event": _event(image={"url": _NGINX}, environment={"name": 7})},
    "invalid time": {"event": _event(image={"url": _NGINX}), "time": "yesterday"},
    "id too long": {"event": _event(image={"url": _NGINX}), "id": "0123456789abcdef" * 9},
}


class Container:
    """Simulate one instance: what happens to it, and the entries that report it.

    Entries are reported in order of time, so that the estate's entries can be sorted by arrival and each keeps the
    outcome noted here.
    """

    def __init__(
        self,
        *,
        dice: Dice,
        environment: Environment,
        workload: Workload,
        name: str | None,
        platform: str,
        ids: Iterator[int],
    ) -> None:
        self.arrivals: list[Arrival] = []
        self._dice = dice
        self._environment = environment
        self._source = environment.source
        self._workload = workload
        self._name = name
        self._platform = platform
        self._ids = ids
        self._clock = 0
        self._started = 0
        self._version = -1
        self._unacknowledged: Arrival | None = None

    def deploy(self, at: int, *, version: int, replicas: int) -> None:
        """Start another version: the first pod is a change, the others are duplicates, a late old one is stale."""
        old_version, old_start = self._version, self._started
        self._version = version
        self._start(at)
        self._report(Outcome.DELIVERED, version, self._started)
        self._retry_unacknowledged()
        for _ in range(replicas - 1):
            self.restart(self._clock)
        if self._source.cluster and old_version >= 0 and self._dice.chance(0.15):
            self._clock += self._dice.number(1, 30)
            self._report(Outcome.STALE, old_version, old_start)

    def restart(self, at: int) -> None:
        """Run the same version in a fresh container, or the same pipeline job again."""
        self._start(at)
        self._report(Outcome.DUPLICATE, self._version, self._started)

    def snapshot(self, at: int) -> None:
        """Report the running version as part of a snapshot of the cluster."""
        self._clock = max(self._clock, at)
        self._report(Outcome.DUPLICATE, self._version, self._started)

    def _start(self, at: int) -> None:
        """Start a container later than any before it; its source notices it some seconds after that."""
        self._started = max(self._clock, at) + 1
        self._clock = self._started + self._dice.number(1, 9)

    def _report(self, outcome: Outcome, version: int, started: int) -> None:
        entry = {"event": self._body(version)}
        if self._source.identified:
            entry["id"] = f"{self._source.name}/{next(self._ids)}"
        if self._dice.chance(0.95):
            entry["source"] = self._source.name
        if self._source.cluster:
            entry["time"] = self._format_time(started)
        repository, digest = self._workload.repository, self._workload.digest(version)
        subject = Subject(self._environment.name, repository, self._name, f"linux/{self._platform}", digest)
        self.arrivals.append(Arrival(self._clock, entry, outcome, subject))
        if outcome is Outcome.DELIVERED and self._source.identified:
            self._lose_acknowledgement(self.arrivals[-1]._replace(outcome=Outcome.DUPLICATE))

    def _lose_acknowledgement(self, retry: Arrival) -> None:
        """Lose the producer's acknowledgement sometimes: it retries at once, or after the next change."""
        if self._dice.chance(0.08):
            self.arrivals.append(retry)
        elif self._dice.chance(0.06):
            self._unacknowledged = retry

    def _retry_unacknowledged(self) -> None:
        retry = self._unacknowledged
        if retry and retry.entry is not self.arrivals[-1].entry:
            self.arrivals.append(retry._replace(at=self._clock))
            self._unacknowledged = None

    def _format_time(self, seconds: int) -> str:
        moment = (START + timedelta(seconds=seconds)).astimezone(timezone(timedelta(hours=self._source.utc_offset)))
        return moment.isoformat().replace("+00:00", "Z")

    def _body(self, version: int) -> str:
        image = {"url": self._reference(version)}
        if self._name:
            image["name"] = self._name
        body = {"image": image}
        if self._environment.name != "deployed" or self._dice.chance(0.2):
            body["environment"] = {"name": self._environment.name}
        if platform := self._dice.pick(_PLATFORMS[self._platform]):
            body["platform"] = platform
        return _event(**body)

    def _reference(self, version: int) -> str:
        """Return the image's reference in one of the spellings that reporting programs use."""
        repository, scheme = self._workload.repository, ""
        if self._dice.chance(0.2):
            repository = repository.removeprefix("docker.io/").removeprefix("library/")
        if self._dice.chance(0.15):
            repository += f":{self._workload.tag(version)}"
        elif self._source.cluster and self._dice.chance(0.1):
            scheme = "docker-pullable://"
        return f"{scheme}{repository}@{self._workload.digest(version)}"


#: Spellings of each platform in events; an empty one leaves the platform out.
_PLATFORMS: dict[str, list[dict[str, str]]] = {
    "amd64": [{}, {}, {"os": "linux", "architecture": "amd64"}, {"architecture": "x86_64"}],
    "arm64": [{"os": "linux", "architecture": "arm64"}, {"architecture": "aarch64"}],
    "arm/v7": [{"os": "linux", "architecture": "arm", "variant": "v7"}],
}


def simulate(seed: int = SEED) -> list[Arrival]:
    """Return all entries in the order of their arrival."""
    dice = Dice(seed)
    ids = iter(range(100_000, 1_000_000))
    arrivals = [
        each
        for environment in ENVIRONMENTS
        for group in _deployed_together(environment)
        for each in _history(dice, environment, group, ids)
    ]
    arrivals += _invalid(dice)
    return sorted(arrivals, key=lambda each: each.at)


def partition(arrivals: Sequence[Arrival], producers: int) -> list[list[Entry]]:
    """Share the entries among producers that run at once, in order.

    One producer gets all entries of an environment, so the outcomes do not depend on how the producers interleave.
    """
    shares: list[list[Entry]] = [[] for _ in range(producers)]
    for each in arrivals:
        key = each.subject.environment if each.subject else each.entry["event"]
        shares[crc32(key.encode()) % producers].append(each.entry)
    return shares


class _Group(NamedTuple):
    """A workload, and the names and platforms of its containers, which change together."""

    workload: Workload
    containers: Sequence[tuple[str | None, str]]


def _deployed_together(environment: Environment) -> Iterator[_Group]:
    architectures = environment.architectures
    if environment.nodes:
        nodes = [(f"node-{node:03d}", architectures[node % len(architectures)]) for node in range(environment.nodes)]
        yield from (_Group(workload, nodes) for workload in EDGE)
        return
    if environment.branches:
        for service in SERVICES:
            for branch in range(environment.branches):
                yield _Group(service, [(f"pr-{1480 + branch}", architectures[0])])
        return
    for service in SERVICES:
        yield _Group(service, [(None, architecture) for architecture in architectures])
    for sidecar in SIDECARS[: environment.sidecars]:
        names = [f"{service.name}-{sidecar.name}" for service in SERVICES]
        yield _Group(sidecar, [(name, architecture) for name in names for architecture in architectures])
    if environment.infrastructure:
        yield from (_Group(workload, [(None, architectures[0])]) for workload in PLATFORM)


def _history(dice: Dice, environment: Environment, group: _Group, ids: Iterator[int]) -> Iterator[Arrival]:
    """Yield the entries of one group of containers."""
    rollouts = _rollouts(dice, environment)
    for name, platform in group.containers:
        container = Container(
            dice=dice,
            environment=environment,
            workload=group.workload,
            name=name,
            platform=platform,
            ids=ids,
        )
        calendar = _calendar(dice, environment, container, rollouts)
        for at, happen in sorted(calendar, key=lambda appointment: appointment[0]):
            happen(at)
        yield from container.arrivals


def _calendar(
    dice: Dice, environment: Environment, container: Container, rollouts: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Callable[[int], None]]]:
    """Yield when something happens to a container, and what."""
    has_replicas = environment.source.cluster and not environment.nodes
    for at, version in rollouts:
        replicas = dice.pick((1, 1, 1, 2, 3)) if has_replicas and at else 1
        yield at + dice.number(0, 8 * MINUTE), partial(container.deploy, version=version, replicas=replicas)
    if dice.chance(0.2):
        yield dice.number(rollouts[0][0] + HOUR, LENGTH - HOUR), container.restart
    if environment.source.cluster:
        # Clusters send snapshots at different times, as they were installed at different times.
        first = HOUR + len(environment.source.name) * 10 * MINUTE
        for at in range(first + SNAPSHOT_EVERY // 2, LENGTH, SNAPSHOT_EVERY):
            yield at, container.snapshot


def _rollouts(dice: Dice, environment: Environment) -> list[tuple[int, int]]:
    """Return when each version is rolled out: a first one, then releases, some of them rolled back."""
    changes = environment.changes
    newest = dice.number(0, VERSIONS - 1 - changes)
    # A cluster first reports what already runs, a pipeline its first run.
    plan = [(0 if environment.source.cluster else dice.number(0, LENGTH // 2), newest)]
    for at in sorted(dice.number(HOUR, LENGTH - HOUR) for _ in range(dice.number(changes // 2, changes))):
        before = plan[-1][1]
        newest += 1
        plan.append((at, newest))
        if dice.chance(0.2):
            plan.append((at + dice.number(10 * MINUTE, 40 * MINUTE), before))
    return _spaced(plan)


def _spaced(plan: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Delay each rollout until the one before it has reached every container."""
    spaced = plan[:1]
    for at, version in plan[1:]:
        spaced.append((max(at, spaced[-1][0] + 9 * MINUTE), version))
    return spaced


def _invalid(dice: Dice) -> Iterator[Arrival]:
    """Yield each malformed entry at some time, some of them with their source."""
    for entry in MALFORMED.values():
        source = dice.pick(ENVIRONMENTS).source.name
        signed = entry | {"source": source} if dice.chance(0.7) else entry
        yield Arrival(dice.number(0, LENGTH), signed, Outcome.INVALID, None)
