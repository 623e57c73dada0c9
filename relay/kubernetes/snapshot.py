"""What do all pods of a cluster report together? For each instance what its newest pod runs, as of the listing.

Pod by pod, time does not go back: what a pod says is stale once a newer one was heard. So when a rollout fails and
its new pod is deleted again, no pod that is left can say that it is the old digest that runs. A listing can, since
what it does not hold is gone: what it reports has the listing's time, later than all pods in it and earlier than
those to come.

Unless a newer pod of the workload has yet to start. It may be about to replace the others, and must be heard then: so
what the others report has the time of that one's creation, and what it says itself, arriving later, wins. A pod of
the speaker's own revision with nothing but pinned images has no news, and is not waited for: there may be no room for
it for months.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.kubernetes import json_access
from relay.kubernetes.pod import PodReading, read_pod
from relay.kubernetes.skip_reason import Skipped
from relay.kubernetes.workload import workload_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from relay.events.event import DeploymentEvent
    from relay.events.platform import Platform
    from relay.kubernetes.naming import Naming
    from relay.kubernetes.workload import Workload

#: Labels of pods that name the template which their controller made them from.
_REVISIONS = ("pod-template-hash", "rollouts-pod-template-hash", "controller-revision-hash")

#: Where the containers stand that have to start.
_KINDS = ("initContainers", "containers")

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def read_snapshot(
    pods: Iterable[Mapping[str, Any]],
    naming: Naming,
    *,
    at: datetime,
    node_platforms: Mapping[str, Platform] | None = None,
    namespace_labels: Mapping[str, Mapping[str, str]] | None = None,
) -> PodReading:
    """Report what all pods of a cluster run, one event for each instance; platforms by node, labels by namespace.

    `at` is a moment before the listing was asked for, by the API server's clock as far as it can be known; should
    it be late, what started within the difference waits for the next snapshot. `pods` are read once, in any order,
    and not kept.
    """
    listing = _Listing()
    for pod in pods:
        reading = read_pod(
            pod,
            naming,
            node_platform=(node_platforms or {}).get(json_access.text(pod, "spec", "nodeName")),
            namespace_labels=(namespace_labels or {}).get(json_access.text(pod, "metadata", "namespace")),
        )
        listing.add(pod, reading)
    events = (listing.spoken(each, at) for each in listing.speakers.values())
    return PodReading(events=tuple(events), skipped=listing.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speaker:
    """A pod's event, and who says it."""

    event: DeploymentEvent
    workload: tuple[str, Workload]
    created: datetime | None
    revision: str
    is_over: bool

    @property
    def rank(self) -> tuple[bool, datetime]:
        """Pods that are not over speak before those that are, and among them the newest."""
        return not self.is_over, self.created or _LONG_AGO


class _Starting(NamedTuple):
    """A pod that has yet to start a container."""

    created: datetime
    #: What it is made from; "" if that is not known, or may become another image each time.
    revision: str


@dataclass(kw_only=True)
class _Listing:
    """What was read so far: an event for each instance, whatever the number of pods."""

    speakers: dict[object, _Speaker] = field(default_factory=dict)
    starting: dict[tuple[str, Workload], set[_Starting]] = field(default_factory=dict)
    skipped: Counter[Skipped] = field(default_factory=Counter)

    def add(self, pod: Mapping[str, Any], reading: PodReading) -> None:
        workload, is_over = (json_access.text(pod, "metadata", "namespace"), workload_of(pod)), _is_over(pod)
        created, revision = json_access.moment(pod, "metadata", "creationTimestamp"), _revision(pod)
        self.skipped.update(reading.skipped)
        if reading.skipped[Skipped.NOT_RUNNING] and not is_over and created:
            starting = _Starting(created, revision if _is_pinned(pod) else "")
            self.starting.setdefault(workload, set()).add(starting)
        for event in reading.events:
            self._hear(_Speaker(event=event, workload=workload, created=created, revision=revision, is_over=is_over))

    def _hear(self, speaker: _Speaker) -> None:
        instance = _instance(speaker.event)
        if instance in self.speakers:
            self.skipped[Skipped.REPLICA] += 1
            speaker = max(self.speakers[instance], speaker, key=lambda each: each.rank)
        self.speakers[instance] = speaker

    def spoken(self, speaker: _Speaker, at: datetime) -> DeploymentEvent:
        """Give the event its time: whole seconds, as creations are told in, which only ever makes it earlier."""
        newer = (
            each.created
            for each in self.starting.get(speaker.workload, ())
            if each.created > (speaker.created or _LONG_AGO)
            and not (each.revision and each.revision == speaker.revision)
        )
        time = min((at.replace(microsecond=0), *newer))
        return speaker.event.model_copy(update={"time": time})


def _revision(pod: Mapping[str, Any]) -> str:
    """Return what tells a workload's pod templates apart, "" if nothing does."""
    labels = json_access.labels(pod, "metadata", "labels")
    return next(filter(None, map(labels.get, _REVISIONS)), "")


def _is_pinned(pod: Mapping[str, Any]) -> bool:
    images = (json_access.text(each, "image") for kind in _KINDS for each in json_access.each(pod, "spec", kind))
    return all("@" in image for image in images)


def _is_over(pod: Mapping[str, Any]) -> bool:
    return json_access.text(pod, "status", "phase") in {"Succeeded", "Failed"}


def _instance(event: DeploymentEvent) -> object:
    return event.environment, event.image.repository, event.image.name, event.platform
