"""Instances that the watcher reported and no longer sees, marked for `relay resync` after two listings without them.

A pod's end is reported by nothing. A complete listing shows what is not there, and the second one in a row that it is
no accident of the moment. Only complete listings of the whole cluster count: not one that failed, is of one namespace
or selector, or was made with other rights than the one before, on which names and platforms depend.

Only instances that this process listed are followed. After a restart it begins anew: an instance that ended meanwhile
gets no mark, and is left to `--seen-within`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.operations.settings_report import defaults_of
from relay.queue import gone
from relay.queue.keys import Keys
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.events.event import DeploymentEvent, Instance
    from relay.settings import Settings

log = logging.getLogger("relay.watch")


class Absences:
    """Follows the instances of one cluster from listing to listing. Failures of Redis are logged and cost a mark."""

    def __init__(self, settings: Settings) -> None:
        self._client = connect(settings.redis, retries=0)
        self._keys = Keys(settings.queue.namespace)
        self._defaults = defaults_of(settings)
        self._lifetime_seconds = settings.delivery.forget_after
        #: Whether a listing is one of the whole cluster.
        self._is_whole = not settings.kubernetes.namespace and not settings.kubernetes.selector
        self._known: set[Instance] = set()
        #: What the last listing could read beside pods.
        self._basis: object = None
        #: Those that the last listing did not have → when it began, in Redis milliseconds.
        self._missing: dict[Instance, int] = {}
        #: Those that have a mark; None before the first listing, since an earlier process may have left some.
        self._marked: set[Instance] | None = None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def begin(self) -> int | None:
        """Return the moment at which a listing begins; None if it will not count."""
        if not self._is_whole:
            return None
        try:
            seconds, microseconds = self._client.time()
        except RedisError:
            return None
        return int(seconds) * 1000 + int(microseconds) // 1000

    def listed(self, events: Iterable[DeploymentEvent], began: int | None, basis: object) -> None:
        """Compare with what a complete listing reports, and mark what two did not have."""
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
            gone.unmark(self._client, self._keys, DEFAULT_DESTINATION, back)
            self._marked = (self._marked or set()) - back
            gone.mark(self._client, self._keys, DEFAULT_DESTINATION, lost, lifetime_seconds=self._lifetime_seconds)
        except RedisError as error:
            log.warning("what the cluster no longer runs is not marked: %s", type(error).__name__)
            lost = {}
        self._marked = (self._marked or set()) | lost.keys()
        self._missing = {each: since for each, since in missing.items() if each not in lost}
        self._known = seen | self._missing.keys()

    def reported(self, events: Iterable[DeploymentEvent]) -> None:
        """Note that instances run which were followed between listings."""
        for instance in self._instances(events):
            self._known.add(instance)
            self._missing.pop(instance, None)
            if self._marked and instance in self._marked:
                try:
                    gone.unmark(self._client, self._keys, DEFAULT_DESTINATION, [instance])
                except RedisError:
                    continue  # the next listing does it, and the report itself voids the mark
                self._marked.discard(instance)

    def interrupt(self) -> None:
        """Begin to count listings anew: the last one was not complete."""
        self._missing.clear()

    def _instances(self, events: Iterable[DeploymentEvent]) -> Iterable[Instance]:
        return (event.completed(self._defaults).instance for event in events)
