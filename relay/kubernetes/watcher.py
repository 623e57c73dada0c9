"""`relay watch kubernetes`: list all pods, report what they run, follow their changes, and list again every hour.

One thread, which does one thing after another. The *place* is the resource version up to which all changes are
reported; it moves only once Redis has taken what a change reports. So whatever breaks, the watch goes on from there,
and where the API server does not tell any more what happened since, a new listing does: it reports what every pod
runs, and intake drops what it knew. While Redis is away or the queue full, the watcher waits with what is in its
hand: meanwhile the changes queue up in the API server, which may cut the watch off, and then it resumes or lists.

In memory are one page of a listing, an event for each instance while a listing is reported, and a few hundred bytes
for each pod (`memory.py`).

Not promised: a pod that came and went between two places of which the API server tells nothing is not reported.
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
from relay.kubernetes.node_cache import Surroundings
from relay.kubernetes.pod import read_pod
from relay.kubernetes.pod_cache import Memory
from relay.kubernetes.retry_policy import Step, next_step, pause_seconds
from relay.kubernetes.snapshot import read_snapshot

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

#: How long one watch lasts, anywhere between the two: as client-go has it, so that watches spread over API servers.
WATCH_SECONDS = (300, 600)

#: One that lasted this long was good, whatever ended it, even if it said nothing.
GOOD_WATCH_SECONDS = 30.0

#: A watch that ends sooner than this and said nothing was not one.
NO_WATCH_SECONDS = 0.5

#: When a listing that failed is made again, if there is a place to follow on from meanwhile.
LIST_AGAIN_SECONDS = 30.0

#: How many times `kubernetes.settle` a listing comes after the one before, however many rollouts are undone.
APART = 6

#: The longest pause without a sign of life.
BEAT_SECONDS = 5.0

log = logging.getLogger("relay.watch")


class Watcher:
    """Reports one cluster's pods. `run` goes on until an exception ends it, as SIGTERM's does.

    One that is not patient raises `ClusterUnavailable`, `QueueFull` and `QueueUnavailable`; else they are waited out.
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
        self._surroundings = Surroundings(
            cluster, namespace=settings.namespace, needs_labels=self._naming.needs_namespace_labels
        )
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self._memory = Memory()
        #: Empty: a listing is due.
        self._place = ""
        self._has_listed = False
        #: When the next listing is due, by the monotonic clock.
        self._list_at = 0.0
        #: When the last one began.
        self._listed_at = 0.0
        self._failures = 0
        #: Whether the place was gone (410) since a watch was good.
        self._was_gone = False
        self._followed: Counter[str] = Counter()

    def run(self) -> None:
        """List and follow, whatever happens; `ConfigurationError` if the API server does not take the selector."""
        while True:
            self.turn()

    def turn(self) -> None:
        """List all pods, if that is due, or follow them for a while; if it failed, wait as the failure asks for."""
        self._heartbeat.beat()
        self._publish()
        is_watching = bool(self._place) and time.monotonic() < self._list_at
        try:
            if is_watching:
                self._follow()
            else:
                self._list()
        except ClusterUnavailable as error:
            self._recover(error, is_watching=is_watching)

    def _list(self) -> None:
        """List all pods and report what they run; all of it is enqueued when this returns."""
        began = time.monotonic()
        listed_at = self._absences.begin() if self._absences else None
        self._surroundings.list()
        self._publish(at_once=True)  # before what the pods run: the webhook may be asked about them meanwhile
        listing = _Listing(self._cluster, self._surroundings, self._heartbeat)
        reading = read_snapshot(
            listing,
            self._naming,
            at=self._cluster.clock,
            node_platforms=self._surroundings.platforms,
            namespace_labels=self._surroundings.labels,
        )
        self._report(reading.events)
        if self._absences:
            self._absences.listed(reading.events, listed_at, self._surroundings.basis)
        self._place, self._memory, self._has_listed = listing.place, listing.memory, True
        self._listed_at, self._list_at = began, began + self._settings.snapshot_interval
        self._say(listing.pods, reading, time.monotonic() - began)

    def _follow(self) -> None:
        """Watch from the place on until the watch ends, or a listing is due."""
        began, list_at = time.monotonic(), self._list_at
        seconds = min(self._random.uniform(*WATCH_SECONDS), list_at - began)
        heard = False
        try:
            with contextlib.closing(self._cluster.watch_pods(self._place, seconds=max(1, round(seconds)))) as changes:
                for change in changes:
                    self._heartbeat.beat()
                    self._take(change)
                    self._publish()
                    heard, self._failures, self._was_gone = True, 0, False
                    if self._list_at < list_at or time.monotonic() >= list_at:
                        return
        finally:
            lasted = time.monotonic() - began
            if lasted >= GOOD_WATCH_SECONDS:
                self._failures, self._was_gone = 0, False
        if not heard and lasted < NO_WATCH_SECONDS:
            raise ClusterUnavailable("watch pods: it ended as soon as it began")

    def _take(self, change: Mapping[str, Any]) -> None:
        """Report a change, then move the place behind it."""
        pod = json_access.part(change, "object")
        match json_access.text(change, "type"):
            case "ADDED" | "MODIFIED" if self._surroundings.learn(pod):
                reading = read_pod(
                    pod,
                    self._naming,
                    before=self._memory.before(pod),
                    node_platform=self._surroundings.platforms.get(json_access.text(pod, "spec", "nodeName")),
                    namespace_labels=self._surroundings.labels.get(json_access.text(pod, "metadata", "namespace")),
                )
                self._report(reading.events)
                if self._absences:
                    self._absences.reported(reading.events)
                self._memory.remember(pod)
                self._followed.update(changes=1, events=len(reading.events))
            case "DELETED":
                self._followed.update(changes=1)
                if self._memory.forget(pod):
                    settled = time.monotonic() + self._settings.settle
                    self._list_at = min(self._list_at, max(settled, self._listed_at + APART * self._settings.settle))
        self._place = json_access.text(pod, "metadata", "resourceVersion") or self._place

    def _report(self, events: Iterable[DeploymentEvent]) -> None:
        """Enqueue events, however long it takes; each once, since it keeps its id."""
        left = [event.model_copy(update={"id": uuid.uuid4().hex}) for event in events]
        failures = 0
        while left:
            try:
                self._producer.report_many(left)
            except (QueueFull, QueueUnavailable) as error:
                if not self._is_patient:
                    raise
                left = left[len(error.enqueued) :]
                failures += 1
                seconds = pause_seconds(failures, self._random)
                log.warning("%s; %d events wait, again in %.1f s", error, len(left), seconds)
                self._pause(seconds)
            else:
                return

    def _publish(self, *, at_once: bool = False) -> None:
        """Publish the nodes' platforms, if they are known and it is time."""
        if self._publisher and self._surroundings.has_listed_nodes:
            self._publisher.publish(self._surroundings.platforms, at_once=at_once)

    def _recover(self, error: ClusterUnavailable, *, is_watching: bool) -> None:
        self._failures += 1
        if self._absences and not is_watching:
            self._absences.interrupt()
        following = next_step(
            error,
            is_watching=is_watching,
            has_listed=self._has_listed,
            failures=self._failures,
            random=self._random,
            is_first_gone=not self._was_gone,
        )
        self._was_gone = self._was_gone or (is_watching and error.status == HTTPStatus.GONE)
        if following.step is Step.GIVE_UP:
            raise ConfigurationError(f"the API server does not take the question: {error}") from error
        if not self._is_patient:
            raise error
        if self._place and not is_watching:
            log.warning("%s; followed on, and listed anew in %.0f s", error, LIST_AGAIN_SECONDS)
            self._list_at = time.monotonic() + LIST_AGAIN_SECONDS
        else:
            log.warning("%s; %s in %.1f s", error, following.step, following.after_seconds)
            self._pause(following.after_seconds)
        if following.step is Step.LIST and is_watching:
            self._place = ""
        if following.renew:
            self._cluster.renew()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._heartbeat.beat()
            time.sleep(min(left, BEAT_SECONDS))

    def _say(self, pods: int, reading: PodReading, seconds: float) -> None:
        skipped = ", ".join(f"{reason} {count}" for reason, count in sorted(reading.skipped.items())) or "none"
        log.info(
            "snapshot: %d pods, %d events, skipped: %s, in %.1f s; followed before: %d changes, %d events",
            pods, len(reading.events), skipped, seconds, self._followed["changes"], self._followed["events"],
        )  # fmt: skip
        self._followed.clear()


class _Listing:
    """The pods of one listing, to be gone through once; then the rest is known too."""

    def __init__(self, cluster: Cluster, surroundings: Surroundings, heartbeat: _Heartbeat) -> None:
        self.pods = 0
        self.place = ""
        self.memory = Memory()
        self._cluster = cluster
        self._surroundings = surroundings
        self._heartbeat = heartbeat

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for page in self._cluster.pods():
            self._heartbeat.beat()
            self.place = page.position
            self.pods += len(page.items)
            for pod in page.items:
                if self._surroundings.learn(pod):
                    self.memory.remember(pod)
                    yield pod


class _Heartbeat:
    """A file whose time of modification says that we live; not to be able to write it any more is not to live."""

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
