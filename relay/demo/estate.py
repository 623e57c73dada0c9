"""What an estate of clusters and pipelines would report in 36 hours.

It is simulated, so that what should become of each entry is known from what happened and not by the relay's
rules. The log is shipped as `estate.jsonl.gz`, one queue entry a line, in the order of arrival;
`python -m relay.demo.estate --write` makes it anew.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from importlib import resources
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from relay.demo.counters import Entry, Fate
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
    from collections.abc import Callable, Iterable, Iterator, Sequence

_Choice = TypeVar("_Choice")

LOG_NAME = "estate.jsonl.gz"

#: Changing it changes the shipped file.
SEED = 20261102

START = datetime(2026, 11, 2, tzinfo=UTC)
MINUTE = 60
HOUR = 60 * MINUTE
LENGTH = 36 * HOUR

#: Each cluster reports all that runs in it this often.
SNAPSHOT_EVERY = 12 * HOUR


class Told(NamedTuple):
    """One entry as it arrives, and what should become of it."""

    at: int  # seconds after START
    entry: Entry
    fate: Fate


class Dice:
    """Chance from `Random.random` alone, whose sequence Python promises to keep between versions."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random  # noqa: S311 - a simulation; nothing here is secret

    def chance(self, probability: float) -> bool:
        """Say whether something of this probability happens."""
        return self._random() < probability

    def number(self, low: int, high: int) -> int:
        """Throw a whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[_Choice]) -> _Choice:
        """Take one of the choices."""
        return choices[self.number(0, len(choices) - 1)]


_DIGEST = SERVICES[0].digest(1)
_NGINX = f"docker.io/library/nginx@{_DIGEST}"


def _event(**body: object) -> str:
    return json.dumps(body, separators=(",", ":"))


#: What somebody's script, somewhere, sends: one of each kind, none of which can be delivered.
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
    """One instance's life, in order: what happens to it and what is told of that.

    Nothing is told earlier than what was told before, so that the estate's entries can be sorted by
    arrival and each still has the fate noted here.
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
        self.told: list[Told] = []
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
        self._unacknowledged: Entry | None = None

    def deploy(self, at: int, *, version: int, replicas: int) -> None:
        """Start another version: its first pod is news, its other pods are not, the old ones are past."""
        old_version, old_start = self._version, self._started
        self._version = version
        self._start(at)
        self._tell(Fate.NEWS, version, self._started)
        self._retry_what_went_unanswered()
        for _ in range(replicas - 1):
            self.restart(self._clock)
        if self._source.cluster and old_version >= 0 and self._dice.chance(0.15):
            self._clock += self._dice.number(1, 30)
            self._tell(Fate.STALE, old_version, old_start)

    def restart(self, at: int) -> None:
        """Run the same version in a fresh container, or the same job of a pipeline again."""
        self._start(at)
        self._tell(Fate.DUPLICATE, self._version, self._started)

    def snapshot(self, at: int) -> None:
        """Tell what runs, as part of everything that runs in the cluster."""
        self._clock = max(self._clock, at)
        self._tell(Fate.DUPLICATE, self._version, self._started)

    def _start(self, at: int) -> None:
        """Let a container start, later than any before it, and be noticed some seconds after that."""
        self._started = max(self._clock, at) + 1
        self._clock = self._started + self._dice.number(1, 9)

    def _tell(self, fate: Fate, version: int, started: int) -> None:
        entry = {"event": self._body(version)}
        if self._source.identified:
            entry["id"] = f"{self._source.name}/{next(self._ids)}"
        if self._dice.chance(0.95):
            entry["source"] = self._source.name
        if self._source.cluster:
            entry["time"] = self._written(started)
        self.told.append(Told(self._clock, entry, fate))
        if fate is Fate.NEWS and self._source.identified:
            self._lose_the_answer(entry)

    def _lose_the_answer(self, entry: Entry) -> None:
        """Leave a producer without an answer, sometimes: it retries at once, or after the next change."""
        if self._dice.chance(0.08):
            self.told.append(Told(self._clock, entry, Fate.DUPLICATE))
        elif self._dice.chance(0.06):
            self._unacknowledged = entry

    def _retry_what_went_unanswered(self) -> None:
        if self._unacknowledged and self._unacknowledged is not self.told[-1].entry:
            self.told.append(Told(self._clock, self._unacknowledged, Fate.DUPLICATE))
            self._unacknowledged = None

    def _written(self, seconds: int) -> str:
        moment = (START + timedelta(seconds=seconds)).astimezone(timezone(timedelta(hours=self._source.utc_offset)))
        return moment.isoformat().replace("+00:00", "Z")

    def _body(self, version: int) -> str:
        image = {"url": self._reference(version)}
        if self._name:
            image["name"] = self._name
        body = {"image": image}
        if self._environment.name != "deployed" or self._dice.chance(0.2):
            body["environment"] = {"name": self._environment.name}
        if platform := self._spelt_platform():
            body["platform"] = platform
        return _event(**body)

    def _reference(self, version: int) -> str:
        """Name the image as one of the many programs that report would."""
        repository, scheme = self._workload.repository, ""
        if self._dice.chance(0.2):
            repository = repository.removeprefix("docker.io/").removeprefix("library/")
        if self._dice.chance(0.15):
            repository += f":{self._workload.tag(version)}"
        elif self._source.cluster and self._dice.chance(0.1):
            scheme = "docker-pullable://"
        return f"{scheme}{repository}@{self._workload.digest(version)}"

    def _spelt_platform(self) -> dict[str, str]:
        spellings: dict[str, list[dict[str, str]]] = {
            "amd64": [{}, {}, {"os": "linux", "architecture": "amd64"}, {"architecture": "x86_64"}],
            "arm64": [{"os": "linux", "architecture": "arm64"}, {"architecture": "aarch64"}],
            "arm/v7": [{"os": "linux", "architecture": "arm", "variant": "v7"}],
        }
        return self._dice.pick(spellings[self._platform])


def simulate(seed: int = SEED) -> list[tuple[Entry, Fate]]:
    """Make all entries in the order of their arrival, each with what should become of it."""
    dice = Dice(seed)
    ids = iter(range(100_000, 1_000_000))
    told = [
        each
        for environment in ENVIRONMENTS
        for group in _deployed_together(environment)
        for each in _history(dice, environment, group, ids)
    ]
    told += _noise(dice)
    told.sort(key=lambda each: each.at)
    return [(each.entry, each.fate) for each in told]


def shipped_log() -> list[Entry]:
    """Read the log that comes with the package."""
    packed = resources.files("relay.demo").joinpath(LOG_NAME).read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


class _Group(NamedTuple):
    """A workload whose containers change together: their names and platforms."""

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


def _history(dice: Dice, environment: Environment, group: _Group, ids: Iterator[int]) -> Iterator[Told]:
    """Let the containers of one group live through the 36 hours."""
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
        yield from container.told


def _calendar(
    dice: Dice, environment: Environment, container: Container, rollouts: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Callable[[int], None]]]:
    """Say what happens to a container, and when."""
    has_replicas = environment.source.cluster and not environment.nodes
    for at, version in rollouts:
        replicas = dice.pick((1, 1, 1, 2, 3)) if has_replicas and at else 1
        yield at + dice.number(0, 8 * MINUTE), partial(container.deploy, version=version, replicas=replicas)
    if dice.chance(0.2):
        yield dice.number(rollouts[0][0] + HOUR, LENGTH - HOUR), container.restart
    if environment.source.cluster:
        # Clusters begin their rounds at different times, as they were installed at different times.
        first = HOUR + len(environment.source.name) * 10 * MINUTE
        for round_begins in range(first + SNAPSHOT_EVERY // 2, LENGTH, SNAPSHOT_EVERY):
            yield round_begins, container.snapshot


def _rollouts(dice: Dice, environment: Environment) -> list[tuple[int, int]]:
    """Plan when which version is rolled out: a first one, then releases, some of them rolled back."""
    changes = environment.changes
    newest = dice.number(0, VERSIONS - 1 - changes)
    # A cluster begins with telling what runs already, a pipeline with its first run.
    plan = [(0 if environment.source.cluster else dice.number(0, LENGTH // 2), newest)]
    for at in sorted(dice.number(HOUR, LENGTH - HOUR) for _ in range(dice.number(changes // 2, changes))):
        before = plan[-1][1]
        newest += 1
        plan.append((at, newest))
        if dice.chance(0.2):
            plan.append((at + dice.number(10 * MINUTE, 40 * MINUTE), before))
    return _spaced(plan)


def _spaced(plan: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Let a rollout reach every container before the next one begins."""
    spaced = plan[:1]
    for at, version in plan[1:]:
        spaced.append((max(at, spaced[-1][0] + 9 * MINUTE), version))
    return spaced


def _noise(dice: Dice) -> Iterator[Told]:
    """Send one of each malformed kind at some time, some of them naming their sender."""
    for entry in MALFORMED.values():
        source = dice.pick(ENVIRONMENTS).source.name
        signed = entry | {"source": source} if dice.chance(0.7) else entry
        yield Told(dice.number(0, LENGTH), signed, Fate.INVALID)


def _lines(entries: Iterable[Entry]) -> bytes:
    return "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries).encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Count what the simulation makes, and write the shipped log if asked to."""
    parser = argparse.ArgumentParser(prog="python -m relay.demo.estate", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {LOG_NAME} anew")
    write = parser.parse_args(arguments).write
    simulated = simulate()
    for fate, count in Counter(fate for _, fate in simulated).most_common():
        sys.stdout.write(f"{fate:10} {count:6}\n")
    if write:
        packed = gzip.compress(_lines(entry for entry, _ in simulated), compresslevel=9, mtime=0)
        Path(__file__).with_name(LOG_NAME).write_bytes(packed)
        sys.stdout.write(f"{LOG_NAME}: {len(simulated)} entries, {len(packed)} bytes\n")


if __name__ == "__main__":
    main()
