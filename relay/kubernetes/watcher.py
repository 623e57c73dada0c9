"""The watcher of a cluster: list all pods, report what they run, follow their changes, and list again every hour.

It has one thread. The *position* is the resource version up to which all changes are reported; it advances only after
Redis has the events of a change. After any failure the watch continues from there. If the API server no longer has
the changes since, a new listing reports what every pod runs, and intake drops the duplicates. While Redis is
unavailable or the queue is full, the watcher waits with the current change. Later changes queue up in the API server,
which may end the watch; then it resumes or lists.

Memory holds one page of a listing, an event for each instance while a listing is reported, and a few hundred bytes
for each pod (`pod_cache`).

Not promised: a pod that started and ended between two positions, whose changes the API server no longer has, is not
reported.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
import uuid
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from relay.errors import ClusterUnavailable, ConfigurationError, QueueFull, QueueUnavailable
from relay.kubernetes import json_access
from relay.kubernetes.naming import Naming
from relay.kubernetes.node_cache import NodeCache
from relay.kubernetes.pod import read_pod
from relay.kubernetes.pod_cache import PodCache
from relay.kubernetes.retry_policy import Step, decide_step, pause_seconds
from relay.kubernetes.snapshot import read_snapshot
from relay.producer.base import id_or_raise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from relay.events.event import DeploymentEvent
    from relay.kubernetes.absences import Absences
    from relay.kubernetes.cluster import Cluster
    from relay.kubernetes.pod import PodReading
    from relay.kubernetes.publishing import NodePublisher
    from relay.producer.queue_producer import Producer
    from relay.settings import KubernetesSettings

#: Bounds of a watch's random duration, as in client-go, so that watches spread over API servers.
WATCH_SECONDS = (300, 600)

#: A watch of this duration succeeded, even without a change, whatever ended it.
GOOD_WATCH_SECONDS = 30.0

#: A watch without a change that ends sooner than this failed.
NO_WATCH_SECONDS = 0.5

#: The time to the next listing after a failed one, if the watch can continue meanwhile.
LIST_AGAIN_SECONDS = 30.0

#: Minimum time between listings for undone rollouts, as a multiple of `kubernetes.settle`.
LIST_AFTER_SETTLES = 6

#: Maximum pause without a heartbeat.
BEAT_SECONDS = 5.0

log = logging.getLogger("relay.watch")


class Watcher:
    """Reports one cluster's pods. `run` ends only by an exception, such as that of SIGTERM.

    A patient watcher retries after `ClusterUnavailable`, `QueueFull` and `QueueUnavailable`; another one raises them.
    """

    def __init__(
        self,
        cluster: Cluster,
        producer: Producer,
        settings: KubernetesSettings,
        *,
        publisher: NodePublisher | None = None,
        absences: Absences | None = None,
        is_patient: bool = True,
    ) -> None:
        self._is_patient = is_patient
        self._publisher = publisher
        self._absences = absences
        self._cluster = cluster
        self._producer = producer
        self._settings = settings
        self._heartbeat = _Heartbeat(settings.heartbeat_file)
        self._naming = Naming.of(settings)
        self._cache = NodeCache(
            cluster, namespace=settings.namespace, needs_labels=self._naming.needs_namespace_labels
        )
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self._pods = PodCache()
        #: Empty if a listing is due.
        self._position = ""
        self._has_listed = False
        #: The time of the next listing, by the monotonic clock.
        self._list_at = 0.0
        #: The start of the last listing.
        self._listed_at = 0.0
        self._failures = 0
        #: Whether there was a 410 since the last watch that succeeded.
        self._was_gone = False
        self._followed: Counter[str] = Counter()

    def run(self) -> None:
        """List and follow until an exception: `ConfigurationError` for a selector that the API server refuses."""
        while True:
            self.run_once()

    def run_once(self) -> None:
        """List all pods, if that is due, else follow them for a while; after a failure, pause by the retry policy."""
        self._heartbeat.beat()
        self._publish()
        is_watching = bool(self._position) and time.monotonic() < self._list_at
        try:
            if is_watching:
                self._follow()
            else:
                self._list()
        except ClusterUnavailable as error:
            self._recover(error, is_watching=is_watching)

    def _list(self) -> None:
        """List all pods, and enqueue their events."""
        began = time.monotonic()
        listed_at = self._absences.begin() if self._absences else None
        self._cache.list()
        self._publish(at_once=True)  # before the listing of pods: the webhook may get reviews meanwhile
        listing = _Listing(self._cluster, self._cache, self._heartbeat)
        reading = read_snapshot(
            listing,
            self._naming,
            at=self._cluster.clock,
            node_platforms=self._cache.platforms,
            namespace_labels=self._cache.labels,
        )
        self._report(reading.events)
        if self._absences:
            self._absences.listed(reading.events, listed_at, self._cache.basis)
        self._position, self._pods, self._has_listed = listing.position, listing.cache, True
        self._listed_at, self._list_at = began, began + self._settings.snapshot_interval
        self._log_snapshot(listing.pods, reading, time.monotonic() - began)

    def _follow(self) -> None:
        """Watch from the position on until the watch ends, or a listing is due."""
        began, list_at = time.monotonic(), self._list_at
        seconds = min(self._random.uniform(*WATCH_SECONDS), list_at - began)
        received = False
        try:
            with contextlib.closing(
                self._cluster.watch_pods(self._position, seconds=max(1, round(seconds)))
            ) as changes:
                for change in changes:
                    self._heartbeat.beat()
                    self._apply(change)
                    self._publish()
                    received, self._failures, self._was_gone = True, 0, False
                    if self._list_at < list_at or time.monotonic() >= list_at:
                        return
        finally:
            lasted = time.monotonic() - began
            if lasted >= GOOD_WATCH_SECONDS:
                self._failures, self._was_gone = 0, False
        if not received and lasted < NO_WATCH_SECONDS:
            raise ClusterUnavailable("watch pods: it ended as soon as it began")

    def _apply(self, change: Mapping[str, Any]) -> None:
        """Report a change, then advance the position."""
        pod = json_access.part(change, "object")
        match json_access.text(change, "type"):
            case "ADDED" | "MODIFIED" if self._cache.read_for(pod):
                reading = read_pod(
                    pod,
                    self._naming,
                    before=self._pods.before(pod),
                    node_platform=self._cache.platforms.get(json_access.text(pod, "spec", "nodeName")),
                    namespace_labels=self._cache.labels.get(json_access.text(pod, "metadata", "namespace")),
                )
                self._report(reading.events)
                if self._absences:
                    self._absences.reported(reading.events)
                self._pods.add(pod)
                self._followed.update(changes=1, events=len(reading.events))
            case "DELETED":
                self._followed.update(changes=1)
                if self._pods.remove(pod):
                    settle = self._settings.settle
                    earliest = max(time.monotonic() + settle, self._listed_at + LIST_AFTER_SETTLES * settle)
                    self._list_at = min(self._list_at, earliest)
        self._position = json_access.text(pod, "metadata", "resourceVersion") or self._position

    def _report(self, events: Iterable[DeploymentEvent]) -> None:
        """Enqueue events, however long it takes; each counts once, because it keeps its id."""
        remaining = [event.model_copy(update={"id": uuid.uuid4().hex}) for event in events]
        failures = 0
        while remaining:
            try:
                outcomes = self._producer.report_many(remaining)
            except (QueueFull, QueueUnavailable) as error:
                if not self._is_patient:
                    raise
                remaining = remaining[len(error.enqueued) :]
                failures += 1
                seconds = pause_seconds(failures, self._random)
                log.warning("%s; %d events wait, retried in %.1f s", error, len(remaining), seconds)
                self._pause(seconds)
            else:
                for outcome in outcomes:
                    id_or_raise(outcome)
                return

    def _publish(self, *, at_once: bool = False) -> None:
        """Publish the nodes' platforms, if all are known and publication is due."""
        if self._publisher and self._cache.has_all_nodes:
            self._publisher.publish(self._cache.platforms, at_once=at_once)

    def _recover(self, error: ClusterUnavailable, *, is_watching: bool) -> None:
        self._failures += 1
        if self._absences and not is_watching:
            self._absences.interrupt()
        decided = decide_step(
            error,
            is_watching=is_watching,
            has_listed=self._has_listed,
            failures=self._failures,
            random=self._random,
            is_first_gone=not self._was_gone,
        )
        self._was_gone = self._was_gone or (is_watching and error.status == HTTPStatus.GONE)
        if decided.step is Step.GIVE_UP:
            raise ConfigurationError(f"the API server refuses the request: {error}") from error
        if not self._is_patient:
            raise error
        if self._position and not is_watching:
            log.warning("%s; the watch continues, listed again in %.0f s", error, LIST_AGAIN_SECONDS)
            self._list_at = time.monotonic() + LIST_AGAIN_SECONDS
        else:
            log.warning("%s; %s in %.1f s", error, decided.step, decided.after_seconds)
            self._pause(decided.after_seconds)
        if decided.step is Step.LIST and is_watching:
            self._position = ""
        if decided.renew:
            self._cluster.renew()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._heartbeat.beat()
            time.sleep(min(left, BEAT_SECONDS))

    def _log_snapshot(self, pods: int, reading: PodReading, seconds: float) -> None:
        skipped = ", ".join(f"{reason} {count}" for reason, count in sorted(reading.skipped.items())) or "none"
        log.info(
            "snapshot: %d pods, %d events, skipped: %s, in %.1f s; followed before: %d changes, %d events",
            pods, len(reading.events), skipped, seconds, self._followed["changes"], self._followed["events"],
        )  # fmt: skip
        self._followed.clear()


class _Listing:
    """The pods of one listing, to be iterated once; `pods`, `position` and `cache` are complete afterwards."""

    def __init__(self, cluster: Cluster, cache: NodeCache, heartbeat: _Heartbeat) -> None:
        self.pods = 0
        self.position = ""
        self.cache = PodCache()
        self._cluster = cluster
        self._cache = cache
        self._heartbeat = heartbeat

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for page in self._cluster.pods():
            self._heartbeat.beat()
            self.position = page.position
            self.pods += len(page.items)
            for pod in page.items:
                if self._cache.read_for(pod):
                    self.cache.add(pod)
                    yield pod


class _Heartbeat:
    """A file whose modification time is the watcher's last heartbeat; a write that fails later is no heartbeat."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._beat_at = time.monotonic()
        try:
            self._touch()
        except OSError as error:
            raise ConfigurationError(f"kubernetes.heartbeat_file {path} cannot be written: {error}") from error

    def beat(self) -> None:
        """Touch it, at most once a second."""
        if time.monotonic() - self._beat_at >= 1.0:
            self._beat_at = time.monotonic()
            with contextlib.suppress(OSError):
                self._touch()

    def _touch(self) -> None:
        if self._path:
            self._path.touch()
