"""Cache of what each pod ran when it was last read, to detect changes. Pure.

A pod's status changes with each probe, its images rarely. An entry is JSON of about 200 bytes for each container,
until the pod is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json, to_json

from relay.kubernetes import json_access
from relay.kubernetes.workload import Workload, workload_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS = ("initContainers", "containers", "ephemeralContainers")


class _Version(NamedTuple):
    """What distinguishes pods of a workload."""

    #: In Kubernetes' ISO 8601, which sorts by time.
    created: str
    #: Hashes of the containers' images by container name.
    images: Mapping[str, int]

    def was_replaced_in(self, remaining: _Version) -> bool:
        """Return whether a remaining pod is older, and runs another image in a container that both have."""
        return remaining.created < self.created and any(
            self.images.get(name, image) != image for name, image in remaining.images.items()
        )


class PodCache:
    """Pods by uid."""

    def __init__(self) -> None:
        self._pods: dict[str, bytes] = {}
        self._workloads: dict[tuple[str, Workload], dict[str, _Version]] = {}

    def __len__(self) -> int:
        return len(self._pods)

    def before(self, pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the `before` of `read_pod`."""
        kept = self._pods.get(_uid(pod))
        return from_json(kept) if kept else None

    def add(self, pod: Mapping[str, Any]) -> None:
        """Add or replace a pod."""
        self._pods[_uid(pod)] = to_json(_entry(pod))
        if images := _images(pod):
            version = _Version(json_access.text(pod, "metadata", "creationTimestamp"), images)
            self._workloads.setdefault(_workload(pod), {})[_uid(pod)] = version

    def remove(self, pod: Mapping[str, Any]) -> bool:
        """Remove a deleted pod; return whether older pods of its workload remain that run other images.

        Then its rollout was undone: its report no longer holds, and the remaining pods were reported before it. The
        end of a run (a Job's pod) undoes no rollout.
        """
        self._pods.pop(_uid(pod), None)
        workload = self._workloads.get(_workload(pod), {})
        gone = workload.pop(_uid(pod), None)
        if not workload:
            self._workloads.pop(_workload(pod), None)
        return gone is not None and not workload_of(pod).is_run and any(map(gone.was_replaced_in, workload.values()))


def _entry(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "metadata": {"uid": _uid(pod)},
        "spec": {
            kind: [{"name": json_access.text(each, "name")} for each in json_access.each(pod, "spec", kind)]
            for kind in _KINDS
        },
        "status": {
            _statuses(kind): [_status(each) for each in json_access.each(pod, "status", _statuses(kind))]
            for kind in _KINDS
        },
    }


def _status(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "name": json_access.text(status, "name"),
        "imageID": json_access.text(status, "imageID"),
        "state": {key: {} for key in json_access.part(status, "state")},
        "lastState": {key: {} for key in json_access.part(status, "lastState")},
    }


def _statuses(kind: str) -> str:
    return f"{kind.removesuffix('s')}Statuses"


def _images(pod: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the hashes of the started containers' images by name, without ephemeral containers."""
    statuses = (each for kind in _KINDS[:2] for each in json_access.each(pod, "status", _statuses(kind)))
    named = ((json_access.text(each, "name"), json_access.text(each, "imageID")) for each in statuses)
    return {name: hash(image) for name, image in named if image}


def _workload(pod: Mapping[str, Any]) -> tuple[str, Workload]:
    return json_access.text(pod, "metadata", "namespace"), workload_of(pod)


def _uid(pod: Mapping[str, Any]) -> str:
    return json_access.text(pod, "metadata", "uid")
