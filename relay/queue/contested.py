"""Instances that two sources change in turns: clusters without a name of their own, or two that report one thing.

Each undoes what the other reported, and the API is told both again and again. Intake notes changes by reports, and
only those: of a bounded sample of instances (contested.lua), the same ones for as long as it lasts, so that an event
costs next to nothing. The findings are for operators; no delivery depends on them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, cast
from zlib import crc32

from relay.queue import scripts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

    from relay.queue.keys import Keys

_CONTESTED = scripts.load("contested")

#: Instances in the sample, and those found that are kept.
MAX_SAMPLED = 1000
MAX_CONTESTED = 100

#: How long a sample is kept before another begins, and an instance that was found after it was last found.
SAMPLE_SECONDS = 7 * 86_400.0
CONTESTED_SECONDS = 86_400.0

#: Changes that are noted of one batch: they cost it less than a hundredth, and keep the script below a millisecond.
MAX_CHANGES = 32

#: The level at which no batch has more changes than that, unless they are of one instance.
_MAX_LEVEL = 20

#: How long a process relies on the level that it was told: another one may have raised it, or a new sample begun.
LEVEL_SECONDS = 60.0

#: Characters of a digest that are compared.
_DIGEST_CHARACTERS = 20


class Change(NamedTuple):
    """An instance's change by a report. `source` is "" if the report names none."""

    environment: str
    instance: str
    source: str
    digest: str
    #: The digest before it.
    before: str


class Contested(NamedTuple):
    """An instance that two sources change in turns."""

    environment: str
    instance: str
    #: "" is reports without a source.
    sources: tuple[str, str]
    #: How often in a row one of them changed it back.
    returns: int
    #: When that was last, in Redis milliseconds.
    at: int


class ChangeSample:
    """Notes changes of the instances in the sample; one for each process that takes in."""

    def __init__(self) -> None:
        self._level = 0
        self._level_until = 0.0

    def note(self, client: Redis, keys: Keys, destination: str, changes: Iterable[Change]) -> None:
        """Note those of the sample; no round trip if there are none. Raises `RedisError`."""
        if time.monotonic() > self._level_until:
            self._level = 0
        named = ((f"{each.environment}\n{each.instance}", each) for each in changes)
        noted = _of_level([(crc32(name.encode()), name, each) for name, each in named], self._level)
        level = self._level
        while len(noted) > MAX_CHANGES and level < _MAX_LEVEL:  # the same instances of each large batch
            level += 1
            noted = _of_level(noted, level)
        if not noted:
            return
        arguments: list[scripts.Argument] = []
        for bucket, name, change in noted[:MAX_CHANGES]:
            digests = (change.digest[-_DIGEST_CHARACTERS:], change.before[-_DIGEST_CHARACTERS:])
            arguments += [bucket, name, change.source, *digests]
        limits = (MAX_SAMPLED, MAX_CONTESTED, round(SAMPLE_SECONDS * 1000), round(CONTESTED_SECONDS * 1000))
        names = (keys.changes(destination), keys.contested(destination))
        self._level = int(scripts.run(client, scripts.Call(_CONTESTED, names, [*limits, *arguments])))
        self._level_until = time.monotonic() + LEVEL_SECONDS


def _of_level(changes: list[tuple[int, str, Change]], level: int) -> list[tuple[int, str, Change]]:
    """Return the changes of instances that are in a sample of this level."""
    return [each for each in changes if each[0] % (1 << level) == 0]


def read(client: Redis, keys: Keys, destination: str, now: int) -> list[Contested]:
    """Return the instances that were found lately, those that were changed back most often first."""
    reply = cast("dict[bytes, bytes]", client.hgetall(keys.contested(destination)))
    found = [_decode(name.decode(errors="replace"), value.decode(errors="replace")) for name, value in reply.items()]
    lately = [each for each in found if each.at >= now - CONTESTED_SECONDS * 1000]
    return sorted(lately, key=lambda each: (-each.returns, -each.at, each.environment, each.instance))


def _decode(name: str, value: str) -> Contested:
    environment, _, instance = name.partition("\n")
    at, returns, *sources = value.split("\n")
    first, second = (source.strip() for source in sources)
    return Contested(environment, instance, (first, second), int(returns), int(at))
