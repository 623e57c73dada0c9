"""The values that a run of a stage works with. Nothing here depends on Celery."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from relay.queue.contested import ChangeSample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from relay.events.event import Defaults
    from relay.queue.keys import Keys
    from relay.queue.shard import Shard
    from relay.settings import Settings


class Wakeups(Protocol):
    """A port that sends wake-ups: messages that say where there is work.

    Neither method raises. A wake-up may be lost; the poller's sweep repeats it.
    """

    def wake_intake(self) -> None:
        """Ask for a run of intake."""

    def wake_delivery(self, environments: Sequence[str]) -> None:
        """Ask for runs of delivery on these environments' outboxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The settings and connections of one thread that runs stages."""

    settings: Settings
    shard: Shard
    defaults: Defaults
    wakeups: Wakeups
    changes: ChangeSample = field(default_factory=ChangeSample)

    @property
    def client(self) -> Redis:
        """The client of the shard."""
        return self.shard.client

    @property
    def keys(self) -> Keys:
        """The keys of the shard."""
        return self.shard.keys
