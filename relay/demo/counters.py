"""What should become of each entry of an event log.

An independent reckoning for the demo and its tests: it reads entries by its own few rules and shares no
code with the relay, so that a mistake in the one is not repeated in the other. It knows what the estate's
log contains, not all that the relay accepts, and presumes that no `time` is in the future.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: One queue entry: the fields of an XADD, `event` and perhaps `id`, `source` and `time`.
Entry: TypeAlias = dict[str, str]

#: A producer's retry is recognised among so many accepted ids of its instance.
REMEMBERED_IDS = 8

#: The longest idempotency key, in bytes.
LONGEST_ID = 128

#: Two names of one architecture.
_SYNONYMS = {"x86_64": "amd64", "aarch64": "arm64"}

_FIELDS = {
    "": {"image", "environment", "platform"},
    "image": {"url", "name"},
    "environment": {"name"},
    "platform": {"os", "architecture", "variant"},
}

_REFERENCE = re.compile(
    r"(docker-pullable://)?(?P<repository>[a-z0-9][a-z0-9._/-]*)(:[\w.-]+)?@(?P<digest>sha256:[0-9a-f]{64})"
)


class Fate(StrEnum):
    """What becomes of one entry."""

    NEWS = "news"
    DUPLICATE = "duplicate"
    STALE = "stale"
    INVALID = "invalid"


@dataclass(frozen=True, kw_only=True)
class Reckoning:
    """How many entries end in which way; each entry counts once."""

    delivered: int
    duplicate: int
    stale: int
    invalid: int

    @property
    def total(self) -> int:
        """All entries."""
        return self.delivered + self.duplicate + self.stale + self.invalid


class Instance(NamedTuple):
    """What the API knows one digest of, after defaults and normalisation."""

    environment: str
    repository: str
    name: str | None
    platform: tuple[str, str, str | None]


class Report(NamedTuple):
    """An entry that can be read: this instance runs this digest."""

    instance: Instance
    digest: str
    id: str | None
    time: datetime | None


def reckon(entries: Iterable[Entry]) -> Reckoning:
    """Count what should become of the entries, taken in this order."""
    counts = dict.fromkeys(Fate, 0)
    for fate in fates(entries):
        counts[fate] += 1
    return Reckoning(
        delivered=counts[Fate.NEWS],
        duplicate=counts[Fate.DUPLICATE],
        stale=counts[Fate.STALE],
        invalid=counts[Fate.INVALID],
    )


def fates(entries: Iterable[Entry]) -> Iterator[Fate]:
    """Say what should become of each entry, taken in this order."""
    known: dict[Instance, _Known] = {}
    for entry in entries:
        try:
            report = read(entry)
        except ValueError:
            yield Fate.INVALID
        else:
            yield known.setdefault(report.instance, _Known()).judge(report)


def partition(entries: Iterable[Entry], producers: int) -> list[list[Entry]]:
    """Share the entries among producers that run at once, in order, each environment with one of them.

    No instance's entries then depend on how the producers interleave, and the reckoning of the whole holds.
    What cannot be read goes to any.
    """
    shares: list[list[Entry]] = [[] for _ in range(producers)]
    for entry in entries:
        try:
            key = read(entry).instance.environment
        except ValueError:
            key = entry["event"]
        shares[crc32(key.encode()) % producers].append(entry)
    return shares


def read(entry: Entry) -> Report:
    """Read an entry, or raise ValueError."""
    body = _parts(json.loads(entry["event"]))
    image, environment, platform = body["image"], body["environment"], body["platform"]
    reference = _REFERENCE.fullmatch(image.get("url", ""))
    if reference is None:
        raise ValueError("no reference by digest")
    if len(entry.get("id", "").encode()) > LONGEST_ID:
        raise ValueError("the id is too long")
    instance = Instance(
        environment=environment.get("name", "deployed"),
        repository=_qualified(reference["repository"]),
        name=image.get("name"),
        platform=_platform(platform),
    )
    time = datetime.fromisoformat(entry["time"]) if "time" in entry else None
    return Report(instance, reference["digest"], entry.get("id"), time)


@dataclass(kw_only=True)
class _Known:
    """What is known of one instance so far."""

    digest: str | None = None
    time: datetime | None = None
    ids: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED_IDS))

    def judge(self, report: Report) -> Fate:
        """Say whether the report is news, and remember it if it is."""
        if report.id in self.ids or report.digest == self.digest:
            self._advance(report.time)
            return Fate.DUPLICATE
        if report.time and self.time and report.time < self.time:
            return Fate.STALE
        self.digest = report.digest
        self._advance(report.time)
        if report.id is not None:
            self.ids.append(report.id)
        return Fate.NEWS

    def _advance(self, time: datetime | None) -> None:
        if time and (self.time is None or time > self.time):
            self.time = time


def _parts(body: Any) -> Mapping[str, Mapping[str, str]]:
    """Check that the body has only the fields it may have, and give each of its parts, perhaps empty."""
    _check_fields("", body)
    parts = {part: body.get(part, {}) for part in _FIELDS[""]}
    for part, fields in parts.items():
        _check_fields(part, fields)
        if not all(isinstance(value, str) for value in fields.values()):
            raise ValueError(f"{part}: not text")
    return parts


def _check_fields(part: str, fields: Any) -> None:
    if not isinstance(fields, dict) or not fields.keys() <= _FIELDS[part]:
        raise ValueError(f"{part or 'event'}: not an object of the known fields")


def _qualified(repository: str) -> str:
    """Spell out a repository of Docker Hub: `nginx` is `docker.io/library/nginx`."""
    registry, slash, _ = repository.partition("/")
    if not slash:
        return f"docker.io/library/{repository}"
    return repository if "." in registry else f"docker.io/{repository}"


def _platform(platform: Mapping[str, str]) -> tuple[str, str, str | None]:
    architecture = platform.get("architecture", "amd64")
    return (
        platform.get("os", "linux"),
        _SYNONYMS.get(architecture, architecture),
        platform.get("variant"),
    )
