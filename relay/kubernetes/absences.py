"""Marks for `relay resync` of instances that two complete listings in a row did not have.

No event reports the end of a pod. A second listing without it shows that its absence is not temporary. Only listings
of the whole cluster count that are complete and made with the same rights as the one before, because names and
platforms depend on the rights.

Only instances listed by this process are followed. An instance that ended during a restart gets no mark, and
`--seen-within` must handle it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.operations.settings_report import defaults_of
from relay.queue import gone
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.events.event import DeploymentEvent, Instance
    from relay.settings import Settings

log = logging.getLogger("relay.watch")


class Absences:
    """The instances of one cluster from listing to listing. Failures of Redis are logged and cost only a mark."""

    def __init__(self, settings: Settings) -> None:
        self._client = connect(settings.redis, retries=0)
        self._keys = Keys(settings.queue.namespace)
        self._destination = settings.destination
        self._defaults = defaults_of(settings)
        self._lifetime_seconds = settings.delivery.forget_after
        #: Whether listings cover the whole cluster.
        self._is_whole = not settings.kubernetes.namespace and not settings.kubernetes.selector
        self._known: set[Instance] = set()
        #: The rights of the last listing (`NodeCache.basis`).
        self._basis: object = None
        #: Instances missing in the last listing → its start, in Redis milliseconds.
        self._missing: dict[Instance, int] = {}
        #: Marked instances; None before the first listing, because an earlier process may have marked some.
        self._marked: set[Instance] | None = None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def begin(self) -> int | None:
        """Return the start of a listing in Redis milliseconds; None if it does not count."""
        if not self._is_whole:
            return None
        try:
            seconds, microseconds = self._client.time()
        except RedisError:
            return None
        return int(seconds) * 1000 + int(microseconds) // 1000

    def listed(self, events: Iterable[DeploymentEvent], began: int | None, basis: object) -> None:
        """Mark the instances that this complete listing and the one before do not have."""
        if began is None:
            self.interrupt()
            return
        seen = set(self._instances(events))
        if basis != self._basis:
            self._basis, self._known = basis, seen
            self.interrupt()
        missing = {each: self._missing.get(each, began) for each in self._known - seen}
        lost = {each: since for each, since in missing.items() if each in self._missing}
        back = seen if self._marked is None else seen & self._marked
        try:
            gone.unmark(self._client, self._keys, self._destination, back)
            self._marked = (self._marked or set()) - back
            gone.mark(self._client, self._keys, self._destination, lost, lifetime_seconds=self._lifetime_seconds)
        except RedisError as error:
            log.warning("instances that the cluster no longer runs are not marked: %s", type(error).__name__)
            lost = {}
        self._marked = (self._marked or set()) | lost.keys()
        self._missing = {each: since for each, since in missing.items() if each not in lost}
        self._known = seen | self._missing.keys()

    def reported(self, events: Iterable[DeploymentEvent]) -> None:
        """Add instances reported between listings."""
        for instance in self._instances(events):
            self._known.add(instance)
            self._missing.pop(instance, None)
            if self._marked and instance in self._marked:
                try:
                    gone.unmark(self._client, self._keys, self._destination, [instance])
                except RedisError:
                    continue  # the next listing unmarks it, and the report itself voids the mark
                self._marked.discard(instance)

    def interrupt(self) -> None:
        """Restart the count of listings after an incomplete one."""
        self._missing.clear()

    def _instances(self, events: Iterable[DeploymentEvent]) -> Iterable[Instance]:
        return (event.completed(self._defaults).instance for event in events)
