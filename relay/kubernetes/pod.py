"""What does a pod report? One event for each container whose image is known by digest.

    read_pod      what runs: from the statuses. A fact, and it has a time.
    read_pinned   what is asked for: from the specification, where it names a digest. An intention, without a time:
                  the pod may be refused after all, or never start.

**The repository is the specification's, the digest the status's.** `imageID` is written by the container runtime:
its repository may be a mirror's, and without `@algorithm:hex` it is an image id of that node (a configuration's
digest), which names nothing in a registry. Nor does the digest of an image that was loaded into the node or built on
it: its name says so (`origin.py`).

**The time of what runs is its pod's creation**, not the container's start, so that pods of an old ReplicaSet,
whatever they still say and however often they still restart, are older than those of the new one; and it comes from
one clock, the API server's. Only what came into the pod later has the time of its start: an ephemeral container, and
a digest that replaced another in the same pod, as `before` shows. Pods created in the same second count as they
arrive.

**No event has an id.** Intake compares with what the instance last ran, so a report that is repeated is a duplicate
without one. An id made of pod and digest would do harm: the same state, reported again because the API lost it
(`delivery.reassert_after`) or was told something else since, would be taken for a retry and never delivered.

Nothing here raises, whatever the object's shape.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relay.errors import InvalidEvent, InvalidImage
from relay.events.event import DeploymentEvent
from relay.kubernetes import json_access
from relay.kubernetes.naming import Place
from relay.kubernetes.node import platform_of_pod
from relay.kubernetes.origin import is_local, is_nameless
from relay.kubernetes.skip_reason import Skipped
from relay.kubernetes.workload import workload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from relay.events.platform import Platform
    from relay.kubernetes.naming import Naming
    from relay.kubernetes.workload import Workload

#: Containers, init containers (sidecars among them) and ephemeral ones, each beside where their statuses stand.
_KINDS = (
    ("initContainers", "initContainerStatuses"),
    ("containers", "containerStatuses"),
    ("ephemeralContainers", "ephemeralContainerStatuses"),
)

#: A pod with more is not read: no pod is like that, and the API server waits for the admission's answer.
MAX_CONTAINERS = 250

#: Why a container waits whose image is not there.
_UNPULLED = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName"})

#: Characters of the longest name that Kubernetes gives to anything; every event of a pod repeats its names.
MAX_NAME_CHARACTERS = 253

#: An image that is named by its id on the node: `imagePullPolicy: Never` allows that.
_IMAGE_ID = re.compile("(?:sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReading:
    """The events of a pod, in the order of its containers, and how often what was skipped why."""

    events: tuple[DeploymentEvent, ...] = ()
    skipped: Counter[Skipped] = field(default_factory=Counter)


def read_pod(
    pod: Mapping[str, Any],
    naming: Naming,
    *,
    before: Mapping[str, Any] | None = None,
    node_platform: Platform | None = None,
    namespace_labels: Mapping[str, str] | None = None,
    nodes: Mapping[str, Platform] | None = None,
) -> PodReading:
    """Report what a pod runs or ran, as far as it differs from what it ran `before`.

    `pod` and `before` are the decoded JSON of `v1/Pod`, with or without their `kind`; a `before` of another uid does
    not count. `node_platform` is `platform_of_node` of the pod's node, and `namespace_labels` those of its namespace,
    where they are known. `nodes` are the platforms of the cluster's nodes, if a map of them lives: then no platform
    is guessed (`platform_of_pod`).
    """
    known = {container.name: container.ran for container in _containers(_same_pod(before, pod))}
    created = json_access.moment(pod, "metadata", "creationTimestamp")

    def what_runs(container: _Container) -> _Found | Skipped:
        if not container.has_started or (container.is_unpulled and container.name not in known):
            return Skipped.NOT_RUNNING
        if not container.ran:
            return Skipped.DIGEST_UNAVAILABLE
        if container.ran == known.get(container.name):
            return Skipped.UNCHANGED
        if container.is_of_the_node:
            return Skipped.DIGEST_UNAVAILABLE
        came_later = container.is_ephemeral or known.get(container.name)
        times = [created, container.started] if came_later else [created or container.started]
        return _Found(digest=container.ran, time=max(filter(None, times), default=None))

    return _read(
        pod,
        naming,
        what_runs,
        before=before,
        node_platform=node_platform,
        nodes=nodes,
        namespace_labels=namespace_labels,
    )


def read_pinned(
    pod: Mapping[str, Any],
    naming: Naming,
    *,
    before: Mapping[str, Any] | None = None,
    node_platform: Platform | None = None,
    namespace_labels: Mapping[str, str] | None = None,
    nodes: Mapping[str, Platform] | None = None,
) -> PodReading:
    """Report what a pod's specification pins by digest, as far as it differs from `before`; all as in `read_pod`."""
    known = {container.name: container.image for container in _containers(_same_pod(before, pod))}

    def what_is_pinned(container: _Container) -> _Found | Skipped:
        if container.image == known.get(container.name):
            return Skipped.UNCHANGED
        _, pinned, digest = container.image.partition("@")
        if not pinned:
            return Skipped.NOT_PINNED
        return Skipped.DIGEST_UNAVAILABLE if is_local(container.image) else _Found(digest=digest, time=None)

    return _read(
        pod,
        naming,
        what_is_pinned,
        before=before,
        node_platform=node_platform,
        nodes=nodes,
        namespace_labels=namespace_labels,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A digest, unchecked, and since when."""

    digest: str
    time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Container:
    """A container as specified, with its status."""

    name: str
    image: str
    status: Mapping[str, Any]
    is_ephemeral: bool

    @property
    def has_started(self) -> bool:
        """Whether it runs or ever ran; a container between two restarts waits, and its last state tells."""
        state, last = json_access.part(self.status, "state"), json_access.part(self.status, "lastState")
        signs = state.get("running"), state.get("terminated"), last.get("terminated")
        return any(isinstance(sign, dict) for sign in signs)

    @property
    def is_unpulled(self) -> bool:
        """Whether it waits for its image, which may be another than the one that it ran before."""
        return json_access.text(self.status, "state", "waiting", "reason") in _UNPULLED

    @property
    def started(self) -> datetime | None:
        """When it was started, the last time."""
        return (
            json_access.moment(self.status, "state", "running", "startedAt")
            or json_access.moment(self.status, "state", "terminated", "startedAt")
            or json_access.moment(self.status, "lastState", "terminated", "startedAt")
        )

    @property
    def image_id(self) -> str:
        """What the runtime calls the image that it runs or ran."""
        return json_access.text(self.status, "imageID")

    @property
    def is_of_the_node(self) -> bool:
        """Whether its image was loaded into the node or built on it, as its name says."""
        return is_local(self.image_id) or is_nameless(self.image_id) or is_local(self.image)

    @property
    def ran(self) -> str:
        """The digest of the manifest that it runs or ran, "" if its status names none."""
        return self.image_id.rpartition("@")[2] if "@" in self.image_id and self.has_started else ""


def _containers(pod: Mapping[str, Any]) -> Iterator[_Container]:
    for kind, statuses in _KINDS:
        by_name = {json_access.text(status, "name"): status for status in json_access.each(pod, "status", statuses)}
        for specified in json_access.each(pod, "spec", kind):
            name = json_access.text(specified, "name")
            yield _Container(
                name=name,
                image=json_access.text(specified, "image").strip(),
                status=by_name.get(name, {}),
                is_ephemeral=kind == "ephemeralContainers",
            )


def _same_pod(before: Mapping[str, Any] | None, pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `before`, unless it is another pod: a StatefulSet's pods keep their names when they are replaced."""
    if before is None or _has_too_many(before):
        return {}
    same = json_access.text(before, "metadata", "uid") == json_access.text(pod, "metadata", "uid")
    return before if same else {}


def _read(
    pod: Mapping[str, Any],
    naming: Naming,
    find: Callable[[_Container], _Found | Skipped],
    *,
    before: Mapping[str, Any] | None,
    node_platform: Platform | None,
    nodes: Mapping[str, Platform] | None,
    namespace_labels: Mapping[str, str] | None,
) -> PodReading:
    """Make an event of each container in which something is found."""
    namespace, workload = json_access.text(pod, "metadata", "namespace"), workload_of(pod)
    if skipped := _skip_whole(pod, naming, namespace, workload):
        return PodReading(skipped=Counter([skipped]))
    platform = platform_of_pod(pod, node_platform, nodes)
    pod_labels = json_access.labels(pod, "metadata", "labels")
    outcomes: list[DeploymentEvent | Skipped] = []
    if not _same_pod(before, pod):  # volumes are of the specification, and stay as they are
        outcomes += [
            Skipped.IMAGE_VOLUME
            for each in json_access.each(pod, "spec", "volumes")
            if json_access.part(each, "image")
        ]
    for container in _containers(pod):
        place = Place(
            namespace=namespace,
            workload=workload.name,
            kind=workload.kind,
            container=container.name,
            namespace_labels=namespace_labels or {},
            pod_labels=pod_labels,
        )
        found = find(container)
        outcomes.append(found if isinstance(found, Skipped) else _event(container, found, naming, place, platform))
    return PodReading(
        events=tuple(each for each in outcomes if isinstance(each, DeploymentEvent)),
        skipped=Counter(each for each in outcomes if isinstance(each, Skipped)),
    )


def _skip_whole(pod: Mapping[str, Any], naming: Naming, namespace: str, workload: Workload) -> Skipped | None:
    if not all(0 < len(name) <= MAX_NAME_CHARACTERS for name in (namespace, workload.name)):
        return Skipped.NOT_A_POD
    if naming.ignores(namespace):
        return Skipped.NAMESPACE_IGNORED
    if naming.ignores_kind(workload.kind, workload.owner_kind):
        return Skipped.KIND_IGNORED
    if json_access.part(pod, "metadata").get("deletionTimestamp"):
        return Skipped.TERMINATING
    return Skipped.TOO_MANY_CONTAINERS if _has_too_many(pod) else None


def _has_too_many(pod: Mapping[str, Any]) -> bool:
    return sum(1 for kind, _ in _KINDS for _ in json_access.each(pod, "spec", kind)) > MAX_CONTAINERS


def _event(
    container: _Container, found: _Found, naming: Naming, place: Place, platform: Platform | None
) -> DeploymentEvent | Skipped:
    repository = container.image.partition("@")[0]
    if _IMAGE_ID.fullmatch(repository):
        return Skipped.INVALID_IMAGE
    if platform is None:
        return Skipped.PLATFORM_UNKNOWN
    names = naming.of_container(place)
    if names is None:
        return Skipped.LABEL_MISSING
    environment, name = names
    try:
        return DeploymentEvent.from_body(
            {
                "image": {"url": f"{repository}@{found.digest}", "name": name},
                "environment": {"name": environment},
                "platform": platform,
                "source": naming.cluster,
                "time": found.time,
            }
        )
    except InvalidImage:
        return Skipped.INVALID_IMAGE
    except InvalidEvent:
        return Skipped.INVALID_NAME
