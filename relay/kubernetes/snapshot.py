"""The events of all pods of a cluster: for each instance what its newest pod runs, as of the listing. Pure.

Events of single pods never go back in time: an older pod's event is stale after a newer one's. So when a rollout
fails and its new pod is deleted, no remaining pod can report that the old digest runs. A listing can: its events have
the time of the listing, later than the creation of all its pods and earlier than that of future ones.

The exception is a newer pod of the workload that has not started yet. It may be about to replace the others, and its
event must not be stale then. So the others' events have the time of its creation, and its own, arriving later,
counts. A pending pod of the same revision with only pinned images changes nothing and is ignored: it may lack room
for months.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.kubernetes import json_access
from relay.kubernetes.pod import PodReading, read_pod
from relay.kubernetes.skip_reason import SkipReason
from relay.kubernetes.workload import workload_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from relay.events.event import DeploymentEvent
    from relay.events.platform import Platform
    from relay.kubernetes.naming import Naming
    from relay.kubernetes.workload import Workload

#: Labels of pods that name the template from which their controller made them.
_REVISIONS = ("pod-template-hash", "rollouts-pod-template-hash", "controller-revision-hash")

#: Fields of the containers that have to start.
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
    """Return one event for each instance that runs; platforms by node, labels by namespace.

    `at` is a time before the listing, by the API server's clock if it is known. If it is late, the next snapshot
    reports pods that started within the difference. `pods` are read once, in any order, and not kept.
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
    events = (listing.event_of(each, at) for each in listing.candidates.values())
    return PodReading(events=tuple(events), skipped=listing.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An event, with what is needed of its pod."""

    event: DeploymentEvent
    workload: tuple[str, Workload]
    created: datetime | None
    revision: str
    has_ended: bool

    @property
    def rank(self) -> tuple[bool, datetime]:
        """Pods that have not ended rank higher, and among them the newest."""
        return not self.has_ended, self.created or _LONG_AGO


class _Starting(NamedTuple):
    """A pod with a container that has not started yet."""

    created: datetime
    #: The revision of its template; "" if it is unknown, or its images are not pinned.
    revision: str


@dataclass(kw_only=True)
class _Listing:
    """The pods read so far: an event for each instance, whatever the number of pods."""

    candidates: dict[object, _Candidate] = field(default_factory=dict)
    starting: dict[tuple[str, Workload], set[_Starting]] = field(default_factory=dict)
    skipped: Counter[SkipReason] = field(default_factory=Counter)

    def add(self, pod: Mapping[str, Any], reading: PodReading) -> None:
        workload, has_ended = (json_access.text(pod, "metadata", "namespace"), workload_of(pod)), _has_ended(pod)
        created, revision = json_access.moment(pod, "metadata", "creationTimestamp"), _revision(pod)
        self.skipped.update(reading.skipped)
        if reading.skipped[SkipReason.NOT_RUNNING] and not has_ended and created:
            starting = _Starting(created, revision if _is_pinned(pod) else "")
            self.starting.setdefault(workload, set()).add(starting)
        for event in reading.events:
            self._add(
                _Candidate(event=event, workload=workload, created=created, revision=revision, has_ended=has_ended)
            )

    def _add(self, candidate: _Candidate) -> None:
        instance = _instance(candidate.event)
        if instance in self.candidates:
            self.skipped[SkipReason.REPLICA] += 1
            candidate = max(self.candidates[instance], candidate, key=lambda each: each.rank)
        self.candidates[instance] = candidate

    def event_of(self, candidate: _Candidate, at: datetime) -> DeploymentEvent:
        """Return the event with its time, rounded down to seconds like the times of creation."""
        newer = (
            each.created
            for each in self.starting.get(candidate.workload, ())
            if each.created > (candidate.created or _LONG_AGO)
            and not (each.revision and each.revision == candidate.revision)
        )
        time = min((at.replace(microsecond=0), *newer))
        return candidate.event.model_copy(update={"time": time})


def _revision(pod: Mapping[str, Any]) -> str:
    """Return the revision of a pod's template, "" if it is unknown."""
    labels = json_access.labels(pod, "metadata", "labels")
    return next(filter(None, map(labels.get, _REVISIONS)), "")


def _is_pinned(pod: Mapping[str, Any]) -> bool:
    images = (json_access.text(each, "image") for kind in _KINDS for each in json_access.each(pod, "spec", kind))
    return all("@" in image for image in images)


def _has_ended(pod: Mapping[str, Any]) -> bool:
    return json_access.text(pod, "status", "phase") in {"Succeeded", "Failed"}


def _instance(event: DeploymentEvent) -> object:
    return event.environment, event.image.repository, event.image.name, event.platform
