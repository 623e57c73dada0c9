"""The events of a pod: one for each container whose image is known by digest. Pure; never raises.

    read_pod      running images, from the statuses: a fact, with a time
    read_pinned   requested images, from the specification, if it has a digest: an intention, without a time, because
                  the pod may still be refused or never start

**The repository is the specification's, the digest the status's.** The container runtime writes `imageID`: its
repository may be a mirror's, and without `@algorithm:hex` it is an image id of that node (the digest of a
configuration), which is in no registry. Neither is the digest of an image that was loaded into the node or built on
it (`origin`).

**The time of a running image is its pod's creation**, not the container's start, so that pods of an old ReplicaSet
are older than those of the new one however often they restart; and it comes from one clock, the API server's. Only a
later addition to the pod has the time of its start: an ephemeral container, or a digest that replaced another in the
same pod (`before`). Pods created in the same second count in the order of their arrival.

**No event has an id.** Intake compares with the instance's state, so a repeated report is a duplicate without one. An
id made of pod and digest would be harmful: the same state, reported again because the destination lost it
(`delivery.reassert_after`) or has another state since, would be a duplicate and never delivered.
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
from relay.kubernetes.skip_reason import SkipReason
from relay.kubernetes.workload import workload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from relay.events.platform import Platform
    from relay.kubernetes.naming import Naming
    from relay.kubernetes.workload import Workload

#: Fields of containers, init containers (including sidecars) and ephemeral containers, with those of their statuses.
_KINDS = (
    ("initContainers", "initContainerStatuses"),
    ("containers", "containerStatuses"),
    ("ephemeralContainers", "ephemeralContainerStatuses"),
)

#: Maximum containers of a pod that is read: no real pod has more, and the API server waits for the review's response.
MAX_CONTAINERS = 250

#: Reasons of a container that waits for its image.
_UNPULLED = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName"})

#: Maximum length of any name in Kubernetes; every event of a pod repeats its names.
MAX_NAME_CHARACTERS = 253

#: An image specified by its id on the node, which `imagePullPolicy: Never` allows.
_IMAGE_ID = re.compile("(?:sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReading:
    """The events of a pod, in the order of its containers, and the number of skipped ones by reason."""

    events: tuple[DeploymentEvent, ...] = ()
    skipped: Counter[SkipReason] = field(default_factory=Counter)


def read_pod(
    pod: Mapping[str, Any],
    naming: Naming,
    *,
    before: Mapping[str, Any] | None = None,
    node_platform: Platform | None = None,
    namespace_labels: Mapping[str, str] | None = None,
    nodes: Mapping[str, Platform] | None = None,
) -> PodReading:
    """Return the events of images that a pod runs or ran, and did not run `before`.

    `pod` and `before` are decoded `v1/Pod`s, with or without their `kind`; a `before` of another uid is ignored.
    `node_platform` and `namespace_labels` are those of the pod's node and namespace, if they are known. `nodes` are
    the platforms of the cluster's nodes, if there is a current map: then no platform is guessed (`platform_of_pod`).
    """
    known = {container.name: container.ran for container in _containers(_same_pod(before, pod))}
    created = json_access.moment(pod, "metadata", "creationTimestamp")

    def running(container: _Container) -> _Found | SkipReason:
        if not container.has_started or (container.is_unpulled and container.name not in known):
            return SkipReason.NOT_RUNNING
        if not container.ran:
            return SkipReason.DIGEST_UNAVAILABLE
        if container.ran == known.get(container.name):
            return SkipReason.UNCHANGED
        if container.is_local_image:
            return SkipReason.DIGEST_UNAVAILABLE
        is_addition = container.is_ephemeral or known.get(container.name)
        times = [created, container.started] if is_addition else [created or container.started]
        return _Found(digest=container.ran, time=max(filter(None, times), default=None))

    return _read(
        pod,
        naming,
        running,
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
    """Return the events of images that a pod's specification pins by digest, and not in `before`; see `read_pod`."""
    known = {container.name: container.image for container in _containers(_same_pod(before, pod))}

    def requested(container: _Container) -> _Found | SkipReason:
        if container.image == known.get(container.name):
            return SkipReason.UNCHANGED
        _, pinned, digest = container.image.partition("@")
        if not pinned:
            return SkipReason.NOT_PINNED
        return SkipReason.DIGEST_UNAVAILABLE if is_local(container.image) else _Found(digest=digest, time=None)

    return _read(
        pod,
        naming,
        requested,
        before=before,
        node_platform=node_platform,
        nodes=nodes,
        namespace_labels=namespace_labels,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A digest, not validated yet, and the time of its deployment."""

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
        """Whether it runs or ran; between two restarts only its last state shows that."""
        state, last = json_access.part(self.status, "state"), json_access.part(self.status, "lastState")
        signs = state.get("running"), state.get("terminated"), last.get("terminated")
        return any(isinstance(sign, dict) for sign in signs)

    @property
    def is_unpulled(self) -> bool:
        """Whether it waits for its image, which may differ from the one that it ran before."""
        return json_access.text(self.status, "state", "waiting", "reason") in _UNPULLED

    @property
    def started(self) -> datetime | None:
        """The time of its last start."""
        return (
            json_access.moment(self.status, "state", "running", "startedAt")
            or json_access.moment(self.status, "state", "terminated", "startedAt")
            or json_access.moment(self.status, "lastState", "terminated", "startedAt")
        )

    @property
    def image_id(self) -> str:
        """The runtime's name of the image that it runs or ran."""
        return json_access.text(self.status, "imageID")

    @property
    def is_local_image(self) -> bool:
        """Whether its image is in no registry, by its name."""
        return is_local(self.image_id) or is_nameless(self.image_id) or is_local(self.image)

    @property
    def ran(self) -> str:
        """The digest of the manifest that it runs or ran, "" if its status has none."""
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
    """Return `before`, unless it is another pod: a StatefulSet's pods are replaced under the same name."""
    if before is None or _has_too_many(before):
        return {}
    same = json_access.text(before, "metadata", "uid") == json_access.text(pod, "metadata", "uid")
    return before if same else {}


def _read(
    pod: Mapping[str, Any],
    naming: Naming,
    find: Callable[[_Container], _Found | SkipReason],
    *,
    before: Mapping[str, Any] | None,
    node_platform: Platform | None,
    nodes: Mapping[str, Platform] | None,
    namespace_labels: Mapping[str, str] | None,
) -> PodReading:
    """Return the events of the containers in which `find` finds a digest."""
    namespace, workload = json_access.text(pod, "metadata", "namespace"), workload_of(pod)
    if skipped := _skip_whole(pod, naming, namespace, workload):
        return PodReading(skipped=Counter([skipped]))
    platform = platform_of_pod(pod, node_platform, nodes)
    pod_labels = json_access.labels(pod, "metadata", "labels")
    outcomes: list[DeploymentEvent | SkipReason] = []
    if not _same_pod(before, pod):  # volumes cannot change in a pod
        outcomes += [
            SkipReason.IMAGE_VOLUME
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
        outcomes.append(found if isinstance(found, SkipReason) else _event(container, found, naming, place, platform))
    return PodReading(
        events=tuple(each for each in outcomes if isinstance(each, DeploymentEvent)),
        skipped=Counter(each for each in outcomes if isinstance(each, SkipReason)),
    )


def _skip_whole(pod: Mapping[str, Any], naming: Naming, namespace: str, workload: Workload) -> SkipReason | None:
    if not all(0 < len(name) <= MAX_NAME_CHARACTERS for name in (namespace, workload.name)):
        return SkipReason.NOT_A_POD
    if naming.ignores(namespace):
        return SkipReason.NAMESPACE_IGNORED
    if naming.ignores_kind(workload.kind, workload.owner_kind):
        return SkipReason.KIND_IGNORED
    if json_access.part(pod, "metadata").get("deletionTimestamp"):
        return SkipReason.TERMINATING
    return SkipReason.TOO_MANY_CONTAINERS if _has_too_many(pod) else None


def _has_too_many(pod: Mapping[str, Any]) -> bool:
    return sum(1 for kind, _ in _KINDS for _ in json_access.each(pod, "spec", kind)) > MAX_CONTAINERS


def _event(
    container: _Container, found: _Found, naming: Naming, place: Place, platform: Platform | None
) -> DeploymentEvent | SkipReason:
    repository = container.image.partition("@")[0]
    if _IMAGE_ID.fullmatch(repository):
        return SkipReason.INVALID_IMAGE
    if platform is None:
        return SkipReason.PLATFORM_UNKNOWN
    names = naming.of_container(place)
    if names is None:
        return SkipReason.LABEL_MISSING
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
        return SkipReason.INVALID_IMAGE
    except InvalidEvent:
        return SkipReason.INVALID_NAME
